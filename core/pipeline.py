"""Coarse, then fine: a fast compressor in front of a careful one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from .budget import Budget, TokenCounter
from .compressor import Compressor, Order, Passages, as_passages, as_query, check_order
from .errors import InputError
from .guards import KeepPattern
from .types import JOINER, Compression, Passage, Span

__all__ = ["Pipeline", "mapped"]


class Pipeline(Compressor):
    """Let one compressor leave more than is wanted, and the next choose among that.

    Parameters
    ----------
    coarse, fine
        The two compressors. Either may be a pipeline.
    headroom
        How many times the final budget the first one leaves; at least 1.
    """

    def __init__(self, coarse: Compressor, fine: Compressor, *, headroom: float = 3.0) -> None:
        if not headroom >= 1:
            raise InputError(f"headroom is at least 1, got {headroom!r}")
        self.coarse = coarse
        self.fine = fine
        self.headroom = headroom
        self.name = f"{coarse.name}+{fine.name}"

    def compress_many(
        self,
        requests: Iterable[tuple[Passages, str | None]],
        *,
        budget: Budget | float,
        keep: Sequence[KeepPattern] = (),
        counter: Any = None,
        order: Order = "source",
    ) -> list[Compression]:
        """See `Compressor.compress_many`; the second stage takes the requests one by one."""
        check_order(order)
        size, tokens = Budget.of(budget), TokenCounter.of(counter)
        staged = self._each_passage if size.per_passage else self._together
        return [
            staged(as_passages(passages), query, size, keep=keep, counter=tokens, order=order)
            for passages, query in requests
        ]

    def _together(
        self,
        passages: tuple[Passage, ...],
        query: str | None,
        budget: Budget,
        *,
        order: Order,
        **options: Any,
    ) -> Compression:
        # Where the second stage can keep nothing of what the first one left, it sees everything.
        for room in (budget.scaled(self.headroom), Budget.of(1.0)):
            first = self.coarse.compress(passages, query=query, budget=room, **options)
            limit = budget.limit(first.tokens_before)
            second = self.fine.compress(
                [Passage(p.text, p.id, p.metadata) for p in first.passages],
                query=query,
                budget=replace(budget, kind="tokens", amount=limit),
                order=order,
                **options,
            )
            if second.passages or not limit:
                break
        outcomes = {p.index: p for p in (*first.passages, *first.dropped)}
        kept = []
        for last in second.passages:
            source = first.passages[last.index]
            spans = tuple(mapped(source.spans, last.spans))
            kept.append(
                replace(source, spans=spans, score=last.score, tokens_after=last.tokens_after)
            )
            del outcomes[source.index]
        dropped = [
            replace(outcomes[i], spans=(), score=None, tokens_after=0) for i in sorted(outcomes)
        ]
        return replace(
            second,
            passages=tuple(kept),
            dropped=tuple(dropped),
            method=self.name,
            budget=budget,
            limit=limit,
            tokens_before=first.tokens_before,
            seconds=first.seconds + second.seconds,
        )

    def _each_passage(
        self,
        passages: tuple[Passage, ...],
        query: str | None,
        budget: Budget,
        *,
        order: Order,
        counter: TokenCounter,
        **options: Any,
    ) -> Compression:
        alone = replace(budget, per_passage=False)
        parts = [
            self._together((p,), query, alone, counter=counter, order="source", **options)
            for p in passages
        ]
        outcomes = [
            replace(outcome, index=i)
            for i, part in enumerate(parts)
            for outcome in (*part.passages, *part.dropped)
        ]
        kept = [outcome for outcome in outcomes if outcome.spans]
        if order == "score":
            # Scores of separate calls cannot be compared, so what is left is scored once more.
            texts = [Passage(p.text, p.id, p.metadata) for p in kept]
            ranked = self.fine.compress(texts, query=query, budget=1.0, order="score")
            kept = [replace(kept[p.index], score=p.score) for p in ranked.passages]
        return Compression(
            passages=tuple(kept),
            dropped=tuple(outcome for outcome in outcomes if not outcome.spans),
            method=self.name,
            query=as_query(query),
            budget=budget,
            limit=sum(part.limit for part in parts),
            counter=counter.name,
            tokens_before=counter.count(JOINER.join(p.text for p in passages)),
            tokens_after=counter.count(JOINER.join(p.text for p in kept)),
            seconds=sum(part.seconds for part in parts),
        )


def mapped(outer: Sequence[Span], inner: Sequence[Span]) -> list[Span]:
    """Offsets into the text that `outer` leaves, as offsets into the text it came from."""
    mapped: list[Span] = []
    offset = 0
    for source in outer:
        shift = source.start - offset
        length = source.end - source.start
        for span in inner:
            start, end = max(span.start, offset), min(span.end, offset + length)
            if start < end or (start == end and not length):
                start, end = start + shift, end + shift
                if mapped and mapped[-1].end == start:
                    mapped[-1] = Span(mapped[-1].start, end)
                else:
                    mapped.append(Span(start, end))
        offset += length
    return mapped
