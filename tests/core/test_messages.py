from __future__ import annotations

import copy
import doctest
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import Budget, Passage, TokenCounter, compress_messages, messages
from laconic.core.testing import check_promises
from laconic.core.types import JOINER
from laconic.errors import BudgetError, InputError

CHARACTERS = TokenCounter("characters", len)
COUNTERS = [CHARACTERS, TokenCounter.of("approximate"), TokenCounter.of("cl100k_base")]
FACTS = "The sky is blue. Paris is the capital of France. Fish swim."
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"city": "Paris. It is big. Fish swim."}'},
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "You are kind. You never lie. You like fish."},
    {"role": "user", "name": "ann", "content": "Hello there! " + FACTS},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Stones sink. " + FACTS},
    {"role": "assistant", "content": "Birds fly. " + FACTS, "refusal": None},
    {"role": "user", "content": [{"type": "text", "text": FACTS}, IMAGE]},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "What is the capital of France? Say it at once."},
]


def texts(chat: list[dict[str, Any]]) -> list[str]:
    """Every text of every message."""
    found: list[str] = []
    for message in chat:
        content = message.get("content")
        if isinstance(content, str):
            found.append(content)
        elif content is not None:
            found += [part["text"] for part in content if part.get("type") == "text"]
    return found


def joined(chat: list[dict[str, Any]]) -> str:
    return JOINER.join(filter(None, texts(chat)))


