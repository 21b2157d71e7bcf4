"""Keep the sentences whose embedding, and whose surroundings', are close to the query's.

The encoder is a sentence-transformers bi-encoder (Reimers and Gurevych, "Sentence-BERT",
EMNLP 2019); similarity is the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..method import Floats, Method, Request, Scores
from ..models.encoder import Encoder
from .lexical import Lexical

__all__ = ["Extractive"]

_WINDOW = 1000
"""Characters of text around a sentence that speak for it; most encoders read no more."""

_NEIGHBOUR_WEIGHT = 0.5
"""Weight of the sentences before and behind: the answer often stands beside the echo of the
question."""

_LEAD_WEIGHT = 0.3
"""What a passage's first sentence gets for its place; the n-th gets an n-th of it."""


class Extractive(Method):
    """Keep the sentences that mean what the query asks.

    A sentence's score is the sum of its similarity to the query and half the mean of its
    neighbours'; the weighted similarity of the text around it (a window of its passage, below
    the passage's title) and of the best such window of the passage; the weighted score of
    `Lexical`, scaled to at most 1; and a little for standing early in its passage. Without a
    query the mean of the passages' embeddings stands in for one.

    Parameters
    ----------
    model
        An `Encoder`, or what makes one: a hub id, a folder, an object with ``encode``. None
        for all-MiniLM-L6-v2, shared with every other user of it in the process.
    context_weight
        Weight of the text around a sentence, and of the best such text of its passage.
    lexical_weight
        Weight of the lexical score.
    device
        Where to run a model that is loaded by name; None for the best there is.
    """

    name = "extractive"

    def __init__(
        self,
        model: Any = None,
        *,
        context_weight: float = 2.5,
        lexical_weight: float = 0.8,
        device: str | None = None,
    ) -> None:
        if isinstance(model, Encoder):
            self.encoder = model
        elif model is None and device is None:
            self.encoder = Encoder.shared()
        else:
            self.encoder = Encoder(model, device=device)
        self.context_weight = context_weight
        self.lexical_weight = lexical_weight
        self._lexical = Lexical(context_weight=1.0)

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score several requests in one pass of the encoder."""
        views = [(r.unit_texts(), *r.windows(_WINDOW)) for r in requests]
        texts = [r.query for r in requests if r.query is not None]
        for sentences, windows, _, _ in views:
            texts += [*sentences, *windows]
        vectors = dict(zip(texts, self.encoder.encode(texts), strict=True))

        def embed(wanted: Sequence[str]) -> Floats:
            return np.array([vectors[text] for text in wanted], dtype=np.float64)

        results = []
        for request, (sentences, windows, window_of_unit, passage_of_window) in zip(
            requests, views, strict=True
        ):
            passages = np.zeros(len(request.passages))
            if not sentences:
                results.append(Scores(request.per_passage(np.zeros(0)), passages))
                continue
            surroundings = embed(windows)
            target = (
                surroundings.mean(axis=0) if request.query is None else embed([request.query])[0]
            )
            around = surroundings @ target
            passages -= 1.0
            np.maximum.at(passages, passage_of_window, around)
            units = embed(sentences) @ target
            units += _NEIGHBOUR_WEIGHT * _neighbours(request.per_passage(units))
            context = around + passages[passage_of_window]
            units += self.context_weight * context[window_of_unit]
            units += _LEAD_WEIGHT / (1 + request.places())
            if self.lexical_weight:
                lexical = np.concatenate(self._lexical.score(request).units)
                units += self.lexical_weight * lexical / max(float(lexical.max()), 1e-9)
            results.append(Scores(request.per_passage(units), passages))
        return results


def _neighbours(similarities: Sequence[Floats]) -> Floats:
    """For each sentence of each passage the mean of the one before and the one behind it."""
    padded = [np.pad(values, 1, mode="edge") for values in similarities if len(values)]
    return np.concatenate([(values[:-2] + values[2:]) / 2 for values in padded])
