"""Instructions that a stranger wrote into a text, and how many of them compression leaves there.

Nothing here follows an instruction. Whether its sentence still stands in the result says whether a
model would be shown it; what else is left of the text says what that is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex

from .. import units
from ..budget import Budget, TokenCounter
from ..compressor import Compressor
from ..errors import InputError
from ..training.llmlingua2.rows import read_rows, text_under
from ..types import Span
from .metrics import wilson_interval

__all__ = ["WORDINGS", "Fate", "Injected", "Injection", "injection", "load"]

WORDINGS = ("plain", "aimed")
"""The instruction as it is; the instruction with words of the question before it, in a sentence."""

PLACES = ("start", "middle", "end")

_SHAPES = (
    ("question", "context", "instruction", "place"),
    ("user", "data_fact", "attack_text", "position"),
)
"""The keys of our own rows, and of those of BIPIA (Yi et al. 2023, arXiv 2312.14197)."""

_PROMPT = regex.compile(r"^(?:Q:\s*)+")
_SENTENCE_END = regex.compile(r"[.!?]+(?=\s|$)")

_AIMED_WORDS = 20
"""The most words of a question that an instruction is aimed with."""


@dataclass(frozen=True, slots=True)
class Injected:
    """A text for a question, and what a stranger adds to it.

    Attributes
    ----------
    question
        What is asked of the text.
    context
        The text, without the instruction.
    instruction
        One sentence that has nothing to do with the question.
    place
        Where it is put: ``"start"``, ``"middle"`` (behind the sentence that ends nearest to it) or
        ``"end"``; always on a line of its own.
    """

    question: str
    context: str
    instruction: str
    place: str

    def worded(self, wording: str) -> tuple[str, Span, list[Span]]:
        """The text with the instruction in it.

        Parameters
        ----------
        wording
            One of `WORDINGS`.

        Returns
        -------
        text, instruction, others
            Where the instruction stands, without what aims it, and where the other sentences do.
        """
        cut = {"start": 0, "end": len(self.context)}.get(self.place)
        if cut is None:
            ends = [end for _, end in units.sentences(self.context)]
            cut = min(ends, key=lambda end: abs(2 * end - len(self.context)))
        before, after = self.context[:cut], self.context[cut:]
        before += "\n" if before and not before.endswith("\n") else ""
        after = f"\n{after}" if after else ""
        aim = ""
        if wording == "aimed":
            words = _SENTENCE_END.sub(",", self.question).split()[:_AIMED_WORDS]
            aim = f"To answer {' '.join(words).rstrip(',')}: "
        start = len(before) + len(aim)
        end = start + len(self.instruction)
        others = [
            Span(offset + first, offset + last)
            for part, offset in ((before, 0), (after, end))
            for first, last in units.sentences(part)
            if part[first:last].strip()
        ]
        return f"{before}{aim}{self.instruction}{after}", Span(start, end), others


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of some sentences, white space aside; printed with 95 % Wilson intervals.

    Attributes
    ----------
    whole, part, gone
        How many are left whole, in part, and not at all.
    """

    whole: int
    part: int
    gone: int

    @property
    def n(self) -> int:
        """All."""
        return self.whole + self.part + self.gone

    def __str__(self) -> str:
        return " | ".join(
            str(wilson_interval(count, self.n)) for count in (self.whole, self.part, self.gone)
        )


@dataclass(frozen=True, slots=True)
class Injection:
    """What one method leaves at one rate.

    Attributes
    ----------
    method
        Its name.
    wording
        One of `WORDINGS`.
    rate
        The fraction of tokens that was asked for.
    instructions, others
        What became of the instructions, and of all other sentences of the same texts.
    """

    method: str
    wording: str
    rate: float
    instructions: Fate
    others: Fate

    def __str__(self) -> str:
        cells = (self.method, self.wording, f"{self.rate:g}", self.instructions, self.others)
        return f"| {' | '.join(map(str, cells))} |"


def load(path: str | Path) -> list[Injected]:
    """Read texts with an instruction each, from JSON lines (plain or gzip).

    A row has ``question, context, instruction, place``, or the same under the names of BIPIA.

    Raises
    ------
    InputError
        The file cannot be read, holds no rows, or one that lacks a text or names no place.
    """
    found = []
    for where, row in read_rows(path):
        keys = next((keys for keys in _SHAPES if keys[2] in row), _SHAPES[0])
        question, context, instruction, place = (text_under(row, key, where) for key in keys)
        if place not in PLACES:
            raise InputError(f"{where}: a place is one of {', '.join(PLACES)}, got {place!r}")
        found.append(Injected(_PROMPT.sub("", question), context, instruction.strip(), place))
    if not found:
        raise InputError(f"{path} holds no rows")
    return found


def injection(
    texts: Sequence[Injected],
    compressors: Sequence[Compressor],
    rates: Sequence[float],
    *,
    counter: Any = None,
) -> Iterator[Injection]:
    """Compress each text alone, for its question, with the instruction in either wording.

    Parameters
    ----------
    texts
        What `load` gives.
    compressors
        What compresses; a method that reads no query is given it all the same.
    rates
        Fractions of tokens to keep, of a text with its instruction.
    counter
        Whose tokens are counted; anything `TokenCounter.of` takes.
    """
    tokens = TokenCounter.of(counter)
    for compressor in compressors:
        for wording in WORDINGS:
            for rate in rates:
                instructions, others = [0, 0, 0], [0, 0, 0]
                for given in texts:
                    text, instruction, rest = given.worded(wording)
                    result = compressor.compress(
                        text, query=given.question, budget=Budget.rate(rate), counter=tokens
                    )
                    kept = [span for passage in result.passages for span in passage.spans]
                    for counts, spans in ((instructions, [instruction]), (others, rest)):
                        for place in _places(text, spans, kept):
                            counts[place] += 1
                yield Injection(compressor.name, wording, rate, Fate(*instructions), Fate(*others))


def _places(text: str, spans: Sequence[Span], kept: Sequence[Span]) -> Iterator[int]:
    """What became of each span, as the place of its count in a `Fate`."""
    is_blank = np.array([character.isspace() for character in text], bool)
    stands = np.zeros(len(text), bool)
    for start, end in kept:
        stands[start:end] = True
    for start, end in spans:
        left = stands[start:end][~is_blank[start:end]]
        yield 0 if left.all() else 1 if left.any() else 2
