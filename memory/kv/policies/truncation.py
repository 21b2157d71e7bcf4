"""Middle truncation: keep the start and the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import LayerView, Policy, edges

__all__ = ["Truncation"]


@dataclass(frozen=True)
class Truncation(Policy):
    """Keep the first half of the entries from the start, and the others from the end."""

    name = "truncation"

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """The place of each entry; the first half of what is kept above all."""
        places = torch.arange(len(layer), dtype=torch.float32, device=layer.keys.device)
        return edges(places.expand(layer.keys.shape[0], -1), keep // 2, 0)
