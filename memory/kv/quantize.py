"""Keys and values in 8 or 4 bits, which can be added to and selected from without coding again.

In the manner of Hooper et al., "KVQuant: Towards 10 Million Context Length LLM Inference with KV
Cache Quantization", NeurIPS 2024, sections 3.1 and 3.2: keys per channel, before rotary embedding
mixes the channels; values per token. Here the levels are equally spaced, and the range of a
channel is that of the first entries of the conversation itself. What lies beyond, as the rare
entries do that most matter, is coded in coarser steps, which are its own. Ranges then stay, and
entries are coded once and for all: whatever is evicted, what is kept loses nothing more.

All of these are immutable: `add` and `select` give a new one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch

__all__ = ["PerChannel", "PerToken", "Plain", "Store", "relative_error"]

_CALIBRATION = 64
"""Entries that say what range a channel has; fewer are held as they are."""

_LEAST = 0.02
"""The least range of a channel, as a part of the mean of its head: one that first hardly moves may
do so later.
"""

_GROUP = 32
"""Channels of a value that share a range, at most."""


class Store(Protocol):
    """The keys or the values of a layer, shape ``(1, heads, entries, dim)``, in some form."""

    def __len__(self) -> int:
        """How many entries there are."""
        ...

    def add(self, new: torch.Tensor) -> Store:
        """Its entries and newer ones."""
        ...

    def read(self) -> torch.Tensor:
        """All entries, of which there must be one; in float32 if they are coded."""
        ...

    def select(self, index: torch.Tensor) -> Store:
        """Only the entries at `index`, shape ``(heads, kept)``."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """What it holds, by name."""
        ...

    def restored(self, held: Mapping[str, torch.Tensor]) -> Store:
        """One of this kind that holds that."""
        ...


class _Fields:
    """What stores of one form or another have in common: their tensors are their fields."""

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: held for name, held in found.items() if isinstance(held, torch.Tensor)}

    def restored(self, held: Mapping[str, torch.Tensor]) -> Any:
        return replace(self, **held)  # type: ignore[type-var]


@dataclass(frozen=True)
class Plain(_Fields):
    """Entries as they are."""

    held: torch.Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.held is None else self.held.shape[2]

    def add(self, new: torch.Tensor) -> Plain:
        """Its entries and newer ones."""
        return Plain(_joined(self.held, new))

    def read(self) -> torch.Tensor:
        """All entries, decoded."""
        assert self.held is not None
        return self.held

    def select(self, index: torch.Tensor) -> Plain:
        """Only the entries at `index`."""
        assert self.held is not None
        return Plain(_selected(self.held, index))


@dataclass(frozen=True)
class PerChannel(_Fields):
    """Entries coded with one range for each channel of each head.

    Parameters
    ----------
    bits
        8 or 4.

    Attributes
    ----------
    held
        Entries that wait until there are enough to know the ranges.
    codes
        Shape ``(1, heads, entries, bytes)``.
    middle, step
        Middle of the range and distance of two codes; shape ``(1, heads, 1, dim)``.
    scale
        By what an entry's steps are longer, at least 1; shape ``(1, heads, entries, 1)``.
    lost, total
        Sums of the squares of all errors and of all entries so far.
    """

    bits: int
    held: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    middle: torch.Tensor | None = None
    step: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    lost: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    total: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def __len__(self) -> int:
        there = self.held if self.codes is None else self.codes
        return 0 if there is None else there.shape[2]

    def add(self, new: torch.Tensor) -> PerChannel:
        """Its entries and newer ones."""
        if self.codes is None:
            new = _joined(self.held, new)
            if new.shape[2] < _CALIBRATION:
                return replace(self, held=new)
        ready = self if self.middle is not None else self._ranged(new)
        assert ready.middle is not None and ready.step is not None
        reach = ready.step * (2**self.bits - 1) / 2
        beyond = ((new.float() - ready.middle).abs() / reach).amax(-1, keepdim=True)
        scale = beyond.clamp(1, torch.finfo(torch.float16).max).half()
        added = replace(ready, codes=None, scale=scale)
        codes = _coded(new, *added._grid(), self.bits)
        lost, total = _error(new, replace(added, codes=codes).read())
        return replace(
            ready,
            held=None,
            codes=_joined(self.codes, codes),
            scale=_joined(self.scale, scale),
            lost=self.lost.to(lost) + lost,
            total=self.total.to(total) + total,
        )

    def read(self) -> torch.Tensor:
        """All entries, decoded."""
        if self.codes is None:
            assert self.held is not None
            return self.held
        return _decoded(self.codes, *self._grid(), self.bits)

    def select(self, index: torch.Tensor) -> PerChannel:
        """Only the entries at `index`."""
        if self.codes is None:
            assert self.held is not None
            return replace(self, held=_selected(self.held, index))
        assert self.scale is not None
        return replace(self, codes=_selected(self.codes, index), scale=_selected(self.scale, index))

    def _ranged(self, first: torch.Tensor) -> PerChannel:
        """One with the ranges of these entries."""
        low, high = first.float().aminmax(dim=2, keepdim=True)
        step = ((high - low) / (2**self.bits - 1)).clamp(min=1e-6)
        step = torch.maximum(step, _LEAST * step.mean(-1, keepdim=True))
        return replace(self, middle=(low + high) / 2, step=step)

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Value of code 0 and distance of two codes, for each entry and channel."""
        assert self.middle is not None and self.step is not None and self.scale is not None
        step = self.step * self.scale
        return self.middle - step * (2**self.bits - 1) / 2, step


