"""What compressed context memory keeps of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .plan import Spec

__all__ = ["Entries", "LatentState"]

Entries = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a layer; shape ``(batch, heads, entries, dim)`` each."""


@dataclass(frozen=True)
class LatentState:
    """What is left of a conversation; it is replaced, never changed.

    Attributes
    ----------
    memory
        By layer, what COMP tokens left. Where positions are slots, keys stand as at position 0
        and are rotated when they are read, so that each is rounded once. Averages are float32.
    sink
        By layer, the first tokens.
    steps
        Chunks that were compressed, t.
    text
        Text tokens that were compressed.
    """

    memory: tuple[Entries, ...] = ()
    sink: tuple[Entries, ...] = ()
    steps: int = 0
    text: int = 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that it holds."""
        return [t for entries in (*self.memory, *self.sink) for t in entries]

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(t.nbytes for t in self.tensors)

    def updated(
        self, spec: Spec, made: Sequence[Entries], first: Sequence[Entries], length: int
    ) -> LatentState:
        """The state after one more chunk: g_update of Kim et al. 2024, section 3.1.

        Parameters
        ----------
        spec
            The memory.
        made
            By layer, what the chunk's COMP tokens left, h(t).
        first
            By layer, the sink, if it is the first chunk; else nothing.
        length
            Text tokens of the chunk.
        """
        t = self.steps + 1
        held = self.memory or (None,) * len(made)
        memory = tuple(_merged(spec, h, m, t) for h, m in zip(held, made, strict=True))
        # What is held must not keep a whole cache alive that it is a part of.
        sink = tuple((k.clone(), v.clone()) for k, v in first) or self.sink
        return LatentState(memory, sink, t, self.text + length)


def _merged(spec: Spec, held: Entries | None, made: Entries, t: int) -> Entries:
    if spec.update == "concat":
        kept = spec.entries(t)
        before = held or (made[0][:, :, :0], made[1][:, :, :0])
        keys, values = (torch.cat(x, 2)[:, :, -kept:] for x in zip(before, made, strict=True))
        return keys.clone(), values.clone()
    keys, values = (x.float().clone() for x in made)
    if held is None:
        return keys, values
    rate = spec.rate(t)
    return (1 - rate) * held[0] + rate * keys, (1 - rate) * held[1] + rate * values
