"""Compressing a text of which parts are protected or have a rate of their own.

A structured text is one text and the regions it is cut into. Regions that may be compressed
become passages of any `Compressor`, the others stay as they are, and what is left of all is put
together again from characters of the source. The compressor counts its passages; what is limited
is the whole text. So its budget is corrected by what it was wrong, until the whole text fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import regex

from .budget import Budget, TokenCounter
from .compressor import Compressor, as_query
from .errors import BudgetError, InputError
from .guards import KeepPattern, keep_patterns
from .methods import get_compressor
from .packing import TOLERANCE
from .pipeline import mapped
from .types import JOINER, CompressedPassage, Compression, Passage, Span, render

__all__ = ["Layout", "Region", "as_compressor", "compress_regions", "fitted"]

T = TypeVar("T")

_Parts = dict[int, list[Span]]
"""Parts of some regions, by the place of the region: offsets into the layout's text."""

_CORRECTIONS = 4
"""Times the budget is corrected for a fuller text; more are made only while none fits."""

_SPACE = regex.compile(r"\s+")
_MARK = regex.compile(r"\p{P}")
_SPACED = regex.compile(
    r"[[\p{L}\p{N}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}]]", regex.V1
)
"""A character of a word in a script that parts its words."""


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of text that is compressed in its own way.

    Attributes
    ----------
    start, end
        Character offsets; a region is never empty.
    rate
        Fraction of its own tokens that is left of it; None for a share of what the budget
        leaves after all others.
    keep
        Whether it stays as it is, whatever its rate.
    title
        What it is about, for methods that want to know; never part of the result.
    """

    start: int
    end: int
    rate: float | None = None
    keep: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A text, its regions, and how it is written in the source.

    Attributes
    ----------
    text
        What a compressor reads.
    regions
        Ascending, disjoint. Text between two regions parts them: it stays where something is
        left on both sides.
    source
        What is counted, and what the spans of the result refer to.
    places
        The offset in `source` of every offset in `text`, its end included; None where the two
        are the same.
    flows
        Whether one region reads on into the next, so that white space must part what is left.
    """

    text: str
    regions: Sequence[Region]
    source: str
    places: Sequence[int] | None = None
    flows: bool = False

    def core(self, region: Region) -> Span:
        """The region without the white space at its borders, unless it is nothing else."""
        text = self.text[region.start : region.end]
        if region.keep or text.isspace():
            return Span(region.start, region.end)
        return Span(region.end - len(text.lstrip()), region.start + len(text.rstrip()))

    def with_margins(self, i: int, kept: Sequence[Span]) -> list[Span]:
        """The kept parts of the core of region `i`, with the white space around the core that
        touches them; where the text flows on, that behind it is left to what follows.
        """
        region, core = self.regions[i], self.core(self.regions[i])
        spans = list(kept)
        if spans and spans[0].start == core.start:
            spans[0] = Span(region.start, spans[0].end)
        is_last = not self.flows or i + 1 == len(self.regions)
        if spans and spans[-1].end == core.end and is_last:
            spans[-1] = Span(spans[-1].start, region.end)
        return spans

    def joined(self, kept: Sequence[Sequence[Span]]) -> list[Span]:
        """Put together what is left of each region.

        Parameters
        ----------
        kept
            For each region its kept parts, as offsets into `text`.

        Returns
        -------
        list of Span
            Offsets into `source`, ascending, disjoint.
        """
        spans: list[Span] = []
        for i, inside in enumerate(kept):
            if inside and spans:
                spans.append(self._seam(i, spans[-1].end, inside[0].start))
            spans += inside
        spans = mapped([Span(0, len(self.text))], spans)  # unites those that touch
        if self.places is not None:
            spans = [Span(self.places[start], self.places[end]) for start, end in spans]
        return spans

    def _seam(self, following: int, end: int, start: int) -> Span:
        """What parts the text left up to `end` from the region that goes on at `start`."""
        between = Span(self.regions[following - 1].end, self.regions[following].start)
        if between.start < between.end or not self.flows or end == start:
            return between
        if self.text[end:start].isspace():
            return Span(end, start)
        before, after = self.text[end - 1], self.text[start]
        if before.isspace() or after.isspace():
            return between
        # The strongest white space that was dropped, as `packing` does it.
        gaps = [Span(*m.span()) for m in _SPACE.finditer(self.text, end, start)]
        if not gaps and _SPACED.match(before) and _SPACED.match(after):
            gaps = [Span(*m.span()) for m in _MARK.finditer(self.text, end, start)][-1:]
        return max(gaps, key=lambda gap: self.text.count("\n", *gap), default=between)


