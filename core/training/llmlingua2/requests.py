"""What a large language model is asked, and what that will cost.

Source: Pan et al., "LLMLingua-2", Findings of ACL 2024, section 3.1: long texts go in chunks of at
most 512 tokens that end with a sentence, each with an instruction of five rules. The wording of
the instruction is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...budget import TokenCounter
from ...errors import InputError
from .documents import Document, cut
from .rows import digest

__all__ = ["INSTRUCTION", "Chunk", "Estimate", "Instruction", "chunk", "estimate"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the model is told.

    Attributes
    ----------
    system
        The system's message.
    user
        The user's, in which ``{text}`` stands for the chunk.

    Raises
    ------
    InputError
        `user` has no ``{text}``.
    """

    system: str
    user: str

    def __post_init__(self) -> None:
        if "{text}" not in self.user:
            raise InputError("the user's message of an instruction needs {text} where the text is")

    def about(self, text: str) -> tuple[str, str]:
        """The two messages for a text."""
        return self.system, self.user.replace("{text}", text)


INSTRUCTION = Instruction(
    "You shorten texts for readers who pay for each word. You know languages well, and you shorten "
    "in one way only: you strike out words.",
    "Shorten the text below as far as you can, so that it still tells everything that matters: "
    "who, what, when, where, why, how many, and what is not so. Keep to these rules:\n"
    "1. Strike out words that matter little, and change nothing else.\n"
    "2. Leave the other words in their order.\n"
    "3. Leave them in their form, with the same endings and the same spelling.\n"
    "4. Put no abbreviation and no emoji in the place of words.\n"
    "5. Add no word and no symbol that is not there.\n"
    "Answer with the shortened text and nothing else.\n\n"
    "The text:\n{text}",
)
"""The paper's five rules in our own words."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A text to send.

    Attributes
    ----------
    id
        Hash of the text and the instruction.
    document
        The name of the document that it is from.
    text
        The text, without white space around it.
    """

    id: str
    document: str
    text: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What it takes to send chunks.

    Attributes
    ----------
    chunks
        How many.
    tokens_in, tokens_out
        What is sent, instructions included, and what is expected to come back.
    counter
        Name of the tokenizer in which that is counted.
    dollars
        None if prices are not known.
    """

    chunks: int
    tokens_in: int
    tokens_out: int
    counter: str
    dollars: float | None

    def __str__(self) -> str:
        cost = "no price given" if self.dollars is None else f"about ${self.dollars:,.2f}"
        return (
            f"{self.chunks:,} chunks to send, {self.tokens_in:,} tokens in, about "
            f"{self.tokens_out:,} tokens out ({self.counter}), {cost}"
        )


def chunk(
    documents: Sequence[Document],
    *,
    instruction: Instruction = INSTRUCTION,
    counter: Any = None,
    max_tokens: int = 512,
) -> list[Chunk]:
    """Cut documents into chunks; the same text is sent only once.

    Parameters
    ----------
    documents
        See `read_documents`.
    instruction
        What the model will be told.
    counter
        As `TokenCounter.of` takes it; None for cl100k_base.
    max_tokens
        Of a chunk, at the most.
    """
    counter = TokenCounter.of(counter)
    found: dict[str, Chunk] = {}
    for document in documents:
        for span in cut(document.text, counter, max_tokens):
            text = document.text[slice(*span)].strip()
            name = digest(*instruction.about(""), text)
            if text:
                found.setdefault(name, Chunk(name, document.name, text))
    return list(found.values())


def estimate(
    chunks: Sequence[Chunk],
    *,
    instruction: Instruction = INSTRUCTION,
    counter: Any = None,
    rate: float = 0.4,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Estimate:
    """Say what it will take to send chunks.

    Parameters
    ----------
    chunks
        What to send.
    instruction, counter
        As `chunk` takes them.
    rate
        The part of a text's tokens that is expected to be left of it.
    price_in, price_out
        Dollars for a million tokens; None if not known.
    """
    counter = TokenCounter.of(counter)
    sent = sum(counter.count(told) for one in chunks for told in instruction.about(one.text))
    back = round(rate * sum(counter.count(one.text) for one in chunks))
    is_priced = price_in is not None and price_out is not None
    dollars = (sent * (price_in or 0) + back * (price_out or 0)) / 1e6 if is_priced else None
    return Estimate(len(chunks), sent, back, counter.name, dollars)
