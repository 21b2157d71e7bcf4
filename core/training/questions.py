"""Questions to learn from: which sentences of their passages are wanted, and what is held out."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .. import guards, units
from ..errors import InputError
from ..evaluation.datasets import Example, load
from ..evaluation.metrics import contains_answer
from ..method import Flags, Request
from ..types import Span

__all__ = ["Labelled", "Part", "Split", "held_out", "label", "read"]

Part = Literal["learnt", "weighed", "held out"]
"""What a question is for."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which documents are for what: the same whatever the seed and the other documents.

    Attributes
    ----------
    held_out, weighed
        The parts of all documents that are never trained on, and that teach how to weigh.
    """

    held_out: float = 0.5
    weighed: float = 0.07

    def __post_init__(self) -> None:
        if min(self.held_out, self.weighed) < 0 or self.held_out + self.weighed >= 1:
            raise InputError("held_out and weighed are parts, and leave some to learn from")

    def part(self, document: str) -> Part:
        """What a document is for."""
        digest = hashlib.sha256(document.encode("utf-8", "replace")).digest()
        place = int.from_bytes(digest[:4], "big")
        if place < self.held_out * 2**32:
            return "held out"
        return "weighed" if place < (self.held_out + self.weighed) * 2**32 else "learnt"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question with its passages, cut into sentences of which some are wanted.

    Attributes
    ----------
    example
        Where it comes from.
    titles, units
        Of each passage; a title is ``""`` for none.
    wanted
        For each passage which of its units are; shape ``(units,)``, bool.
    is_marked
        Whether they are since the example says so, rather than since they hold an answer.
    """

    example: Example
    titles: tuple[str, ...]
    units: tuple[tuple[Span, ...], ...]
    wanted: tuple[Flags, ...]
    is_marked: bool

    @property
    def question(self) -> str:
        """What is asked."""
        return self.example.question

    @property
    def gold(self) -> list[int]:
        """The passages with a wanted sentence."""
        return [i for i, flags in enumerate(self.wanted) if flags.any()]

    @property
    def request(self) -> Request:
        """What a method is asked."""
        texts = tuple(passage.text for passage in self.example.passages)
        return Request(texts, self.units, self.titles, self.question)

    def among(self, others: Sequence[int]) -> Labelled:
        """The same question with only those passages beside the ones with evidence."""
        held = sorted({*self.gold, *others})
        passages = tuple(self.example.passages[i] for i in held)
        return Labelled(
            replace(self.example, passages=passages, supporting=()),
            tuple(self.titles[i] for i in held),
            tuple(self.units[i] for i in held),
            tuple(self.wanted[i] for i in held),
            self.is_marked,
        )

    def document(self, passage: int) -> str:
        """What a passage's document is told by: its title, or else how it begins."""
        return self.titles[passage] or self.example.passages[passage].text[:200]


def label(example: Example) -> Labelled | None:
    """Say which sentences of an example are wanted; None where that cannot be told.

    It cannot if nothing is marked as evidence and several passages hold an answer, or none.
    """
    texts = [passage.text for passage in example.passages]
    cut = tuple(map(_sentences, texts))
    wanted = tuple(np.zeros(len(spans), bool) for spans in cut)
    if example.supporting:
        for place, (start, end) in example.supporting:
            for i, unit in enumerate(cut[place]):
                wanted[place][i] |= unit.start < end and start < unit.end
    else:
        holders = [i for i, text in enumerate(texts) if contains_answer(text, example.answers)]
        if len(holders) != 1:
            return None
        for i, (start, end) in enumerate(cut[holders[0]]):
            sentence = texts[holders[0]][start:end]
            wanted[holders[0]][i] = contains_answer(sentence, example.answers)
    titles = tuple(str(passage.metadata.get("title") or "") for passage in example.passages)
    if not any(flags.any() for flags in wanted):
        return None
    return Labelled(example, titles, cut, wanted, bool(example.supporting))


def held_out(examples: Iterable[Example], split: Split) -> list[Example]:
    """Those about documents that are never trained on; none of which that cannot be told."""
    return [
        example
        for example in examples
        if (one := label(example)) and split.part(one.document(one.gold[0])) == "held out"
    ]


@functools.lru_cache(maxsize=10_000)
def _sentences(text: str) -> tuple[Span, ...]:
    """The sentences of a text, which many questions may share."""
    return tuple(units.sentences(text, guards.atoms(text)))


def read(file: str | Path, split: Split) -> dict[Part, list[Labelled]]:
    """Read questions, and part them by the document of their first evidence.

    Raises
    ------
    InputError
        The file cannot be read, or leaves no question to learn from.
    """
    found: dict[Part, list[Labelled]] = {"learnt": [], "weighed": [], "held out": []}
    for example in load(file):
        if labelled := label(example):
            found[split.part(labelled.document(labelled.gold[0]))].append(labelled)
    if not found["learnt"]:
        raise InputError(
            f"{file} has no question to learn from: each needs supporting sentences, or answers "
            f"that stand in one passage alone"
        )
    return found
