"""Giving back to an answer what compression took from the words it quotes.

Source: Jiang et al., "LongLLMLingua: Accelerating and Enhancing LLMs in Long Context Scenarios
via Prompt Compression", ACL 2024, section 4.4 and algorithm 1 (subsequence recovery). The paper
searches the original prompt for the shortest subsequence that holds what the answer quotes;
here the offsets of the kept characters name it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import regex
from numpy.typing import NDArray

from .types import JOINER, Span

if TYPE_CHECKING:
    from .types import Compression

__all__ = ["restore"]

_WORD = regex.compile(r"[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]")
_WORD_CHARACTER = regex.compile(r"[\p{L}\p{N}\p{M}_]")

_LONGEST_GAP = 60
"""Characters dropped in one place that a quotation may bridge: about ten tokens, as in the
reference implementation."""


def restore(compression: Compression, response: str) -> str:
    """Replace what a response quotes from the compressed text by its original wording.

    From left to right, the longest run of words that stands in the compressed text is replaced
    by the stretch of the original that its characters come from: dropped words inside it come
    back. Of several such stretches the shortest is taken.

    Parameters
    ----------
    compression
        The compression whose text the model was given.
    response
        What the model answered.

    Returns
    -------
    str
        The response; unchanged where it quotes nothing that lost a word.
    """
    source = _Source(compression)
    words = [Span(m.start(), m.end()) for m in _WORD.finditer(response)]
    parts: list[str] = []
    done = place = 0
    while place < len(words):
        found = _longest(source, response, words[place:])
        if found is None:
            place += 1
            continue
        count, original = found
        parts += [response[done : words[place].start], original]
        done = words[place + count - 1].end
        place += count
    return "".join([*parts, response[done:]])


def _longest(source: _Source, response: str, words: Sequence[Span]) -> tuple[int, str] | None:
    """How many of the words are quoted in one piece, and their original wording."""
    best = None
    for count, (_, end) in enumerate(words, 1):
        quoted = response[words[0].start : end]
        if quoted not in source.text:
            break
        originals = list(source.originals(quoted))
        if originals:
            best = count, min(originals, key=len)
    return best


class _Source:
    """A compressed text, and where each of its characters comes from."""

    def __init__(self, compression: Compression) -> None:
        self.text = compression.text
        self._passages = [p.passage.text for p in compression.passages]
        owners: list[NDArray[np.int64]] = []
        places: list[NDArray[np.int64]] = []
        for i, passage in enumerate(compression.passages):
            if i:
                owners.append(np.full(len(JOINER), -1))
                places.append(np.zeros(len(JOINER), np.int64))
            for start, end in passage.spans:
                owners.append(np.full(end - start, i))
                places.append(np.arange(start, end))
        empty = np.zeros(0, np.int64)
        self._owner = np.concatenate([empty, *owners])
        self._place = np.concatenate([empty, *places])

    def originals(self, quoted: str) -> Iterator[str]:
        """The stretch of a passage behind each place where the text has these words."""
        start = self.text.find(quoted)
        while start >= 0:
            end = start + len(quoted)
            if self._is_whole(start, end):
                first, last = int(self._place[start]), int(self._place[end - 1])
                yield self._passages[int(self._owner[start])][first : last + 1]
            start = self.text.find(quoted, start + 1)

    def _is_whole(self, start: int, end: int) -> bool:
        """Whether these are whole words of one passage, without a long gap between them."""
        before, behind = self.text[start - 1 : start], self.text[end : end + 1]
        first, last = self.text[start], self.text[end - 1]
        if _WORD_CHARACTER.match(first) and _WORD_CHARACTER.match(before):
            return False
        if _WORD_CHARACTER.match(last) and _WORD_CHARACTER.match(behind):
            return False
        owners = self._owner[start:end]
        gaps = np.diff(self._place[start:end])
        return (
            bool((owners == owners[0]).all() and owners[0] >= 0) and not (gaps > _LONGEST_GAP).any()
        )
