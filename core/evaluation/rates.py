"""How close methods come to the rate that was asked for, at any length.

The models have random weights, for which words are kept matters less here than how many.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..budget import Budget, TokenCounter
from ..compressor import Compressor
from ..method import Method
from ..methods import METHODS, best_method, get_compressor
from ..packing import TOLERANCE
from ..types import Compression
from .random_models import Kind, build_model

__all__ = ["LENGTHS", "RATES", "Sweep", "shortfall", "sweep"]

LENGTHS = (*range(1, 401), 1_000, 8_000, 100_000)
"""Tokens of the texts."""

RATES = (0.2, 0.5, 0.8)

_MODELS: dict[str, Kind] = {
    "selective_context": "gpt2",
    "llmlingua": "gpt2",
    "longllmlingua": "gpt2",
    "llmlingua2": "bert",
}
"""The kind of the model that each method asks which cannot do without one."""


_ENCODED = ("extractive", "pruner", "tagger")
"""The methods that ask the bundled encoder."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One method at all lengths and rates.

    Attributes
    ----------
    name
        Of the method.
    texts
        Compressions that were made.
    exceeded, loose
        How many pass their limit, and how many stay further below it than 2 % of it and than
        the smallest unit that was left out.
    least
        The smallest part of its limit that a text of 1,000 tokens or more uses.
    """

    name: str
    texts: int
    exceeded: int
    loose: int
    least: float

    def __str__(self) -> str:
        return f"| {self.name} | {self.texts} | {self.exceeded} | {self.loose} | {self.least:.1%} |"


def sweep(
    texts: Sequence[str], lengths: Sequence[int] = LENGTHS, rates: Sequence[float] = RATES
) -> Iterator[Sweep]:
    """Compress a text of each length to each rate with every method that can run.

    Parameters
    ----------
    texts
        Prose, more of it than the longest text needs.
    lengths
        Tokens of the texts.
    rates
        Parts of them to keep.
    """
    counter = TokenCounter.of()
    words = " ".join(texts).split()
    documents = [_start(words, length, counter) for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        for name in METHODS:
            if name in _ENCODED and best_method() == "lexical":
                continue
            kind = _MODELS.get(name)
            if kind and not Path(folder, kind).exists():
                build_model(kind, Path(folder, kind), texts[:500])
            method = get_compressor(name, **({"model": Path(folder, kind)} if kind else {}))
            requests = [(document, "What was it?") for document in documents]
            results = [
                result
                for rate in rates
                for result in method.compress_many(requests, budget=Budget.rate(rate))
            ]
            gaps = [shortfall(method, result, counter) for result in results]
            yield Sweep(
                name,
                len(results),
                sum(r.tokens_after > r.limit for r in results),
                sum(unused > allowed for unused, allowed in gaps),
                min(r.tokens_after / r.limit for r in results if r.tokens_before >= 1_000),
            )


def _start(words: Sequence[str], tokens: int, counter: TokenCounter) -> str:
    """As many words as have at most so many tokens, and at least one."""
    low, high = 1, min(tokens, len(words))
    while low < high:
        middle = (low + high + 1) // 2
        if counter.count(" ".join(words[:middle])) <= tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])


def shortfall(method: Compressor, result: Compression, counter: TokenCounter) -> tuple[int, float]:
    """Tokens of the limit that are unused, and how many may be: 2 %, or less than one unit."""
    assert isinstance(method, Method)
    left_out: list[str] = []
    for p in (*result.passages, *result.dropped):
        kept = {place for span in p.spans for place in range(*span)}
        text = p.passage.text
        for start, end in method.segment(text):
            if start not in kept:
                left_out.append(text[start:end].strip())
            else:  # of a unit that was cut the next word
                rest = (i for i in range(start, end) if i not in kept and not text[i].isspace())
                left_out += text[next(rest, end) : end].split()[:1]
    smallest = min(map(counter.count, left_out), default=0)
    return result.limit - result.tokens_after, max(TOLERANCE * result.limit, smallest)
