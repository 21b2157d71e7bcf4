"""What must not get lost, and how much of it compression loses.

A number without its unit, half a name, a verb without its "not": what a text says depends on few
of its words. Here they are found in the source and looked for, by their place, in what is left.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from .. import guards, units
from ..budget import Budget, TokenCounter
from ..compressor import Compressor
from ..errors import BudgetError
from ..guards import KeepPattern
from ..method import Method, Request, Scores
from ..methods.lexical import STOP_WORDS
from ..types import Compression, Span
from .metrics import wilson_interval

__all__ = [
    "KINDS",
    "PlainWords",
    "RandomWords",
    "Share",
    "Survival",
    "guarded",
    "negated",
    "survival",
]

KINDS: tuple[str, ...] = ("numbers", "names", "negations", "modals")
"""The kinds of spans that are looked for; `laconic.core.guards.atoms` describes them."""

_NEGATION = regex.compile(
    r"(?i:\b(?:not(?!\s+only\b)|never|no|none|nor|neither|without|cannot|unless|except"
    r"|\p{L}{1,8}n['’]t)(?!\w))"
)
_NEXT_WORD = regex.compile(r"\s+([\p{L}\p{M}\p{N}]+)")
_PASSED_OVER = STOP_WORDS | set("longer yet even just really very quite always ever".split())
"""Words between a negation and what it negates: "not a very good idea"."""

_REACH = 4
"""Words behind a negation among which the one that it negates is looked for."""


class RandomWords(Method):
    """Keep random words.

    Parameters
    ----------
    seed
        Seed of the choice; the same seed and input give the same result.
    """

    name = "random-words"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def segment(self, text: str) -> Sequence[Span]:
        """Cut as `LLMLingua2` does."""
        return units.words(text, guards.atoms(text, guards.ATOM_KINDS), marks=True)

    def score(self, request: Request) -> Scores:
        """Score at random, anew for each text."""
        joined = "".join(request.passages).encode("utf-8", "surrogatepass")
        rng = np.random.default_rng([self.seed, zlib.crc32(joined)])
        values = rng.random(sum(map(len, request.units)))
        return Scores(request.per_passage(values), rng.random(len(request.passages)))


class PlainWords(Method):
    """Another method, with its words cut wherever there is white space or a mark.

    Nothing is a unit of its own: numbers may lose their units, and verbs their "not".

    Parameters
    ----------
    method
        A method whose units are words.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.name = method.name

    def segment(self, text: str) -> Sequence[Span]:
        """Cut into words and marks."""
        return units.words(text, marks=True)

    def score(self, request: Request) -> Scores:
        """Score as the method does."""
        return self.method.score(request)

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score as the method does."""
        return self.method.score_many(requests)


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many; printed with a 95 % Wilson interval.

    Attributes
    ----------
    count
        Those of which it is true.
    n
        All.
    """

    count: int
    n: int

    def __str__(self) -> str:
        return f"{wilson_interval(self.count, self.n)} of {self.n:,}" if self.n else "–"


@dataclass(frozen=True, slots=True)
class Survival:
    """What one method keeps at one rate.

    Attributes
    ----------
    method
        Its name.
    guards
        ``"none"``; ``"whole"`` where what must not be cut is one unit, kept or dropped;
        ``"kept"`` where it is kept whatever its score.
    rate
        The fraction of tokens that was asked for.
    kept
        For each of `KINDS` how many spans of the source stand in the result: whole, at their
        place, white space aside.
    turned
        Of the words that stand in the result and are negated in the source, how many lack
        their negation there.
    refused
        How many texts could not be compressed since what must be kept is more than the budget;
        they count for nothing else.
    """

    method: str
    guards: str
    rate: float
    kept: Mapping[str, Share]
    turned: Share
    refused: Share

    def __str__(self) -> str:
        cells = [self.method, self.guards, f"{self.rate:g}", *map(str, self.kept.values())]
        refused = f"{self.refused.count:,} of {self.refused.n:,}"
        return f"| {' | '.join([*cells, str(self.turned), refused])} |"


