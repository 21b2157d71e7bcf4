"""KeyDiff: keep the entries whose keys are unlike the others.

Source: Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM
Inference in Resource-Constrained Environments", 2025 (arXiv 2504.15364).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, normalize

from .base import LayerView, Policy

__all__ = ["KeyDiff"]


@dataclass(frozen=True)
class KeyDiff(Policy):
    """Keep the entries whose keys are least similar to the mean of all normalised keys."""

    name = "keydiff"

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """The negative cosine of each key and the mean direction of its head."""
        del keep
        keys = layer.keys.float()
        anchor = normalize(keys, dim=-1).mean(1, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1)
