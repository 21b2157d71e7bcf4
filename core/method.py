"""The base of every method that scores units: cut, score, keep the best under the budget."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import guards, units
from .budget import Budget, TokenCounter
from .compressor import Compressor, Order, Passages, as_passages, as_query, check_order
from .errors import QueryRequiredError
from .guards import KeepPattern
from .packing import Scored, pack
from .types import JOINER, CompressedPassage, Compression, Passage, Span, render

__all__ = ["Flags", "Floats", "Method", "Request", "Scores"]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
"""An array of scores."""

Flags = NDArray[np.bool_]
"""An array of marks."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a method has to score: passages cut into units, and what is asked of them.

    Attributes
    ----------
    passages
        The text of each passage.
    units
        The units of each passage, tiles of its text.
    titles
        The title of each passage, taken from ``metadata["title"]``; ``""`` where there is
        none. It helps to tell what a passage is about and is never part of the result.
    query
        What the text is wanted for; None when nothing is known.
    forced
        For each passage which of its units the caller wants kept; shape ``(units,)``, bool.
    rate
        The part of all tokens that may be kept, above 0 and at most 1. Only a method whose
        scores depend on what is kept before needs it.
    shares_out
        Whether the budget promises tokens to each passage, so that none may be passed over.
    """

    passages: tuple[str, ...]
    units: tuple[tuple[Span, ...], ...]
    titles: tuple[str, ...]
    query: str | None
    forced: tuple[Flags, ...] = ()
    rate: float = 1.0
    shares_out: bool = False

    def unit_texts(self) -> list[str]:
        """The text of every unit of every passage on one line, white space around it removed."""
        return [
            text[start:end].strip()
            for text, spans in zip(self.passages, self.units, strict=True)
            for start, end in spans
        ]

    def windows(self, size: int) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """Group neighbouring units, so that each can be judged with the text around it.

        Parameters
        ----------
        size
            Characters after which a window ends. A shorter passage is one window.

        Returns
        -------
        texts : list of str
            The text of each window, below the title of its passage.
        window_of_unit : array, shape ``(units,)``
            The window that each unit of `unit_texts` lies in.
        passage_of_window : array, shape ``(windows,)``
            The passage that each window lies in.
        """
        texts: list[str] = []
        window_of_unit: list[int] = []
        passage_of_window: list[int] = []
        for i, (text, spans, title) in enumerate(
            zip(self.passages, self.units, self.titles, strict=True)
        ):
            starts = _window_starts(spans, max(1, round(len(text) / size)))
            for first, last in zip(starts, [*starts[1:], len(spans)], strict=False):
                window_of_unit += [len(texts)] * (last - first)
                passage_of_window.append(i)
                body = text[spans[first].start : spans[last - 1].end].strip()
                texts.append(f"{title}\n{body}" if title else body)
        return texts, np.array(window_of_unit, np.int64), np.array(passage_of_window, np.int64)

    def places(self) -> NDArray[np.int64]:
        """The place of each unit of `unit_texts` in its passage, from 0."""
        return np.concatenate([np.arange(len(u)) for u in self.units] or [np.zeros(0, np.int64)])

    def per_passage(self, values: Floats) -> tuple[Floats, ...]:
        """Cut one line of values, a number a unit, into an array for each passage."""
        ends = np.cumsum([len(spans) for spans in self.units])
        return tuple(np.split(values, ends[:-1])) if len(ends) else ()


@dataclass(frozen=True, slots=True)
class Scores:
    """What a method says of a request: higher is better.

    Attributes
    ----------
    units
        For each passage an array with a score for each of its units, comparable across
        passages; ``-inf`` for one that is left out unless it is forced.
    passages
        A score for each passage, shape ``(len(passages),)``.
    forced
        For each passage which of its units the method wants kept whatever their score, beside
        those that the caller does; None for none.
    """

    units: tuple[Floats, ...]
    passages: Floats
    forced: tuple[Flags, ...] | None = None


class Method(Compressor):
    """A compressor that scores units and keeps the best.

    A new method sets `name` and writes `score`; it may cut other units in `segment`, and score
    several requests at once in `score_many`.
    """

    @abstractmethod
    def score(self, request: Request) -> Scores:
        """Score the units and the passages of one request."""

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score several requests, each as `score` would."""
        return [self.score(request) for request in requests]

    def segment(self, text: str) -> Sequence[Span]:
        """Cut a text into the units that are kept or dropped; they must tile it."""
        return units.sentences(text, guards.atoms(text))

    def compress_many(
        self,
        requests: Iterable[tuple[Passages, str | None]],
        *,
        budget: Budget | float,
        keep: Sequence[KeepPattern] = (),
        counter: Any = None,
        order: Order = "source",
    ) -> list[Compression]:
        """See `Compressor.compress_many`; ``seconds`` holds an equal share of the scoring."""
        started = time.perf_counter()
        check_order(order)
        patterns = guards.keep_patterns(keep)
        size, tokens = Budget.of(budget), TokenCounter.of(counter)
        jobs = [_Job.of(self, given, query, size, tokens) for given, query in requests]
        asked = {
            i: job.request(self, patterns)
            for i, job in enumerate(jobs)
            if order == "score" or not job.fits
        }
        scores = dict(zip(asked, self.score_many(list(asked.values())), strict=True))
        share = (time.perf_counter() - started) / max(1, len(jobs))
        results = []
        for i, job in enumerate(jobs):
            started = time.perf_counter()
            result = job.result(self.name, asked.get(i), scores.get(i), order)
            result = replace(result, seconds=share + time.perf_counter() - started)
            logger.info("%s", result)
            results.append(result)
        return results