def as_compressor(method: Compressor | str) -> Compressor:
    """Read a compressor or the name of a method; raise `InputError` if it is neither."""
    if isinstance(method, Compressor):
        return method
    if isinstance(method, str):
        return get_compressor(method)
    raise InputError(f"method is a Compressor or the name of one, got {method!r}")


def compress_regions(
    layout: Layout,
    *,
    query: str | None,
    budget: Budget | float,
    method: Compressor | str,
    counter: Any,
    keep: Sequence[KeepPattern],
    least: int = 0,
) -> Compression:
    """Compress a text region by region.

    Rated regions are left their rate. Where that is more than the budget allows beside the
    protected ones, what the rates leave is compressed once more, together. The regions without
    a rate share what then remains.

    Parameters
    ----------
    budget
        Of the whole source, protected regions included.
    least
        Tokens promised to each region that shares, as ``min_per_passage`` of a budget.

    The other parameters are those of `Compressor.compress`.

    Returns
    -------
    Compression
        One passage, ``layout.source``.

    Raises
    ------
    BudgetError
        The protected regions, or what `keep` finds, do not fit.
    """
    started = time.perf_counter()
    compressor, tokens, size = as_compressor(method), TokenCounter.of(counter), Budget.of(budget)
    total = tokens.count(layout.source)
    run = _Run(
        layout,
        compressor,
        as_query(query),
        keep_patterns(keep),
        tokens,
        size.limit(total),
        max(least, size.min_per_passage),
    )
    spans = tuple(run.spans(total))
    after = tokens.count(render(layout.source, spans))
    outcome = CompressedPassage(Passage(layout.source), 0, spans, None, total, after)
    return Compression(
        passages=(outcome,) if spans else (),
        dropped=() if spans else (outcome,),
        method=compressor.name,
        query=run.query,
        budget=size,
        limit=run.limit,
        counter=tokens.name,
        tokens_before=total,
        tokens_after=after,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """One layout on its way through a compressor."""

    layout: Layout
    compressor: Compressor
    query: str | None
    keep: Sequence[KeepPattern]
    counter: TokenCounter
    limit: int
    least: int

    def spans(self, total: int) -> list[Span]:
        """The kept parts of the source, which has `total` tokens."""
        regions = self.layout.regions
        whole = [Span(0, len(self.layout.source))]
        cores = {i: [self.layout.core(r)] for i, r in enumerate(regions) if not r.keep}
        rated = {i: core for i, core in cores.items() if regions[i].rate is not None}
        shared = {i: core for i, core in cores.items() if regions[i].rate is None}
        if total <= self.limit and not rated:
            return whole
        kept = [[Span(r.start, r.end)] if r.keep else [] for r in regions]
        needed = self._count(kept)
        if needed > self.limit:
            if total <= self.limit:  # a tokenizer may need more for a part than for the whole
                return whole
            raise BudgetError(
                f"what is protected takes {needed} tokens and the budget allows {self.limit}; "
                f"raise the budget or protect less"
            )
        if rated:
            kept = self._shared_out(kept, self._at_their_rates(rated))
        if shared:
            kept = self._shared_out(kept, shared)
        return self.layout.joined(kept)

    def _at_their_rates(self, cores: _Parts) -> _Parts:
        """What its rate leaves of each region."""
        rates = {i: self.layout.regions[i].rate or 1.0 for i in cores}
        left: _Parts = {}
        for rate in sorted(set(rates.values())):
            alike = {i: core for i, core in cores.items() if rates[i] == rate}
            left |= self._compress(alike, Budget.rate(rate, per_passage=True))[1]
        return left

    def _shared_out(self, kept: list[list[Span]], parts: _Parts) -> list[list[Span]]:
        """Let regions of which nothing is kept yet share what the others leave of the limit.

        Parameters
        ----------
        kept
            What is left of each region.
        parts
            What may be left of the regions that share.

        Returns
        -------
        list of list of Span
            What is left of each region now.
        """
        whole = self._with(kept, parts)
        if self._count(whole) <= self.limit:
            return whole
        base = self._count(kept)
        most = self.limit - base + self.counter.count(JOINER) * (len(parts) - 1)
        # For a piece of each region there may be room only without the joiners.
        room = most if self.least else self.limit - base

        def attempt(is_bare: bool, size: int) -> tuple[int, int, list[list[Span]]]:
            result, left = self._compress(parts, Budget.tokens(size, min_per_passage=self.least))
            filled = self._with(kept, left, is_bare)
            return result.tokens_after, self._count(filled), filled

        # The white space at the borders of a region can take the last tokens there are.
        for is_bare in (False, True):
            filled = fitted(
                partial(attempt, is_bare), limit=self.limit, base=base, room=room, most=most
            )
            if filled != kept:
                break
        return filled

    def _with(
        self, kept: list[list[Span]], parts: _Parts, is_bare: bool = False
    ) -> list[list[Span]]:
        """Add parts of further regions, with or without the white space at their borders."""
        filled = list(kept)
        for i, spans in parts.items():
            filled[i] = spans if is_bare else self.layout.with_margins(i, spans)
        return filled

    def _compress(self, parts: _Parts, budget: Budget) -> tuple[Compression, _Parts]:
        """Compress parts of regions, together; what is left of each, if anything."""
        text, regions = self.layout.text, self.layout.regions
        result = self.compressor.compress(
            [
                Passage(render(text, spans), metadata={"title": regions[i].title})
                for i, spans in parts.items()
            ],
            query=self.query,
            budget=budget,
            keep=self.keep,
            counter=self.counter,
        )
        order = list(parts)
        left = {order[p.index]: mapped(parts[order[p.index]], p.spans) for p in result.passages}
        return result, left

    def _count(self, kept: list[list[Span]]) -> int:
        return self.counter.count(render(self.layout.source, self.layout.joined(kept)))


def fitted(
    attempt: Callable[[int], tuple[int, int, T]],
    *,
    limit: int,
    base: int,
    room: int,
    most: int,
) -> T:
    """Compress a part of a text so that the whole text fits the limit.

    Parameters
    ----------
    attempt
        Compresses the part to a number of tokens, and gives the tokens left of it, those of the
        whole text with it, and the result.
    limit
        Tokens that the whole text may have.
    base
        Tokens of the whole text without the part; at most `limit`.
    room, most
        The budget of the part that is tried first, and the largest.

    Returns
    -------
    T
        The one that fits of those that were tried, the one with the largest budget.

    Raises
    ------
    BudgetError
        What must be kept of the part does not fit.
    """
    best: tuple[int, T] | None = None
    refusal = BudgetError("the compressor left more than its budget allows")
    low, high = -1, most + 1  # a budget that is not too large, and one that is
    tries = 0
    while room > low:
        tries += 1
        try:
            used, total, result = attempt(room)
        except BudgetError as error:
            refusal, low, guess = error, room, most
        else:
            # Escapes grow with what is kept, joiners that are not there hardly do.
            guesses = used * (limit - base) // max(1, total - base), used + limit - total
            if total > limit:
                high, guess = room, max(guesses)
            else:
                low, guess, best = room, min(guesses), (total, result)
        if best is not None:
            is_full = limit - best[0] <= TOLERANCE * limit
            if is_full or guess <= low or tries >= _CORRECTIONS:
                break
        hurry = max(0, tries - _CORRECTIONS + 1)  # what goes down too slowly takes longer steps
        room = min(guess, high - 1) - (2**hurry - 1) * max(0, room - guess)
        if room <= low:
            room = (low + high) // 2
    if best is None:
        raise refusal
    return best[1]
