"""LlamaIndex's own way to shorten nodes, as a rival to measure against."""

from __future__ import annotations

import numpy as np
from llama_index.core.indices.query.embedding_utils import get_top_k_embeddings

from ...core.method import Method, Request, Scores
from ...core.models.encoder import Encoder
from .embeddings import LaconicEmbedding

__all__ = ["SentenceEmbeddingOptimizerBaseline"]


class SentenceEmbeddingOptimizerBaseline(Method):
    """The choice of LlamaIndex's ``SentenceEmbeddingOptimizer``, under a budget in tokens.

    The optimizer keeps the fraction ``percentile_cutoff`` of each node's sentences, those most
    similar to the query. A sentence's score is the fraction at which it enters, negated: the
    budget then stands for the largest fraction that fits it. Sentences and encoder are
    laconic's, so that only the choice differs.

    Two traits of the optimizer are left out, since both keep more text for a smaller fraction:
    neighbours of a kept sentence (``context_before`` and ``context_after``, here 0), and nodes
    kept whole where the fraction comes to less than one sentence.

    Parameters
    ----------
    encoder
        An `Encoder`; None for the process's shared one.
    """

    name = "llamaindex-sentence-optimizer"
    needs_query = True

    def __init__(self, encoder: Encoder | None = None) -> None:
        self._embedding = LaconicEmbedding(encoder)

    def score(self, request: Request) -> Scores:
        """Score sentences by their rank in their node; nodes are all alike, as it ranks none."""
        query = self._embedding.get_agg_embedding_from_queries([request.query or ""])
        rows = iter(self._embedding._get_text_embeddings(request.unit_texts()))
        scores = []
        for spans in request.units:
            similarities, places = get_top_k_embeddings(
                query, [next(rows) for _ in spans], similarity_fn=self._embedding.similarity
            )
            # Of equals the optimizer takes the later first.
            ranked = sorted(zip(similarities, places, strict=True), reverse=True)
            values = np.zeros(len(spans))
            for rank, (_, place) in enumerate(ranked, start=1):
                values[place] = -rank / len(spans)
            scores.append(values)
        return Scores(tuple(scores), np.zeros(len(request.passages)))
