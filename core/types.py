"""The plain values that travel through laconic: what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .budget import Budget

__all__ = ["JOINER", "CompressedPassage", "Compression", "Passage", "Span"]

JOINER = "\n\n"
"""What stands between two passages in `Compression.text`, and is counted with it."""


class Span(NamedTuple):
    """A half-open range of character offsets into a passage's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text to compress, with whatever identifies it.

    Attributes
    ----------
    text
        The text. It is never changed.
    id
        The caller's name for the passage; carried through, never interpreted.
    metadata
        The caller's facts about the passage; carried through, never interpreted.
    """

    text: str
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class CompressedPassage:
    """What is left of one passage.

    Attributes
    ----------
    passage
        The passage as it was given.
    index
        Its place in the input.
    spans
        The kept parts: character offsets into ``passage.text``, ascending, disjoint.
    score
        Relevance of the whole passage on the method's own scale, comparable within one
        `Compression` only. None when nothing had to be scored.
    tokens_before, tokens_after
        Tokens of the passage and of what is left of it, each counted alone.
    """

    passage: Passage
    index: int
    spans: tuple[Span, ...]
    score: float | None
    tokens_before: int
    tokens_after: int

    @property
    def id(self) -> str | None:
        """The id of the passage."""
        return self.passage.id

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of the passage."""
        return self.passage.metadata

    @property
    def text(self) -> str:
        """The kept characters, in source order, with nothing added."""
        return render(self.passage.text, self.spans)


@dataclass(frozen=True, slots=True, repr=False)
class Compression:
    """The result of compressing a list of passages.

    Attributes
    ----------
    passages
        The passages of which something is left, in the order in which they stand in `text`.
    dropped
        The passages of which nothing is left, in input order.
    method
        Name of the method that decided.
    query
        The query it decided for, or None.
    budget
        The budget as it was asked for.
    limit
        The budget in tokens: of `text`, or, for a budget per passage, the sum of their limits.
    counter
        Name of the tokenizer in which everything is counted.
    tokens_before, tokens_after
        Tokens of all passages joined by `JOINER` (in input order or, if that counts more, in
        that of the result), and of `text`.
    seconds
        Wall time that the compression took.
    """

    passages: tuple[CompressedPassage, ...]
    dropped: tuple[CompressedPassage, ...]
    method: str
    query: str | None
    budget: Budget
    limit: int
    counter: str
    tokens_before: int
    tokens_after: int
    seconds: float

    @property
    def text(self) -> str:
        """What is left of all passages, joined by `JOINER`."""
        return JOINER.join(p.text for p in self.passages)

    @property
    def rate(self) -> float:
        """Fraction of the tokens kept; 1.0 for empty input."""
        return self.tokens_after / self.tokens_before if self.tokens_before else 1.0

    def restore(self, response: str) -> str:
        """Give back to a model's response the words that compression took from what it quotes.

        See `laconic.core.restore.restore`.
        """
        from .restore import restore

        return restore(self, response)

    def __str__(self) -> str:
        total = len(self.passages) + len(self.dropped)
        return (
            f"{self.method}: {self.tokens_before:,} -> {self.tokens_after:,} tokens "
            f"({self.rate:.1%} kept, {self.counter}), {len(self.passages)} of {total} "
            f"passages, {self.seconds * 1000:.0f} ms"
        )

    __repr__ = __str__


def render(text: str, spans: Sequence[Span]) -> str:
    """Join the characters of `text` that lie in `spans`."""
    return "".join([text[start:end] for start, end in spans])
