"""`laconic bench`: methods beside baselines, on questions with known answers."""

from __future__ import annotations

import argparse
import tempfile
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
from ...core.training.questions import Split, held_out
from ._models import load_model

__all__ = ["run"]

RIVALS = ("langchain-embeddings-filter", "llamaindex-sentence-optimizer")
"""The frameworks' own filters, with our encoder and at our budget."""


def run(options: argparse.Namespace) -> None:
    """Print a table for each file, and save tables and plots if a folder is given."""
    if options.what == "memory":
        _print_memory(options)
        return
    if options.what == "latent":
        _print_latent(options)
        return
    if options.what == "recall":
        _print_recall(options)
        return
    if options.what == "soak":
        _print_soak(options)
        return
    if not options.data:
        raise InputError(f"bench {options.what} needs --data FILE")
    if options.what == "survival":
        _print_survival(options)
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
    methods = {name: _compressors(name, options.headroom) for name in names.split(",")}
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


def _compressors(name: str, headroom: float) -> list[Compressor]:
    if "+" in name:
        (coarse,), (fine,) = (_compressors(part, headroom) for part in name.rsplit("+", 1))
        return [Pipeline(coarse, fine, headroom=headroom)]
    if name in BASELINES:
        return BASELINES[name]()
    if name == RIVALS[0]:
        from ..langchain.baselines import EmbeddingsFilterBaseline

        return [EmbeddingsFilterBaseline()]
    if name == RIVALS[1]:
        from ..llama_index.baselines import SentenceEmbeddingOptimizerBaseline

        return [SentenceEmbeddingOptimizerBaseline()]
    if name not in METHODS:
        known = ", ".join([*METHODS, *BASELINES, *RIVALS])
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


def _print_memory(options: argparse.Namespace) -> None:
    """Print what a bounded cache costs beside one that grows."""
    from ...memory.evaluation.speed import grow, overhead, random_llama, store
    from ...memory.kv import POLICIES

    if options.model:
        model, _ = load_model(options.model)
        small = model
    else:
        model, small = random_llama(), random_llama(layers=2, width=128, heads=2)
    policies = options.policies.split(",") if options.policies else list(POLICIES)
    print("| policy | tokens | plain tokens/s | bounded tokens/s | more time [least, most] |")
    print("|---|--:|--:|--:|--:|")
    for length, timed in ((2_048, policies), (8_192, policies[:1])):
        for row in overhead(model, timed, length):
            print(row, flush=True)
    print()
    print("| storage | bytes | error | divergence, nats | same next token | tokens/s |")
    print("|---|--:|--:|--:|--:|--:|")
    for stored in store(model):
        print(stored, flush=True)
    print()
    print("| read | bounded: s for 1,000 tokens | RSS, MiB | full: s for 1,000 tokens | RSS, MiB |")
    print("|--:|--:|--:|--:|--:|")
    bounded = list(tqdm(grow(small, policies[0]), desc="bounded", total=20, disable=None))
    for one, other in zip(bounded, grow(small, None), strict=True):
        print(f"| {one.seen:,} | {one} | {other} |", flush=True)


def _print_recall(options: argparse.Namespace) -> None:
    """Print what a text memory recalls of long conversations, and what that costs."""
    from ...memory.evaluation import endurance, recall
    from ..langchain.baselines import trimmed, vector_store_memory

    methods = {
        **recall.methods(),
        "LangChain trim_messages": trimmed,
        "LangChain VectorStoreRetrieverMemory": vector_store_memory,
    }
    if options.methods:
        methods = {name: methods[name] for name in options.methods.split(",")}
    for name in options.data or [recall.data_path()]:
        conversations = recall.load(name)[: options.limit]
        asked = sum(len(conversation.questions) for conversation in conversations)
        print(f"{len(conversations)} conversations, {asked} questions\n")
        rows = recall.recall(conversations, methods)
        total = len(methods) * len(recall.BUDGETS)
        print(recall.markdown(list(tqdm(rows, total=total, disable=None))), flush=True)
        print()
        for part in endurance.tables(conversations):
            print(part, flush=True)


def _print_soak(options: argparse.Namespace) -> None:
    """Print how many conversations at once fare while the process is killed again and again."""
    from ...memory.evaluation.soak import soak

    turns = options.limit or 10_000
    print(f"20 sessions of {turns:,} turns, 8 threads; kill -9 after each line but the last")
    print("| turns | turns/s | RSS, MiB | lost | beyond those that returned |")
    print("|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for lap in soak(folder, turns=turns):
            print(lap, flush=True)


def _print_latent(options: argparse.Namespace) -> None:
    """Print what learned memories take, and what they recall after a small training."""
    from ...memory.evaluation.latent import state_sizes, step_times
    from ...memory.training.synthetic import FAMILY, study

    sizes = list(state_sizes())
    turns = list(sizes[0].nbytes)
    print(f"| memory, bytes after turns | {' | '.join(map(str, turns))} | as the formula |")
    print(f"|---|{'--:|' * len(turns)}---|")
    for size in sizes:
        print(size)
    print(f"| full cache | {' | '.join(f'{sizes[0].full[t]:,}' for t in turns)} | |")
    print()
    print("| training step, 16 turns | recurrent s | parallel s | ratio [least, most] |")
    print("|---|--:|--:|--:|")
    for step in step_times():
        print(step, flush=True)
    print()
    if options.methods:
        unknown = set(options.methods.split(",")) - set(FAMILY)
        if unknown:
            known = ", ".join(FAMILY)
            raise UnknownMethodError(f"no memory {min(unknown)!r}; there are {known}")
    chosen = options.methods.split(",") if options.methods else list(FAMILY)
    print(study(memories={name: FAMILY[name] for name in chosen}, progress=True))


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
