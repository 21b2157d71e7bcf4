"""Adaptive budgets: layers, or turns, share the pot as they need it rather than evenly.

The papers give every layer the same number of entries and name that as a limit. What a layer
needs is measured in the manner of Qin et al., "CAKE: Cascading and Adaptive KV Cache Eviction with
Layer Preferences", ICLR 2025, section 4.1: a layer that spreads its attention over many entries
loses more by eviction than one that looks at a few. The total, and so the bytes, stay the same.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from ....core.errors import InputError
from .base import LayerView, Policy, best

__all__ = ["AdaptiveLayers", "AdaptiveTurns"]

_WATCHED = 16
"""Queries whose attention is measured for a policy that does not watch any."""


@dataclass(frozen=True)
class _Adaptive(Policy):
    """Wraps a policy, whose scores say which entries stay.

    Parameters
    ----------
    policy
        A policy, or its key in `POLICIES`.
    floor
        The part of an even share that is given in any case; 1 for even shares.
    """

    policy: Any = "infinipot"
    floor: float = 0.25

    def __post_init__(self) -> None:
        from . import get_policy

        if isinstance(self.policy, str):
            object.__setattr__(self, "policy", get_policy(self.policy))
        if not isinstance(self.policy, Policy) or isinstance(self.policy, _Adaptive):
            raise InputError(f"expected a policy that is not adaptive itself, got {self.policy!r}")
        if not 0 < self.floor <= 1:
            raise InputError(f"floor is above 0 and at most 1, got {self.floor!r}")
        watches = self.policy.watches
        object.__setattr__(self, "watches", _WATCHED if watches == 0 else watches)
        object.__setattr__(self, "needs_nll", self.policy.needs_nll)
        object.__setattr__(self, "catalyst", self.policy.catalyst)

    @abstractmethod
    def score(self, layer: LayerView, keep: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class AdaptiveLayers(_Adaptive):
    """Share the pot among layers, by the number of entries that each attends to."""

    name = "adaptive_layers"
    spread = 2.0

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """As the wrapped policy scores."""
        scores: torch.Tensor = self.policy.score(layer, keep)
        return scores

    def keeps(self, layers: list[LayerView], keep: int) -> list[int]:
        """Shares that grow with the perplexity of the layer's attention."""
        if not layers:
            return []
        needs = torch.stack([_perplexity(layer.attention) for layer in layers])
        # One entry is for each; the others are shared.
        most = torch.tensor([min(len(layer), int(self.spread * keep)) - 1 for layer in layers])
        total = min((keep - 1) * len(layers), int(most.sum()))
        shares = _split(needs.cpu()[None], most[None], total, self.floor)[0]
        return [1 + int(share) for share in shares]


@dataclass(frozen=True)
class AdaptiveTurns(_Adaptive):
    """Share the pot among turns, by the attention that each gets: no turn vanishes at once."""

    name = "adaptive_turns"

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """As the wrapped policy scores; the best entries of each turn, its share, above all."""
        assert layer.attention is not None
        scores: torch.Tensor = self.policy.score(layer, keep)
        turns, turn = layer.turn.unique(return_inverse=True)
        sizes = torch.zeros((len(scores), len(turns)), device=scores.device)
        attended = sizes.scatter_add(1, turn, layer.attention.mean(1))
        sizes = sizes.scatter_add(1, turn, torch.ones_like(scores)).long()
        shares = _split(attended, sizes, keep, self.floor)
        order = best(scores, scores.shape[1])
        by_turn = order.gather(1, turn.gather(1, order).argsort(dim=1, stable=True))
        starts = sizes.cumsum(1) - sizes
        places = torch.arange(scores.shape[1], device=scores.device)
        rank = places - starts.gather(1, turn.gather(1, by_turn))
        is_kept = rank < shares.gather(1, turn.gather(1, by_turn))
        is_kept = torch.zeros_like(is_kept).scatter(1, by_turn, is_kept)
        return scores.masked_fill(is_kept, torch.inf)


def _perplexity(attention: torch.Tensor | None) -> torch.Tensor:
    """Number of entries over which attention is spread, averaged over heads."""
    assert attention is not None
    weights = attention.mean(1)
    weights = weights / weights.sum(-1, keepdim=True)
    entropy: torch.Tensor = torch.special.entr(weights).sum(-1)
    return entropy.exp().mean()


def _split(needs: torch.Tensor, most: torch.Tensor, total: int, floor: float) -> torch.Tensor:
    """Split a total in proportion to needs.

    Parameters
    ----------
    needs, most
        What each part needs, and what it can take at most; shape ``(rows, parts)``.
    total
        What the parts of each row add up to, at most the sum of `most`.
    floor
        The part of an even share that each gets in any case, as far as it can take it.

    Returns
    -------
    tensor of int, shape ``(rows, parts)``
    """
    even = torch.full_like(needs, total / needs.shape[1])
    shares = torch.zeros_like(needs)
    for weight, amount in ((even, floor * total), (needs + 1e-6, total)):
        # What a part cannot take is split among the others, until nothing is left over.
        for _ in range(needs.shape[1]):
            left = (amount - shares.sum(1, keepdim=True)).clamp(min=0)
            weights = weight * (shares < most)
            given = left * weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
            shares = torch.minimum(shares + given, most.to(shares))
            if left.max() < 1e-3:
                break
    whole = shares.floor()
    missing = total - whole.sum(1, keepdim=True)
    fraction = (shares - whole).masked_fill(whole >= most, -1)
    rank = fraction.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (whole + (rank < missing)).long()
