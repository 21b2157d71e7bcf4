"""The state of a KV memory in a file, as it is held or quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...core.errors import StateError
from .. import files
from .cache import BoundedCache, FullLayer, SlidingLayer, Storage
from .engine import Engine, State

__all__ = ["Saved", "load", "save", "tensors"]

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
    cache = state.cache if storage is None else _converted(state, engine, storage)
    header = {
        "counters": {name: getattr(state, name) for name in _COUNTERS},
        "layers": [
            [storage or _storage(layer, engine), _end(layer, state)] for layer in state.cache.layers
        ],
    }
    held = tensors(replace(state, cache=cache))
    size = files.write(path, files.Content(_belongs_to(engine, tokenizer), header, held))
    return Saved(size, cache.error)


def load(path: str | Path, engine: Engine, tokenizer: Any) -> State:
    """Read a state.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    StateError
        It is damaged, or does not belong to this model, tokenizer, policy and budget.
    """
    content = files.read(path, _belongs_to(engine, tokenizer))
    try:
        return _rebuilt(content.tensors, content.header, engine)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise StateError(f"{path} is damaged: {error!r}") from error


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


def _belongs_to(engine: Engine, tokenizer: Any) -> dict[str, str]:
    """What a state belongs to; a state of something else would be read as nonsense."""
    return {
        "kind": "kv",
        "model": files.model_fingerprint(engine.model),
        "tokenizer": files.tokenizer_fingerprint(tokenizer),
        "policy": files.digest(repr(engine.policy)),
        "budget": files.digest([engine.pot, engine.keep, engine.rerotate]),
    }
