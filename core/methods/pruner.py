"""Keep the sentences that a small trained reader takes for an answer.

The reader goes through each passage by itself, which says how alike it is to the question, and
then through the same passage together with the question, which says what to keep of it and
whether it is relevant, as Provence does (Chirkova et al., "Provence: efficient and robust
context pruning for retrieval-augmented generation", ICLR 2025). What it says is weighed with the
words that the sentences share with the question.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import guards, units
from ..budget import Budget, TokenCounter
from ..compressor import Order, Passages, as_passages, as_query
from ..errors import InputError
from ..guards import KeepPattern
from ..method import Floats, Method, Request, Scores
from ..models.pruner import Judged, PrunerModel, Reading
from ..types import Compression, Passage, Span
from .extractive import Extractive
from .lexical import Lexical

__all__ = ["Pruner", "features", "parts", "readings"]

_LEXICAL = Lexical(context_weight=1.0)

_PART = 45
"""Characters of a part of a sentence, at least; the last may have half as many."""

_WANTED = 6
"""The place of the logit of being wanted among `features`."""


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
    parts_below
        The rate below which sentences may be kept in part, since whole ones take more than
        there is room for. 0 for whole sentences at every rate.
    device, int8, bf16
        As `PrunerModel` takes them, for a model that is loaded by name.

    Raises
    ------
    InputError
        `threshold` or `parts_below` is out of range, or both `int8` and `bf16` are asked for.
    """

    name = "pruner"

    def __init__(
        self,
        model: Any = None,
        *,
        encoder: Any = None,
        threshold: float | None = None,
        parts_below: float = 0.1,
        device: str | None = None,
        int8: bool = False,
        bf16: bool = False,
    ) -> None:
        if threshold is not None and not 0 <= threshold < 1:
            raise InputError(f"threshold is a probability from 0 to below 1, got {threshold}")
        if not 0 <= parts_below <= 1:
            raise InputError(f"parts_below is a rate from 0 to 1, got {parts_below}")
        self.threshold, self.parts_below = threshold, parts_below
        self.extractive = Extractive(encoder, device=device)
        self.model = (
            model
            if isinstance(model, PrunerModel)
            else PrunerModel(model, encoder, device=device, int8=int8, bf16=bf16)
        )
        self._in_parts = _InParts(self)

    def compress_many(
        self,
        requests: Iterable[tuple[Passages, str | None]],
        *,
        budget: Budget | float,
        keep: Sequence[KeepPattern] = (),
        counter: Any = None,
        order: Order = "source",
    ) -> list[Compression]:
        """See `Method.compress_many`; where little may be kept, sentences are in parts."""
        size, tokens = Budget.of(budget), TokenCounter.of(counter)
        given = [(as_passages(passages), as_query(query)) for passages, query in requests]
        small = [
            query is not None and _rate(passages, size, tokens) < self.parts_below
            for passages, query in given
        ]
        results: list[Iterator[Compression]] = []
        for compress_many, wanted in (
            (super().compress_many, False),
            (self._in_parts.compress_many, True),
        ):
            these = [one for one, is_small in zip(given, small, strict=True) if is_small == wanted]
            found = compress_many(these, budget=size, keep=keep, counter=tokens, order=order)
            results.append(iter(found))
        return [next(results[is_small]) for is_small in small]

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score several requests in the same forward passes."""
        return [scores for scores, _ in self.judge(requests)]

    def judge(self, requests: Sequence[Request]) -> list[tuple[Scores, list[Judged]]]:
        """Score several requests, with what the model says of their passages; nothing without
        a query.
        """
        asked = [request for request in requests if request.query is not None]
        judged = iter(self.model.judge([r for request in asked for r in readings(request)]))
        mix = self.model.load().mix if asked else np.zeros(0)
        results: list[tuple[Scores, list[Judged]]] = []
        for request in requests:
            if request.query is None:
                results.append((self.extractive.score(request), []))
                continue
            here = [next(judged) for _ in request.passages]
            scores = tuple(f @ mix[:-1] + mix[-1] for f in features(request, here))
            best = [mix[3] * one.similarity + mix[7] * one.relevance for one in here]
            results.append((Scores(self._above(scores), np.array(best)), here))
        return results

    def _above(self, scores: tuple[Floats, ...]) -> tuple[Floats, ...]:
        """The scores, -inf where they are below the threshold, but for the best."""
        if not self.threshold or not any(map(len, scores)):
            return scores
        best = max(float(values.max()) for values in scores if len(values))
        least = min(best, float(np.log(self.threshold / (1 - self.threshold))))
        return tuple(np.where(values >= least, values, -np.inf) for values in scores)


class _InParts(Method):
    """Keeps parts of the sentences that a pruner scores, told from the others of their sentence
    by the logit of their own tokens.
    """

    name = Pruner.name

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner

    def segment(self, text: str) -> Sequence[Span]:
        """Cut a text into parts of sentences."""
        return _cut(text, super().segment(text))[0]

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score several requests with a query in the same forward passes."""
        cut = self._pruner.segment
        whole = [
            replace(request, units=tuple(tuple(cut(text)) for text in request.passages), forced=())
            for request in requests
        ]
        results = []
        for request, (scores, judged) in zip(whole, self._pruner.judge(whole), strict=True):
            owners = [
                _cut(text, spans)[1]
                for text, spans in zip(request.passages, request.units, strict=True)
            ]
            weight = self._pruner.model.load().mix[_WANTED]
            units = tuple(
                values[owner] + weight * (one.parts - one.units[owner, 2])
                for values, owner, one in zip(scores.units, owners, judged, strict=True)
            )
            results.append(Scores(units, scores.passages))
        return results


def _cut(text: str, sentences: Sequence[Span]) -> tuple[list[Span], NDArray[np.int64]]:
    """The parts that may be kept: no number leaves its unit, no negation what it negates."""
    return parts(text, sentences, guards.atoms(text, guards.ATOM_KINDS))


def _rate(passages: Sequence[Passage], size: Budget, tokens: TokenCounter) -> float:
    """The part of all tokens that may be kept, but for what joins them."""
    counts = tokens.count_many(passage.text for passage in passages)
    limits = map(size.limit, counts) if size.per_passage else [size.limit(sum(counts))]
    return sum(limits) / max(1, sum(counts))


def parts(
    text: str, sentences: Sequence[Span], atoms: Sequence[Span]
) -> tuple[list[Span], NDArray[np.int64]]:
    """Cut sentences where a phrase ends and no atom is cut, into parts of `_PART` characters or
    more.

    Returns
    -------
    parts : list of Span
        Tiles of the sentences.
    sentence_of_part : array, shape ``(parts,)``
        The sentence that each of them lies in.
    """
    ends = [end for _, end in units.phrases(text, atoms)]
    found: list[Span] = []
    owners: list[int] = []
    for owner, (start, end) in enumerate(sentences):
        for place in ends[bisect(ends, start) : bisect(ends, end - _PART // 2)]:
            if place - start >= _PART:
                found.append(Span(start, place))
                start = place
        found.append(Span(start, end))
        owners += [owner] * (len(found) - len(owners))
    return found, np.array(owners, np.int64)


def readings(request: Request) -> list[Reading]:
    """What the model is to judge for a request with a query."""
    return [
        Reading(request.query or "", title, text, spans, _cut(text, spans)[0])
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
