"""What is measured on a compressed text, and how sure the figures are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import regex

from ..types import Compression, Span

__all__ = [
    "Interval",
    "contains_answer",
    "evidence_kept",
    "mean_interval",
    "paired_p_value",
    "wilson_interval",
    "word_recall",
]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}"
_WORD = regex.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+")
_ARTICLES = frozenset({"a", "an", "the"})


def _words(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles, as SQuAD's metric reads text."""
    return [word for word in _WORD.findall(text.lower()) if word not in _ARTICLES]


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the words of any answer stand in the text, in order and side by side."""
    line = f" {' '.join(_words(text))} "
    return any(f" {' '.join(words)} " in line for words in map(_words, answers) if words)


def word_recall(text: str, answers: Sequence[str]) -> float:
    """The largest part of an answer's distinct words that the text holds anywhere, 0 to 1."""
    held = set(_words(text))
    parts = [len(wanted & held) / len(wanted) for a in answers if (wanted := set(_words(a)))]
    return max(parts, default=0.0)


def evidence_kept(compression: Compression, supporting: Sequence[tuple[int, Span]]) -> float:
    """The part of the supporting spans that is kept whole, white space aside, 0 to 1."""
    kept = {p.index: p for p in compression.passages}
    if not supporting:
        return 1.0
    whole = sum(
        _holds(kept[i].passage.text, kept[i].spans, span) for i, span in supporting if i in kept
    )
    return whole / len(supporting)


def _holds(text: str, spans: Sequence[Span], wanted: Span) -> bool:
    """Whether every character of ``text[wanted]`` that is not white space lies in a span."""
    place = wanted.start
    for start, end in (*spans, Span(wanted.end, wanted.end)):
        if end <= place:
            continue
        if text[place : min(max(start, place), wanted.end)].strip():
            return False
        place = max(place, end)
    return True


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % confidence interval; printed as a proportion in per cent."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low * 100:.1f}, {self.high * 100:.1f}]"


def wilson_interval(successes: float, n: int) -> Interval:
    """A proportion's 95 % interval after Wilson (1927); `successes` may be a mean of seeds."""
    if not n:
        return Interval(0.0, 0.0, 1.0)
    z2 = 1.959964**2
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5 / (1 + z2 / n)
    # Rounding may leave the proportion a hair outside of an interval that it bounds.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def mean_interval(values: Sequence[float]) -> Interval:
    """A mean with its 95 % interval after the normal approximation."""
    half = 1.959964 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.inf
    mean = fmean(values)
    return Interval(mean, mean - half, mean + half)


def paired_p_value(first: Sequence[bool], second: Sequence[bool]) -> float:
    """McNemar's exact test: how likely so uneven a disagreement is between equal methods.

    Parameters
    ----------
    first, second
        Whether each of two methods succeeded on the same examples.
    """
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / (1 << n))
