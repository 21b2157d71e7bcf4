"""`laconic bench`: methods beside baselines, on questions with known answers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from ...core import METHODS, Budget, Compressor, Pipeline, TokenCounter, get_compressor
from ...core.errors import InputError, UnknownMethodError
from ...core.evaluation.baselines import BASELINES
from ...core.evaluation.datasets import Example, load
from ...core.evaluation.report import Table, save
from ...core.evaluation.runner import Outcome, summarise
from ...core.evaluation.runner import run as run_method
from ...core.methods import best_method
from ...core.methods.extractive import Extractive
from ...core.models.encoder import Encoder
from ...core.models.pruner import PrunerModel
from ...core.training.questions import Split, held_out
from .bench_memory import MEMORIES

__all__ = ["run"]

RIVALS = ("langchain-embeddings-filter", "llamaindex-sentence-optimizer")
"""The frameworks' own filters, with our encoder and at our budget."""

_PRUNERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pruner": ({}, {}),
    "pruner-int8": ({"int8": True}, {}),
    "pruner-bf16": ({"bf16": True}, {}),
    "pruner-sentences": ({}, {"parts_below": 0.0}),
}
"""The pruner in several ways: what its model is told, and itself."""


def run(options: argparse.Namespace) -> None:
    """Print a table for each file, and save tables and plots if a folder is given."""
    if options.what in MEMORIES:
        MEMORIES[options.what](options)
        return
    if not options.data:
        raise InputError(f"bench {options.what} needs --data FILE")
    if options.what == "survival":
        _print_survival(options)
        return
    if options.what == "injection":
        _print_injection(options)
        return
    if options.what in ("encoding", "reference", "rates"):
        examples = [example for name in options.data for example in load(name)]
        texts = list(dict.fromkeys(p.text for example in examples for p in example.passages))
        if options.what == "rates":
            _print_rates(texts)
        elif options.what == "encoding":
            _print_encoding(options.methods or "pruner,extractive", texts, examples[0].question)
        else:
            _print_reference(texts[:500], examples[0].question)
        return
    names = options.methods or "lexical,truncate,random,lead"
    # What does not depend on the question is read once, but where that is what is timed.
    remembered = 1000 if options.what == "retention" else 0
    methods = {
        name: _compressors(name, options.headroom, options.model, remembered)
        for name in names.split(",")
    }
    counter = TokenCounter.of(options.counter)
    budgets = [Budget.rate(float(rate)) for rate in options.rates.split(",")]
    for name in options.data:
        examples = load(name)
        if options.held_out is not None:
            examples = held_out(examples, Split(options.held_out))
            if not examples:
                raise InputError(f"{name}: no question is about a document that is held out")
        examples = examples[: options.limit]
        title = Path(name).name.removesuffix(".gz").removesuffix(".jsonl")
        if options.what == "speed":
            _print_speed(title, examples, methods, budgets[0], counter)
            continue
        table = Table(title, len(examples), counter.name)
        steps = len(budgets) * sum(map(len, methods.values()))
        with tqdm(total=steps * len(examples), desc=title, unit="ex", disable=None) as bar:
            for method, compressors in methods.items():
                for budget in budgets:
                    runs: list[list[Outcome]] = []
                    for compressor in compressors:
                        runs.append([])
                        for outcome in run_method(
                            examples, compressor, budget, counter, asks=not options.no_question
                        ):
                            runs[-1].append(outcome)
                            bar.update()
                    table.add(method, budget.amount, summarise(runs))
        print(table.markdown(), flush=True)
        if options.out:
            save(table, Path(options.out))


def _compressors(
    name: str, headroom: float, model: str | None = None, remembered: int = 0
) -> list[Compressor]:
    if "+" in name:
        (coarse,), (fine,) = (
            _compressors(part, headroom, model, remembered) for part in name.rsplit("+", 1)
        )
        return [Pipeline(coarse, fine, headroom=headroom)]
    if name in BASELINES:
        return BASELINES[name]()
    if name == RIVALS[0]:
        from ..langchain.baselines import EmbeddingsFilterBaseline

        return [EmbeddingsFilterBaseline()]
    if name == RIVALS[1]:
        from ..llama_index.baselines import SentenceEmbeddingOptimizerBaseline

        return [SentenceEmbeddingOptimizerBaseline()]
    if name in _PRUNERS:
        computing, keeping = _PRUNERS[name]
        reader = PrunerModel(model, cache_size=remembered, **computing)
        return [get_compressor("pruner", model=reader, **keeping)]
    if name not in METHODS:
        known = ", ".join(dict.fromkeys([*METHODS, *_PRUNERS, *BASELINES, *RIVALS]))
        raise UnknownMethodError(f"no method {name!r} to measure; there are {known}")
    return [get_compressor(name)]


def _print_rates(texts: Sequence[str]) -> None:
    """Print how far each method stays from the rates that were asked for."""
    from ...core.evaluation.rates import LENGTHS, RATES, sweep

    print(
        f"{len(LENGTHS)} lengths from {LENGTHS[0]} to {LENGTHS[-1]:,} tokens, rates "
        f"{', '.join(map(str, RATES))}, random weights"
    )
    print("| method | texts | over | more than 2 % and a unit under | kept of the limit, least |")
    print("|---|--:|--:|--:|--:|")
    for result in sweep(texts):
        print(result, flush=True)


