"""BM25 over sentences, with their passage's BM25 as a prior: no model, no download.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
Foundations and Trends in Information Retrieval 3(4), 2009. The statistics (document frequency,
average length) are those of the request itself: its sentences, and its passages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
import Stemmer

from ..errors import InputError
from ..method import Floats, Method, Request, Scores

__all__ = ["Lexical"]

# English words that ask or bind; inside one request they can be rare, and so seem to matter.
_STOP_WORDS = frozenset(
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
_TERM = regex.compile(rf"(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+|[{_UNSPACED}\p{{M}}]+")
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
        analyse = _Analyser(self.stemmer)
        windows, window_of_unit, passage_of_window = request.windows(_WINDOW)
        sentence_terms = [analyse(text) for text in request.unit_texts()]
        wanted = _query_terms(analyse, request.query, sentence_terms)
        around = self._bm25([analyse(text) for text in windows], wanted)
        own = self._bm25(sentence_terms, wanted)
        units = own + self.context_weight * around[window_of_unit]
        passages = np.zeros(len(request.passages))
        np.maximum.at(passages, passage_of_window, around)
        if request.query is None:
            units = units / (1 + 0.1 * request.places())
        return Scores(request.per_passage(units), passages)

    def _bm25(self, texts: Sequence[Sequence[str]], wanted: Sequence[str]) -> Floats:
        """BM25 of each text for the wanted terms, shape ``(len(texts),)``."""
        counts = _counts(texts, wanted)
        lengths = np.array([len(terms) for terms in texts], dtype=np.float64)
        holders = (counts > 0).sum(axis=0)
        idf = np.log1p((len(texts) - holders + 0.5) / (holders + 0.5))
        relative = lengths / max(float(lengths.mean()), 1.0) if len(texts) else lengths
        saturation = self.k1 * (1 - self.b + self.b * relative)
        scores: Floats = (counts * (self.k1 + 1) / (counts + saturation[:, None])) @ idf
        return scores


class _Analyser:
    """Cuts text into lower-case stems, and runs of unspaced scripts into pairs of characters."""

    def __init__(self, stemmer: str) -> None:
        # PyStemmer's objects must not be shared by threads, so each request makes its own.
        self._stem = Stemmer.Stemmer(stemmer).stemWord
        self._stems: dict[str, str] = {}

    def __call__(self, text: str) -> list[str]:
        stems = self._stems
        found: list[str] = []
        for word in _TERM.findall(text.lower()):
            stem = stems.get(word)
            if stem is None:
                if not word.isascii() and _UNSPACED_START.match(word):
                    found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
                    continue
                stem = stems[word] = self._stem(word)
            found.append(stem)
        return found


def _query_terms(
    analyse: _Analyser, query: str | None, texts: Sequence[Sequence[str]]
) -> list[str]:
    """The distinct terms to look for: the query's, or the texts' most frequent ones."""
    stop_words = {stem for word in _STOP_WORDS for stem in analyse(word)}
    if query is None:
        frequent = Counter(term for text in texts for term in text if term not in stop_words)
        return [term for term, _ in frequent.most_common(_TYPICAL_TERMS)]
    terms = list(dict.fromkeys(analyse(query)))
    return [term for term in terms if term not in stop_words] or terms


def _counts(texts: Sequence[Sequence[str]], wanted: Sequence[str]) -> Floats:
    """How often each text holds each wanted term, shape ``(len(texts), len(wanted))``."""
    column = {term: i for i, term in enumerate(wanted)}
    counts = np.zeros((len(texts), len(wanted)))
    for row, terms in enumerate(texts):
        for term in terms:
            place = column.get(term)
            if place is not None:
                counts[row, place] += 1
    return counts
