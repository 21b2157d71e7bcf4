"""InfiniPot: keep what a summary would look at, and what was not to be expected.

Source: Kim et al., "InfiniPot: Infinite Context Processing on Memory-Constrained LLMs", EMNLP
2024 (arXiv 2410.01518). Continual context distillation is the loop of `KVMemory`; here are its
two scores: the catalyst prompt's attention (CaP) and novelty under compression (NuC). No code
for text was published; where the paper leaves a choice, it is a parameter, and the default is
named as our reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ....core.errors import InputError
from .base import LayerView, Policy, best, edges, pooled

__all__ = ["InfiniPot"]


@dataclass(frozen=True)
class InfiniPot(Policy):
    """Keep the most novel entries, and of the others those that the catalyst attends to.

    In each layer and head, so that heads may keep different tokens.

    Parameters
    ----------
    alpha
        The part that is kept for its novelty (the paper's 50 %).
    catalyst
        The prompt that stands at the end of the pot while entries are scored. The default is
        the generic one (CaP-G); with the question itself it is CaP-Q, which `KVMemory.distill`
        does. Our reading: the wording, which a later paper of the same first author quotes.
    reduce
        Whether the attention of the catalyst's tokens is added up, or its maximum is taken.
    sink, recent
        Entries at the start and at the end that stay in any case. Our reading: 0.
    pool
        Neighbours over which the attention is averaged, as SnapKV does; 1 for none. Our
        reading: none.
    """

    alpha: float = 0.5
    catalyst: str | None = "Summarize the previous context highlighting the most important parts."
    reduce: Literal["sum", "max"] = "sum"
    sink: int = 0
    recent: int = 0
    pool: int = 1

    name = "infinipot"
    needs_nll = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is a part, from 0 to 1, got {self.alpha!r}")
        if self.reduce not in ("sum", "max"):
            raise InputError(f"reduce is 'sum' or 'max', got {self.reduce!r}")
        if not (self.catalyst and self.catalyst.strip()):
            raise InputError("the catalyst is blank; give it a text")

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """Attention of the catalyst; the most novel entries above all."""
        assert layer.attention is not None and layer.nll is not None
        attention = layer.attention
        scores = attention.sum(1) if self.reduce == "sum" else attention.amax(1)
        scores = edges(pooled(scores, self.pool), self.sink, self.recent)
        novelty = layer.nll.masked_fill(scores.isinf(), -torch.inf)
        free = max(0, keep - self.sink - self.recent)
        return scores.scatter(1, best(novelty, round(self.alpha * free)), torch.inf)
