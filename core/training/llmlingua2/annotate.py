"""Labelling the words of a text that stand in a compressed version of it.

Source: Pan et al., "LLMLingua-2", Findings of ACL 2024, section 3.2, Algorithm 1, and section 3.3
for the rates. Where the reference compares spaCy's lemmas and labels those, words are compared
here as they are, then by their Snowball stem, then by their letters, and labels belong to
characters of the raw text, which is what a model reads later.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import regex
import Stemmer

from ... import units
from ...errors import InputError
from ...methods.lexical import stem_all
from ...types import Span
from .collect import Pair
from .rows import Row, read_rows, text_under, write_rows

__all__ = ["Labelled", "Quality", "annotate", "read_labelled", "write_labelled"]

_EDGES = regex.compile(r"^[^\p{L}\p{N}]+|[^\p{L}\p{N}\p{M}]+$")
_DIGIT = regex.compile(r"\p{N}")

_SHORTEST = 4
"""Letters of the shortest word that may be told by being similar."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a compressed text and its labels fit the original (section 3.3).

    Attributes
    ----------
    variation_rate
        The part of the compressed text's words that stand nowhere in the original.
    hitting_rate
        The compressed text's words that stand in the original, by the words of the original.
    matching_rate
        The part of the original's words that are labelled.
    """

    variation_rate: float
    hitting_rate: float
    matching_rate: float

    @property
    def alignment_gap(self) -> float:
        """Hitting rate less matching rate: words that should be labelled and are not."""
        return self.hitting_rate - self.matching_rate


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text whose words are labelled.

    Attributes
    ----------
    id, document
        As in the `Pair` that it was made of.
    origin
        The text.
    words
        Tiles of it: words, and the marks that close them.
    kept
        Whether each of these is to be kept.
    quality
        How far that can be trusted.
    """

    id: str
    document: str
    origin: str
    words: tuple[Span, ...]
    kept: tuple[bool, ...]
    quality: Quality


def annotate(
    pair: Pair, *, window: int = 150, similarity: float = 0.85, stemmer: str = "english"
) -> Labelled:
    """Label the words of the original that stand in the compressed text.

    Each word of the compressed text is looked for around the one found before it, forward and
    backward in turn, and labels the nearest that has no label. Looked for is the same word,
    whatever its case and the marks around it; else one of the same stem; else, where the original
    has none of that stem, one that begins with the same letter, has no digit and is similar. A mark
    is kept where the compressed text has it behind the same word, or behind words that are dropped.

    Parameters
    ----------
    pair
        The two texts.
    window
        Words and marks to look at in each direction.
    similarity
        Twice the letters that two words share in order, by the letters of both (Ratcliff and
        Obershelp); 1 for no similar words.
    stemmer
        Name of the Snowball algorithm that conflates word forms, for example ``"german"``.

    Raises
    ------
    InputError
        A parameter is out of range.
    """
    if window < 1 or not 0 < similarity <= 1:
        raise InputError(
            f"window is at least 1 and similarity above 0 and at most 1, got {window} and "
            f"{similarity}"
        )
    if stemmer not in Stemmer.algorithms():
        raise InputError(f"no stemmer {stemmer!r}; there are {', '.join(Stemmer.algorithms())}")
    spans = units.words(pair.origin, marks=True)
    texts = [pair.origin[slice(*span)].strip() for span in spans]
    said = [pair.compressed[slice(*s)].strip() for s in units.words(pair.compressed, marks=True)]
    original, compressed = [_form(text) for text in texts], [_form(text) for text in said]
    words = _Words(original, stem_all(stemmer, [original, compressed]), similarity)
    hits = _hits(words, compressed, window)
    kept = [False] * len(spans)
    for hit in hits:
        if hit is not None:
            kept[hit] = True
    quality = _quality(words, original, compressed, sum(kept))
    _keep_marks(kept, texts, original, zip(said, compressed, hits, strict=True))
    return Labelled(pair.id, pair.document, pair.origin, tuple(spans), tuple(kept), quality)