def _print_survival(options: argparse.Namespace) -> None:
    """Print which numbers, names, negations and modals are left, with and without guards."""
    from ...core.evaluation.survival import KINDS, RandomWords, survival

    if options.methods:
        names = options.methods.split(",")
    else:
        judged = ["llmlingua2"] if options.model else []
        names = [*dict.fromkeys(["lexical", best_method()]), *judged, RandomWords.name]
    examples = [example for name in options.data for example in load(name)[: options.limit]]
    texts = list(dict.fromkeys(p.text for example in examples for p in example.passages))
    counter = TokenCounter.of(options.counter)
    compressors = [
        RandomWords()
        if name == RandomWords.name
        else get_compressor(name, model=options.model)
        if name == "llmlingua2" and options.model
        else _compressors(name, options.headroom)[0]
        for name in names
    ]
    print(f"{len(texts):,} texts, {counter.name}; [95 % interval] of all there are")
    print(f"| method | guards | rate | {' | '.join(KINDS)} | turned negations | refused |")
    print(f"|---|---|{'--:|' * (len(KINDS) + 3)}")
    rates = [float(rate) for rate in options.rates.split(",")]
    keep = options.keep.split(",") if options.keep else KINDS
    for row in survival(texts, compressors, rates, keep=keep, counter=counter):
        print(row, flush=True)


def _print_injection(options: argparse.Namespace) -> None:
    """Print what is left of instructions that strangers wrote into texts, beside the rest."""
    from ...core.evaluation.injection import injection, load

    texts = [text for name in options.data for text in load(name)[: options.limit]]
    names = options.methods or ",".join(dict.fromkeys([best_method(), "lexical"]))
    compressors = [_compressors(name, options.headroom)[0] for name in names.split(",")]
    counter = TokenCounter.of(options.counter)
    distinct = len({text.instruction for text in texts})
    others = sum(len(text.worded("plain")[2]) for text in texts)
    print(
        f"{len(texts):,} texts, {distinct:,} instructions, {others:,} other sentences, "
        f"{counter.name}; [95 % interval]"
    )
    print(
        "| method | wording | rate | instruction whole | in part | gone "
        "| other sentences whole | in part | gone |"
    )
    print(f"|---|---|{'--:|' * 7}")
    rates = [float(rate) for rate in options.rates.split(",")]
    for row in injection(texts, compressors, rates, counter=counter):
        print(row, flush=True)


def _print_encoding(names: str, texts: Sequence[str], question: str) -> None:
    """Print how long methods take beside one pass of the encoder over the same documents."""
    import torch

    from ...core.evaluation.speed import beside_encoding

    threads = torch.get_num_threads()
    print(f"20 documents of 150 tokens, {threads} threads, nothing remembered, medians of 5 pairs")
    print("| method | encoding once, s | method, s | method by encoding [least, most] |")
    print("|---|--:|--:|--:|")
    for one in beside_encoding(names.split(","), texts, question):
        ratios = sorted(ours / theirs for theirs, ours in zip(one.theirs, one.ours, strict=True))
        print(
            f"| {one.name} | {median(one.theirs):.2f} | {median(one.ours):.2f} "
            f"| {median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] |",
            flush=True,
        )


def _print_reference(texts: Sequence[str], question: str) -> None:
    """Print seconds and peak memory of the published implementations and ours."""
    import torch

    from ...core.evaluation.speed import compare, compare_memory

    print(f"random weights, {torch.get_num_threads()} threads, medians of 5 pairs of runs")
    print("| case | reference s | laconic s | ratio [least, most] |")
    print("|---|--:|--:|--:|")
    for comparison in compare(texts, question):
        print(comparison, flush=True)
    peaks = compare_memory(texts)
    theirs, ours = peaks["theirs"] / 2**20, peaks["ours"] / 2**20
    print(
        f"| LLMLingua, 8,000 tokens, vocabulary 50,000: peak memory in MiB "
        f"| {theirs:.0f} | {ours:.0f} | {theirs / ours:.0f}x |"
    )


def _print_speed(
    title: str,
    examples: list[Example],
    methods: dict[str, list[Compressor]],
    budget: Budget,
    counter: TokenCounter,
) -> None:
    """Print tokens of input a second, counting them included and nothing remembered.

    For a method with an encoder also the part of the wall time that its forward pass takes.
    """
    print(f"{title}: {len(examples)} examples, {budget}, {counter.name}")
    print("| method | tokens | tokens/s wall | tokens/s CPU | in forward pass |")
    print("|---|--:|--:|--:|--:|")
    for method, (compressor, *_) in methods.items():
        forward = _ForwardTime()
        if isinstance(compressor, Extractive):
            compressor = Extractive(Encoder(cache_size=0))
            forward.watch(compressor.encoder)
        compressor.compress("Warm up. Load the model.", query="load", budget=2)
        forward.seconds = 0.0
        wall, cpu, tokens = time.perf_counter(), time.process_time(), 0
        for example in tqdm(examples, desc=method, unit="ex", disable=None):
            tokens += compressor.compress(
                example.passages, query=example.question, budget=budget, counter=counter
            ).tokens_before
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        share = f"{forward.seconds / wall:.1%}" if forward.seconds else "–"
        print(f"| {method} | {tokens:,} | {tokens / wall:,.0f} | {tokens / cpu:,.0f} | {share} |")


class _ForwardTime:
    """Seconds spent in the transformer behind an encoder."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def watch(self, encoder: Encoder) -> None:
        transformer = encoder.load()[0]
        transformer.register_forward_pre_hook(self._start)
        transformer.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started
