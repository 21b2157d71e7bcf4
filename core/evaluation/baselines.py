"""What any method has to beat, cut into the same sentences and packed the same way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..compressor import Compressor
from ..method import Method, Request, Scores
from ..models.encoder import Encoder

__all__ = ["BASELINES", "DocumentRank", "Lead", "RandomSentences", "Truncate"]


class Truncate(Method):
    """Keep the beginning of the joined passages."""

    name = "truncate"

    def score(self, request: Request) -> Scores:
        """Score by place in the whole input."""
        count = sum(map(len, request.units))
        return Scores(
            request.per_passage(-np.arange(count, dtype=np.float64)),
            -np.arange(len(request.passages), dtype=np.float64),
        )


class Lead(Method):
    """Keep the first sentences of every passage."""

    name = "lead"

    def score(self, request: Request) -> Scores:
        """Score by place in the passage."""
        return Scores(
            request.per_passage(-request.places().astype(np.float64)),
            np.zeros(len(request.passages)),
        )


class RandomSentences(Method):
    """Keep random sentences.

    Parameters
    ----------
    seed
        Seed of the choice; the same seed and input give the same result.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.name = f"random-{seed}"

    def score(self, request: Request) -> Scores:
        """Score at random."""
        rng = np.random.default_rng(self.seed)
        values = rng.random(sum(map(len, request.units)))
        return Scores(request.per_passage(values), rng.random(len(request.passages)))


class DocumentRank(Method):
    """Keep whole passages, the ones most similar to the query first, then cut the next one.

    Parameters
    ----------
    encoder
        The encoder to compare with; None for the shared default.
    """

    name = "documents"
    needs_query = True

    def __init__(self, encoder: Encoder | None = None) -> None:
        self.encoder = encoder or Encoder.shared()

    def score(self, request: Request) -> Scores:
        """Score by similarity of the passage, below its title, then by place in it."""
        texts = [
            f"{title}\n{text}" if title else text
            for title, text in zip(request.titles, request.passages, strict=True)
        ]
        vectors = self.encoder.encode([str(request.query), *texts]).astype(np.float64)
        similarity = vectors[1:] @ vectors[0]
        rank = np.argsort(np.argsort(-similarity, kind="stable"), kind="stable")
        owner = np.repeat(rank, [len(spans) for spans in request.units])
        units = -owner - request.places() / (1 + request.places().max(initial=0))
        return Scores(request.per_passage(units.astype(np.float64)), similarity)


BASELINES: dict[str, Callable[[], list[Compressor]]] = {
    "truncate": lambda: [Truncate()],
    "random": lambda: [RandomSentences(seed) for seed in range(5)],
    "lead": lambda: [Lead()],
    "documents": lambda: [DocumentRank()],
}
"""Name of each baseline: the compressors whose mean it is."""
