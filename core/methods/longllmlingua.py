"""LongLLMLingua: keep what the question makes a language model expect.

Source: Jiang et al., "LongLLMLingua: Accelerating and Enhancing LLMs in Long Context Scenarios
via Prompt Compression", ACL 2024: question-aware coarse ranking (equation 2), contrastive
perplexity (equation 3), dynamic compression ratios (equation 5). Its reordering is
``order="score"``, its recovery of the answer's subsequences `Compression.restore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..method import Floats, Request
from ..models.alignment import Tokens
from ..models.causal_lm import Stream
from ..types import JOINER
from .llmlingua import Level, LLMLingua

__all__ = ["LongLLMLingua"]

_RESTRICTION = " We can get the answer to this question in the given documents."


class LongLLMLingua(LLMLingua):
    """Keep the passages that make the question likely, and their words that it makes likely.

    A passage's score is the mean log-likelihood of the question, and of a statement that the
    answer stands in the documents, behind it. A word's is how much less surprising it is once
    the question is known. Better passages keep a larger part of their words.

    Parameters
    ----------
    model, level, segment_tokens, coarse_factor, device, dtype, trust_remote_code
        As `LLMLingua` takes them. With ``level="document"`` it is a coarse stage for another
        method: ``Pipeline(LongLLMLingua(level="document"), LLMLingua2())``.
    dynamic_ratio
        How much more than the mean the best passage keeps of its words, and how much less the
        last one that is read; 0 for the same of all.
    """

    name = "longllmlingua"
    needs_query = True

    def __init__(
        self,
        model: Any = None,
        *,
        level: Level = "word",
        segment_tokens: int = 100,
        coarse_factor: float | None = 2.0,
        dynamic_ratio: float = 0.3,
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model,
            level=level,
            segment_tokens=segment_tokens,
            coarse_factor=coarse_factor,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        if not 0 <= dynamic_ratio <= 1:
            raise InputError(f"dynamic_ratio is from 0 to 1, got {dynamic_ratio!r}")
        self.dynamic_ratio = dynamic_ratio

    def rank(self, requests: Sequence[Request], tokens: Sequence[Sequence[Tokens]]) -> list[Floats]:
        """Mean log-likelihood of the question behind each passage (equation 2).

        A passage that is too long for the model's window counts as its best part.
        """
        asked = self.model.tokenize([f"{request.query}{_RESTRICTION}" for request in requests])
        room = [self.model.room_before(question) for question in asked]
        parts = [
            (i, k, part)
            for i, of_passages in enumerate(tokens)
            for k, passage in enumerate(of_passages)
            for part in passage.parts(room[i])
        ]
        values = self.model.nll([asked[i] for i, _, _ in parts], [part for _, _, part in parts])
        ranks = [np.full(len(of_passages), -np.inf) for of_passages in tokens]
        for (i, k, _), nll in zip(parts, values, strict=True):
            ranks[i][k] = max(ranks[i][k], -nll.mean())
        return ranks

    def shares(self, count: int, share: float) -> Floats:
        """Linear in the rank, from more than the mean to less (equation 5)."""
        if count < 2:
            return super().shares(count, share)
        spread = np.linspace(self.dynamic_ratio, -self.dynamic_ratio, count)
        shares: Floats = np.clip(share + spread, 0.0, 1.0)
        return shares

    def judges(self, request: Request) -> tuple[Stream, ...]:
        """NLL of a word less its NLL when the question stands first (equation 3)."""
        question = self.model.tokenize([f"{request.query}{JOINER}"])[0]
        self.model.room_before(question)
        return self.model.stream(), self.model.stream(question)

    def reading_order(self, kept: Sequence[int]) -> list[int]:
        """The best first, where the model pays most attention."""
        return list(kept)
