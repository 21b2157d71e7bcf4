"""A memory's state in a file: safetensors, with a header that says what it belongs to.

The file is written beside its place and moved there, so that a crash leaves the old one whole.
Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..core.errors import StateError
from .stored import flush

__all__ = ["Content", "digest", "model_fingerprint", "read", "tokenizer_fingerprint", "write"]

_FORMAT = "laconic-memory"
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Content:
    """What stands in a file.

    Attributes
    ----------
    belongs_to
        Fingerprints of what the state is of, by name.
    header
        All that is no tensor.
    tensors
        By name.
    """

    belongs_to: Mapping[str, str]
    header: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def write(path: str | Path, content: Content) -> int:
    """Write a file, whole or not at all; gives its size in bytes.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    path = Path(path)
    held = {name: tensor.contiguous().cpu() for name, tensor in content.tensors.items()}
    header = json.dumps({"belongs_to": content.belongs_to, **content.header})
    about = {"format": _FORMAT, "version": _VERSION, "header": header}
    written = to_bytes(held, {**about, "checksum": _checksum(header, held)})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        flush(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return len(written)


def read(path: str | Path, belongs_to: Mapping[str, str]) -> Content:
    """Read a file of a state that belongs to the same.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    StateError
        It is damaged, or belongs to something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            # Copies, for what is read is a part of the file, and changes when that does.
            held = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise StateError(f"{path} is damaged or no memory: {error}") from error
    if about.get("format") != _FORMAT:
        raise StateError(f"{path} is no memory")
    if about.get("version") != _VERSION:
        raise StateError(
            f"{path} has version {about.get('version')!r} of the format, and this laconic reads "
            f"version {_VERSION}"
        )
    if _checksum(about.get("header", ""), held) != about.get("checksum"):
        raise StateError(f"{path} is damaged: what it holds is not what was saved")
    header = json.loads(about["header"])
    theirs = header.pop("belongs_to")
    for part in {**theirs, **belongs_to}:
        if theirs.get(part) != belongs_to.get(part):
            raise StateError(
                f"{path} was saved with another {part}; load it with the one that it was saved with"
            )
    for name, tensor in held.items():
        # The very first token is infinitely unexpected.
        bad = tensor.isnan() if name.endswith(".nll") else ~tensor.isfinite()
        if bad.any():
            raise StateError(f"{path} holds values in {name} that are no numbers")
    return Content(theirs, header, held)


def model_fingerprint(model: Any) -> str:
    """The shapes of all weights, a few values of each, and what positions and windows are."""
    described = [
        [name, str(p.dtype), list(p.shape), p.detach().flatten()[:16].float().tolist()]
        for name, p in model.named_parameters()
    ]
    config = model.config.get_text_config(decoder=True)
    settings = [
        getattr(config, name, None) for name in ("rope_parameters", "sliding_window", "layer_types")
    ]
    return digest([type(model).__name__, described, settings])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """The vocabulary."""
    return digest(sorted(tokenizer.get_vocab().items()))


def digest(value: Any) -> str:
    """A sha256 of what JSON makes of it."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def _checksum(header: str, held: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256(header.encode())
    for name in sorted(held):
        tensor = held[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
