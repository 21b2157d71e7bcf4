from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.core import TokenCounter
from laconic.errors import BudgetError, InputError
from laconic.memory.following import PLACE, Follower, Followers
from laconic.memory.text import TextMemory
from laconic.memory.turns import Message

BUDGET = 300
COUNTER = TokenCounter.of(None)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def called(*names: str) -> Message:
    calls = [
        {"id": n, "type": "function", "function": {"name": "look", "arguments": n}} for n in names
    ]
    return {"role": "assistant", "content": "I look that up.", "tool_calls": calls}


def result(name: str, text: str = "Noon.") -> Message:
    return {"role": "tool", "tool_call_id": name, "content": text}


def chat(turns: int) -> list[Message]:
    messages = []
    for turn in range(turns):
        messages.append(user(f"Question {turn}: what is platform {turn} like?"))
        messages.append(answer(f"Platform {turn} is long. It has {turn} benches and a roof."))
    return messages


def tokens(messages: list[Message]) -> int:
    """What an API would count at least: texts, calls, and four tokens for each message."""
    calls = (call["function"] for m in messages for call in m.get("tool_calls", ()))
    said = sum(COUNTER.count(message["content"]) for message in messages)
    return 4 * len(messages) + said + sum(COUNTER.count("".join(call.values())) for call in calls)


def assert_paired(messages: list[Message]) -> None:
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting
            waiting = [call["id"] for call in message.get("tool_calls", ())]
    assert not waiting


def read(follower: Follower, messages: list[Message], query: str | None = None) -> list[Message]:
    """What is shown, whatever happens; it must be whole and within the budget."""
    before = json.dumps(messages)
    shown = follower.read(messages, query)
    assert json.dumps(messages) == before
    shown = messages if shown is None else shown
    assert tokens(shown) <= BUDGET
    assert_paired(shown)
    return shown


def test_what_fits_is_left_as_it_is() -> None:
    follower = Follower(TextMemory(BUDGET))
    messages = chat(3)
    assert follower.read(messages) is None
    assert follower.read(messages, "platform 2", taken=100) is None
    assert follower.read(messages, taken=250) is not None


def test_places_lead_to_the_messages() -> None:
    follower, messages = Follower(TextMemory(BUDGET)), [*chat(30), user("And platform 1?")]
    shown = read(follower, messages, "And platform 1?")
    (quotation,) = [m for m in shown if PLACE not in m]
    assert "Platform 1 is long" in quotation["content"]
    placed = [m for m in shown if PLACE in m]
    assert len(placed) < len(messages)
    assert {**messages[-1], PLACE: 60} in placed
    assert all(m["role"] == messages[m[PLACE]]["role"] for m in placed)


def test_what_it_shows_depends_on_the_messages_alone() -> None:
    grown, messages = Follower(TextMemory(BUDGET)), chat(40)
    for end in range(2, 81, 2):
        read(grown, messages[:end])
    assert read(grown, messages) == read(Follower(TextMemory(BUDGET)), messages)


def test_what_has_changed_is_read_anew() -> None:
    follower = Follower(TextMemory(BUDGET))
    messages = [user("My cat is called Tom."), *chat(30)]
    assert any("Tom" in m["content"] for m in read(follower, messages, "What is the cat called?"))
    messages[0] = user("My cat is called Kim.")
    shown = "".join(m["content"] for m in read(follower, messages, "What is the cat called?"))
    assert "Kim" in shown
    assert "Tom" not in shown


def test_what_something_else_takes_is_remembered() -> None:
    follower, messages = Follower(TextMemory(BUDGET)), chat(30)
    shown = follower.read(messages, taken=150)
    assert shown is not None
    assert tokens(shown) <= 150
    assert follower.read(messages) == shown
    with pytest.raises(BudgetError, match="take 300 tokens, and the budget is 300"):
        follower.read(messages, taken=300)
    assert follower.read(messages, taken=150) == shown


