"""Keys and values in 8 or 4 bits, which can be added to and selected from without coding again.

In the manner of Hooper et al., "KVQuant: Towards 10 Million Context Length LLM Inference with KV
Cache Quantization", NeurIPS 2024, sections 3.1 and 3.2: keys per channel, before rotary embedding
mixes the channels; values per token. Here the levels are equally spaced, and the range of a
channel is that of the first entries of the conversation itself. Since it then stays, entries are
coded once and for all: whatever is evicted, what is kept loses nothing more.

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

_MARGIN = {8: 0.25, 4: 0.0}
"""By what part of it a channel's range is widened on each side: later entries may lie beyond
the first ones, and with 8 bits a coarser step costs less than cutting them off."""

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
    low, step
        Value of code 0 and distance of two codes; shape ``(1, heads, 1, dim)``.
    lost, total
        Sums of the squares of all errors and of all entries so far.
    """

    bits: int
    held: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    low: torch.Tensor | None = None
    step: torch.Tensor | None = None
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
        low, step = self.low, self.step
        if low is None or step is None:
            low, step = _range(new, 2, self.bits, torch.float32, _MARGIN[self.bits])
        codes = _coded(new, low, step, self.bits)
        lost, total = _error(new, _decoded(codes, low, step, self.bits))
        return replace(
            self,
            held=None,
            codes=_joined(self.codes, codes),
            low=low,
            step=step,
            lost=self.lost.to(lost) + lost,
            total=self.total.to(total) + total,
        )

    def read(self) -> torch.Tensor:
        """All entries, decoded."""
        if self.codes is None:
            assert self.held is not None
            return self.held
        assert self.low is not None and self.step is not None
        return _decoded(self.codes, self.low, self.step, self.bits)

    def select(self, index: torch.Tensor) -> PerChannel:
        """Only the entries at `index`."""
        if self.codes is None:
            assert self.held is not None
            return replace(self, held=_selected(self.held, index))
        return replace(self, codes=_selected(self.codes, index))


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
        low, step = _range(grouped, -1, self.bits, torch.float16)
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


def _range(
    values: torch.Tensor, dim: int, bits: int, dtype: torch.dtype, margin: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest value and distance of two codes, as they will be stored."""
    low, high = values.float().aminmax(dim=dim, keepdim=True)
    low, high = low - margin * (high - low), high + margin * (high - low)
    most = torch.finfo(dtype).max
    step = ((high - low) / (2**bits - 1)).clamp(1e-6, most)
    return low.clamp(-most, most).to(dtype), step.to(dtype)


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
