"""What a long conversation costs: prompts that begin as the one before, and time a turn."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from ...core.budget import TokenCounter
from ...core.methods import get_compressor
from ..text import TextMemory
from ..turns import Costs, Message
from .recall import BUDGETS, IMAGE_TOKENS, Conversation

__all__ = ["Stability", "prefix_stability", "shared_beginning", "tables", "turn_times"]


@dataclass(frozen=True, slots=True)
class Stability:
    """How much of each prompt begins as the one before it did.

    Attributes
    ----------
    name
        How the prompts were made.
    budget
        Tokens.
    share
        Tokens of messages that begin both prompts, over all tokens of all prompts but the first.
    """

    name: str
    budget: int
    share: float

    def __str__(self) -> str:
        return f"| {self.name} | {self.budget:,} | {self.share:.1%} |"


def prefix_stability(
    turns: Sequence[Message], *, budget: int = 2048, counter: Any = None, prompts: int = 200
) -> list[Stability]:
    """Compare successive prompts over the last turns of a conversation.

    What recompresses everything gives the texts of all turns to the same compressor, with the
    same budget, at every turn.
    """
    counter = TokenCounter.of(counter)
    everything = get_compressor("lexical")
    costs = Costs(counter, IMAGE_TOKENS)
    blind, asked = (TextMemory(budget, counter=counter, recall=part) for part in (0.0, 0.6))
    before = max(0, len(turns) - prompts)
    for memory in (blind, asked):
        if before:
            memory.observe(turns[:before])
    made: dict[str, list[list[Message]]] = {
        name: []
        for name in ("memory without a query", "memory with the query", "recompress everything")
    }
    for number in range(before, len(turns)):
        blind.observe(turns[number])
        asked.observe(turns[number])
        made["memory without a query"].append(blind.read())
        made["memory with the query"].append(asked.read(turns[number]["content"]))
        again = everything.compress(
            [turn["content"] for turn in turns[: number + 1]], budget=budget, counter=counter
        )
        shorter = [{**turns[passage.index], "content": passage.text} for passage in again.passages]
        made["recompress everything"].append(shorter)
    return [Stability(name, budget, shared_beginning(all_, costs)) for name, all_ in made.items()]


def shared_beginning(prompts: Sequence[Sequence[Message]], costs: Costs) -> float:
    """Tokens of prompts that the prompt before begins with too, as `Stability` has them."""
    same = total = 0
    for last, new in pairwise(prompts):
        total += costs.of(new)
        for one, other in zip(last, new, strict=False):
            if one != other:
                break
            same += costs.of([other])
    return same / total if total else 0.0


def turn_times(
    memory: TextMemory, *, turns: int = 10_000, step: int = 1000, seed: int = 0
) -> Iterator[tuple[int, float, float, float]]:
    """Time turns of made-up words.

    Yields
    ------
    tuple
        Turns so far, and the median seconds of `observe`, of `read` and of `read` with a query
        since the last.
    """
    drawn = random.Random(seed)  # noqa: S311
    words = [f"word{i}" for i in range(5000)]
    measured: list[tuple[float, float, float]] = []
    for number in range(1, turns + 1):
        text = " ".join(drawn.choices(words, k=25))
        moments = [time.perf_counter()]
        memory.observe({"role": "user", "content": f"On day {number} I saw {text}."})
        moments.append(time.perf_counter())
        memory.read()
        moments.append(time.perf_counter())
        memory.read(" ".join(drawn.choices(words, k=5)))
        moments.append(time.perf_counter())
        first, second, third = np.diff(moments)
        measured.append((first, second, third))
        if number % step == 0:
            observed, plain, asked = (median(column) for column in zip(*measured, strict=True))
            yield number, observed, plain, asked
            measured = []


def tables(
    conversations: Sequence[Conversation],
    *,
    counter: Any = None,
    turns: int = 10_000,
) -> Iterator[str]:
    """Measure both; gives the parts of a Markdown text.

    Times are those of a memory of 2,048 tokens whose archive is a file.
    """
    yield "| prompts over 200 turns | tokens | begin as the one before |\n|---|--:|--:|"
    for budget in BUDGETS:
        each = [prefix_stability(c.turns, budget=budget, counter=counter) for c in conversations]
        for rows in zip(*each, strict=True):
            yield str(Stability(rows[0].name, budget, fmean(row.share for row in rows)))
    yield "\n| turns | observe ms | read ms | read with a query ms |\n|--:|--:|--:|--:|"
    with tempfile.TemporaryDirectory() as folder:
        memory = TextMemory(2048, counter=counter, archive=Path(folder, "archive"))
        try:
            for number, *seconds in turn_times(memory, turns=turns, step=max(1, turns // 10)):
                yield f"| {number:,} | {' | '.join(f'{s * 1000:.2f}' for s in seconds)} |"
        finally:
            memory.close()
