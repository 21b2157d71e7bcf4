from __future__ import annotations

from itertools import pairwise

import pytest

from laconic.core import TokenCounter
from laconic.memory.evaluation.endurance import (
    prefix_stability,
    shared_beginning,
    tables,
    turn_times,
)
from laconic.memory.evaluation.recall import Conversation
from laconic.memory.text import TextMemory
from laconic.memory.turns import Costs

COUNTER = TokenCounter("words", lambda text: len(text.split()))


@pytest.fixture
def conversation() -> Conversation:
    turns = [{"role": "user", "content": f"Well, it is day {i} now."} for i in range(60)]
    return Conversation(tuple(turns), ())


def test_stability_is_that_of_beginnings(conversation: Conversation) -> None:
    shares = prefix_stability(conversation.turns, budget=150, counter=COUNTER, prompts=40)
    assert [row.name for row in shares] == [
        "memory without a query",
        "memory with the query",
        "recompress everything",
    ]
    assert all(0 <= row.share <= 1 for row in shares)
    assert str(shares[0]).startswith("| memory without a query | 150 | ")
    a, b, c = ([{"role": "user", "content": text}] for text in "abc")
    costs = Costs(COUNTER, 1600)
    assert shared_beginning([a, a + b, a + b + c, b + c], costs) == 3 / 7


def test_times_are_those_of_steps() -> None:
    rows = list(turn_times(TextMemory(100, counter=COUNTER), turns=30, step=10))
    assert [number for number, *_ in rows] == [10, 20, 30]
    assert all(seconds > 0 for _, *columns in rows for seconds in columns)


def test_all_is_printed_as_tables(conversation: Conversation) -> None:
    lines = "\n".join(tables([conversation], counter=COUNTER, turns=20)).splitlines()
    heads = [line for line, rule in pairwise(lines) if rule.startswith("|--")]
    assert [head.split("|")[1].strip() for head in heads] == [
        "prompts over 200 turns",
        "turns",
    ]
    assert all(line.startswith("|") for line in lines if line)
