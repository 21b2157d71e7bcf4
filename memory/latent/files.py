"""Adapters in files: safetensors in the names of PEFT, and what they belong to.

A folder holds ``adapter_model.safetensors`` and ``adapter_config.json``, which PEFT can read (it
would apply the update to every token), ``comp_embeddings.safetensors``, ``ccm_config.json`` and
a card. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from ...core.errors import InputError, StateError
from .conditional_lora import TARGETS, ConditionalLora
from .plan import Spec

__all__ = ["fingerprint", "load", "read_official", "save"]

_FORMAT = "laconic-ccm"
_VERSION = 1
_CONFIG = "ccm_config.json"
_PEFT_CONFIG = "adapter_config.json"
_ADAPTER = "adapter_model.safetensors"
_COMP = "comp_embeddings.safetensors"
_COMP_KEY = "comp_embeddings.weight"
_PREFIX = "base_model.model."

_OFFICIAL = ("pytorch_model.bin", "adapter_model.bin", "model.safetensors", _ADAPTER)
_OFFICIAL_COMP = "embed_tokens.comp_embeddings.weight"

_SAMPLE = 16
"""Values of each projection of the queries that tell one base model from another."""
_TOLERANCE = 0.02
"""Relative difference of those that rounding to 16 bits may make."""

_CARD = """---
library_name: laconic
base_model: {base}
tags: [context-compression, ccm]
---
# CCM adapter

A conditional LoRA (rank {rank}, alpha {alpha:g}) and {n} COMP embeddings for `{base}`: they turn
each chunk of a conversation into {n} key/value entries per layer (update: {update}, positions:
{positions}, {recurrent}).

```python
from laconic.memory.latent import CCM

ccm = CCM.from_pretrained(model, "this folder")
```

Method: Kim et al., "Compressed Context Memory for Online Language Model Interaction", ICLR 2024,
arXiv 2312.03414. The weights are of use with the base model that they were trained for, and are
refused by others.
"""


def save(
    folder: str | Path, spec: Spec, adapter: ConditionalLora, model: Any, tokenizer: Any = None
) -> None:
    """Write an adapter and what it belongs to.

    Parameters
    ----------
    folder
        Made if missing; its files of the same names are replaced.
    spec, adapter, model
        What is saved, and the base model, which is not.
    tokenizer
        The base model's tokenizer, if loading shall make sure that it is the same.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (a, b) in adapter.tensors().items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b
    base = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    contents = {
        _ADAPTER: _bytes(tensors),
        _COMP: _bytes({_COMP_KEY: adapter.comp_embeddings}),
        _PEFT_CONFIG: _json(_peft_config(adapter, base)),
    }
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "spec": asdict(spec),
        "base": fingerprint(model, adapter),
        "tokenizer": _tokenizer(tokenizer),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    card = _CARD.format(
        base=base,
        rank=adapter.rank,
        alpha=adapter.alpha,
        n=spec.comp_tokens,
        update=spec.update,
        positions=spec.positions,
        recurrent="chunks see the memory" if spec.recurrent else "chunks stand alone",
    )
    # Without its config a folder is no adapter, so it comes last.
    for name, content in (contents | {"README.md": card.encode(), _CONFIG: _json(header)}).items():
        temporary = folder / f".{name}.part"
        temporary.write_bytes(content)
        temporary.replace(folder / name)


def load(folder: str | Path, model: Any, tokenizer: Any = None) -> tuple[Spec, ConditionalLora]:
    """Read an adapter for a model.

    Raises
    ------
    StateError
        The folder holds no adapter or a damaged one, or one of another model or tokenizer, or
        its COMP embeddings are not as many as it says.
    ModelError
        The model has no projections that can be adapted.
    """
    folder = Path(folder)
    header = _read_json(folder / _CONFIG)
    if header.get("format") != _FORMAT:
        raise StateError(f"{folder} holds no CCM adapter of laconic")
    if header.get("version") != _VERSION:
        raise StateError(
            f"{folder} has version {header.get('version')!r} of the format, and this laconic reads "
            f"version {_VERSION}"
        )
    try:
        spec = Spec(**header["spec"])
        checksums, base = header["sha256"], header["base"]
        contents = {name: (folder / name).read_bytes() for name in (_ADAPTER, _COMP, _PEFT_CONFIG)}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != checksums[name]:
                raise StateError(f"{folder / name} is damaged: it is not what was saved")
        peft = json.loads(contents[_PEFT_CONFIG])
        rank, alpha, drop = int(peft["r"]), float(peft["lora_alpha"]), float(peft["lora_dropout"])
        tensors = from_bytes(contents[_ADAPTER]) | from_bytes(contents[_COMP])
    except (OSError, KeyError, TypeError, ValueError, InputError, SafetensorError) as error:
        if isinstance(error, StateError):
            raise
        raise StateError(f"{folder} is damaged: {error!r}") from error
    if tokenizer is not None and header.get("tokenizer") not in (None, _tokenizer(tokenizer)):
        raise StateError(f"{folder} was trained with another tokenizer; give the base model's own")
    adapter = ConditionalLora(model, spec.comp_tokens, rank=rank, alpha=alpha, dropout=drop)
    _compare(folder, base, fingerprint(model, adapter))
    _fill(folder, adapter, tensors, tensors.get(_COMP_KEY))
    return spec, adapter.eval()


