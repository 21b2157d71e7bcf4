"""Cutting text into the units that a method keeps or drops.

Every function here tiles the text: the spans it returns are ascending, touch each other and
cover every character, so that joining the units gives the text back. A unit owns the white
space behind it; where it is longer than a word or a phrase, only up to and with the last line
break, since indentation belongs to what it indents.
No language data is downloaded: boundaries come from Unicode properties (UAX #29, UAX #14) and
a short list of abbreviations.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import regex

from .types import Span

__all__ = ["graphemes", "paragraphs", "phrases", "sentences", "words"]

MAX_SENTENCE = 600
"""Characters after which a sentence without an end is cut at a clause or at white space."""

MAX_UNSPACED_SENTENCE = 150
"""The same for scripts that end sentences with a space (Thai, Lao, Khmer, Myanmar)."""

MAX_PHRASE = 5
"""Words of a phrase."""

_PHRASE_OPENERS = frozenset(
    "a an the this that these those my your his her its our their some any no every each all "
    "of in on at by for with from to into onto over under between among through during before "
    "after about against without within across as than and or but nor so because if when while "
    "although whether which who whom whose where i you he she it we they there is are was were "
    "be been being am do does did has have had will would can could shall should may might must "
    "not".split()
)

# Full stops of scripts that put no space behind them.
_WIDE_END = "。！？｡．"

_SENTENCE_END = regex.compile(
    rf"(?<![.!?…])[[.…\p{{SB=STerm}}]--[{_WIDE_END}]]++[\p{{SB=Close}}]*+(?:\s++|$)"
    rf"|[{_WIDE_END}]++[\p{{SB=Close}}--[（「『【《〈]]*+\s*+",
    regex.V1,
)
_BEFORE_STOP = regex.compile(r"[^\s(\[\"'“‘«*_]*$")
_INITIALS = regex.compile(r"(?:\p{L}\.)*\p{L}")
_FIRST_LETTER = regex.compile(r"[\p{L}\p{N}]")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr rev hon gen col lt sgt capt gov sen rep pres messrs mme mlle "
    "e.g i.e cf vs viz al approx ca est incl resp hr fr z.b d.h u.a bzw ca evtl usw p.ej ej "
    "inc ltd corp dept univ assn bros".split()
)
# These abbreviate only before a number: "No. 5", but "He said no."
_NUMBERED = frozenset(
    "no nos nr fig figs eq eqs sec sect vol ch chap art pp p pg ex tab ref refs app "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)

_BLANK_LINE = regex.compile(r"\n[^\S\n]*+\n\s*+")
_LINE_START = regex.compile(r"\s*(?:[-*+•‣◦–>|#=~]|(?:\d+|\p{L})[.)]\s|\[\d+\])")
_LINE_BREAK = regex.compile(r"\n")
_MIN_WRAP, _MAX_WRAP = 40, 120
"""Widths, in characters, to which people and their tools wrap paragraphs."""

_CLAUSE_END = regex.compile(r"[;:,)\]—–，、；：）][\p{SB=Close}]*+\s*+")
_SPACE_END = regex.compile(r"\s++")

_KANA_MARKS = "ーﾞﾟ"
_UNSPACED = rf"\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{Bopomofo}}\p{{Yi}}{_KANA_MARKS}"
_WORD = regex.compile(
    rf"(?:[\p{{Ps}}\p{{Pi}}]*"
    rf"(?:[\p{{Katakana}}{_KANA_MARKS}]+|[{_UNSPACED}]\p{{M}}*)[^\s\p{{L}}\p{{N}}\p{{Ps}}\p{{Pi}}]*"
    rf"|(?:(?![{_UNSPACED}])\S)+)\s*",
    regex.V1,
)
_CLOSING_MARKS = regex.compile(r"(?<=[\p{L}\p{N}\p{M}])[.,;:!?…)\]\"'”’]++(?=\s|$)")


def paragraphs(text: str) -> list[Span]:
    """Cut at blank lines."""
    gaps = _BLANK_LINE.finditer(text)
    return _tile(text, (text.rfind("\n", m.start(), m.end()) + 1 for m in gaps))


def sentences(text: str, atoms: Sequence[Span] = ()) -> list[Span]:
    """Cut into sentences, headings, list items, table rows and lines that stand alone.

    Parameters
    ----------
    text
        Any text.
    atoms
        Ascending, disjoint spans that must not be cut.

    Returns
    -------
    list of Span
        Tiles of `text`; ``[]`` for ``""``.
    """
    ends: list[int] = []
    start = 0
    for end in _line_ends(text):
        ends += _sentence_ends(text, start, end)
        ends.append(end)
        start = end
    return _tile(text, _split_long(text, _outside(ends, atoms), atoms))


def words(text: str, atoms: Sequence[Span] = (), *, marks: bool = False) -> list[Span]:
    """Cut at white space, and around each character of scripts written without it.

    With `marks` also between a word and the punctuation that closes it.
    """
    ends = [m.end() for m in _WORD.finditer(text)]
    if marks:
        ends = sorted({*ends, *(m.start() for m in _CLOSING_MARKS.finditer(text))})
    return _tile(text, _outside(ends, atoms))


def phrases(text: str, atoms: Sequence[Span] = ()) -> list[Span]:
    """Cut in front of words that open a phrase, behind punctuation, and where a line ends.

    A chunker without a model: articles, prepositions, conjunctions, pronouns and auxiliaries
    of English open a phrase; in other languages runs of a few words are one.
    """
    ends: list[int] = []
    length, was_opener = 0, False
    line_ends = list(_line_ends(text))
    for start, end in words(text, atoms):
        word = text[start:end].strip()
        is_opener = word.lstrip("([\"'“‘").lower() in _PHRASE_OPENERS
        if length >= MAX_PHRASE or (is_opener and not was_opener):
            ends.append(start)
            length = 0
        length, was_opener = length + 1, is_opener
        ends_line = bisect_right(line_ends, start) < bisect_right(line_ends, end)
        if ends_line or (word and not word[-1].isalnum()):
            ends.append(end)
            length = 0
    return _tile(text, ends)


def graphemes(text: str) -> list[Span]:
    """Cut into what a reader takes for one character."""
    return _tile(text, (m.end() for m in regex.finditer(r"\X", text)))


def _tile(text: str, ends: Iterable[int], start: int = 0, stop: int | None = None) -> list[Span]:
    """Make spans of ascending ends; none is white space alone, unless all of the text is."""
    stop = len(text) if stop is None else stop
    spans: list[Span] = []
    seen = start
    for end in (*ends, stop):
        if end <= seen:
            continue
        if not text[seen:end].isspace():
            spans.append(Span(start, end))
            start = end
        elif spans:
            spans[-1] = Span(spans[-1].start, end)
            start = end
        seen = end
    return spans or ([Span(start, stop)] if start < stop else [])


def _outside(ends: Iterable[int], atoms: Sequence[Span]) -> Iterator[int]:
    """Leave out the ends that would cut an atom."""
    pending = iter(atoms)
    atom = next(pending, None)
    for end in ends:
        while atom is not None and atom.end <= end:
            atom = next(pending, None)
        if atom is None or end <= atom.start:
            yield end


def _line_ends(text: str) -> Iterator[int]:
    """Ends of logical lines: a line break made by hand-wrapping a paragraph does not count."""
    if "\n" not in text:
        yield len(text)
        return
    for block in paragraphs(text):
        lines = _tile(text, (m.end() for m in _LINE_BREAK.finditer(text, *block)), *block)
        width = max((len(text[a:b].rstrip()) for a, b in lines), default=0)
        for line, following in pairwise(lines):
            if not (_MIN_WRAP <= width <= _MAX_WRAP and _is_wrapped(text, line, following, width)):
                yield line.end
        yield block.end


def _is_wrapped(text: str, line: Span, following: Span, width: int) -> bool:
    """Whether the line is as full as a wrapper would make it and the next one goes on."""
    rest = text[following.start : following.end]
    is_full = len(text[line.start : line.end].rstrip()) + 1 + len(rest.split(None, 1)[0]) > width
    return is_full and not _LINE_START.match(rest)


def _sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Ends of sentences inside the logical line ``text[start:end]``."""
    for match in _SENTENCE_END.finditer(text, start, end):
        after = match.end()
        if after >= end:
            return
        if text[match.start()] in _WIDE_END:
            yield after
            continue
        follower = _FIRST_LETTER.search(text, after, min(end, after + 8))
        if follower and follower.group().islower():
            continue
        if match.group().rstrip() == "." and _is_abbreviated(
            text, start, match.start(), follower.group() if follower else ""
        ):
            continue
        yield after


