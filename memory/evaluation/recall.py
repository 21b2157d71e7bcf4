"""What a text memory still knows of long conversations, and what that costs.

Recall is measured on LoCoMo (Maharana et al., "Evaluating Very Long-Term Conversational Memory
of LLM Agents", ACL 2024): the part of the turns with a question's evidence that stand, word for
word, in what is read. Turns come in without any question; category 5, whose questions have no
answer, is left out. It says what a model could know, not what it would answer.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from ...core.budget import TokenCounter
from ...core.errors import InputError
from ...core.evaluation.metrics import Interval
from ...core.methods import get_compressor
from ...core.models.encoder import Encoder
from ..archive import Archive
from ..relevance import terms
from ..stored import ARCHIVED, Unit
from ..text import TextMemory
from ..turns import Costs, Message, quoted_line, texts

__all__ = [
    "Conversation",
    "Recall",
    "Stability",
    "data_path",
    "load",
    "markdown",
    "prefix_stability",
    "recall",
    "tables",
    "turn_times",
]

BUDGETS = (512, 1024, 2048, 4096)
"""Budgets that are measured, in tokens."""

METHODS = (
    "memory with the query, encoder",
    "memory with the query, words",
    "memory without a query",
    "recency window",
    "BM25 over turns",
    "embeddings over turns",
)
"""What is measured."""

_ADVERSARIAL = 5
_IMAGE_TOKENS = 1600


@dataclass(frozen=True)
class Conversation:
    """A conversation and what is asked of it.

    Attributes
    ----------
    turns
        Messages, one a turn.
    questions
        Each question with the places of the turns that hold its evidence; -1 for one that the
        conversation lacks.
    """

    turns: tuple[Message, ...]
    questions: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """The recall of one way to choose turns.

    Attributes
    ----------
    method
        One of `METHODS`.
    budget
        Tokens.
    interval
        The mean over questions with its 95 % bootstrap interval.
    most_tokens
        The most that any reading took.
    """

    method: str
    budget: int
    interval: Interval
    most_tokens: int


def data_path() -> Path:
    """Where the LoCoMo file lies: in the folder that LACONIC_DATA names, or beside the project."""
    return Path(os.environ.get("LACONIC_DATA", "../shared/data"), "locomo.jsonl.gz")


def load(path: str | Path) -> list[Conversation]:
    """Read a file of LoCoMo conversations.

    Raises
    ------
    InputError
        It cannot be read or is of another shape.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return [_conversation(json.loads(line)) for line in file if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no file of LoCoMo conversations: {error!r}") from error


def _conversation(row: dict[str, Any]) -> Conversation:
    said, places = row["conversation"], {}
    turns: list[Message] = []
    sessions = sorted(int(n) for key in said for n in re.findall(r"^session_(\d+)$", key))
    for session in sessions:
        for turn in said[f"session_{session}"]:
            places[turn["dia_id"]] = len(turns)
            role = "user" if turn["speaker"] == said["speaker_a"] else "assistant"
            turns.append({"role": role, "content": turn["text"], "name": turn["speaker"]})
    questions = []
    for qa in row["qa"]:
        evidence = " ".join(qa["evidence"]).replace(";", " ").split()
        if qa["category"] != _ADVERSARIAL and evidence:
            questions.append((qa["question"], tuple(places.get(e, -1) for e in evidence)))
    return Conversation(tuple(turns), tuple(questions))


Reader = Callable[[str], list[Message]]
"""From a question to the messages that a model would be sent."""


def recall(
    conversations: Sequence[Conversation],
    *,
    methods: Sequence[str] = METHODS,
    budgets: Sequence[int] = BUDGETS,
    counter: Any = None,
    encoder: Encoder | None = None,
) -> Iterator[Recall]:
    """Measure how much of the evidence is read.

    Parameters
    ----------
    conversations
        Conversations with questions.
    methods, budgets
        What to measure.
    counter
        Whose tokens are counted.
    encoder
        For methods that embed; None for the shared default.
    """
    counter = TokenCounter.of(counter)
    costs = Costs(counter, _IMAGE_TOKENS)
    for method in methods:
        for budget in budgets:
            found: list[float] = []
            most = 0
            for conversation in conversations:
                read = _reader(method, conversation, budget, costs, encoder)
                for question, evidence in conversation.questions:
                    messages = read(question)
                    most = max(most, costs.of(messages))
                    said = "\n".join(quoted_line(0, [m]) for m in messages)
                    found.append(fmean(_is_in(conversation, e, said) for e in evidence))
            yield Recall(method, budget, bootstrap_interval(found), most)


def _is_in(conversation: Conversation, place: int, said: str) -> bool:
    turn = conversation.turns[place]
    return place >= 0 and f"{turn['name']}: {turn['content']}" in said


def _reader(
    method: str, conversation: Conversation, budget: int, costs: Costs, encoder: Encoder | None
) -> Reader:
    """Something that has seen the conversation."""
    turns = conversation.turns
    if method.startswith("memory"):
        embeds = (encoder or Encoder.shared()) if method == METHODS[0] else None
        memory = TextMemory(
            budget,
            counter=costs.counter,
            encoder=embeds,
            recall=0.0 if method == METHODS[2] else 0.5,
        )
        for turn in turns:
            memory.observe(turn)
        if method == METHODS[2]:
            blind = memory.read()
            return lambda _: blind
        return memory.read
    each = [costs.of([turn]) for turn in turns]
    if method == METHODS[3]:
        window = _filled(range(len(turns) - 1, -1, -1), turns, each, budget, stops=True)
        return lambda _: window
    if method == METHODS[4]:
        index = Archive(None, {})
        with index.transaction():
            for number, turn in enumerate(turns, 1):
                index.write([Unit(number, ARCHIVED, 0, 0.0, "", "{}", 0, None, 0, None)])
                index.index(number, terms(_line(turn)))

        def by_words(question: str) -> list[Message]:
            scores = index.bm25(list(terms(question)), b=0.75)[1:]
            return _filled(np.argsort(-scores, kind="stable").tolist(), turns, each, budget)

        return by_words
    if method != METHODS[5]:
        raise InputError(f"no method {method!r}; there are {', '.join(METHODS)}")
    encoder = encoder or Encoder.shared()
    vectors = encoder.encode([_line(turn) for turn in turns])

    def by_meaning(question: str) -> list[Message]:
        scores = vectors @ encoder.encode([question])[0]
        return _filled(np.argsort(-scores, kind="stable").tolist(), turns, each, budget)

    return by_meaning


def _line(turn: Message) -> str:
    return "\n".join([turn["name"], *texts([turn])])


def _filled(
    order: Sequence[int],
    turns: Sequence[Message],
    costs: Sequence[int],
    budget: int,
    *,
    stops: bool = False,
) -> list[Message]:
    """The first turns of an order that fit, in the order of the conversation."""
    chosen = []
    for place in order:
        if costs[place] <= budget:
            chosen.append(place)
            budget -= costs[place]
        elif stops:
            break
    return [turns[place] for place in sorted(chosen)]


def bootstrap_interval(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Interval:
    """A mean with its 95 % interval by the percentile bootstrap."""
    held = np.array(values)
    picks = np.random.default_rng(seed).integers(0, len(held), (draws, len(held)))
    low, high = np.percentile(held[picks].mean(axis=1), [2.5, 97.5])
    return Interval(float(held.mean()), float(low), float(high))


def markdown(rows: Sequence[Recall]) -> str:
    """A table with a line for each method and a column for each budget."""
    budgets = sorted({row.budget for row in rows})
    cells = {(row.method, row.budget): str(row.interval) for row in rows}
    lines = [
        f"| evidence recall at tokens | {' | '.join(f'{b:,}' for b in budgets)} |",
        f"|---|{'--:|' * len(budgets)}",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        found = " | ".join(cells.get((method, budget), "–") for budget in budgets)
        lines.append(f"| {method} | {found} |")
    return "\n".join(lines)


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
    costs = Costs(counter, _IMAGE_TOKENS)
    memory = TextMemory(budget, counter=counter)
    before = max(0, len(turns) - prompts)
    if before:
        memory.observe(turns[:before])
    made: dict[str, list[list[Message]]] = {
        name: [] for name in ("memory", "memory with the query", "recompress everything")
    }
    for number in range(before, len(turns)):
        memory.observe(turns[number])
        made["memory"].append(memory.read())
        made["memory with the query"].append(memory.read(turns[number]["content"]))
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
    encoder: Encoder | None = None,
    turns: int = 10_000,
) -> Iterator[str]:
    """Measure everything; gives the parts of a Markdown text.

    Times are those of a memory of 2,048 tokens whose archive is a file.
    """
    yield markdown(list(recall(conversations, counter=counter, encoder=encoder)))
    yield "\n| prompts over 200 turns | tokens | begin as the one before |\n|---|--:|--:|"
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
