"""SirLLM: keep what was not to be expected, and forget it slowly.

Source: Yao et al., "SirLLM: Streaming Infinite Retentive LLM", ACL 2024. The entropy of a token
is its negative log-likelihood when it was read. Where the published code takes the first token
of each turn for the most surprising, it has its likelihood here, since the turn before it is
remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....core.errors import InputError
from .base import LayerView, Policy, edges

__all__ = ["SirLLM"]


@dataclass(frozen=True)
class SirLLM(Policy):
    """Keep the entries of the highest entropy, those of earlier turns discounted.

    Parameters
    ----------
    decay
        What an entropy is multiplied by at each new turn (the paper's 0.7 to 1).
    sink, recent
        Entries at the start and at the end that stay (the paper's 4 and 0).
    """

    decay: float = 0.7
    sink: int = 4
    recent: int = 0

    name = "sirllm"
    needs_nll = True

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise InputError(f"decay is above 0 and at most 1, got {self.decay!r}")

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """Discounted entropies; the edges above all."""
        del keep
        assert layer.nll is not None
        age = (layer.now - layer.turn).float()
        return edges(layer.nll * self.decay**age, self.sink, self.recent)