def test_calls_that_were_left_open_get_a_result(caplog: pytest.LogCaptureFixture) -> None:
    follower, messages = Follower(TextMemory(BUDGET)), [*chat(20), called("rome", "oslo")]
    read(follower, messages)
    shown = read(follower, [*messages, result("rome"), user("Stop.")])
    assert [m["content"] for m in shown[-3:]] == ["Noon.", "No result was given.", "Stop."]
    assert "'oslo' has no result" in caplog.text


def test_results_may_come_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    follower, messages = Follower(TextMemory(BUDGET)), [*chat(20), called("rome", "oslo")]
    for new in (result("rome"), result("oslo", "One."), user("Thanks.")):
        read(follower, messages)
        messages.append(new)
    shown = read(follower, messages)
    assert [m["content"] for m in shown[-3:]] == ["Noon.", "One.", "Thanks."]
    assert not caplog.records


def test_a_result_without_a_call_is_refused_and_what_follows_is_not() -> None:
    follower = Follower(TextMemory(BUDGET))
    with pytest.raises(InputError, match="answers no open call"):
        follower.read([*chat(20), result("lost")])
    assert read(follower, chat(21))[-1]["content"].startswith("Platform 20")


def test_a_turn_that_cannot_be_compressed_is_left_out_as_soon_as_it_is_not_the_newest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    follower, long = Follower(TextMemory(BUDGET)), "x " * 900
    messages = [*chat(20), called(long), result(long)]
    with pytest.raises(BudgetError):
        follower.read(messages)
    for turn in range(20):
        messages += [user(f"Question {turn}: and then?")]
        assert read(follower, messages)[-1]["content"] == messages[-1]["content"]
        messages += [answer(f"Then comes stop {turn}.")]
    assert caplog.text.count("an earlier turn is left out") == 1


def test_such_a_turn_may_follow_a_call_that_was_open() -> None:
    follower, long = Follower(TextMemory(BUDGET)), "x " * 900
    messages = [*chat(20), called("rome")]
    follower.read(messages)
    messages += [result("rome"), called(long), result(long), user("And then?")]
    shown = read(follower, messages)
    assert [m["content"] for m in shown[-3:]] == ["I look that up.", "Noon.", "And then?"]


def test_threads_may_share_a_follower() -> None:
    follower = Follower(TextMemory(BUDGET))
    lists = [[*chat(n), user(f"What is platform {n} like?")] for n in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda messages: read(follower, messages, "platform"), lists))
    for shown, messages in zip(found, lists, strict=True):
        assert shown[-1]["content"] == messages[-1]["content"]


def test_only_so_many_threads_are_kept() -> None:
    kept = Followers(TextMemory(100), 2)
    a, b = kept.of("a"), kept.of("b")
    assert kept.of("a") is a
    kept.of("c")
    assert kept.of("a") is a
    assert kept.of("b") is not b
    assert kept.of(None) is not kept.of(None)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, None])
def test_a_number_of_threads_is_one(wrong: Any) -> None:
    with pytest.raises(InputError, match="max_threads is a number"):
        Followers(TextMemory(100), wrong)


contents = st.lists(
    st.sampled_from("the 42 cat. sat! not 日本。 👋 Lisbon, \n\n".split(" ")), max_size=60
).map(" ".join)
units = st.one_of(
    contents.map(lambda text: [user(text)]),
    contents.map(lambda text: [answer(text)]),
    st.tuples(contents, contents).map(
        lambda texts: [called("a", "b"), result("b", texts[0]), result("a", texts[1])]
    ),
    st.just([called("a", "b"), result("a")]),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12), st.lists(units, max_size=8)), max_size=6))
def test_however_a_list_changes_what_is_shown_is_whole_and_bounded(
    changes: list[tuple[int, list[list[Message]]]],
) -> None:
    follower = Follower(TextMemory(BUDGET))
    told: list[list[Message]] = []
    for back, more in changes:
        told = [*told[: max(0, len(told) - back)], *more]
        messages = [message for unit in told for message in unit] + [user("Where? When?")]
        shown = follower.read(messages, "Where? When?")
        if shown is None:
            continue
        assert tokens(shown) <= BUDGET
        assert_paired(shown)
        assert shown[-1][PLACE] == len(messages) - 1
        places = [m[PLACE] for m in shown if PLACE in m]
        assert places == sorted(set(places))
