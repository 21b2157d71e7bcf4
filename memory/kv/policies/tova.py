"""TOVA: keep what the last query attends to.

Source: Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024. All heads of a layer keep
the same tokens. The paper drops an entry at each step; here it is done when the pot is full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import LayerView, Policy, edges

__all__ = ["TOVA"]


@dataclass(frozen=True)
class TOVA(Policy):
    """Keep the entries that the last query attends to, averaged over all heads."""

    name = "tova"
    watches = 1

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """Attention of the last query; the newest entry, which it is itself, above all."""
        del keep
        assert layer.attention is not None
        mean = layer.attention[:, -1].mean(0, keepdim=True)
        return edges(mean.expand(layer.attention.shape[0], -1), 0, 1)
