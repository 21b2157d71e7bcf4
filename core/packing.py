"""Choosing what is kept: scored units and a limit in tokens, to spans whose text fits it.

Packing is the same for every method. Units are taken greedily, best first. Each costs its own
tokens, but a tokenizer merges across the seams, so the sum is only an estimate: the text that
results is counted, and the estimate corrected by what it was wrong, until it fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from . import guards
from .budget import TokenCounter
from .errors import BudgetError
from .types import JOINER, Span, render
from .units import graphemes, words

__all__ = ["Scored", "cut", "pack"]

TOLERANCE = 0.02
"""Part of the limit that may stay unused when more units would still fit."""

_CORRECTIONS = 4
"""Times the cost estimate is corrected; two are enough for most texts."""

_MOST_CHARACTERS = 8
"""Characters a token of prose has at the very most, on average over a unit: what is longer than
the room that is left need not be counted."""

_REPEAT = 30
"""Characters from which on a unit that stands elsewhere too says nothing new; overlapping chunks
and boilerplate bring many such. Shorter ones, single words above all, may well be needed twice."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One passage cut into units, each with what speaks for it.

    Attributes
    ----------
    text
        The passage's text.
    units
        Tiles of the text.
    scores
        One number a unit, higher is better; shape ``(len(units),)``. What has ``-inf`` is
        kept only if it is forced.
    forced
        Which units must be kept; shape ``(len(units),)``, bool.
    """

    text: str
    units: Sequence[Span]
    scores: NDArray[np.float64]
    forced: NDArray[np.bool_]


def pack(
    passages: Sequence[Scored], limit: int, counter: TokenCounter, min_per_passage: int = 0
) -> list[list[Span]]:
    """Keep the best units of all passages whose joined text has at most `limit` tokens.

    Parameters
    ----------
    passages
        The passages, in the order in which they will be joined by `JOINER`.
    limit
        The hard cap, in tokens of the joined text.
    counter
        Counts the tokens.
    min_per_passage
        Tokens of its best units that each passage gets before the rest is shared out.

    Returns
    -------
    list of list of Span
        The kept parts of each passage; ``[]`` where nothing is left.

    Raises
    ------
    BudgetError
        The forced units alone do not fit.
    """
    packer = _Packer(passages, min_per_passage, counter)
    if packer.forced.any():
        needed = packer.count(packer.forced)
        if needed > limit:
            raise BudgetError(
                f"what must be kept takes {needed} tokens and the budget allows {limit}; "
                f"raise the budget or keep less"
            )
    elif limit <= 0:
        return [[] for _ in passages]
    elif packer.best_is_too_long(limit):
        found = packer.best_piece(limit)
        if found is None:
            return [[] for _ in passages]
        owner, unit, piece = found
        whole = passages[owner]
        split = [*passages[:owner], _split(whole, unit, piece.end), *passages[owner + 1 :]]
        packer = _Packer(split, min_per_passage, counter)
        if packer.best_is_too_long(limit) and not packer.fill(limit).any():
            return [[piece] if i == owner else [] for i in range(len(passages))]
    return packer.spans(packer.fill(limit))


class _Packer:
    """The units of all passages on one line, each with its cost."""

    def __init__(
        self, passages: Sequence[Scored], min_per_passage: int, counter: TokenCounter
    ) -> None:
        self.passages = passages
        self.counter = counter
        sizes = [len(p.units) for p in passages]
        self.bounds = np.cumsum([0, *sizes]).tolist()
        self.owner = np.repeat(np.arange(len(passages)), sizes)
        self.scores = np.concatenate([p.scores for p in passages] or [np.zeros(0)])
        self.forced = np.concatenate([p.forced for p in passages] or [np.zeros(0, bool)])
        self.texts = [p.text[start:end].strip() for p in passages for start, end in p.units]
        self.costs: dict[int, int] = {}
        self.joiner_cost = counter.count(JOINER)
        ranking = np.argsort(-self.scores, kind="stable")
        ranking = self._repeats_last(ranking[self.scores[ranking] > -np.inf])
        turn = self._turns(ranking, min_per_passage)
        turn[self.forced] = -1
        self.ranking = ranking[np.argsort(turn[ranking], kind="stable")]

    def cost(self, unit: int) -> int:
        """Tokens of one unit alone, counted when it is first asked for."""
        if unit not in self.costs:
            self.costs[unit] = self.counter.count(self.texts[unit])
        return self.costs[unit]

    def _repeats_last(self, ranking: NDArray[np.int64]) -> NDArray[np.int64]:
        """Put every unit behind all others whose text stands in a better one already."""
        first: dict[str, int] = {}
        for unit in ranking.tolist():
            first.setdefault(self.texts[unit], unit)
        is_repeat = np.array(
            [len(t) >= _REPEAT and first.get(t, i) != i for i, t in enumerate(self.texts)], bool
        )
        return ranking[np.argsort(is_repeat[ranking], kind="stable")]

    def _turns(self, ranking: NDArray[np.int64], minimum: int) -> NDArray[np.int64]:
        """When each unit is chosen: first the best of each passage, then the second best of
        those that have not reached the minimum, and so on; last all others at once.
        """
        turns = np.full(len(self.texts), len(self.texts))
        if minimum > 0:
            held = [0] * len(self.passages)
            taken = [0] * len(self.passages)
            for unit, owner in zip(ranking, self.owner[ranking], strict=True):
                if held[owner] < minimum:
                    turns[unit] = taken[owner]
                    held[owner] += self.cost(int(unit))
                    taken[owner] += 1
        return turns

    def fill(self, limit: int) -> NDArray[np.bool_]:
        """The best choice whose exact count is within the limit."""
        best = chosen = self.forced.copy()
        best_count = -1
        target = float(limit)
        for _ in range(_CORRECTIONS):
            chosen = self._greedy(target)
            count = self.count(chosen)
            if best_count < count <= limit:
                best, best_count = chosen, count
            is_tight = limit - TOLERANCE * limit <= count <= limit
            if is_tight or not count or (count < limit and chosen.all()):
                break
            target *= limit / count
        if best_count < 0:
            best = self._shrunk(chosen, limit)
            best_count = self.count(best)
        return self._topped_up(best, limit, best_count)

    def _topped_up(self, chosen: NDArray[np.bool_], limit: int, count: int) -> NDArray[np.bool_]:
        """Add what still fits, best first, while more than the tolerated part is unused."""
        for unit in self.ranking.tolist():
            slack = limit - count
            if slack <= TOLERANCE * limit:
                break
            # One more than its cost may be saved at a seam.
            if not chosen[unit] and self.cost(unit) <= slack + 1:
                chosen[unit] = True
                longer = self.count(chosen)
                if longer <= limit:
                    count = longer
                else:
                    chosen[unit] = False
        return chosen

    def _greedy(self, target: float) -> NDArray[np.bool_]:
        """Take units by rank as long as their summed cost stays within the target."""
        chosen: NDArray[np.bool_] = self.forced.copy()
        seen = {self.owner[unit] for unit in np.flatnonzero(chosen)}
        used = sum(self.cost(unit) for unit in np.flatnonzero(chosen).tolist())
        used += self.joiner_cost * max(0, len(seen) - 1)
        owners = self.owner.tolist()
        for unit in self.ranking.tolist():
            if chosen[unit] or used + len(self.texts[unit]) / _MOST_CHARACTERS > target:
                continue
            cost = self.cost(unit)
            if seen and owners[unit] not in seen:
                cost += self.joiner_cost
            if used + cost <= target:
                chosen[unit] = True
                seen.add(owners[unit])
                used += cost
        return chosen

    def _shrunk(self, chosen: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
        """Give up the lowest units one by one until the rest fits."""
        for unit in self.ranking[::-1].tolist():
            if chosen[unit] and not self.forced[unit]:
                chosen[unit] = False
                if self.count(chosen) <= limit:
                    break
        return chosen

    def count(self, chosen: NDArray[np.bool_]) -> int:
        """Tokens of the joined text, exactly."""
        kept = (
            render(p.text, s) for p, s in zip(self.passages, self.spans(chosen), strict=True) if s
        )
        return self.counter.count(JOINER.join(kept))

    def spans(self, chosen: NDArray[np.bool_]) -> list[list[Span]]:
        """The kept parts of each passage."""
        kept = np.flatnonzero(chosen)
        ends = np.searchsorted(kept, self.bounds).tolist()
        places = kept.tolist()
        return [
            _kept_spans(p.text, p.units, [unit - first for unit in places[start:end]])
            for p, first, start, end in zip(
                self.passages, self.bounds, ends[:-1], ends[1:], strict=False
            )
        ]

    def best_is_too_long(self, limit: int) -> bool:
        """Whether not even the best unit alone is within the limit."""
        alone = np.zeros(len(self.texts), bool)
        alone[self.ranking[:1]] = True
        return self.count(alone) > limit

    def best_piece(self, limit: int) -> tuple[int, int, Span] | None:
        """As much as fits of the best unit that has a piece which fits: its passage, its place
        there, and the piece. A whole word of any unit is better than a part of a word.
        """
        for whole in (True, False):
            for unit in self.ranking.tolist():
                owner = int(self.owner[unit])
                passage, place = self.passages[owner], unit - self.bounds[owner]
                piece = cut(passage.text, passage.units[place], limit, self.counter, whole=whole)
                if piece is not None:
                    return owner, place, piece
        return None


def _split(passage: Scored, unit: int, at: int) -> Scored:
    """Make two units of one: up to `at` and the white space there, and what is behind."""
    start, end = passage.units[unit]
    at = end - len(passage.text[at:end].lstrip())
    if at == end:
        return passage
    halves = [Span(start, at), Span(at, end)]
    return Scored(
        passage.text,
        [*passage.units[:unit], *halves, *passage.units[unit + 1 :]],
        np.insert(passage.scores, unit, passage.scores[unit]),
        np.insert(passage.forced, unit, passage.forced[unit]),
    )


def cut(
    text: str, unit: Span, limit: int, counter: TokenCounter, *, whole: bool = False
) -> Span | None:
    """The longest start of a unit that has at most `limit` tokens.

    It ends with a whole word and leaves no number without its unit and no negation without
    what it negates, unless not even the first word fits: then it ends with a whole character.
    None if no character of the unit fits or, with `whole`, no such word.
    """
    inside = text[unit.start : unit.end]
    if not inside.isspace():
        inside = inside.lstrip()
    offset = unit.end - len(inside)
    atoms = guards.atoms(inside, guards.ATOM_KINDS)
    sizes = [words(inside, atoms)]
    if not whole:
        sizes += [words(inside), graphemes(inside)]
    for pieces in sizes:
        low, high = 0, len(pieces)
        while low < high:
            middle = (low + high + 1) // 2
            if counter.count(inside[: pieces[middle - 1].end].rstrip()) <= limit:
                low = middle
            else:
                high = middle - 1
        end = pieces[low - 1].end if low else 0
        if inside[:end].strip():
            return Span(offset, offset + len(inside[:end].rstrip()))
    if whole:
        return None
    distinct = {inside[start:end]: start for start, end in reversed(graphemes(inside))}
    for character, start in sorted(distinct.items(), key=lambda c: (c[0].isspace(), c[1])):
        if counter.count(character) <= limit:
            return Span(offset + start, offset + start + len(character))
    return None


def _kept_spans(text: str, units: Sequence[Span], kept: Sequence[int]) -> list[Span]:
    """Join kept units into spans, each parted from the next as the source parts them."""
    spans: list[Span] = []
    start = None
    for place, unit in enumerate(kept):
        if start is None:
            start = units[unit].start
        following = kept[place + 1] if place + 1 < len(kept) else None
        if following == unit + 1:
            continue
        core_end = _core_end(text, units[unit])
        if following is None:
            spans.append(Span(start, core_end))
            break
        gap = _separator(text, units, unit, following)
        if gap.start == core_end:
            spans.append(Span(start, gap.end))
        else:
            spans += [Span(start, core_end), gap]
        start = None
    return [span for span in spans if span.end > span.start]


def _core_end(text: str, unit: Span) -> int:
    return unit.start + len(text[unit.start : unit.end].rstrip())


_WORD_CHARACTER = regex.compile(r"[\p{L}\p{N}\p{M}]")
_CLOSING_MARK = regex.compile(r"[.,;:!?…)\]\"'”’]")
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}]")


def _separator(text: str, units: Sequence[Span], kept: int, following: int) -> Span:
    """The source characters that part two kept units between which others were dropped.

    The strongest white space behind the first or a dropped unit: a paragraph break if there
    was one, else a line break, else a space; the last of equals, which indents the line of
    the second. Scripts that write no spaces need none; where two
    words of another script would meet, the last dropped character stays between them. A mark
    that closed a dropped word closes the one kept before it.
    """
    start = units[following].start
    if not text[start - 1].isspace() and _CLOSING_MARK.match(text[start]):
        end = _core_end(text, units[kept])
        return Span(end, end)
    best, most_breaks = None, -1
    for unit in units[kept:following]:
        gap = Span(_core_end(text, unit), unit.end)
        breaks = text.count("\n", *gap)
        if gap.end > gap.start and breaks >= most_breaks:
            best, most_breaks = gap, breaks
    if best is not None:
        return best
    end = _core_end(text, units[kept])
    are_glued = _WORD_CHARACTER.match(text[end - 1]) and _WORD_CHARACTER.match(text[start])
    if are_glued and not (_UNSPACED.match(text[end - 1]) or _UNSPACED.match(text[start])):
        return Span(end + graphemes(text[end:start])[-1].start, start)
    return Span(end, end)
