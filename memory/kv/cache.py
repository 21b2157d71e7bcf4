"""The layers of a cache whose entries can be selected, and which can be copied for nothing.

An entry is the key and the value of a token in one layer and one head. Layers of full attention
hold what a policy keeps; layers of sliding-window attention are bounded by themselves, and only
move along when positions do. Tensors are never written to, only replaced, so that a copy of a
layer shares them.

Moving keys again and again rounds them again and again, which float32 does not mind; in 16 bits
it adds up. `UnrotatedLayer` holds keys as they would be at position 0 and rotates what is read,
so that each is rounded once; there they can also be quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...core.errors import InputError, ModelError
from .quantize import PerChannel, PerToken, Plain, Store, relative_error

__all__ = [
    "BoundedCache",
    "FullLayer",
    "Move",
    "SlidingLayer",
    "Storage",
    "UnrotatedLayer",
    "full_layer",
    "new_cache",
]

Storage = Literal["rotated", "unrotated", "int8", "int4"]
"""How layers of full attention hold their entries."""

Move = Callable[..., torch.Tensor]
"""`Rotator.move`: keys, by how many positions, layer."""


class FullLayer(DynamicLayer):
    """A layer of full attention, batch size 1; with what is known of each entry.

    Attributes
    ----------
    keys, values
        Shape ``(1, heads, entries, dim)``; None before the first token.
    notes
        Per-entry tensors of shape ``(heads, entries)``, by name.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes: dict[str, torch.Tensor] = {}
        self.heads = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Be ready for entries like the first ones."""
        super().lazy_initialization(key_states, value_states)
        self.heads = key_states.shape[1]

    def note(self, **values: torch.Tensor) -> None:
        """Add what is known of the newest entries, the same for all heads: shape ``(new,)``."""
        for name, given in values.items():
            new = given.expand(self.heads, -1)
            held = self.notes.get(name)
            self.notes[name] = new if held is None else torch.cat([held, new], -1)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys, rotated to their positions, and values; there must be one entry."""
        return self.keys, self.values

    def select(self, index: torch.Tensor) -> None:
        """Keep only the entries at `index`, ascending; shape ``(heads, kept)``."""
        places = index[None, :, :, None]
        self.keys = self.keys.gather(2, places.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, places.expand(-1, -1, -1, self.values.shape[-1]))
        self._select_notes(index)

    def drop(self, count: int) -> None:
        """Forget the newest entries, of which nothing has been noted yet."""
        self.keys, self.values = self.keys[:, :, :-count], self.values[:, :, :-count]

    def place(self, end: int, by: torch.Tensor, move: Callable[..., torch.Tensor]) -> None:
        """Move the entries by so many positions, to the consecutive ones before `end`."""
        del end
        self.keys = move(self.keys, by)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that it holds, by name."""
        if self.get_seq_length() == 0:
            return {}
        return {"keys": self.keys, "values": self.values, **_prefixed("notes", self.notes)}

    def restore(self, held: Mapping[str, torch.Tensor], end: int) -> None:
        """Take what `tensors` gave, the last entry standing before position `end`."""
        if held:
            self.take(held["keys"], held["values"], end)
        self.notes = _unprefixed("notes", held)

    def take(self, keys: torch.Tensor, values: torch.Tensor, end: int) -> None:
        """Take the entries of another layer, the last one standing before position `end`."""
        del end
        self.update(keys, values)

    def _select_notes(self, index: torch.Tensor) -> None:
        self.notes = {name: held.gather(1, index) for name, held in self.notes.items()}


class UnrotatedLayer(FullLayer):
    """A layer of full attention that holds its keys as they would be at position 0.

    Parameters
    ----------
    move
        Moves keys of this layer by so many positions.
    dtype
        Of the keys and values that are read.
    bits
        8 or 4 to hold them quantized.
    """

    def __init__(
        self,
        move: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        dtype: torch.dtype,
        bits: int | None = None,
    ) -> None:
        super().__init__()
        self._move = move
        self._dtype = dtype
        self._first = 0
        self.stored: tuple[Store, Store] = (
            (PerChannel(bits), PerToken(bits)) if bits else (Plain(), Plain())
        )

    def get_seq_length(self) -> int:
        """How many entries there are."""
        return len(self.stored[0])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the newest entries, rotated to the positions that follow; get all."""
        keys, values = self.stored
        first, self.heads = self._first + len(keys), key_states.shape[1]
        unrotated = self._move(key_states, -_positions(key_states, first))
        self.stored = keys.add(unrotated), values.add(value_states)
        if len(keys) == 0:
            return key_states, value_states
        # What is read now is exact; what is read later has been rounded or coded.
        before = self._read(keys, values)
        return (
            torch.cat([before[0], key_states], 2),
            torch.cat([before[1], value_states], 2),
        )

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys, rotated to their positions, and values; there must be one entry."""
        return self._read(*self.stored)

    def select(self, index: torch.Tensor) -> None:
        """Keep only the entries at `index`, ascending; shape ``(heads, kept)``."""
        keys, values = self.stored
        self.stored = keys.select(index), values.select(index)
        self._select_notes(index)

    def drop(self, count: int) -> None:
        """Forget the newest entries, of which nothing has been noted yet."""
        keys, values = self.stored
        index = torch.arange(len(keys) - count, device=keys.read().device).expand(self.heads, -1)
        self.stored = keys.select(index), values.select(index)

    def place(self, end: int, by: torch.Tensor, move: Callable[..., torch.Tensor]) -> None:
        """Let the entries stand at the consecutive positions before `end`."""
        del by, move
        self._first = end - self.get_seq_length()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that it holds, by name."""
        keys, values = self.stored
        if len(keys) == 0:
            return {}
        return {
            **_prefixed("keys", keys.tensors()),
            **_prefixed("values", values.tensors()),
            **_prefixed("notes", self.notes),
        }

    def restore(self, held: Mapping[str, torch.Tensor], end: int) -> None:
        """Take what `tensors` gave, the last entry standing before position `end`."""
        keys, values = self.stored
        self.stored = (
            keys.restored(_unprefixed("keys", held)),
            values.restored(_unprefixed("values", held)),
        )
        self._first = end - self.get_seq_length()
        self.notes = _unprefixed("notes", held)

    def take(self, keys: torch.Tensor, values: torch.Tensor, end: int) -> None:
        """Take the entries of another layer, the last one standing before position `end`."""
        self._first = end - keys.shape[2]
        self.update(keys, values)

    def _read(self, keys: Store, values: Store) -> tuple[torch.Tensor, torch.Tensor]:
        unrotated = keys.read()
        rotated = self._move(unrotated, _positions(unrotated, self._first))
        return rotated.to(self._dtype), values.read().to(self._dtype)


