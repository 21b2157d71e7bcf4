"""What a text memory still knows of long conversations.

Recall is measured on LoCoMo (Maharana et al., "Evaluating Very Long-Term Conversational Memory
of LLM Agents", ACL 2024): the part of the turns with a question's evidence that stand, word for
word, in what is read. Turns come in without any question; category 5, whose questions have no
answer, is left out. It says what a model could know, not what it would answer.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ...core.budget import TokenCounter
from ...core.errors import InputError
from ...core.evaluation.metrics import Interval
from ...core.models.encoder import Encoder
from ..archive import Archive
from ..quotation import quoted_line
from ..relevance import terms
from ..stored import ARCHIVED, Unit
from ..text import TextMemory
from ..turns import Costs, Message, texts

__all__ = [
    "BUDGETS",
    "IMAGE_TOKENS",
    "Conversation",
    "Maker",
    "Reader",
    "Recall",
    "data_path",
    "load",
    "markdown",
    "methods",
    "recall",
]

BUDGETS = (512, 1024, 2048, 4096)
"""Budgets that are measured, in tokens."""

_ADVERSARIAL = 5
IMAGE_TOKENS = 1600


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
        What it is called.
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


Reader = Callable[[str], Sequence[Message]]
"""From a question to the messages that a model would be sent."""

Maker = Callable[[Sequence[Message], int, Costs], Reader]
"""From the turns of a conversation, a budget in tokens and what they cost to a `Reader`."""


def recall(
    conversations: Sequence[Conversation],
    methods: Mapping[str, Maker],
    *,
    budgets: Sequence[int] = BUDGETS,
    counter: Any = None,
) -> Iterator[Recall]:
    """Measure how much of the evidence is read.

    Parameters
    ----------
    conversations
        Conversations with questions.
    methods
        What to measure, by name.
    budgets
        Tokens.
    counter
        Whose tokens are counted.
    """
    costs = Costs(TokenCounter.of(counter), IMAGE_TOKENS)
    for method, make in methods.items():
        for budget in budgets:
            found: list[float] = []
            most = 0
            for conversation in conversations:
                read = make(conversation.turns, budget, costs)
                for question, evidence in conversation.questions:
                    messages = read(question)
                    most = max(most, costs.of(messages))
                    said = "\n".join(quoted_line(0, [m]) for m in messages)
                    found.append(fmean(_is_in(conversation, e, said) for e in evidence))
            yield Recall(method, budget, bootstrap_interval(found), most)


def _is_in(conversation: Conversation, place: int, said: str) -> bool:
    turn = conversation.turns[place]
    return place >= 0 and f"{turn['name']}: {turn['content']}" in said


def methods(encoder: Encoder | None = None) -> dict[str, Maker]:
    """The text memory and what needs no framework.

    Parameters
    ----------
    encoder
        For methods that embed; None for the shared default.
    """
    encoder = encoder or Encoder.shared()
    return {
        "memory with the query, encoder": partial(_memory, encoder=encoder),
        "memory with the query, words": _memory,
        "memory without a query": _blind_memory,
        "recency window": _recency,
        "BM25 over turns": _by_words,
        "embeddings over turns": partial(_by_meaning, encoder=encoder),
    }


def _memory(turns: Sequence[Message], budget: int, costs: Costs, **options: Any) -> Reader:
    memory = TextMemory(budget, counter=costs.counter, **options)
    for turn in turns:
        memory.observe(turn)
    return memory.read


def _blind_memory(turns: Sequence[Message], budget: int, costs: Costs) -> Reader:
    return _memory(turns, budget, costs, recall=0.0)


def _recency(turns: Sequence[Message], budget: int, costs: Costs) -> Reader:
    window: list[Message] = []
    for turn in reversed(turns):
        if costs.of([turn, *window]) > budget:
            break
        window.insert(0, turn)
    return lambda _: window


def _by_words(turns: Sequence[Message], budget: int, costs: Costs) -> Reader:
    index = Archive(None, {})
    with index.transaction():
        for number, turn in enumerate(turns, 1):
            index.write([Unit(number, ARCHIVED, 0, 0.0, "", "{}", 0, None, 0, None)])
            index.index(number, terms(quoted_line(0, [turn])))
    each = [costs.of([turn]) for turn in turns]

    def read(question: str) -> list[Message]:
        scores = index.bm25(list(terms(question)), b=0.75)[1:]
        return _filled(np.argsort(-scores, kind="stable").tolist(), turns, each, budget)

    return read


def _by_meaning(turns: Sequence[Message], budget: int, costs: Costs, *, encoder: Encoder) -> Reader:
    vectors = encoder.encode(["\n".join([turn["name"], *texts([turn])]) for turn in turns])
    each = [costs.of([turn]) for turn in turns]

    def read(question: str) -> list[Message]:
        scores = vectors @ encoder.encode([question])[0]
        return _filled(np.argsort(-scores, kind="stable").tolist(), turns, each, budget)

    return read


def _filled(
    order: Sequence[int], turns: Sequence[Message], costs: Sequence[int], budget: int
) -> list[Message]:
    """The first turns of an order that fit, in the order of the conversation."""
    chosen = []
    for place in order:
        if costs[place] <= budget:
            chosen.append(place)
            budget -= costs[place]
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
