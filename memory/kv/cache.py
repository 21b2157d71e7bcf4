"""The layers of a cache whose entries can be selected, and which can be copied for nothing.

An entry is the key and the value of a token in one layer and one head. Layers of full attention
hold what a policy keeps; layers of sliding-window attention are bounded by themselves, and only
move along when positions do. Tensors are never written to, only replaced, so that a copy of a
layer shares them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...core.errors import ModelError

__all__ = ["BoundedCache", "FullLayer", "SlidingLayer", "new_cache"]


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

    def note(self, **values: torch.Tensor) -> None:
        """Add what is known of the newest entries, the same for all heads: shape ``(new,)``."""
        heads = self.keys.shape[1]
        for name, given in values.items():
            new = given.expand(heads, -1)
            held = self.notes.get(name)
            self.notes[name] = new if held is None else torch.cat([held, new], -1)

    def select(self, index: torch.Tensor) -> None:
        """Keep only the entries at `index`, ascending; shape ``(heads, kept)``."""
        places = index[None, :, :, None]
        self.keys = self.keys.gather(2, places.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, places.expand(-1, -1, -1, self.values.shape[-1]))
        self.notes = {name: held.gather(1, index) for name, held in self.notes.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that it holds, by name."""
        if self.get_seq_length() == 0:
            return {}
        return {"keys": self.keys, "values": self.values, **self.notes}


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

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that it holds, by name."""
        return {"keys": self.keys, "values": self.values} if self.cumulative_length else {}


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

    def snapshot(self) -> BoundedCache:
        """A copy that shares its tensors: what happens to one does not happen to the other."""
        layers = [copy.copy(layer) for layer in self.layers]
        for layer in layers:
            if isinstance(layer, FullLayer):
                layer.notes = dict(layer.notes)
        return BoundedCache(layers)


def new_cache(model: Any) -> BoundedCache:
    """An empty cache for a model.

    Raises
    ------
    ModelError
        It has layers of another kind than full or sliding-window attention.
    """
    layers: list[FullLayer | SlidingLayer] = []
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicLayer:
            layers.append(FullLayer())
        elif type(layer) is DynamicSlidingWindowLayer:
            layers.append(SlidingLayer(layer.sliding_window))
        else:
            raise ModelError(
                f"a bounded memory knows full and sliding-window attention, and "
                f"{type(model).__name__} has a {type(layer).__name__}"
            )
    return BoundedCache(layers)
