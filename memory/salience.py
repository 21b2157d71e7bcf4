"""What of a conversation is likely to be asked for later, when nobody has asked yet.

Turns that tell something of people, times, numbers and names in rare words are asked for more
often than questions and pleasantries of the same length. The word lists are English; in other
languages numbers, names and rare words remain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import regex

from .archive import Archive
from .relevance import terms
from .stored import Unit
from .turns import searchable

__all__ = ["ranked", "weight"]

_QUESTION = regex.compile(r"[^.!?。！？\n]*[?？؟]")
_FIRST_PERSON = regex.compile(r"\b(?:I|my|mine|me|we|our|us)\b")
_TIMES = (
    "last yesterday ago weeks? months? years? today tomorrow next recently since first weekend "
    "(?:mon|tues|wednes|thurs|fri|satur|sun)day january february march april may june july "
    "august september october november december".replace(" ", "|")
)
_FACT = regex.compile(rf"(?i:\b(?:{_TIMES})\b)|\p{{N}}+|(?<=[^.!?\s]\s)\p{{Lu}}\p{{Ll}}+")
_MOST_FACTS = 3
_READ = 4000
"""Characters that are looked at: what more of a long text says does not change the weight."""


def weight(text: str) -> float:
    """How much a text's words count; a text without facts has at most 1.

    Examples
    --------
    >>> weight("How are you?")
    0.0
    >>> weight("I moved to Oslo in May.")
    4.0
    """
    text = text[:_READ]
    asks = sum(len(found) for found in _QUESTION.findall(text)) / max(1, len(text))
    tells = 1.0 + bool(_FIRST_PERSON.search(text))
    facts = min(len(_FACT.findall(text)), _MOST_FACTS)
    return max(0.0, 1.0 - asks) * tells * (1.0 + 0.5 * facts)


def ranked(units: Sequence[Unit], archive: Archive) -> list[Unit]:
    """Units, those first that tell most for their tokens.

    That is the weight of the unit times the rarity of its words, over what it costs.
    """
    said = [
        terms(searchable(json.loads(unit.short))) if unit.short else json.loads(unit.terms)
        for unit in units
    ]
    rarity = archive.rarity(list(set[str]().union(*said)))
    values = [
        unit.weight * sum(rarity.get(word, 0.0) for word in words) / unit.short_tokens
        for unit, words in zip(units, said, strict=True)
    ]
    order = sorted(range(len(units)), key=lambda i: (-values[i], -units[i].id))
    return [units[i] for i in order]
