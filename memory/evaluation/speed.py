"""Time and memory of reading into a bounded cache, beside a cache that grows.

Tokens are random, and so are the weights unless there is a model: time does not depend on them.
What quantization loses does, so measure that on the model that it is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from ..kv.cache import Storage
from ..kv.engine import Engine, State
from ..kv.files import tensors
from ..kv.policies import get_policy

__all__ = [
    "Answered",
    "Growth",
    "Overhead",
    "Stored",
    "answer",
    "grow",
    "overhead",
    "random_llama",
    "store",
]

_CATALYST = list(range(11))


def random_llama(
    *, layers: int = 8, width: int = 512, heads: int = 8, dtype: torch.dtype = torch.float32
) -> Any:
    """A Llama with random weights and half as many key heads as heads; 32 million parameters."""
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=2**18,
        initializer_range=0.1,  # attention that is not all even
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of reading the same tokens with a policy and with a cache that grows.

    Attributes
    ----------
    policy
        Its name.
    tokens
        How many are read.
    plain, bounded
        Seconds of each run.
    """

    policy: str
    tokens: int
    plain: tuple[float, ...]
    bounded: tuple[float, ...]

    def __str__(self) -> str:
        ratios = sorted(b / p for b, p in zip(self.bounded, self.plain, strict=True))
        return (
            f"| {self.policy} | {self.tokens:,} | {self.tokens / median(self.plain):,.0f} "
            f"| {self.tokens / median(self.bounded):,.0f} | {median(ratios) - 1:+.0%} "
            f"[{ratios[0] - 1:+.0%}, {ratios[-1] - 1:+.0%}] |"
        )


def overhead(
    model: Any,
    policies: Sequence[str],
    length: int,
    *,
    pot: int = 1024,
    keep: int = 512,
    chunk: int = 512,
    repeats: int = 3,
) -> Iterator[Overhead]:
    """Time policies beside a plain chunked prefill of the same model, in turn."""
    ids = _tokens(model, length)
    for name in policies:
        engine = _engine(model, name, pot, keep, chunk)

        def plain() -> None:
            _prefill(model, ids, chunk)

        def bounded(engine: Engine = engine) -> None:
            engine.feed(engine.start(), ids)

        seconds: dict[Callable[[], None], list[float]] = {plain: [], bounded: []}
        for _ in range(repeats + 1):
            for function, measured in seconds.items():
                measured.append(_timed(function))
        yield Overhead(name, length, tuple(seconds[plain][1:]), tuple(seconds[bounded][1:]))


@dataclass(frozen=True, slots=True)
class Growth:
    """One step of a long reading.

    Attributes
    ----------
    seen
        Tokens read at its end.
    seconds
        For 1,000 tokens of it.
    resident
        Bytes that the process holds at its end.
    """

    seen: int
    seconds: float
    resident: int

    def __str__(self) -> str:
        return f"{self.seconds:.2f} | {self.resident / 2**20:,.0f}"


def grow(
    model: Any,
    policy: str | None,
    *,
    steps: int = 20,
    step: int = 10_000,
    pot: int = 1024,
    keep: int = 512,
    chunk: int = 512,
) -> Iterator[Growth]:
    """Read on and on; None for a cache that grows."""
    cache = DynamicCache(config=model.config)
    engine = None if policy is None else _engine(model, policy, pot, keep, chunk)
    state = engine.start() if engine else None
    process = psutil.Process()
    for i in range(steps):
        ids = _tokens(model, step, i)

        def read(ids: torch.Tensor = ids) -> None:
            if engine is not None and state is not None:
                engine.feed(state, ids)
            else:
                _prefill(model, ids, chunk, cache)

        seconds = _timed(read) * 1000 / step
        yield Growth((i + 1) * step, seconds, process.memory_info().rss)


@dataclass(frozen=True, slots=True)
class Stored:
    """A full pot that is held in one way.

    Attributes
    ----------
    storage
        The way.
    nbytes
        Bytes of all that it holds.
    error
        Relative error of its keys and values.
    divergence
        Kullback-Leibler divergence in nats of what the model expects next, from what it expects
        with the plain entries; mean over the tokens of a text that is read after them.
    agreement
        Part of those tokens behind which the likeliest next one is the same.
    rate
        Tokens a second, one at a time.
    """

    storage: Storage
    nbytes: int
    error: float
    divergence: float
    agreement: float
    rate: float

    def __str__(self) -> str:
        return (
            f"| {self.storage} | {self.nbytes:,} | {self.error:.2%} | {self.divergence:.1e} "
            f"| {self.agreement:.0%} | {self.rate:.0f} |"
        )


