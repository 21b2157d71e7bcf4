"""BM25 over sentences, with their passage's BM25 as a prior: no model, no download.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
Foundations and Trends in Information Retrieval 3(4), 2009. The statistics (document frequency,
average length) are those of the request itself: its sentences, and its passages or, where they
are long, windows of them.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
import Stemmer

from ..errors import InputError
from ..method import Floats, Method, Request, Scores

__all__ = ["STOP_WORDS", "Lexical", "split_words", "stem_all"]

# English words that ask or bind; inside one request they can be rare, and so seem to matter.
STOP_WORDS = frozenset(
    "a about after all also an and any are as at be been before being between but by can could "
    "did do does for from had has have he her his how i if in into is it its many may me more "
    "most much my name named no not of on one or our out over she so some such than that the "
    "their them then there these they this those to under up us was we were what when where "
    "which while who whom whose why will with would you your s t".split()
)

_WINDOW = 1000
"""Characters of text around a sentence that speak for it."""

_TYPICAL_TERMS = 20
"""Frequent terms that stand in for a query."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}"
_WORD = regex.compile(rf"(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+|[{_UNSPACED}\p{{M}}]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_UNSPACED_START = regex.compile(rf"[{_UNSPACED}]")


@dataclass(frozen=True)
class Lexical(Method):
    """Keep the sentences that share rare words with the query.

    Without a query the most frequent words of the passages stand in for one, and a sentence
    counts for more the nearer it is to the start of its passage.

    Parameters
    ----------
    context_weight
        Weight of the score of the text around a sentence (its passage, or a window of a long
        one) beside the sentence's own.
    k1, b
        BM25's saturation of repeated words, and its normalisation by length (0 to 1).
    stemmer
        Name of the Snowball algorithm that conflates word forms, for example ``"german"``.
    """

    context_weight: float = 2.0
    k1: float = 1.2
    b: float = 0.75
    stemmer: str = "english"

    name = "lexical"

    def __post_init__(self) -> None:
        if self.stemmer not in Stemmer.algorithms():
            known = ", ".join(Stemmer.algorithms())
            raise InputError(f"no stemmer {self.stemmer!r}; there are {known}")

    def score(self, request: Request) -> Scores:
        """Score sentences by their BM25 plus the weighted BM25 of the text around them."""
        lines = [split_words(text) for text in request.unit_texts()]
        titles = [split_words(title) for title in request.titles]
        stems = stem_all(self.stemmer, [*lines, *titles])
        wanted = _wanted(self.stemmer, request.query, lines, stems)
        counts, lengths = _counts(lines, stems, wanted), _lengths(lines)
        _, window_of_unit, passage_of_window = request.windows(_WINDOW)
        window_counts = _counts(titles, stems, wanted)[passage_of_window]
        np.add.at(window_counts, window_of_unit, counts)
        window_lengths = _lengths(titles)[passage_of_window]
        np.add.at(window_lengths, window_of_unit, lengths)
        around = self._bm25(window_counts, window_lengths)
        units = self._bm25(counts, lengths) + self.context_weight * around[window_of_unit]
        passages = np.zeros(len(request.passages))
        np.maximum.at(passages, passage_of_window, around)
        if request.query is None:
            units = units / (1 + 0.1 * request.places())
        return Scores(request.per_passage(units), passages)

    def _bm25(self, counts: Floats, lengths: Floats) -> Floats:
        """BM25 of each row of counts, shape ``(texts, terms)``; shape ``(texts,)``."""
        holders = (counts > 0).sum(axis=0)
        idf = np.log1p((len(counts) - holders + 0.5) / (holders + 0.5))
        relative = lengths / max(float(lengths.mean()), 1.0) if len(lengths) else lengths
        saturation = self.k1 * (1 - self.b + self.b * relative)
        scores: Floats = (counts * (self.k1 + 1) / (counts + saturation[:, None])) @ idf
        return scores


def split_words(text: str) -> list[str]:
    """Lower-case words; runs of unspaced scripts become pairs of neighbouring characters."""
    text = text.lower()
    if text.isascii():
        return _ASCII_WORD.findall(text)
    found: list[str] = []
    for word in _WORD.findall(text):
        if word.isascii() or not _UNSPACED_START.match(word):
            found.append(word)
        else:
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
    return found


class _Stemmers(threading.local):
    """PyStemmer's objects, which remember words but must not be shared by threads."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.by_name:
            self.by_name[name] = Stemmer.Stemmer(name, _REMEMBERED_STEMS)
        return self.by_name[name]


_STEMMERS = _Stemmers()
_REMEMBERED_STEMS = 50_000


def stem_all(stemmer: str, texts: Iterable[Sequence[str]]) -> dict[str, str]:
    """The stem of each distinct word."""
    distinct = list(set[str]().union(*texts))
    return dict(zip(distinct, _STEMMERS[stemmer].stemWords(distinct), strict=True))


def _wanted(
    stemmer: str, query: str | None, texts: Iterable[Sequence[str]], stems: Mapping[str, str]
) -> list[str]:
    """The distinct stems to look for: the query's, or the texts' most frequent ones."""
    if query is None:
        words = (word for text in texts for word in text if word not in STOP_WORDS)
        frequent = Counter(stems[word] for word in words)
        return [stem for stem, _ in frequent.most_common(_TYPICAL_TERMS)]
    asked = split_words(query)
    telling = [word for word in asked if word not in STOP_WORDS] or asked
    known = stem_all(stemmer, [telling])
    return list(dict.fromkeys(known[word] for word in telling))


def _lengths(texts: Sequence[Sequence[str]]) -> Floats:
    return np.array([len(words) for words in texts], dtype=np.float64)


def _counts(
    texts: Sequence[Sequence[str]], stems: Mapping[str, str], wanted: Sequence[str]
) -> Floats:
    """How often each text holds each wanted stem, shape ``(len(texts), len(wanted))``."""
    place = {stem: i for i, stem in enumerate(wanted)}
    column = {word: place[stem] for word, stem in stems.items() if stem in place}
    counts = np.zeros((len(texts), len(wanted)))
    for row, words in enumerate(texts):
        for word in words:
            if word in column:
                counts[row, column[word]] += 1
    return counts
