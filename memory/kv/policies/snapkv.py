"""SnapKV: keep what the last few queries attend to, and those themselves.

Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024.
Scores are averaged over the query heads that share a key head, so that grouped attention keeps
its savings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....core.errors import InputError
from .base import LayerView, Policy, edges, pooled

__all__ = ["SnapKV"]


@dataclass(frozen=True)
class SnapKV(Policy):
    """Keep the newest entries, and the surroundings of what their queries attend to.

    Parameters
    ----------
    watches
        The newest entries, which observe (the published code's 32).
    pool
        Neighbours over which their attention is averaged, an odd number (the published 5).
    """

    watches: int | None = 32
    pool: int = 5

    name = "snapkv"

    def __post_init__(self) -> None:
        if not self.watches or self.watches < 1:
            raise InputError(f"watches is at least 1, got {self.watches!r}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise InputError(f"pool is an odd number, got {self.pool!r}")

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """Pooled attention of the newest queries to the entries before them; those above all."""
        assert layer.attention is not None
        own = min(layer.attention.shape[1], keep)
        before = layer.attention[:, -own:, : len(layer) - own].sum(1)
        return edges(torch.nn.functional.pad(pooled(before, self.pool), (0, own)), 0, own)