def read_official(folder: str | Path, spec: Spec, model: Any) -> ConditionalLora:
    """Read an adapter that the official code of Kim et al. 2024 saved.

    Released adapters lie in folders with ``pytorch_model.bin`` and ``adapter_config.json``; those
    of merged memories have twice as many embeddings, of which the second half stands for
    placeholders that are not needed here. What the base model was fine-tuned to before (the
    adapter of its ``--comp_type no`` run) must have been merged into `model`.

    Parameters
    ----------
    folder
        Where it lies.
    spec
        The memory that it was trained for; official folders do not say so.
    model
        The base model.

    Raises
    ------
    StateError
        There is no such file, it cannot be read without running code, it is of another model, or
        it has another number of COMP tokens.
    """
    folder = Path(folder)
    tensors = _official_tensors(folder)
    comp = next((v for k, v in tensors.items() if k.endswith(_OFFICIAL_COMP)), None)
    if comp is None:
        raise StateError(f"{folder} has no embeddings of COMP tokens")
    if spec.update == "merge" and len(comp) == 2 * spec.comp_tokens:
        comp = comp[: spec.comp_tokens]
    config = _read_json(folder / _PEFT_CONFIG) if (folder / _PEFT_CONFIG).exists() else {}
    first = next((v for k, v in tensors.items() if k.endswith("lora_A.weight")), None)
    if first is None or first.dim() != 2:
        raise StateError(f"{folder} has no low-rank updates")
    adapter = ConditionalLora(
        model, spec.comp_tokens, rank=len(first), alpha=float(config.get("lora_alpha", 16))
    )
    _fill(folder, adapter, tensors, comp)
    return adapter.eval()


def fingerprint(model: Any, adapter: ConditionalLora) -> dict[str, Any]:
    """What an adapter belongs to: the shapes of what it adapts, and some of the weights."""
    shapes = [[n, list(model.get_submodule(n).weight.shape)] for n in adapter.names]
    embeddings = model.get_input_embeddings().weight
    return {
        "class": type(model).__name__,
        "embeddings": list(embeddings.shape),
        "shapes": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        "sample": [
            model.get_submodule(name).weight.detach().flatten()[:_SAMPLE].float().tolist()
            for name in adapter.names
            if name.endswith(TARGETS[0])
        ],
    }


def _official_tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = next((folder / name for name in _OFFICIAL if (folder / name).is_file()), None)
    if file is None:
        raise StateError(f"{folder} holds none of {', '.join(_OFFICIAL)}")
    try:
        if file.suffix == ".bin":
            found = torch.load(file, map_location="cpu", weights_only=True)
        else:
            found = from_bytes(file.read_bytes())
        # Their names changed over time; PEFT adds the name of the adapter while it is in use.
        return {
            str(name)
            .replace("gist_embeddings", "comp_embeddings")
            .replace(".default.weight", ".weight"): tensor
            for name, tensor in found.items()
        }
    except Exception as error:
        raise StateError(f"{file} is damaged or no plain tensors: {error}") from error


def _fill(
    folder: Path,
    adapter: ConditionalLora,
    tensors: Mapping[str, torch.Tensor],
    comp: torch.Tensor | None,
) -> None:
    """Give the adapter its values."""
    if comp is None or len(comp) != len(adapter.comp_embeddings):
        raise StateError(
            f"{folder} has {0 if comp is None else len(comp)} COMP embeddings, and the memory "
            f"needs {len(adapter.comp_embeddings)}"
        )
    targets = {_COMP_KEY: (adapter.comp_embeddings, comp)}
    for name, parts in adapter.tensors().items():
        for part, parameter in zip("AB", parts, strict=True):
            key = f"{_PREFIX}{name}.lora_{part}.weight"
            if key not in tensors:
                raise StateError(f"{folder} has no {key}; it is of another model, or damaged")
            targets[key] = (parameter, tensors[key])
    for key, (parameter, given) in targets.items():
        if given.shape != parameter.shape:
            raise StateError(
                f"{folder} has {key} of shape {tuple(given.shape)}, and the model needs "
                f"{tuple(parameter.shape)}; it is of another model"
            )
        if not given.isfinite().all():
            raise StateError(f"{folder} has values in {key} that are no numbers")
        with torch.no_grad():
            parameter.copy_(given)


def _compare(folder: Path, theirs: Any, ours: dict[str, Any]) -> None:
    for part in ("class", "embeddings", "shapes"):
        if theirs.get(part) != ours[part]:
            raise StateError(
                f"{folder} is of another base model: its {part} is {theirs.get(part)!r:.80}, and "
                f"the model's {ours[part]!r:.80}"
            )
    given, own = torch.tensor(theirs["sample"]), torch.tensor(ours["sample"])
    if given.shape != own.shape or not (given - own).norm() <= _TOLERANCE * own.norm():
        raise StateError(f"{folder} is of another base model: the weights differ")


def _peft_config(adapter: ConditionalLora, base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": list(TARGETS),
        "bias": "none",
        "inference_mode": True,
    }


def _bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    return to_bytes(held, {"format": "pt"})


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is missing or damaged: {error}") from error
    if not isinstance(found, dict):
        raise StateError(f"{path} is damaged: expected an object")
    return found


def _tokenizer(tokenizer: Any) -> str | None:
    if tokenizer is None:
        return None
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()
