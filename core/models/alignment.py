"""From a tokenizer's tokens to the units of a text.

Tokens and units are cut at different places: a word can be several tokens, and a token several
characters of a script that is written without spaces. Offsets into the text relate them,
whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..budget import without_surrogates
from ..types import Span
from ..units import graphemes

__all__ = ["Tokens", "first_units", "mean_by_unit", "tile", "tokenize"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one text, special ones left out.

    Attributes
    ----------
    ids
        Shape ``(tokens,)``.
    offsets
        Start and end of each in the text, in characters; shape ``(tokens, 2)``.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def between(self, start: int, stop: int) -> Tokens:
        """The tokens from `start` to before `stop`."""
        return Tokens(self.ids[start:stop], self.offsets[start:stop])

    def parts(self, size: int) -> Iterator[Tokens]:
        """Cut into runs of at most `size` tokens; no tokens are one run."""
        for start in range(0, max(1, len(self.ids)), size):
            yield self.between(start, start + size)


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Tokenize texts with a fast Hugging Face tokenizer, without special tokens."""
    if not texts:
        return []
    batch = tokenizer(
        [without_surrogates(text) for text in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        truncation=False,
        padding=False,
        verbose=False,
    )
    return [
        Tokens(np.array(ids, np.int64), np.array(offsets, np.int64).reshape(-1, 2))
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def mean_by_unit(
    text: str,
    units: Sequence[Span],
    offsets: NDArray[np.int64],
    values: Floats,
    missing: float,
    start: int = 0,
) -> Floats:
    """Average over each unit the values of the tokens that hold some of its characters.

    White space counts for no unit. A token that reaches over several units counts whole for
    each of them.

    Parameters
    ----------
    text
        The text.
    units
        Tiles of it.
    offsets
        Start and end of each token; shape ``(tokens, 2)``.
    values
        A number for each token; shape ``(tokens,)``.
    missing
        What a unit without a token gets.
    start
        Where in the text the units start, when they tile only a part of it.

    Returns
    -------
    array, shape ``(len(units),)``
    """
    if not units:
        return np.zeros(0)
    first, last = _units_of_tokens(text[start : units[-1].end], start, units, offsets)
    spread = last - first + 1
    token = np.repeat(np.arange(len(offsets)), spread)
    place = np.arange(len(token)) - np.repeat(np.cumsum(spread) - spread, spread)
    unit = first[token] + place
    counts = np.bincount(unit, minlength=len(units))
    sums = np.bincount(unit, values[token], minlength=len(units))
    means: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), missing)
    return means


def first_units(units: Sequence[Span], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The unit in which each token ends, made ascending; shape ``(tokens,)``."""
    starts = np.array([unit.start for unit in units], np.int64)
    found = np.searchsorted(starts, np.maximum(offsets[:, 1] - 1, 0), "right") - 1
    return np.maximum.accumulate(np.maximum(found, 0))


def _units_of_tokens(
    text: str, start: int, units: Sequence[Span], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first and the last unit of each token; of one that is white space, last < first."""
    solid = np.array([not character.isspace() for character in text], bool)
    places = np.flatnonzero(solid)
    before = np.concatenate([[0], np.cumsum(solid)])
    inside = np.clip(offsets - start, 0, len(text))
    low, high = before[inside[:, 0]], before[inside[:, 1]]
    is_solid = high > low
    starts = np.array([unit.start - start for unit in units], np.int64)
    # The characters of a token that is all white space are looked up nowhere.
    head = places[np.where(is_solid, low, 0)] if len(places) else np.zeros(len(offsets), np.int64)
    tail = places[np.where(is_solid, high - 1, 0)] if len(places) else head
    first = np.searchsorted(starts, head, "right") - 1
    last = np.searchsorted(starts, tail, "right") - 1
    return first, np.where(is_solid, last, first - 1)


def tile(text: str, offsets: NDArray[np.int64]) -> list[Span]:
    """Tile a text with its tokens; those that share what a reader takes for one character are
    taken as one.

    White space goes to the token in front of it, as the units of `laconic.core.units` have it.
    """
    borders = {unit.start for unit in graphemes(text)}
    stops: list[int] = []
    reach, indent = 0, len(text) - len(text.lstrip())
    for start, end in offsets.tolist():
        lead = len(text[start:end]) - len(text[start:end].lstrip())
        if max(reach, indent + 1) <= start + lead < end and start + lead in borders:
            stops.append(start + lead)
        reach = max(reach, end)
    edges = [0, *stops, len(text)]
    return [Span(a, b) for a, b in pairwise(edges) if b > a]
