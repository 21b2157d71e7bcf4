"""LLMLingua: keep what a small language model did not expect.

Source: Jiang et al., "LLMLingua: Compressing Prompts for Accelerated Inference of Large
Language Models", EMNLP 2023: the coarse selection of demonstrations (algorithm 1) and the
iterative token-level prompt compression (algorithm 2). Parts of a prompt with rates of their
own, the rest of its budget controller, are `laconic.core.structured.compress_prompt`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .. import guards, units
from ..errors import InputError
from ..method import Flags, Floats, Method, Request, Scores
from ..models.alignment import Tokens, first_units, mean_by_unit, tile
from ..models.causal_lm import CausalLM, Stream
from ..types import JOINER, Span

__all__ = ["LLMLingua", "Level"]

Level = Literal["document", "sentence", "word", "token"]
"""The units that are kept or dropped."""

_DEFAULT_MODEL = "NousResearch/Llama-2-7b-hf"

_UNREAD = -2.0
"""Lies below every score of a passage that the coarse stage keeps."""


class LLMLingua(Method):
    """Keep the words that the language model finds least likely.

    First whole passages: those of the highest perplexity, until they hold a few times the
    budget. Then their words, segment by segment: each is judged given what was kept of the
    segments before it, and the budget's share of its tokens stays. The query is not read.

    Parameters
    ----------
    model
        A `CausalLM`, or what makes one: a hub id, a folder. None for Llama 2 (7B), which the
        paper used; any causal language model works, GPT-2 too.
    level
        The units that are kept or dropped; the paper's are tokens, which leave fragments of
        words.
    segment_tokens
        Tokens of a segment; the paper's 100.
    coarse_factor
        How many times the budget the coarse stage leaves (the paper's k, 2); None for no
        coarse stage.
    device, dtype, trust_remote_code
        As `CausalLM` takes them, for a model that is loaded by name.
    """

    name = "llmlingua"

    def __init__(
        self,
        model: Any = None,
        *,
        level: Level = "word",
        segment_tokens: int = 100,
        coarse_factor: float | None = 2.0,
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
    ) -> None:
        if level not in get_args(Level):
            raise InputError(f"no level {level!r}; there are {', '.join(get_args(Level))}")
        if segment_tokens < 1:
            raise InputError(f"segment_tokens is at least 1, got {segment_tokens!r}")
        if coarse_factor is not None and not coarse_factor >= 1:
            raise InputError(f"coarse_factor is at least 1, or None, got {coarse_factor!r}")
        self.model = (
            model
            if isinstance(model, CausalLM)
            else CausalLM(
                model or _DEFAULT_MODEL,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
        )
        self.level = level
        self.segment_tokens = segment_tokens
        self.coarse_factor = coarse_factor

    def segment(self, text: str) -> Sequence[Span]:
        """Cut into units of the level."""
        if self.level == "document":
            return [Span(0, len(text))] if text else []
        if self.level == "sentence":
            return units.sentences(text, guards.atoms(text))
        if self.level == "word":
            return units.words(text, guards.atoms(text, guards.ATOM_KINDS))
        return tile(text, self.model.tokenize([text])[0].offsets)

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Rank the passages of all requests in the same forward passes, then read each."""
        tokens = [self.model.tokenize(request.passages) for request in requests]
        # One passage has nothing to be ranked against.
        several = [i for i, of_passages in enumerate(tokens) if len(of_passages) > 1]
        ranked = self.rank([requests[i] for i in several], [tokens[i] for i in several])
        ranks = dict(zip(several, ranked, strict=True))
        return [
            self._read(request, of_passages, ranks.get(i, np.zeros(len(of_passages))))
            for i, (request, of_passages) in enumerate(zip(requests, tokens, strict=True))
        ]

    def rank(self, requests: Sequence[Request], tokens: Sequence[Sequence[Tokens]]) -> list[Floats]:
        """Score the passages of each request, higher is better: here their mean NLL."""
        del requests
        flat = [t for of_passages in tokens for t in of_passages]
        values = iter(self.model.nll(flat))
        means = [[_mean(next(values)) for _ in of_passages] for of_passages in tokens]
        return [np.array(m, np.float64) for m in means]

    def shares(self, count: int, share: float) -> Floats:
        """The part to keep of each of `count` passages, the best first: here the same of all."""
        return np.full(count, share)

    def judges(self, request: Request) -> tuple[Stream, ...]:
        """What judges the words: the NLL of the first stream less that of the second."""
        del request
        return (self.model.stream(),)

    def reading_order(self, kept: Sequence[int]) -> list[int]:
        """The order in which the kept passages, given best first, are read: here as they came."""
        return sorted(kept)

    def _read(self, request: Request, tokens: Sequence[Tokens], ranks: Floats) -> Scores:
        """Score the units of the passages that the coarse stage keeps, given their ranks."""
        lengths = np.array([len(t) for t in tokens])
        kept = self._selected(ranks, lengths, request)
        share = min(1.0, request.rate * lengths.sum() / max(1, lengths[kept].sum()))
        shares = dict(zip(kept, self.shares(len(kept), share), strict=True))
        values = [_unread(ranks, i, len(spans)) for i, spans in enumerate(request.units)]
        if self.level == "document":
            return Scores(
                tuple(np.full(len(v), r) for v, r in zip(values, ranks, strict=True)), ranks
            )
        joiner = self.model.tokenize([JOINER])[0].ids
        with self.model.lock:
            streams = self.judges(request)
            for place, i in enumerate(self.reading_order(kept)):
                if place:
                    for stream in streams:
                        stream.keep(joiner)
                passage = _Passage.of(request, i, tokens[i])
                values[i] = passage.read(streams, self.segment_tokens, float(shares[i]))
        return Scores(tuple(values), ranks)

    def _selected(self, ranks: Floats, lengths: NDArray[np.int64], request: Request) -> list[int]:
        """The passages that are read, best first: until they hold enough, and what is forced."""
        order: list[int] = np.argsort(-ranks, kind="stable").tolist()
        if self.coarse_factor is None or request.shares_out:
            return order
        enough = self.coarse_factor * request.rate * lengths.sum()
        before = np.cumsum(lengths[order]) - lengths[order]
        forced = [bool(flags.any()) for flags in request.forced] or [False] * len(order)
        return [i for i, held in zip(order, before, strict=True) if held < enough or forced[i]]


@dataclass(frozen=True, slots=True)
class _Passage:
    """A passage with its tokens and units."""

    text: str
    spans: Sequence[Span]
    tokens: Tokens
    owner: NDArray[np.int64]
    """The first unit that each token belongs to; ascending."""
    forced: Flags

    @classmethod
    def of(cls, request: Request, i: int, tokens: Tokens) -> _Passage:
        text, spans = request.passages[i], request.units[i]
        forced = request.forced[i] if request.forced else np.zeros(len(spans), bool)
        return cls(text, spans, tokens, first_units(spans, tokens.offsets), forced)

    def read(self, streams: Sequence[Stream], size: int, share: float) -> Floats:
        """Score the units segment by segment; those above 0 are within the share."""
        scores = np.full(len(self.spans), share - 1.0)
        for low, high in self._segments(size):
            ids = self.tokens.ids[low:high]
            judged = [stream.judge(ids) for stream in streams]
            surprise = judged[0] if len(judged) == 1 else judged[0] - judged[1]
            first, last = int(self.owner[low]), int(self.owner[high - 1])
            values = mean_by_unit(
                self.text,
                self.spans[first : last + 1],
                self.tokens.offsets[low:high],
                surprise,
                float(surprise.min()),
                start=self.spans[first].start,
            )
            sizes = np.bincount(self.owner[low:high] - first, minlength=len(values))
            values[self.forced[first : last + 1]] = np.inf
            here = share - _above(values, sizes)
            scores[first : last + 1] = here
            is_kept = (here > 0)[self.owner[low:high] - first]
            for stream in streams:
                stream.keep(ids[is_kept])
        return scores

    def _segments(self, size: int) -> Iterator[tuple[int, int]]:
        """Runs of about `size` tokens that end where a unit does."""
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        low = 0
        while low < len(self.owner):
            later = starts[np.searchsorted(starts, low + size) :]
            high = int(later[0]) if len(later) else len(self.owner)
            yield low, high
            low = high


def _above(values: Floats, sizes: NDArray[np.int64]) -> Floats:
    """For each unit the part of all tokens in units of higher value, and half of its own."""
    order = np.argsort(-values, kind="stable")
    ends = np.cumsum(sizes[order])
    parts = np.empty(len(values))
    parts[order] = (ends - sizes[order] / 2) / max(1, int(ends[-1]))
    return parts


def _unread(ranks: Floats, i: int, count: int) -> Floats:
    """Scores of a passage that is not read: below all others, in the order of the ranks."""
    place = int((ranks > ranks[i]).sum())
    return np.full(count, _UNREAD - place)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0