@dataclass(frozen=True, slots=True)
class _Marked:
    """A text with what is looked for in it."""

    text: str
    blank: NDArray[np.bool_]
    spans: Mapping[str, Sequence[Span]]
    negated: Sequence[tuple[Span, Span]]

    @classmethod
    def of(cls, text: str) -> _Marked:
        return cls(
            text,
            np.array([character.isspace() for character in text], bool),
            {kind: guards.atoms(text, [kind]) for kind in KINDS},
            negated(text),
        )


def negated(text: str) -> list[tuple[Span, Span]]:
    """Find the negations of a text and the word that each negates.

    That is the first word behind it, before any mark, that is more than an article, an auxiliary
    or the like: "good" in "not a very good idea". English.
    """
    found = []
    for match in _NEGATION.finditer(text):
        place = match.end()
        for _ in range(_REACH):
            word = _NEXT_WORD.match(text, place)
            if word is None:
                break
            if word[1].lower() not in _PASSED_OVER:
                found.append((Span(*match.span()), Span(*word.span(1))))
                break
            place = word.end()
    return found


def guarded(
    compressor: Compressor, keep: Sequence[str] = KINDS
) -> Iterator[tuple[str, Compressor, tuple[KeepPattern, ...]]]:
    """Every degree to which a compressor can guard what must not get lost.

    Parameters
    ----------
    compressor
        The compressor; one that cuts words comes without its guards too.
    keep
        Kinds of `laconic.core.guards.KEEP_KINDS` to keep in the highest degree.

    Yields
    ------
    str, Compressor, tuple of patterns
        The degree, as `Survival.guards` has it; what compresses; its ``keep``.
    """
    patterns = guards.must_keep(*keep)
    # A sentence that is cut comes from a method whose units are smaller.
    if isinstance(compressor, Method) and len(compressor.segment("One man came here.")) > 1:
        yield "none", PlainWords(compressor), ()
        yield "whole", compressor, ()
    else:
        yield "none", compressor, ()
    yield "kept", compressor, patterns


def survival(
    texts: Sequence[str],
    compressors: Sequence[Compressor],
    rates: Sequence[float],
    *,
    keep: Sequence[str] = KINDS,
    counter: Any = None,
) -> Iterator[Survival]:
    """Compress each text alone, without a query, at every degree of guard and every rate.

    Parameters
    ----------
    texts
        English prose for negations and modals; any script with case for names.
    compressors
        What compresses.
    rates
        Fractions of tokens to keep.
    keep
        Kinds that are kept in the highest degree of `guarded`.
    counter
        Whose tokens are counted; anything `TokenCounter.of` takes.
    """
    tokens = TokenCounter.of(counter)
    marked = [_Marked.of(text) for text in texts]
    for compressor in compressors:
        for degree, variant, patterns in guarded(compressor, keep):
            for rate in rates:
                budget = Budget.rate(rate)
                results = [_compressed(variant, text, budget, patterns, tokens) for text in texts]
                yield _summed(compressor.name, degree, rate, marked, results)


def _compressed(
    compressor: Compressor,
    text: str,
    budget: Budget,
    keep: Sequence[KeepPattern],
    counter: TokenCounter,
) -> Compression | None:
    """The result; None where what must be kept does not fit."""
    try:
        return compressor.compress(text, budget=budget, keep=keep, counter=counter)
    except BudgetError:
        return None


def _summed(
    method: str,
    degree: str,
    rate: float,
    marked: Sequence[_Marked],
    results: Sequence[Compression | None],
) -> Survival:
    kept, n = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    turned = standing = refused = 0
    for source, result in zip(marked, results, strict=True):
        if result is None:
            refused += 1
            continue
        stands = source.blank.copy()
        for outcome in result.passages:
            for start, end in outcome.spans:
                stands[start:end] = True
        for kind, spans in source.spans.items():
            kept[kind] += sum(bool(stands[start:end].all()) for start, end in spans)
            n[kind] += len(spans)
        for negation, word in source.negated:
            if stands[slice(*word)].all():
                standing += 1
                turned += not stands[slice(*negation)].all()
    return Survival(
        method,
        degree,
        rate,
        {kind: Share(kept[kind], n[kind]) for kind in KINDS},
        Share(turned, standing),
        Share(refused, len(marked)),
    )
