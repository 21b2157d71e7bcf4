"""Keep the sentences that a small trained reader takes for an answer.

The reader goes through each passage by itself, which says how alike it is to the question, and
then through the same passage together with the question, which says what to keep of it and
whether it is relevant, as Provence does (Chirkova et al., "Provence: efficient and robust
context pruning for retrieval-augmented generation", ICLR 2025). What it says is weighed with the
words that the sentences share with the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..method import Floats, Method, Request, Scores
from ..models.pruner import Judged, PrunerModel, Reading
from .extractive import Extractive
from .lexical import Lexical

__all__ = ["Pruner", "features", "readings"]

_LEXICAL = Lexical(context_weight=1.0)


class Pruner(Method):
    """Keep the sentences that answer the question.

    A sentence's score is the logit of the probability that it is wanted: a weighted sum of what
    `features` lists. The weights come with the model. Without a query the scores are those of
    `Extractive`.

    Parameters
    ----------
    model
        A `PrunerModel`, or the folder that `laconic train pruner` saved; None for the one
        that comes with laconic.
    encoder
        The encoder that the model was trained for, a hub id or a folder; None for
        all-MiniLM-L6-v2.
    threshold
        The probability, from 0 to below 1, below which a sentence is left out though the
        budget has room for it; the likeliest one stays. None to fill the budget. Text that
        fits the budget comes back whole in any case, so give a rate below 1, such as 0.99.
    device, int8
        As `PrunerModel` takes them, for a model that is loaded by name.

    Raises
    ------
    InputError
        `threshold` is out of range.
    """

    name = "pruner"

    def __init__(
        self,
        model: Any = None,
        *,
        encoder: Any = None,
        threshold: float | None = None,
        device: str | None = None,
        int8: bool = False,
    ) -> None:
        if threshold is not None and not 0 <= threshold < 1:
            raise InputError(f"threshold is a probability from 0 to below 1, got {threshold}")
        self.threshold = threshold
        self.extractive = Extractive(encoder, device=device)
        self.model = (
            model
            if isinstance(model, PrunerModel)
            else PrunerModel(model, encoder, device=device, int8=int8)
        )

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score several requests in the same forward passes."""
        asked = [request for request in requests if request.query is not None]
        judged = iter(self.model.judge([r for request in asked for r in readings(request)]))
        mix = self.model.load().mix if asked else np.zeros(0)
        results = []
        for request in requests:
            if request.query is None:
                results.append(self.extractive.score(request))
                continue
            here = [next(judged) for _ in request.passages]
            scores = tuple(f @ mix[:-1] + mix[-1] for f in features(request, here))
            best = [mix[3] * one.similarity + mix[7] * one.relevance for one in here]
            results.append(Scores(self._above(scores), np.array(best)))
        return results

    def _above(self, scores: tuple[Floats, ...]) -> tuple[Floats, ...]:
        """The scores, -inf where they are below the threshold, but for the best."""
        if not self.threshold or not any(map(len, scores)):
            return scores
        best = max(float(values.max()) for values in scores if len(values))
        least = min(best, float(np.log(self.threshold / (1 - self.threshold))))
        return tuple(np.where(values >= least, values, -np.inf) for values in scores)


def readings(request: Request) -> list[Reading]:
    """What the model is to judge for a request with a query."""
    return [
        Reading(request.query or "", title, text, spans)
        for title, text, spans in zip(request.titles, request.passages, request.units, strict=True)
    ]


def features(request: Request, judged: Sequence[Judged]) -> tuple[Floats, ...]:
    """What is weighed.

    Parameters
    ----------
    request
        With a query.
    judged
        What the model says of each of its passages.

    Returns
    -------
    tuple of arrays
        For each passage, of shape ``(units, 8)``: how alike to the question the unit is, its
        neighbours are, the window around it is and the best window of its passage is; the
        words it shares with the question, at most 1; its place, 1 for the first; the logit of
        being wanted and that of its window for being relevant.
    """
    lexical = _LEXICAL.score(request).units
    most = max((float(values.max()) for values in lexical if len(values)), default=0.0)
    found = []
    for one, shared in zip(judged, lexical, strict=True):
        alike = one.units[:, 0]
        padded = np.pad(alike, 1, mode="edge") if len(alike) else np.zeros(2)
        columns = [
            alike,
            (padded[:-2] + padded[2:]) / 2,
            one.units[:, 1],
            np.full(len(alike), one.similarity),
            shared / max(most, 1e-9),
            1 / (1 + np.arange(len(alike))),
            one.units[:, 2],
            one.units[:, 3],
        ]
        found.append(np.stack(columns, axis=1))
    return tuple(found)
