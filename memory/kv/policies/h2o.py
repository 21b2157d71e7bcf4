"""H2O: keep the entries that were attended to most, and the newest.

Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large
Language Models", NeurIPS 2023. The sums are over all queries since an entry was read, which
makes this the one policy whose attention is computed twice for every token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....core.errors import InputError
from .base import LayerView, Policy, edges

__all__ = ["H2O"]


@dataclass(frozen=True)
class H2O(Policy):
    """Keep the heavy hitters and the newest entries.

    Parameters
    ----------
    recent
        The part of what is kept that goes to the newest (the paper's half).
    """

    recent: float = 0.5

    name = "h2o"
    watches = None

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1:
            raise InputError(f"recent is a part, from 0 to 1, got {self.recent!r}")

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """The attention that each entry ever got; the newest above all."""
        assert layer.attention is not None
        return edges(layer.attention[:, 0], 0, round(self.recent * keep))
