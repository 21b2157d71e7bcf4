"""`laconic bench` of memories: what they cost, what they recall, whether they stay whole."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

from tqdm import tqdm

from . import lab
from ._models import load_model

__all__ = ["MEMORIES"]


def _print_memory(options: argparse.Namespace) -> None:
    """Print what a bounded cache costs beside one that grows."""
    from ...memory.evaluation.speed import answer, grow, overhead, random_llama, store
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
    print("| read | bytes, bounded | bytes, full | ms to the first token | ms a token |")
    print("|--:|--:|--:|--:|--:|")
    for answered in answer(model, policies[0]):
        print(answered, flush=True)
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
    """Print what learned memories take, and how long a step of their training does."""
    del options
    from ...memory.evaluation.latent import state_sizes, step_times

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


MEMORIES: dict[str, Callable[[argparse.Namespace], None]] = {
    "memory": _print_memory,
    "latent": _print_latent,
    "lab": lab.bench,
    "recall": _print_recall,
    "soak": _print_soak,
}
"""What can be measured, by name."""