def _form(text: str) -> str:
    """What tells a word from others: no case, no marks around it; ``""`` if it is marks alone."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return _EDGES.sub("", plain)


class _Words:
    """Where the words of a text stand.

    Parameters
    ----------
    forms
        Of its words; ``""`` for marks.
    stems
        The stem of each form that may be looked for.
    similarity
        From which on another word will do.
    """

    def __init__(self, forms: Sequence[str], stems: Mapping[str, str], similarity: float) -> None:
        self._stems, self._similarity = stems, similarity
        self._by_form: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for place, form in enumerate(forms):
            if form:
                self._by_form[form].append(place)
                self._by_stem[stems[form]].append(place)

    def places(self, form: str) -> Iterator[list[int]]:
        """Where a word stands, then where others stand that are as good."""
        yield self._by_form.get(form, [])
        yield self._by_stem.get(self._stems[form]) or self._similar(form)

    def _similar(self, form: str) -> list[int]:
        if not self._may_vary(form):
            return []
        matcher = SequenceMatcher(b=form, autojunk=False)
        found: list[int] = []
        for other, places in self._by_form.items():
            if other[0] == form[0] and self._may_vary(other):
                matcher.set_seq1(other)
                if matcher.quick_ratio() >= self._similarity <= matcher.ratio():
                    found += places
        return found

    def _may_vary(self, form: str) -> bool:
        return self._similarity < 1 and len(form) >= _SHORTEST and not _DIGIT.search(form)


def _hits(words: _Words, compressed: Sequence[str], window: int) -> list[int | None]:
    """The place that each word of the compressed text labels, if it labels one."""
    taken: set[int] = set()
    hits: list[int | None] = []
    last = 0
    for form in compressed:
        hits.append(None)
        for places in words.places(form) if form else ():
            near = [
                (abs(place - last), place < last, place) for place in places if place not in taken
            ]
            if near and min(near)[0] <= window:
                last = hits[-1] = min(near)[2]
                taken.add(last)
                break
    return hits


def _quality(
    words: _Words, original: Sequence[str], compressed: Sequence[str], labelled: int
) -> Quality:
    n_original, forms = sum(map(bool, original)), [form for form in compressed if form]
    standing = sum(any(words.places(form)) for form in forms)
    return Quality(
        1 - standing / len(forms) if forms else 1.0,
        standing / max(1, n_original),
        labelled / max(1, n_original),
    )


def _keep_marks(
    kept: list[bool],
    texts: Sequence[str],
    original: Sequence[str],
    compressed: Iterable[tuple[str, str, int | None]],
) -> None:
    """Keep each mark that the compressed text has, if it stands in front of the next kept word."""
    last: int | None = -1
    for said, form, hit in compressed:
        if form:
            last = hit
        elif last is not None:
            for place in range(last + 1, len(texts)):
                if original[place] and kept[place]:
                    break
                if not original[place] and not kept[place] and said in texts[place]:
                    kept[place] = True
                    break


def write_labelled(file: str | Path, labelled: Iterable[Labelled]) -> None:
    """Write texts with their labels as JSON lines."""
    write_rows(file, map(_as_row, labelled))


def _as_row(one: Labelled) -> Row:
    return {
        "id": one.id,
        "document": one.document,
        "origin": one.origin,
        "words": one.words,
        "kept": [int(flag) for flag in one.kept],
        "variation_rate": one.quality.variation_rate,
        "hitting_rate": one.quality.hitting_rate,
        "matching_rate": one.quality.matching_rate,
    }


def read_labelled(file: str | Path) -> list[Labelled]:
    """Read what `write_labelled` wrote.

    Raises
    ------
    InputError
        The file cannot be read, or a line is something else. The message names the line.
    """
    return [_labelled(row, place) for place, row in read_rows(file)]


def _labelled(row: Row, place: str) -> Labelled:
    origin = text_under(row, "origin", place)
    try:
        words = tuple(Span(int(start), int(end)) for start, end in row["words"])
        kept = tuple(bool(flag) for flag in row["kept"])
        rates = [float(row[f"{name}_rate"]) for name in ("variation", "hitting", "matching")]
        name, document = str(row["id"]), str(row["document"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{place}: not what `laconic train llmlingua2 annotate` writes: "
            f"{type(error).__name__}: {error}"
        ) from error
    edges = [0, *(end for _, end in words)]
    if [start for start, _ in words] != edges[:-1] or edges[-1] != len(origin):
        raise InputError(f"{place}: the words do not tile the text; annotate it again")
    if len(kept) != len(words):
        raise InputError(f"{place}: {len(words)} words and {len(kept)} labels; annotate it again")
    return Labelled(name, document, origin, words, kept, Quality(*rates))