def without_texts(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with every text blanked: what compression must not touch."""
    bare = copy.deepcopy(chat)
    for message in bare:
        if isinstance(message.get("content"), str):
            message["content"] = ""
        else:
            for part in message.get("content") or []:
                if "text" in part:
                    part["text"] = ""
    return bare


def check(result: Any, chat: list[dict[str, Any]], counter: TokenCounter | None = None) -> None:
    counter = counter or TokenCounter.of()
    check_promises([Passage(joined(chat))], result, counter)
    assert [list(m) for m in result.messages] == [list(m) for m in chat]
    assert without_texts(result.messages) == without_texts(chat)
    assert joined(result.messages) == result.text
    assert result.tokens_after == counter.count(joined(result.messages))


@pytest.mark.parametrize("budget", [0.6, 0.8, 55, Budget.tokens(60, min_per_passage=5)])
def test_only_older_texts_are_compressed(budget: Any) -> None:
    before = copy.deepcopy(CHAT)
    result = compress_messages(CHAT, budget=budget, method="lexical")
    assert before == CHAT
    check(result, CHAT)
    assert result.messages[0] == CHAT[0]
    assert result.messages[2] == CHAT[2]
    assert result.messages[-1] == CHAT[-1]
    assert "Paris is the capital of France." in result.text
    assert len(result.text) < len(joined(CHAT))
    assert all(texts(result.messages)[:5])
    assert result.messages[5]["content"][1] == IMAGE


def test_the_query_is_the_last_message_of_the_user() -> None:
    chat = [*CHAT, {"role": "assistant", "content": "Birds fly."}]
    assert compress_messages(chat, budget=0.8).query == CHAT[-1]["content"]
    assert compress_messages(chat, budget=0.8, query="Fish?").query == "Fish?"
    assert compress_messages(chat[:1], budget=20).query is None
    parts = [{"type": "text", "text": "One?"}, IMAGE, {"type": "text", "text": "Two?"}]
    chat = [*CHAT, {"role": "user", "content": parts}]
    assert compress_messages(chat, budget=0.9).query == "One?\n\nTwo?"


def test_another_query_leaves_something_else() -> None:
    result = compress_messages(CHAT, query="Which fish swim?", budget=0.6, method="lexical")
    assert "Fish swim." in result.messages[1]["content"]


@pytest.mark.parametrize(("keep_last", "untouched"), [(0, []), (1, [7]), (4, [4, 5, 6, 7])])
def test_the_last_messages_stay(keep_last: int, untouched: list[int]) -> None:
    result = compress_messages(CHAT, budget=0.8, keep_last=keep_last, method="lexical")
    check(result, CHAT)
    for place in untouched:
        assert result.messages[place] == CHAT[place]
    assert compress_messages(CHAT, budget=100, keep_last=99, method="lexical").messages == CHAT


def test_only_messages_in_roles_are_compressed() -> None:
    result = compress_messages(CHAT, budget=0.8, roles=["tool"], method="lexical")
    check(result, CHAT)
    changed = [i for i, (a, b) in enumerate(zip(result.messages, CHAT, strict=True)) if a != b]
    assert changed == [3]
    assert compress_messages(CHAT, budget=0.8, roles="tool", method="lexical").text == result.text
    system = compress_messages(CHAT, budget=0.6, roles=["system", "user"], method="lexical")
    assert len(system.messages[0]["content"]) < len(CHAT[0]["content"])


def test_no_message_is_emptied_before_others_keep_more() -> None:
    chat = [{"role": "user", "content": f"Fact {i} is old. Cats like it."} for i in range(6)]
    for budget in range(30, 75):
        result = compress_messages(chat, query="cats", budget=budget, method="lexical")
        check(result, chat)
        contents = [message["content"] for message in result.messages[:-1]]
        if "" in contents:
            assert not any(content.count(".") > 1 for content in contents)


def test_a_message_without_room_is_left_empty() -> None:
    chat = [
        {"role": "user", "content": "Aa bb cc. Dd ee ff."},
        {"role": "assistant", "content": "Gg hh ii."},
        {"role": "user", "content": "Aa?"},
    ]
    result = compress_messages(chat, budget=len("Aa?"), counter=CHARACTERS, method="lexical")
    assert [message["content"] for message in result.messages] == ["", "", "Aa?"]
    assert result.text == "Aa?"
    with pytest.raises(BudgetError, match="protected"):
        compress_messages(chat, budget=2, counter=CHARACTERS, method="lexical")


def test_nothing_protected_fits_any_budget() -> None:
    for budget in range(12):
        result = compress_messages(
            CHAT[3:5], budget=budget, keep_last=0, counter=CHARACTERS, method="lexical"
        )
        check(result, CHAT[3:5], CHARACTERS)
        assert result.text or not budget


def test_what_must_be_kept_is_kept() -> None:
    result = compress_messages(CHAT, budget=0.8, keep=["Stones", "Birds"], method="lexical")
    assert "Stones sink." in result.messages[3]["content"]
    assert "Birds fly." in result.messages[4]["content"]


@pytest.mark.parametrize("chat", [[], [{"role": "assistant"}], [{"role": "user", "content": ""}]])
def test_nothing_to_compress_is_no_error(chat: list[dict[str, Any]]) -> None:
    for budget in (0, 5, 0.5):
        result = compress_messages(chat, budget=budget, method="lexical")
        assert result.messages == chat


def test_the_copy_shares_nothing() -> None:
    result = compress_messages(CHAT, budget=0.6, method="lexical")
    result.messages[2]["tool_calls"][0]["function"]["name"] = "changed"
    result.messages[5]["content"][1]["type"] = "changed"
    assert CHAT[2]["tool_calls"][0]["function"]["name"] == "look_up"
    assert IMAGE["type"] == "image_url"


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "text",
        b"text",
        {"role": "user"},
        [5],
        ["text"],
        [{"content": "a"}],
        [{"role": None, "content": "a"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": b"a"}],
        [{"role": "user", "content": [{"type": "text"}]}],
    ],
)
def test_what_is_no_message_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="message"):
        compress_messages(wrong, budget=5, method="lexical")


@pytest.mark.parametrize("keep_last", [-1, 1.5, None, True])
def test_a_keep_last_that_is_none_is_refused(keep_last: Any) -> None:
    with pytest.raises(InputError, match="keep_last"):
        compress_messages(CHAT, budget=5, keep_last=keep_last)


_text = st.one_of(
    st.lists(st.sampled_from(["Paris is big.", "It rains.", "\n\n", " ", "我。"]), max_size=4).map(
        "".join
    ),
    st.text(alphabet="ab .\n我👩\u200d\u0301\ud83d", max_size=15),
)
_content = st.one_of(
    _text,
    st.none(),
    st.lists(
        st.one_of(_text.map(lambda text: {"type": "text", "text": text}), st.just(IMAGE)),
        max_size=3,
    ),
)
_chats = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": _content},
        optional={"name": st.just("ann"), "tool_calls": st.just([CALL])},
    ),
    max_size=6,
)


@given(
    _chats,
    st.one_of(st.integers(0, 60).map(Budget.tokens), st.floats(0.05, 1).map(Budget.rate)),
    st.integers(0, 3),
    st.sampled_from(COUNTERS),
)
def test_any_chat_keeps_the_promises(
    chat: list[dict[str, Any]], budget: Budget, keep_last: int, counter: TokenCounter
) -> None:
    before = copy.deepcopy(chat)
    try:
        result = compress_messages(
            chat, budget=budget, keep_last=keep_last, counter=counter, method="lexical"
        )
    except BudgetError as error:
        assert "protected" in str(error)
        return
    assert chat == before
    check(result, chat, counter)
    for place, (message, left) in enumerate(zip(chat, result.messages, strict=True)):
        if message["role"] == "system" or place >= len(chat) - keep_last:
            assert left == message


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(messages).failed == 0


def test_a_part_that_stands_in_several_messages_is_shortened_in_each_alone() -> None:
    rules = {"type": "text", "text": FACTS}
    chat = [
        {"role": "user", "content": [rules, {"type": "text", "text": "Birds fly."}, rules]},
        {"role": "user", "content": [rules]},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    shared = compress_messages(chat, budget=30, method="lexical")
    apart = compress_messages(json.loads(json.dumps(chat)), budget=30, method="lexical")
    assert shared.messages == apart.messages
    assert JOINER.join(text for text in texts(shared.messages) if text) == shared.text
    assert rules == {"type": "text", "text": FACTS}
