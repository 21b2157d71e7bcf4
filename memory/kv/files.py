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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ...core.errors import StateError
from .cache import FullLayer
from .engine import Engine, State

__all__ = ["load", "save", "tensors"]

_FORMAT = "laconic-kv-memory"
_VERSION = 1
_COUNTERS = ("position", "seen", "turn")


def tensors(state: State) -> dict[str, torch.Tensor]:
    """All tensors of a state, by name."""
    found = {
        f"layers.{i}.{name}": tensor
        for i, layer in enumerate(state.cache.layers)
        for name, tensor in layer.tensors().items()
    }
    for i, weights in (state.recorder.weights if state.recorder else {}).items():
        found[f"attention.{i}"] = weights
    if state.logits is not None:
        found["logits"] = state.logits
    return found


def save(path: str | Path, state: State, engine: Engine, tokenizer: Any) -> None:
    """Write a state, whole or not at all.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    path = Path(path)
    held = {name: tensor.contiguous().cpu() for name, tensor in tensors(state).items()}
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "belongs_to": _fingerprints(engine, tokenizer),
        "counters": {name: getattr(state, name) for name in _COUNTERS},
        "windows": _windows(state),
        "checksum": _checksum(held),
    }
    content = to_bytes(held, {name: json.dumps(value) for name, value in header.items()})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | Path, engine: Engine, tokenizer: Any) -> State:
    """Read a state.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    StateError
        It is damaged, or does not belong to this model, tokenizer, policy and budget.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            header = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise StateError(f"{path} is damaged or no memory: {error}") from error
    if header.get("format") != _FORMAT:
        raise StateError(f"{path} is no memory")
    if header.get("version") != _VERSION:
        raise StateError(
            f"{path} has version {header.get('version')!r} of the format, and this laconic reads "
            f"version {_VERSION}"
        )
    ours = _fingerprints(engine, tokenizer)
    for part, theirs in header["belongs_to"].items():
        if theirs != ours.get(part):
            raise StateError(
                f"{path} was saved with another {part}; load it with the one that it was saved with"
            )
    if _checksum(held) != header["checksum"]:
        raise StateError(f"{path} is damaged: what it holds is not what was saved")
    for name, tensor in held.items():
        if tensor.is_floating_point() and tensor.isnan().any():
            raise StateError(f"{path} holds values in {name} that are no numbers")
    return _rebuilt(path, held, header, engine)


def _rebuilt(
    path: str | Path, held: Mapping[str, torch.Tensor], header: Mapping[str, Any], engine: Engine
) -> State:
    state = engine.start()
    device = engine.model.device
    try:
        for name in _COUNTERS:
            setattr(state, name, int(header["counters"][name]))
        windows = iter(header["windows"])
        for i, layer in enumerate(state.cache.layers):
            prefix = f"layers.{i}."
            own = {
                name.removeprefix(prefix): tensor.to(device)
                for name, tensor in held.items()
                if name.startswith(prefix)
            }
            if own:
                layer.lazy_initialization(own["keys"], own["values"])
                layer.keys, layer.values = own.pop("keys"), own.pop("values")
            if isinstance(layer, FullLayer):
                layer.notes = own
            else:
                layer.cumulative_length = int(next(windows))
        if state.recorder is not None:
            state.recorder.weights = {
                int(name.removeprefix("attention.")): tensor.to(device)
                for name, tensor in held.items()
                if name.startswith("attention.")
            }
        state.logits = held["logits"].to(device) if "logits" in held else None
    except (KeyError, ValueError, TypeError, StopIteration) as error:
        raise StateError(f"{path} is damaged: {error!r}") from error
    return state


def _windows(state: State) -> list[int]:
    return [layer.cumulative_length for _, layer in state.cache.sliding()]


def _checksum(held: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(held):
        tensor = held[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fingerprints(engine: Engine, tokenizer: Any) -> dict[str, str]:
    """What a state belongs to; a state of something else would be read as nonsense."""
    return {
        "model": _model(engine.model),
        "tokenizer": _digest(sorted(tokenizer.get_vocab().items())),
        "policy": _digest([engine.policy.name, asdict(engine.policy)]),  # type: ignore[call-overload]
        "budget": _digest([engine.pot, engine.keep, engine.rerotate]),
    }


def _model(model: Any) -> str:
    """The shapes of all weights, and a few values of each."""
    described = [
        [name, str(p.dtype), list(p.shape), p.detach().flatten()[:16].float().tolist()]
        for name, p in model.named_parameters()
    ]
    return _digest([type(model).__name__, described])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
