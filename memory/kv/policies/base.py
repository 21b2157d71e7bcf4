"""What a policy sees of a layer, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

__all__ = ["LayerView", "Policy", "best", "edges", "pooled"]


@dataclass(frozen=True, slots=True)
class LayerView:
    """The entries of one layer of full attention, oldest first.

    Attributes
    ----------
    keys, values
        Shape ``(heads, entries, dim)``; the keys are rotated to their positions.
    attention
        Attention of the queries that the policy watches, averaged over the query heads that
        share a key head; shape ``(heads, queries, entries)``. None when it watches none.
    nll
        Negative log-likelihood in nats of each entry's token when it was read; inf for the very
        first. Shape ``(heads, entries)``; None for a policy that does not ask for it.
    turn
        The turn in which each entry was read, from 0; shape ``(heads, entries)``.
    now
        The turn that is being read.
    """

    keys: torch.Tensor
    values: torch.Tensor
    attention: torch.Tensor | None
    nll: torch.Tensor | None
    turn: torch.Tensor
    now: int

    def __len__(self) -> int:
        return self.keys.shape[1]


class Policy(ABC):
    """Says which entries of a layer stay when the pot is full.

    Policies are frozen dataclasses of their parameters; one may serve any number of memories.
    Its repr tells it from others, in files too.
    """

    name: ClassVar[str]
    """The name in `POLICIES`."""

    watches: int | None = 0
    """How many of the newest queries it wants the attention of; None for the sum over all."""

    needs_nll: bool = False
    """Whether it wants to know how unexpected each token was."""

    spread: float = 1.0
    """The most that `keeps` gives a layer, by what it gives on average."""

    catalyst: str | None = None
    """A prompt whose queries are watched instead, at the end of the pot before each selection."""

    @abstractmethod
    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """Score the entries: the `keep` highest of each head stay, of equals the older.

        Returns
        -------
        tensor, shape ``(heads, entries)``
        """

    def keeps(self, layers: list[LayerView], keep: int) -> list[int]:
        """How many entries each layer keeps, at most `keep` on average: here all the same."""
        return [keep] * len(layers)


def edges(scores: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """The scores with so many entries at the start and the end put above all others."""
    entries = torch.arange(scores.shape[-1], device=scores.device)
    is_edge = (entries < first) | (entries >= scores.shape[-1] - last)
    return scores.masked_fill(is_edge, torch.inf)


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Where the highest scores of each head are, of equals the older; shape ``(heads, count)``."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count]


def pooled(scores: torch.Tensor, size: int) -> torch.Tensor:
    """Each score averaged with its neighbours, `size` of them together, zeros beyond the ends."""
    if size == 1:
        return scores
    return torch.nn.functional.avg_pool1d(scores, size, stride=1, padding=size // 2)
