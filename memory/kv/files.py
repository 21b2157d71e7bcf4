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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ...core.errors import StateError
from .cache import BoundedCache, FullLayer, SlidingLayer, Storage
from .engine import Engine, State

__all__ = ["Saved", "load", "save", "tensors"]

_FORMAT = "laconic-kv-memory"
_VERSION = "1"
_COUNTERS = ("position", "seen", "turn", "answered")


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written.

    Attributes
    ----------
    nbytes
        Size of the file.
    error
        Relative error of the keys and values in it that quantization has made: root of the sum
        of squares by that of the values. 0 if nothing is quantized.
    """

    nbytes: int
    error: float


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


def save(
    path: str | Path, state: State, engine: Engine, tokenizer: Any, storage: Storage | None
) -> Saved:
    """Write a state, whole or not at all; `storage` None for the one that it is in.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """
    path = Path(path)
    cache = state.cache if storage is None else _converted(state, engine, storage)
    held = tensors(replace(state, cache=cache))
    held = {name: tensor.contiguous().cpu() for name, tensor in held.items()}
    header = json.dumps(
        {
            "belongs_to": _fingerprints(engine, tokenizer),
            "counters": {name: getattr(state, name) for name in _COUNTERS},
            "layers": [
                [storage or _storage(layer, engine), _end(layer, state)]
                for layer in state.cache.layers
            ],
        }
    )
    content = to_bytes(
        held,
        {
            "format": _FORMAT,
            "version": _VERSION,
            "header": header,
            "checksum": _checksum(header, held),
        },
    )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        _flush(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return Saved(len(content), cache.error)


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
    ours = _fingerprints(engine, tokenizer)
    for part, theirs in header["belongs_to"].items():
        if theirs != ours.get(part):
            raise StateError(
                f"{path} was saved with another {part}; load it with the one that it was saved with"
            )
    for name, tensor in held.items():
        # The very first token is infinitely unexpected.
        bad = tensor.isnan() if name.endswith(".nll") else ~tensor.isfinite()
        if bad.any():
            raise StateError(f"{path} holds values in {name} that are no numbers")
    try:
        return _rebuilt(held, header, engine)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StateError(f"{path} is damaged: {error!r}") from error


def _flush(folder: Path) -> None:
    """Let the new name survive a power failure; Windows has no such thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _rebuilt(held: Mapping[str, torch.Tensor], header: Mapping[str, Any], engine: Engine) -> State:
    state = engine.start()
    device = engine.model.device
    for name in _COUNTERS:
        setattr(state, name, int(header["counters"][name]))
    for i, (layer, (storage, end)) in enumerate(
        zip(state.cache.layers, header["layers"], strict=True)
    ):
        prefix = f"layers.{i}."
        own = {
            name.removeprefix(prefix): tensor.to(device)
            for name, tensor in held.items()
            if name.startswith(prefix)
        }
        if storage == _storage(layer, engine):
            layer.restore(own, end)
        elif own:
            stored = engine.layer(i, storage)
            stored.restore(own, end)
            layer.take(*stored.read(), end)
            if isinstance(layer, FullLayer):
                layer.notes = stored.notes
    if state.recorder is not None:
        state.recorder.weights = {
            int(name.removeprefix("attention.")): tensor.to(device)
            for name, tensor in held.items()
            if name.startswith("attention.")
        }
    state.logits = held["logits"].to(device) if "logits" in held else None
    return state


def _converted(state: State, engine: Engine, storage: Storage) -> BoundedCache:
    """The entries of a state held in another way, those of sliding windows too."""
    layers = []
    for i, layer in enumerate(state.cache.layers):
        other = engine.layer(i, storage)
        if layer.tensors():
            other.take(*layer.read(), _end(layer, state))
        other.notes = layer.notes if isinstance(layer, FullLayer) else {}
        layers.append(other)
    return BoundedCache(layers)


def _storage(layer: FullLayer | SlidingLayer, engine: Engine) -> Storage:
    return engine.storage if isinstance(layer, FullLayer) else "rotated"


def _end(layer: FullLayer | SlidingLayer, state: State) -> int:
    """The position behind the last entry of a layer."""
    return state.position if isinstance(layer, FullLayer) else layer.cumulative_length


def _checksum(header: str, held: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(held):
        tensor = held[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _fingerprints(engine: Engine, tokenizer: Any) -> dict[str, str]:
    """What a state belongs to; a state of something else would be read as nonsense."""
    return {
        "model": _model(engine.model),
        "tokenizer": _digest(sorted(tokenizer.get_vocab().items())),
        "policy": _digest(repr(engine.policy)),
        "budget": _digest([engine.pot, engine.keep, engine.rerotate]),
    }


def _model(model: Any) -> str:
    """The shapes of all weights, a few values of each, and what positions and windows are."""
    described = [
        [name, str(p.dtype), list(p.shape), p.detach().flatten()[:16].float().tolist()]
        for name, p in model.named_parameters()
    ]
    config = model.config.get_text_config(decoder=True)
    settings = [
        getattr(config, name, None) for name in ("rope_parameters", "sliding_window", "layer_types")
    ]
    return _digest([type(model).__name__, described, settings])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
