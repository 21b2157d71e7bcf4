"""Which of all units a query needs, by their words and by their meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StateError
from ..core.method import Floats
from ..core.methods.lexical import STOP_WORDS, split_words, stem_all
from ..core.models.encoder import Encoder
from .archive import Archive
from .stored import Unit

__all__ = ["best", "embedded", "relevance", "terms"]

_NEIGHBOURS = (0.4, 0.2)
"""What a turn's score adds to that of the turns one and two places away: the answer often
stands beside the echo of the question."""

_LEXICAL_WEIGHT = 0.5
"""Weight of BM25, scaled to at most 1, beside the cosine similarity."""

_EMBEDDED = 4000
"""Characters that an encoder is given; most read no more."""


def terms(text: str) -> dict[str, int]:
    """The stems of a text's words with their counts, words that only bind left out."""
    words = [word for word in split_words(text) if word not in STOP_WORDS]
    stems = stem_all("english", [words])
    return dict(Counter(stems[word] for word in words))


def embedded(text: str, encoder: Encoder, archive: Archive) -> NDArray[np.float32]:
    """The embedding of a text's beginning; shape ``(dimension,)``.

    Raises
    ------
    StateError
        Those in the archive are of another length.
    """
    vector: NDArray[np.float32] = encoder.encode([text[:_EMBEDDED]])[0]
    known = "SELECT length(vector) / 2 FROM units WHERE vector IS NOT NULL LIMIT 1"
    for (length,) in archive.db.execute(known):
        if length != len(vector):
            raise StateError(
                f"the encoder gives vectors of {len(vector)} numbers, and those of the memory have "
                f"{length}; use the encoder that it was told with"
            )
    return vector


def relevance(
    archive: Archive, query: str, encoder: Encoder | None, known: Collection[int]
) -> Floats:
    """How much a query needs each unit, 0 for those that are known.

    Returns
    -------
    array, shape ``(units + 1,)``
        There is no unit 0.
    """
    hidden = [0, *known]
    scores = archive.bm25(list(terms(query)))
    scores[hidden] = 0.0  # the newest turn is often the query itself, and would outdo all
    if encoder:
        scores *= _LEXICAL_WEIGHT / max(float(scores.max()), 1e-9)
        alike = archive.similarity(embedded(query, encoder, archive))
        # What all share with the query tells nothing, and would favour those with neighbours.
        scores += alike - alike[1:].mean()
        scores[hidden] = 0.0
    spread: Floats = np.array(scores)
    for distance, share in enumerate(_NEIGHBOURS, 1):
        spread[distance:] += share * scores[:-distance]
        spread[:-distance] += share * scores[distance:]
    spread[hidden] = 0.0
    return spread


def best(archive: Archive, scores: Floats, room: int, limit: int) -> list[Unit]:
    """The units with the highest scores that fit, each counted as `limit` tokens at most."""
    found = np.flatnonzero(scores > 0)
    order = found[np.argsort(-scores[found], kind="stable")]
    wanted: list[int] = order[: max(64, room // 4)].tolist()
    costs = archive.costs(wanted)
    chosen: list[int] = []
    for number in wanted:
        cost = min(costs[number], limit)
        if cost <= room:
            chosen.append(number)
            room -= cost
    units = archive.get(chosen)
    return [units[number] for number in chosen]
