"""Speed and memory beside the published implementations, on the same weights and threads.

The weights are random, for time does not depend on them; the tokenizers are trained on the
texts. Each pair of calls is timed alternately, so that a machine that slows down slows both.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..budget import Budget, TokenCounter
from ..compressor import Compressor
from ..methods import get_compressor
from ..models.causal_lm import CausalLM
from ..models.encoder import Encoder
from ..models.tagger import TaggerModel
from ..models.token_classifier import TokenClassifier
from ..types import Compression
from .random_models import build_model
from .reference import SelectiveContextReference, reference_compressor

__all__ = ["Comparison", "beside_encoding", "compare", "compare_memory"]

_RATE = 0.5

_SEGMENT = 200
"""Tokens of a segment of iterative compression: the reference's default."""

_LONG = {
    "rank_method": "longllmlingua",
    "condition_in_question": "after_condition",
    "condition_compare": True,
    "reorder_context": "sort",
    "dynamic_context_compression_ratio": 0.3,
    "context_budget": "+100",
}
"""The options that the reference recommends for LongLLMLingua."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of the same work, done by both in turn.

    Attributes
    ----------
    name
        What was done.
    theirs, ours
        Seconds of each run.
    """

    name: str
    theirs: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as long the reference took, of each pair of runs, ascending."""
        return sorted(a / b for a, b in zip(self.theirs, self.ours, strict=True))

    def __str__(self) -> str:
        ratios = self.ratios
        return (
            f"| {self.name} | {median(self.theirs):.2f} | {median(self.ours):.2f} "
            f"| {median(ratios):.1f}x [{ratios[0]:.1f}, {ratios[-1]:.1f}] |"
        )


def compare(
    texts: Sequence[str],
    query: str,
    *,
    repeats: int = 5,
    layers: int = 12,
    width: int = 384,
    lm_layers: int = 6,
) -> Iterator[Comparison]:
    """Time each method beside its reference.

    Parameters
    ----------
    texts
        Prose, at least 12,000 words of it in all; it is cut into documents.
    query
        A question.
    repeats
        Pairs of runs, after one that warms up.
    layers, width, lm_layers
        Size of the token classifier; layers of the causal model, of the same width.
    """
    counter = TokenCounter.of("cl100k_base")
    short, long = _documents(texts, 20, 150, counter), _documents(texts, 1, 4000, counter)
    with tempfile.TemporaryDirectory() as folder:
        size: dict[str, Any] = {"width": width, "heads": 6, "vocabulary": 32_000}
        tagger = build_model("bert", Path(folder, "bert"), texts, layers=layers, **size)
        size |= {"layers": lm_layers, "positions": 9000}
        lm = build_model("gpt2", Path(folder, "gpt2"), texts, **size)

        theirs = reference_compressor(tagger, llmlingua2=True)
        causal = reference_compressor(lm)
        loop = SelectiveContextReference(lm)

        def filtered(documents: list[str]) -> Any:
            return theirs.compress_prompt(documents, rate=_RATE)

        def unfiltered(documents: list[str]) -> Any:
            return theirs.compress_prompt(documents, rate=_RATE, use_context_level_filter=False)

        def iterative(documents: list[str]) -> Any:
            return causal.compress_prompt(documents, rate=_RATE)

        def contrastive(documents: list[str]) -> Any:
            return causal.compress_prompt(documents, question=query, rate=_RATE, **_LONG)

        def information(documents: list[str]) -> Any:
            return loop.compress(documents[0], reduce_ratio=_RATE)

        def ours(name: str, model: Any, **options: Any) -> Callable[[list[str]], Compression]:
            method = get_compressor(name, model=model, **options)
            return lambda documents: method.compress(
                documents, query=query, budget=Budget.rate(_RATE)
            )

        tag = ours("llmlingua2", TokenClassifier(tagger, cache_size=0))
        tag_int8 = ours("llmlingua2", TokenClassifier(tagger, int8=True, cache_size=0))
        yield _timed("LLMLingua-2, 20 documents of 150 tokens", filtered, tag, short, repeats)
        yield _timed("the same, context filter off", unfiltered, tag, short, repeats)
        yield _timed("LLMLingua-2, one document of 4,000 tokens", unfiltered, tag, long, repeats)
        yield _timed("the same, int8", unfiltered, tag_int8, long, repeats)
        full, half = CausalLM(lm), CausalLM(lm, dtype="bfloat16")
        own: dict[str, Any] = {"segment_tokens": _SEGMENT}
        for title, reference, documents, name, options in (
            ("Selective Context, 4,000 tokens", information, long, "selective_context", {}),
            ("LLMLingua, 4,000 tokens", iterative, long, "llmlingua", own),
            (
                "LongLLMLingua, 20 documents of 150 tokens",
                contrastive,
                short,
                "longllmlingua",
                own | {"coarse_factor": 1.0},
            ),
        ):
            exact, rounded = ours(name, full, **options), ours(name, half, **options)
            yield _timed(title, reference, exact, documents, repeats)
            yield _timed("the same, bfloat16", reference, rounded, documents, repeats)


def _timed(
    name: str,
    theirs: Callable[[list[str]], Any],
    ours: Callable[[list[str]], Compression],
    documents: list[str],
    repeats: int,
) -> Comparison:
    seconds: dict[Callable[..., Any], list[float]] = {theirs: [], ours: []}
    for _ in range(repeats + 1):
        for function, measured in seconds.items():
            started = time.perf_counter()
            function(list(documents))
            measured.append(time.perf_counter() - started)
    return Comparison(name, tuple(seconds[theirs][1:]), tuple(seconds[ours][1:]))


def beside_encoding(
    methods: Sequence[str], texts: Sequence[str], query: str, *, repeats: int = 5
) -> Iterator[Comparison]:
    """Time methods beside encoding the same 20 documents of 150 tokens once.

    Nothing is remembered from one run to the next.

    Parameters
    ----------
    methods
        Names.
    texts
        Prose, at least 3,000 words of it in all; it is cut into documents.
    query
        A question.
    repeats
        Pairs of runs, after one that warms up.
    """
    documents = _documents(texts, 20, 150, TokenCounter.of("cl100k_base"))
    encoder = Encoder(cache_size=0)
    asked = (f"{query} ({i})" for i in itertools.count())  # none is known from before
    for name in methods:
        forgetful = {"extractive": Encoder, "tagger": TaggerModel}
        options = {"model": forgetful[name](cache_size=0)} if name in forgetful else {}
        variants = {name: get_compressor(name, **options)}
        if name == "pruner":
            variants["pruner, int8"] = get_compressor(name, device="cpu", int8=True)
        for title, method in variants.items():

            def ours(given: list[str], method: Compressor = method) -> Compression:
                return method.compress(given, query=next(asked), budget=Budget.rate(_RATE))

            yield _timed(title, encoder.encode, ours, documents, repeats)


def _documents(texts: Sequence[str], count: int, size: int, counter: TokenCounter) -> list[str]:
    """Documents of whole words with about `size` tokens each, one behind the other."""
    words = iter(" ".join(texts).split())
    documents = []
    for _ in range(count):
        chosen: list[str] = []
        while counter.count(" ".join(chosen)) < size:
            chosen += [next(words) for _ in range(max(1, size // 20))]
        documents.append(" ".join(chosen))
    return documents


def compare_memory(texts: Sequence[str], *, tokens: int = 8000) -> dict[str, int]:
    """Bytes by which the memory of a process rises at most during one LLMLingua compression.

    Each runs in a process of its own, on a small GPT-2 with a vocabulary of 50,000.

    Returns
    -------
    dict
        Bytes for ``"theirs"`` and ``"ours"``.
    """
    counter = TokenCounter.of("cl100k_base")
    (text,) = _documents(texts, 1, tokens, counter)
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        build_model("gpt2", Path(folder, "gpt2"), texts, vocabulary=50_000, positions=4 * tokens)
        Path(folder, "text.json").write_text(json.dumps(text), encoding="utf-8")
        for who in ("theirs", "ours"):
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-c", _MEMORY_SCRIPT, who, folder],
                check=True,
                capture_output=True,
                text=True,
            )
            peaks[who] = int(done.stdout.split()[-1])
    return peaks


_MEMORY_SCRIPT = """
import json, sys, threading
from pathlib import Path
import psutil
who, folder = sys.argv[1], Path(sys.argv[2])
text = json.loads((folder / "text.json").read_text(encoding="utf-8"))
if who == "ours":
    from laconic.core import get_compressor
    method = get_compressor("llmlingua", model=folder / "gpt2")
    run = lambda text: method.compress(text, budget=0.5)
else:
    from laconic.core.evaluation.reference import reference_compressor
    compressor = reference_compressor(folder / "gpt2")
    run = lambda text: compressor.compress_prompt([text], rate=0.5)
run(text[:2000])
resident = lambda: psutil.Process().memory_info().rss
before = peak = resident()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, resident())
watcher = threading.Thread(target=watch)
watcher.start()
run(text)
done.set()
watcher.join()
print(peak - before)
"""
