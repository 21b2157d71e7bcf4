"""KNorm: keep the entries whose keys are short.

Source: Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
EMNLP 2024. Models that normalise their keys (Qwen3, Gemma3) leave it little to go by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import LayerView, Policy

__all__ = ["KNorm"]


@dataclass(frozen=True)
class KNorm(Policy):
    """Keep the entries with the smallest norm of the key."""

    name = "knorm"

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """The negative norm of each key."""
        del keep
        norms: torch.Tensor = torch.linalg.vector_norm(layer.keys.float(), dim=-1)
        return -norms
