from __future__ import annotations

import logging
from typing import Any

import pytest

from laconic.memory.turns import ADDED, Message, completed, grouped, waiting


def user(text: str = "Go on.") -> Message:
    return {"role": "user", "content": text}


def called(*names: str) -> Message:
    calls = [{"id": name, "type": "function", "function": {"name": "look"}} for name in names]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(name: str) -> Message:
    return {"role": "tool", "tool_call_id": name, "content": "Seen."}


def test_calls_that_were_left_open_get_results_and_nothing_else_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = [user(), called("a", "b", "c"), result("b"), called("d"), result("d"), user()]
    with caplog.at_level(logging.WARNING, "laconic"):
        told = list(completed(said))
    assert [m for m in told if ADDED not in m] == said
    assert [m["tool_call_id"] for m in told if ADDED in m] == ["a", "c"]
    assert [len(unit) for unit in grouped(told)] == [1, 4, 2, 1]
    assert "'a' has no result" in caplog.text and "'d'" not in caplog.text


def test_results_may_come_later() -> None:
    first, *later = [called("a", "b"), result("a"), result("b"), user()]
    assert list(completed([first])) == [first]
    assert list(completed(later, waiting([first]))) == later
    told = list(completed([result("a"), user()], waiting([first])))
    assert [m.get("tool_call_id") for m in told] == ["a", "b", None]


@pytest.mark.parametrize("said", [[], [user()], [result("lost"), user()]])
def test_where_no_call_is_open_nothing_is_added(said: list[Any]) -> None:
    assert list(completed(said)) == said