class SlidingLayer(DynamicSlidingWindowLayer):
    """A layer of sliding-window attention, batch size 1.

    Its count of tokens can be set back, so that the size of its mask follows from what it holds.
    """

    keys: Any
    values: Any

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Entries that a forward pass of so many queries attends to, and where they start."""
        held = self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0
        return held + query_length, self.cumulative_length - held

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys, rotated to their positions, and values; there must be one entry."""
        return self.keys, self.values

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that it holds, by name."""
        return {"keys": self.keys, "values": self.values} if self.cumulative_length else {}

    def restore(self, held: Mapping[str, torch.Tensor], end: int) -> None:
        """Take what `tensors` gave, the last entry standing before position `end`."""
        if held:
            self.take(held["keys"], held["values"], end)

    def take(self, keys: torch.Tensor, values: torch.Tensor, end: int) -> None:
        """Take the entries of another layer, the last one standing before position `end`."""
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.cumulative_length = end


class BoundedCache(Cache):
    """A cache of such layers."""

    layers: list[FullLayer | SlidingLayer]  # type: ignore[assignment]

    def __init__(self, layers: Sequence[FullLayer | SlidingLayer]) -> None:
        super().__init__(layers=list(layers))

    def full(self) -> list[tuple[int, FullLayer]]:
        """The layers of full attention, with their numbers."""
        return [(i, layer) for i, layer in enumerate(self.layers) if isinstance(layer, FullLayer)]

    def sliding(self) -> list[tuple[int, SlidingLayer]]:
        """The layers of sliding-window attention, with their numbers."""
        found = enumerate(self.layers)
        return [(i, layer) for i, layer in found if isinstance(layer, SlidingLayer)]

    @property
    def entries(self) -> int | None:
        """Entries of a layer of full attention on average, rounded up; None without such."""
        counts = [layer.get_seq_length() for _, layer in self.full()]
        return -(-sum(counts) // len(counts)) if counts else None

    @property
    def error(self) -> float:
        """Relative error, root of the mean square, of all that was quantized; 0 for nothing."""
        layers = [layer for layer in self.layers if isinstance(layer, UnrotatedLayer)]
        return relative_error(store for layer in layers for store in layer.stored)

    def snapshot(self) -> BoundedCache:
        """A copy that shares its tensors: what happens to one does not happen to the other."""
        layers = [copy.copy(layer) for layer in self.layers]
        for layer in layers:
            if isinstance(layer, FullLayer):
                layer.notes = dict(layer.notes)
        return BoundedCache(layers)


def new_cache(model: Any, storage: Storage = "rotated", move: Move | None = None) -> BoundedCache:
    """An empty cache for a model.

    Parameters
    ----------
    model
        A causal language model of transformers.
    storage
        How layers of full attention hold their entries.
    move
        `Rotator.move`, which every storage but ``"rotated"`` needs.

    Raises
    ------
    ModelError
        It has layers of another kind than full or sliding-window attention.
    """
    layers: list[FullLayer | SlidingLayer] = []
    for i, layer in enumerate(DynamicCache(config=model.config).layers):
        if type(layer) is DynamicLayer:
            layers.append(full_layer(i, storage, model.dtype, move))
        elif type(layer) is DynamicSlidingWindowLayer:
            layers.append(SlidingLayer(layer.sliding_window))
        else:
            raise ModelError(
                f"a bounded memory knows full and sliding-window attention, and "
                f"{type(model).__name__} has a {type(layer).__name__}"
            )
    return BoundedCache(layers)


def full_layer(number: int, storage: Storage, dtype: torch.dtype, move: Move | None) -> FullLayer:
    """An empty layer of full attention.

    Raises
    ------
    InputError
        There is no such storage.
    """
    if storage not in get_args(Storage):
        raise InputError(f"no storage {storage!r}; there are {', '.join(get_args(Storage))}")
    if storage == "rotated":
        return FullLayer()
    assert move is not None
    bits = {"int8": 8, "int4": 4}.get(storage)
    return UnrotatedLayer(partial(move, layer=number), dtype, bits)


def _positions(keys: torch.Tensor, first: int) -> torch.Tensor:
    """Consecutive positions for keys, the same for all heads; shape ``(1, entries)``."""
    return torch.arange(first, first + keys.shape[2], device=keys.device)[None]


def _prefixed(prefix: str, held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in held.items()}


def _unprefixed(prefix: str, held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {n.removeprefix(start): tensor for n, tensor in held.items() if n.startswith(start)}