def _is_abbreviated(text: str, line_start: int, stop: int, follower: str) -> bool:
    """Whether the full stop at `stop` belongs to the word before it."""
    before = _BEFORE_STOP.search(text, max(line_start, stop - 24), stop)
    word = before.group().lower() if before else ""
    if word in _ABBREVIATIONS or (word in _NUMBERED and follower.isdigit()):
        return True
    if word.isdigit():  # the number of a list item, not a year that ends a sentence
        return not text[line_start : stop - len(word)].strip()
    # "J. R. R. Tolkien", "the U.S. Army"; "vitamin C. The …" is told apart by no rule
    return _INITIALS.fullmatch(word) is not None


def _split_long(text: str, ends: Iterable[int], atoms: Sequence[Span]) -> Iterator[int]:
    """Cut units that are too long at clause ends, else at white space, else not at all."""
    start = 0
    for end in ends:
        limit = _longest(text, start, end)
        if end - start > limit:
            for clause_end in _pieces(text, start, end, limit, _CLAUSE_END, atoms):
                if clause_end - start > limit:
                    yield from _pieces(text, start, clause_end, limit, _SPACE_END, atoms)
                else:
                    yield clause_end
                start = clause_end
        else:
            yield end
        start = end


def _longest(text: str, start: int, end: int) -> int:
    if end - start <= MAX_UNSPACED_SENTENCE or text.isascii():
        return MAX_SENTENCE
    sample = text[start : start + MAX_UNSPACED_SENTENCE]
    unspaced = len(regex.findall(r"\p{Line_Break=SA}", sample))
    return MAX_UNSPACED_SENTENCE if unspaced * 2 > len(sample) else MAX_SENTENCE


def _pieces(
    text: str,
    start: int,
    end: int,
    limit: int,
    pattern: regex.Pattern[str],
    atoms: Sequence[Span],
) -> Iterator[int]:
    """Ends that cut ``text[start:end]`` where the pattern allows, as late as the limit does."""
    allowed = _outside([m.end() for m in pattern.finditer(text, start, end)], atoms)
    candidates = [c for c in allowed if c < end]
    for here, following in pairwise([*candidates, end]):
        if following - start > limit and here > start:
            yield here
            start = here
    yield end