@dataclass(frozen=True)
class PerToken(_Fields):
    """Entries coded with ranges of their own, one for each group of channels.

    Parameters
    ----------
    bits
        8 or 4.

    Attributes
    ----------
    codes
        Shape ``(1, heads, entries, bytes)``.
    low, step
        Value of code 0 and distance of two codes; shape ``(1, heads, entries, groups)``.
    lost, total
        Sums of the squares of all errors and of all entries so far.
    """

    bits: int
    codes: torch.Tensor | None = None
    low: torch.Tensor | None = None
    step: torch.Tensor | None = None
    lost: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    total: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def __len__(self) -> int:
        return 0 if self.codes is None else self.codes.shape[2]

    def add(self, new: torch.Tensor) -> PerToken:
        """Its entries and newer ones."""
        grouped = new.unflatten(-1, (-1, math.gcd(new.shape[-1], _GROUP)))
        low, step = _range(grouped, self.bits)
        codes = _coded(grouped, low, step, self.bits).flatten(-2)
        added = PerToken(self.bits, codes, low[..., 0], step[..., 0])
        lost, total = _error(new, added.read())
        return replace(
            added,
            codes=_joined(self.codes, codes),
            low=_joined(self.low, low[..., 0]),
            step=_joined(self.step, step[..., 0]),
            lost=self.lost.to(lost) + lost,
            total=self.total.to(total) + total,
        )

    def read(self) -> torch.Tensor:
        """All entries, decoded."""
        assert self.codes is not None and self.low is not None and self.step is not None
        codes = self.codes.unflatten(-1, (self.low.shape[-1], -1))
        return _decoded(codes, self.low[..., None], self.step[..., None], self.bits).flatten(-2)

    def select(self, index: torch.Tensor) -> PerToken:
        """Only the entries at `index`."""
        assert self.codes is not None and self.low is not None and self.step is not None
        return replace(
            self,
            codes=_selected(self.codes, index),
            low=_selected(self.low, index),
            step=_selected(self.step, index),
        )


def relative_error(stores: Iterable[Store]) -> float:
    """Root of the squared error of all that was coded, by the root of its squares; 0 for none."""
    coded = [store for store in stores if isinstance(store, (PerChannel, PerToken))]
    total = sum(float(store.total) for store in coded)
    return math.sqrt(sum(float(store.lost) for store in coded) / total) if total else 0.0


def _range(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest value of each row and distance of two codes, in 16 bits."""
    low, high = values.float().aminmax(dim=-1, keepdim=True)
    most = torch.finfo(torch.float16).max
    step = ((high - low) / (2**bits - 1)).clamp(1e-6, most)
    return low.clamp(-most, most).half(), step.half()


def _coded(values: torch.Tensor, low: torch.Tensor, step: torch.Tensor, bits: int) -> torch.Tensor:
    levels = (values.float() - low.float()) / step.float()
    codes = levels.round().clamp(0, 2**bits - 1).to(torch.uint8)
    return codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4


def _decoded(codes: torch.Tensor, low: torch.Tensor, step: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    return torch.addcmul(low.float(), codes.float(), step.float())


def _error(exact: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (exact.float() - found.float()).square().sum(), exact.float().square().sum()


def _joined(held: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
    return new if held is None else torch.cat([held, new], 2)


def _selected(held: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return held.gather(2, index[None, :, :, None].expand(-1, -1, -1, held.shape[-1]))
