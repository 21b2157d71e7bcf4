"""Spans that must survive, or must not be cut in two.

`keep_spans` finds what the caller wants kept whatever its score. `atoms` finds what loses or
turns its meaning when it is cut: a number without its unit, a verb without its "not".
`must_keep` gives patterns that find such spans, to be kept whatever their score.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from .errors import InputError
from .types import Span

__all__ = [
    "ATOM_KINDS",
    "KEEP_KINDS",
    "KeepPattern",
    "atoms",
    "keep_patterns",
    "keep_spans",
    "literals",
    "merged",
    "must_keep",
    "overlaps",
]

KeepPattern = str | re.Pattern[str] | regex.Pattern[str]
"""A str is taken literally; a compiled pattern is searched for."""

_CURRENCY = r"[$€£¥₹₩]"
_NUMBER = r"[+−-]?\p{Nd}+(?:[.,:/٫٬'’\N{NO-BREAK SPACE}-]\p{Nd}+)*"
_UNIT = (
    r"(?:\s?(?:%|‰|°[CF]?|[kKmMgGtTpP]i?[bB](?:it|ps)?|[munpkMG]?(?:m|g|s|l|L|W|V|A|Hz|J|Pa|mol)"
    r"|(?:in|ft|lb|oz|mi|mph|rpm|dB|am|pm|a\.m\.|p\.m\.)(?!\p{L})|"
    r"(?:thousand|million|billion|trillion|percent|hundred)"
    r"|(?:second|minute|hour|day|week|month|year|euro|dollar|pound|meter|metre|mile|gram)s?"
    r"|[$€£¥₹₩](?!\s?\p{Nd}))(?!\p{L}))"
)

_MODAL = r"(?:must|shall|should|may|might|can|could|would)"
_NEGATION = r"(?:not|never|no|none|nor|neither|without|cannot|unless|except|only|\p{L}{1,8}n['’]t)"
_GOVERNED = r"(?:\s+(?:not|be|been|have|to|a|an|the|any|very|so))*\s+[^\s.;!?]+"

# Words of English that are capitalised where a sentence starts, and stand before names there.
_OPENERS = "|".join(
    "A An The This That These Those I He She It We You They My Your His Her Its Our Their In On "
    "At Of By For From To With Under Over After Before During Since Until Between As And But Or "
    "So Yet If When While Where Because Although Though Whether What Who Which Why How There Here "
    "Then Now No Not All Some Many Most Each Every Both Is Are Was Were Do Does Did Has Have Had "
    "Can However Also".split()
)
_CASED = r"\p{Lu}\p{Ll}\p{Lt}\p{M}\p{Nd}"
_TITLES = r"(?:Mr|Mrs|Ms|Dr|Prof|St|Gen|Sen|Gov|Rep|Lt|Col|Capt|Sgt|Rev|Hon)\."
_CAPITAL = rf"(?!(?:{_OPENERS})(?![{_CASED}]))[\p{{Lu}}\p{{Lt}}]"
_REST = rf"[{_CASED}]*+(?:[-'’&](?!s\b)[{_CASED}]++)*+"
_CAPITALISED = rf"(?:{_TITLES}|(?:\p{{Lu}}\.){{2,}}+|\p{{Lu}}\.(?=\s{_CAPITAL})|{_CAPITAL}{_REST})"
_MIXED = rf"[\p{{Lu}}\p{{Ll}}\p{{Lt}}][\p{{Ll}}\p{{M}}]*+-?[\p{{Lu}}\p{{Nd}}]{_REST}"
_SENTENCE_START = r"(?:\A|[.!?…][\"'”’)\]]*\s|\n[^\S\n]*\n|\n[^\S\n]*[-*•#>])[\s\"'“‘(\[«¿¡*_#>-]*"
_NAMES = (
    rf"(?<![{_CASED}_])(?:{_MIXED}|{_CAPITALISED}(?=\s(?:{_MIXED}|{_CAPITALISED}))"
    rf"|(?<!{_SENTENCE_START}){_CAPITALISED})(?:\s(?:{_MIXED}|{_CAPITALISED}))*"
)

_KINDS = {
    # A fence longer than this is text to choose from rather than one thing to keep or drop.
    "code": r"```(?:(?!```)[\s\S]){0,2000}+(?:```|\z)|`[^`\n]{1,200}`",
    "urls": r"(?:https?|ftp)://[^\s<>\"'）」]+(?<![.,;:!?)\]])|\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "citations": r"\[\d+(?:\s?[,–-]\s?\d+)*\]"
    r"|\(\p{Lu}[^()\n]{0,60}?,? (?:1[5-9]|20)\d\d[a-z]?(?:; [^()\n]{1,80})?\)",
    "numbers": rf"(?<![\p{{L}}\p{{Nd}}])(?:{_CURRENCY}\s?)?{_NUMBER}{_UNIT}?",
    "negations": rf"(?i:\b(?:{_MODAL}\s+)?{_NEGATION}{_GOVERNED})",
    "modals": rf"(?i:\b{_MODAL}{_GOVERNED})",
}
ATOM_KINDS = tuple(_KINDS)
"""The kinds of spans that lose or turn their meaning when they are cut."""

_STRUCTURE = ("code", "urls", "citations")
"""The kinds inside which a sentence can seem to end."""

_PATTERNS = {name: regex.compile(pattern) for name, pattern in {**_KINDS, "names": _NAMES}.items()}
KEEP_KINDS = tuple(_PATTERNS)
"""The kinds of spans that `atoms` and `must_keep` know: `ATOM_KINDS` and ``"names"``."""

_HINTS = {"code": "`", "urls": ("://", "@"), "citations": ("[", "(")}


def atoms(text: str, kinds: Iterable[str] = _STRUCTURE) -> list[Span]:
    """Find what must not be cut.

    Parameters
    ----------
    text
        Any text.
    kinds
        Some of `KEEP_KINDS`: ``"code"`` (fences and spans), ``"urls"`` (and mail addresses),
        ``"citations"`` (``[3]``, ``(Smith, 2020)``), ``"numbers"`` (with sign, currency and
        unit), ``"negations"`` and ``"modals"`` (with the word they govern; English),
        ``"names"`` (see `must_keep`). The default is those that hold what looks like the end
        of a sentence.

    Returns
    -------
    list of Span
        Ascending and disjoint.
    """
    found: list[Span] = []
    for kind in kinds:
        hints = _HINTS.get(kind)
        if hints is None or any(hint in text for hint in hints):
            found += [Span(m.start(), m.end()) for m in _PATTERNS[kind].finditer(text)]
    return merged(found)


def must_keep(*kinds: str) -> tuple[regex.Pattern[str], ...]:
    """Patterns for the ``keep`` of any compressor, which guard all spans of some kinds.

    Names are told by their capitals: runs of capitalised words, acronyms, words with a capital
    or a digit inside. A lone word that starts a sentence is none unless it is one of the latter
    two. So nothing is found in scripts without case, and in German every noun is.

    Parameters
    ----------
    *kinds
        Some of `KEEP_KINDS`, which `atoms` describes.

    Raises
    ------
    InputError
        No kind is given, or one that does not exist.

    Examples
    --------
    >>> [pattern] = must_keep("numbers")
    >>> pattern.findall("It grew by 3.5 million to $12.")
    ['3.5 million', '$12']
    """
    if not kinds or not set(kinds) <= _PATTERNS.keys():
        raise InputError(f"expected some of {', '.join(KEEP_KINDS)}, got {', '.join(kinds)!r}")
    return tuple(_PATTERNS[kind] for kind in kinds)


def keep_patterns(keep: Any) -> tuple[re.Pattern[str] | regex.Pattern[str], ...]:
    """Read what a user may want kept: one `KeepPattern` or several.

    Raises
    ------
    InputError
        Something in it is neither a str nor a compiled pattern for str.
    """
    listed = [keep] if isinstance(keep, (str, re.Pattern, regex.Pattern)) else list(keep)
    for pattern in listed:
        is_pattern = isinstance(getattr(pattern, "pattern", None), str)
        if not (is_pattern or isinstance(pattern, str)):
            raise InputError(f"keep takes strings and compiled patterns, got {pattern!r}")
    return tuple(re.compile(re.escape(p)) if isinstance(p, str) else p for p in listed)


def literals(texts: Collection[str]) -> tuple[re.Pattern[str], ...]:
    """Patterns that find each text where it stands as whole words; blank ones find nothing.

    Raises
    ------
    InputError
        `texts` is something else than a list of texts.
    """
    is_list = isinstance(texts, Collection) and not isinstance(texts, str)
    if not (is_list and all(isinstance(text, str) for text in texts)):
        raise InputError(f"expected a list of texts, got {texts!r}")
    return tuple(
        re.compile(rf"{_start_of_word(text)}{re.escape(text)}{_end_of_word(text)}")
        for text in (given.strip() for given in texts)
        if text
    )


def _start_of_word(text: str) -> str:
    return r"(?<!\w)" if text[0].isalnum() else ""


def _end_of_word(text: str) -> str:
    return r"(?!\w)" if text[-1].isalnum() else ""


def keep_spans(text: str, patterns: Sequence[KeepPattern]) -> list[Span]:
    """Find every occurrence of what the caller wants kept: ascending, disjoint spans."""
    return merged(
        Span(m.start(), m.end())
        for pattern in keep_patterns(patterns)
        for m in pattern.finditer(text)
        if m.end() > m.start()
    )


def merged(spans: Iterable[Span]) -> list[Span]:
    """Sort spans and unite those that overlap."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start < merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def overlaps(spans: Sequence[Span], wanted: Sequence[Span]) -> NDArray[np.bool_]:
    """Which of the ascending spans share a character with one that is wanted."""
    if not wanted:
        return np.zeros(len(spans), bool)
    ends = np.array([w.end for w in wanted], dtype=np.int64)
    starts = np.array([w.start for w in wanted], dtype=np.int64)
    first_after = np.searchsorted(ends, [s.start for s in spans], side="right")
    begun = np.searchsorted(starts, [s.end for s in spans], side="left")
    return begun > first_after