@dataclass(frozen=True, slots=True)
class _Job:
    """One list of passages on its way through a method."""

    passages: tuple[Passage, ...]
    query: str | None
    budget: Budget
    counter: TokenCounter
    tokens: tuple[int, ...]
    total: int

    @classmethod
    def of(
        cls,
        method: Method,
        given: Passages,
        query: str | None,
        budget: Budget,
        counter: TokenCounter,
    ) -> _Job:
        query = as_query(query)
        if method.needs_query and query is None:
            raise QueryRequiredError(
                f"{method.name} scores text against a query and was given none; pass query=... "
                f"or use a method that needs none, such as 'lexical'"
            )
        passages = as_passages(given)
        tokens = tuple(counter.count_many(p.text for p in passages))
        joined = JOINER.join(p.text for p in passages)
        total = tokens[0] if len(tokens) == 1 else counter.count(joined)
        return cls(passages, query, budget, counter, tokens, total)

    def request(self, method: Method, keep: Sequence[KeepPattern]) -> Request:
        texts = tuple(p.text for p in self.passages)
        spans = tuple(tuple(method.segment(text)) for text in texts)
        titles = (p.metadata.get("title") for p in self.passages)
        return Request(
            passages=texts,
            units=spans,
            titles=tuple(t if isinstance(t, str) else "" for t in titles),
            query=self.query,
            forced=tuple(
                guards.overlaps(units, guards.keep_spans(text, keep))
                for text, units in zip(texts, spans, strict=True)
            ),
            rate=min(1.0, max(1, sum(self.limits)) / max(1, sum(self.counts))),
            shares_out=self.budget.per_passage or self.budget.min_per_passage > 0,
        )

    @property
    def counts(self) -> Sequence[int]:
        """The tokens that are limited: those of each passage, or those of all joined."""
        return self.tokens if self.budget.per_passage else [self.total]

    @property
    def limits(self) -> list[int]:
        """The limit for each of the counts."""
        return [self.budget.limit(count) for count in self.counts]

    @property
    def fits(self) -> bool:
        return all(n <= limit for n, limit in zip(self.counts, self.limits, strict=True))

    def result(
        self,
        method: str,
        request: Request | None,
        scores: Scores | None,
        order: Order,
    ) -> Compression:
        ranking = list(range(len(self.passages)))
        if scores is not None and order == "score":
            ranking = np.argsort(-scores.passages, kind="stable").tolist()
            # Another order has other seams, at which a tokenizer may save less.
            joined = JOINER.join(self.passages[i].text for i in ranking)
            self = replace(self, total=max(self.total, self.counter.count(joined)))
        if self.fits or request is None or scores is None:
            spans = [_whole(p.text) for p in self.passages]
        else:
            spans = self._packed(request, scores, ranking)
        texts = [render(p.text, s) for p, s in zip(self.passages, spans, strict=True)]
        after = self.counter.count_many(texts)
        outcomes = [
            CompressedPassage(
                passage,
                i,
                tuple(spans[i]),
                None if scores is None else float(scores.passages[i]),
                self.tokens[i],
                after[i],
            )
            for i, passage in enumerate(self.passages)
        ]
        return Compression(
            passages=tuple(outcomes[i] for i in ranking if spans[i]),
            dropped=tuple(outcome for outcome in outcomes if not outcome.spans),
            method=method,
            query=self.query,
            budget=self.budget,
            limit=sum(self.limits),
            counter=self.counter.name,
            tokens_before=self.total,
            tokens_after=self.counter.count(JOINER.join(texts[i] for i in ranking if spans[i])),
            seconds=0.0,
        )

    def _packed(
        self,
        request: Request,
        scores: Scores,
        ranking: Sequence[int],
    ) -> list[list[Span]]:
        """The kept parts of each passage, in input order."""
        candidates = [
            Scored(text, spans, values, asked | wanted)
            for text, spans, values, asked, wanted in zip(
                request.passages,
                request.units,
                scores.units,
                request.forced,
                scores.forced or request.forced,
                strict=True,
            )
        ]
        if self.budget.per_passage:
            return [
                _whole(candidate.text)
                if count <= limit
                else pack([candidate], limit, self.counter)[0]
                for candidate, count, limit in zip(
                    candidates, self.tokens, self.limits, strict=True
                )
            ]
        ranked = [candidates[i] for i in ranking]
        packed = pack(ranked, self.limits[0], self.counter, self.budget.min_per_passage)
        by_passage = dict(zip(ranking, packed, strict=True))
        return [by_passage[i] for i in range(len(candidates))]


def _window_starts(spans: Sequence[Span], count: int) -> list[int]:
    """The first unit of each of at most `count` windows of about the same length."""
    if count == 1 or not spans:
        return [0] if spans else []
    borders = np.arange(count) * spans[-1].end / count
    firsts = np.searchsorted([span.end for span in spans], borders, side="right")
    return sorted(set(firsts.tolist()))


def _whole(text: str) -> list[Span]:
    return [Span(0, len(text))]
