"""Running methods over examples at several budgets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..budget import Budget, TokenCounter
from ..compressor import Compressor
from ..guards import atoms
from ..packing import TOLERANCE
from ..types import JOINER, Compression
from ..units import sentences
from .datasets import Example
from .metrics import Interval, contains_answer, evidence_kept, wilson_interval, word_recall

__all__ = ["Cell", "Outcome", "run", "summarise"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one compression did to one example.

    Attributes
    ----------
    answer
        Whether an answer stands in the text in one piece; None where the example names none
        that its passages hold.
    words
        Largest part of an answer's words in the text; None likewise.
    evidence
        Part of the supporting spans kept whole; None where the example has none.
    limit, tokens
        Tokens allowed and left.
    is_tight
        Whether less than 2 % of the limit is unused, or less than one more sentence would take.
    seconds
        Wall time.
    """

    answer: bool | None
    words: float | None
    evidence: float | None
    limit: int
    tokens: int
    is_tight: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Cell:
    """A method at one budget, over all examples.

    Attributes
    ----------
    answer
        How many examples keep an answer in one piece.
    all_evidence
        How many keep every supporting span whole.
    words, evidence
        Means of `Outcome.words` and `Outcome.evidence`.
    rate
        Tokens left by tokens allowed, in all.
    exceeded, loose
        How many outcomes pass their limit, and how many leave room for one more sentence.
    seconds
        Mean wall time of an example.
    kept
        For paired tests: whether each example keeps its answer, or else all its evidence.
    """

    answer: Interval | None
    words: float | None
    all_evidence: Interval | None
    evidence: float | None
    rate: float
    exceeded: int
    loose: int
    seconds: float
    kept: tuple[bool, ...]


def run(
    examples: Sequence[Example],
    compressor: Compressor,
    budget: Budget,
    counter: Any = None,
    *,
    asks: bool = True,
) -> Iterator[Outcome]:
    """Compress the passages of each example, for its question if it `asks`, one at a time."""
    tokens = TokenCounter.of(counter)
    for example in examples:
        result = compressor.compress(
            example.passages,
            query=example.question if asks else None,
            budget=budget,
            counter=tokens,
        )
        text = result.text
        yield Outcome(
            answer=contains_answer(text, example.answers) if example.is_answerable else None,
            words=word_recall(text, example.answers) if example.is_answerable else None,
            evidence=evidence_kept(result, example.supporting) if example.supporting else None,
            limit=result.limit,
            tokens=result.tokens_after,
            is_tight=_is_tight(result, tokens),
            seconds=result.seconds,
        )


def _is_tight(result: Compression, counter: TokenCounter) -> bool:
    slack = result.limit - result.tokens_after
    if slack <= TOLERANCE * result.limit or result.tokens_after == result.tokens_before:
        return True
    # One more sentence may have to be parted from both its neighbours.
    room = slack - 2 * counter.count(JOINER) - 1
    return all(
        counter.count(p.passage.text[start:end].strip()) > room
        for p in (*result.passages, *result.dropped)
        for start, end in sentences(p.passage.text, atoms(p.passage.text))
        if not any(s.start < end and start < s.end for s in p.spans)
    )


def summarise(runs: Sequence[Sequence[Outcome]]) -> Cell:
    """Make one cell of the outcomes of one method, or of several seeds of it."""
    outcomes = [outcome for outcomes in runs for outcome in outcomes]
    answers = [o.answer for o in outcomes if o.answer is not None]
    words = [o.words for o in outcomes if o.words is not None]
    evidence = [o.evidence for o in outcomes if o.evidence is not None]
    return Cell(
        answer=_share(answers, len(runs)),
        words=fmean(words) if words else None,
        all_evidence=_share([part == 1 for part in evidence], len(runs)),
        evidence=fmean(evidence) if evidence else None,
        rate=sum(o.tokens for o in outcomes) / max(1, sum(o.limit for o in outcomes)),
        exceeded=sum(o.tokens > o.limit for o in outcomes),
        loose=sum(not o.is_tight for o in outcomes),
        seconds=fmean(o.seconds for o in outcomes),
        kept=tuple(o.evidence == 1 if o.answer is None else o.answer for o in runs[0]),
    )


def _share(values: Sequence[bool], seeds: int) -> Interval | None:
    return wilson_interval(sum(values) / seeds, len(values) // seeds) if values else None