def store(
    model: Any, *, pot: int = 1024, keep: int = 512, chunk: int = 512, tokens: int = 64
) -> Iterator[Stored]:
    """Fill a pot, and read on one token at a time, with each way to hold it."""
    text, rest = _tokens(model, pot - tokens), _tokens(model, tokens, 1)
    exact: torch.Tensor | None = None
    ways: tuple[Storage, ...] = ("rotated", "unrotated", "int8", "int4")
    for way in ways:
        engine = _engine(model, "streaming_llm", pot, keep, chunk, way)
        state = engine.start()
        engine.feed(state, text)
        expected: list[torch.Tensor] = []

        def read(state: State = state, engine: Engine = engine, into: Any = expected) -> None:
            for token in rest:
                engine.feed(state, token[None])
                into.append(state.logits)

        seconds = _timed(read)
        found = torch.stack(expected).float().log_softmax(-1)
        exact = found if exact is None else exact
        yield Stored(
            storage=way,
            nbytes=sum(t.nbytes for t in tensors(state).values()),
            error=state.cache.error,
            divergence=float((exact.exp() * (exact - found)).sum(-1).mean()),
            agreement=float((exact.argmax(-1) == found.argmax(-1)).float().mean()),
            rate=tokens / seconds,
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """Questions about what was read, with a bounded cache and with one that grew.

    Attributes
    ----------
    tokens
        How many were read.
    nbytes
        Of the bounded state, and of the other.
    first
        Seconds to the first token of each answer: for each question those with the bounded cache
        and those with the other.
    each
        Seconds of one token behind it, in the same form.
    """

    tokens: int
    nbytes: tuple[int, int]
    first: tuple[tuple[float, float], ...]
    each: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        cells = [f"{self.tokens:,}", *(f"{nbytes:,}" for nbytes in self.nbytes)]
        for pairs, digits in ((self.first, 0), (self.each, 1)):
            bounded, full = (1000 * median(side) for side in zip(*pairs, strict=True))
            ratios = sorted(a / b for a, b in pairs)
            cells.append(
                f"{bounded:.{digits}f} : {full:.{digits}f} = {median(ratios):.2f} "
                f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]"
            )
        return f"| {' | '.join(cells)} |"


def answer(
    model: Any,
    policy: str,
    lengths: Sequence[int] = (1_024, 4_096, 16_384),
    *,
    pot: int = 1024,
    keep: int = 512,
    chunk: int = 512,
    question: int = 32,
    tokens: int = 16,
    repeats: int = 5,
) -> Iterator[Answered]:
    """Read so much, then time questions and answers, in turn with both caches."""
    engine = _engine(model, policy, pot, keep, chunk)
    for length in lengths:
        ids, state = _tokens(model, length), engine.start()
        cache: Any = DynamicCache(config=model.config)
        engine.feed(state, ids)
        _prefill(model, ids, chunk, cache)
        held = sum(tensor.nbytes for tensor in tensors(state).values())
        grown = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

        def bounded(ids: torch.Tensor, state: State = state) -> None:
            engine.feed(state, ids)

        def full(ids: torch.Tensor, cache: Any = cache) -> None:
            _prefill(model, ids, chunk, cache)

        first: list[tuple[float, float]] = []
        each: list[tuple[float, float]] = []
        for i in range(repeats + 1):
            asked, written = _tokens(model, question, i), _tokens(model, tokens, repeats + 1 + i)
            first.append((_timed(partial(bounded, asked)), _timed(partial(full, asked))))
            one, other = (
                _timed(partial(_one_by_one, way, written)) / tokens for way in (bounded, full)
            )
            each.append((one, other))
        yield Answered(length, (held, grown), tuple(first[1:]), tuple(each[1:]))


def _one_by_one(read: Callable[[torch.Tensor], None], ids: torch.Tensor) -> None:
    for token in ids:
        read(token[None])


def _engine(
    model: Any, policy: str, pot: int, keep: int, chunk: int, storage: Storage | None = None
) -> Engine:
    made = get_policy(policy)
    catalyst = _CATALYST if made.catalyst else []
    return Engine(model, made, pot, keep, chunk, catalyst, storage=storage)


def _tokens(model: Any, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    most = model.get_input_embeddings().num_embeddings
    return torch.randint(3, most, (count,), generator=generator).to(model.device)


def _prefill(model: Any, ids: torch.Tensor, chunk: int, cache: Any = None) -> None:
    """What one would write without us: chunk by chunk into the cache of transformers."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    with torch.inference_mode():
        for part in ids.split(chunk):
            model(input_ids=part[None], past_key_values=cache, use_cache=True, logits_to_keep=1)


def _timed(function: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
