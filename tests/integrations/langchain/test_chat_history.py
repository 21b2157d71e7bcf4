from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from langchain_core.chat_history import BaseChatMessageHistory, InMemoryChatMessageHistory
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from laconic.core import TokenCounter
from laconic.errors import BudgetError, InputError
from laconic.integrations.langchain import CompressedChatMessageHistory
from laconic.integrations.langchain._messages import from_openai, restored, to_openai

COUNTER = TokenCounter.of(None)
TURNS = 40
BUDGET = 200


def tokens(messages: list[BaseMessage]) -> int:
    return sum(4 + COUNTER.count(str(message.text)) for message in messages)


def told(turns: int) -> list[BaseMessage]:
    messages: list[BaseMessage] = []
    for turn in range(turns):
        messages.append(HumanMessage(f"Day {turn}: it rained in the old town.", id=f"h{turn}"))
        messages.append(AIMessage(f"I note the rain of day {turn}.", id=f"a{turn}"))
    return messages


class AsyncOnly(BaseChatMessageHistory):
    """A history that, like a database's, cannot be read without waiting."""

    def __init__(self) -> None:
        self.held: list[BaseMessage] = []

    @property
    def messages(self) -> list[BaseMessage]:
        raise AssertionError("read without waiting")

    async def aget_messages(self) -> list[BaseMessage]:
        return list(self.held)

    async def aadd_messages(self, messages: Any) -> None:
        self.held.extend(messages)

    def clear(self) -> None:
        raise AssertionError("cleared without waiting")

    async def aclear(self) -> None:
        self.held.clear()


def test_the_other_history_keeps_all_and_the_view_stays_within_the_budget() -> None:
    raw = InMemoryChatMessageHistory()
    history = CompressedChatMessageHistory(raw, BUDGET)
    for place, message in enumerate(messages := told(TURNS)):
        history.add_messages([message])
        view = history.messages
        assert tokens(view) <= BUDGET
        assert view[-1] is message
        assert history.messages == view
        if tokens(messages[: place + 1]) <= BUDGET:
            assert view == messages[: place + 1]
    assert raw.messages == messages
    assert len(view) < len(messages)
    view.clear()
    assert history.messages
    history.clear()
    assert history.messages == raw.messages == []


def test_a_new_wrapper_gives_what_the_old_one_gave_for_the_same_messages() -> None:
    raw = InMemoryChatMessageHistory(messages=told(TURNS))
    views = [CompressedChatMessageHistory(raw, BUDGET).messages for _ in range(2)]
    assert views[0] == views[1]


def test_what_another_process_wrote_is_picked_up() -> None:
    raw = InMemoryChatMessageHistory()
    ours, theirs = (CompressedChatMessageHistory(raw, BUDGET) for _ in range(2))
    ours.add_messages(told(TURNS))
    assert ours.messages
    theirs.add_user_message("My dog is called Rex.")
    assert ours.messages[-1].content == "My dog is called Rex."
    raw.messages[:] = [HumanMessage("Another conversation."), *told(TURNS)[9:]]
    assert "Rex" not in str(ours.messages)
    assert tokens(ours.messages) <= BUDGET


def test_a_query_brings_back_what_it_needs() -> None:
    history = CompressedChatMessageHistory(InMemoryChatMessageHistory(), BUDGET, recall=0.5)
    history.add_user_message("My dog Rex was born in Porto.")
    history.add_messages([m for m in told(TURNS) for _ in range(2)])
    asked = history.read("Where was the dog born?")
    assert "Porto" in "".join(str(message.text) for message in asked)
    assert tokens(asked) <= BUDGET


def test_waiting_gives_the_same_and_uses_the_other_history_alone() -> None:
    async def run() -> tuple[list[BaseMessage], int]:
        history = CompressedChatMessageHistory(AsyncOnly(), BUDGET)
        await history.aadd_messages(told(TURNS))
        view = await history.aget_messages()
        await history.aclear()
        return view, len(await history.aget_messages())

    expected = CompressedChatMessageHistory(InMemoryChatMessageHistory(), BUDGET)
    expected.add_messages(told(TURNS))
    assert asyncio.run(run()) == (expected.messages, 0)


def recording(sent: list[list[BaseMessage]]) -> Any:
    def answer(given: Any) -> AIMessage:
        messages = given if isinstance(given, list) else given.to_messages()
        sent.append(list(messages))
        return AIMessage(f"Answer to: {messages[-1].content}")

    return RunnableLambda(answer)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("keyed", [False, True])
def test_runnable_with_message_history_loses_and_doubles_nothing(keyed, is_async) -> None:
    raw: dict[str, InMemoryChatMessageHistory] = {}
    histories: dict[str, CompressedChatMessageHistory] = {}

    def session(session_id: str) -> CompressedChatMessageHistory:
        if session_id not in histories:
            raw[session_id] = InMemoryChatMessageHistory()
            histories[session_id] = CompressedChatMessageHistory(raw[session_id], BUDGET)
        return histories[session_id]

    sent: list[list[BaseMessage]] = []
    if keyed:
        prompt = ChatPromptTemplate.from_messages(
            [MessagesPlaceholder("history"), ("human", "{question}")]
        )
        chain = RunnableWithMessageHistory(
            prompt | recording(sent),
            session,
            input_messages_key="question",
            history_messages_key="history",
        )
    else:
        chain = RunnableWithMessageHistory(recording(sent), session)

    expected: list[str] = []
    for turn in range(TURNS):
        text = f"Day {turn}: it rained in the old town."
        given = {"question": text} if keyed else [HumanMessage(text)]
        config = {"configurable": {"session_id": "a"}}
        if is_async:
            asyncio.run(chain.ainvoke(given, config))
        else:
            chain.invoke(given, config)
        assert sent[-1][-1].content == text
        assert tokens(sent[-1][:-1]) <= BUDGET
        expected += [text, f"Answer to: {text}"]
    assert [message.content for message in raw["a"].messages] == expected
    assert len(sent[-1]) < TURNS


def test_a_broken_sequence_is_given_as_it_is_with_a_warning(caplog) -> None:
    messages = [*told(TURNS), ToolMessage("Noon.", tool_call_id="x")]
    raw = InMemoryChatMessageHistory(messages=messages)
    with caplog.at_level(logging.WARNING, "laconic"):
        assert CompressedChatMessageHistory(raw, BUDGET).messages == messages
    assert "answers no open call" in caplog.text


def test_wrong_arguments_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="expected a BaseChatMessageHistory"):
        CompressedChatMessageHistory([])
    with pytest.raises(BudgetError):
        CompressedChatMessageHistory(InMemoryChatMessageHistory(), 0)


# Messages as dicts.


def every_kind() -> list[BaseMessage]:
    call = {"id": "1", "name": "f", "args": {"q": ["é", 1]}, "type": "tool_call"}
    broken = {"id": "2", "name": "g", "args": "{q", "error": None, "type": "invalid_tool_call"}
    return [
        SystemMessage("Be kind."),
        SystemMessage("Be brief.", additional_kwargs={"__openai_role__": "developer"}),
        HumanMessage("Hello 👋"),
        HumanMessage("Hello", name="ann"),
        HumanMessage([{"type": "text", "text": "?"}, {"type": "image_url", "image_url": "x"}]),
        AIMessage("", tool_calls=[call], invalid_tool_calls=[broken]),
        AIMessage("", invalid_tool_calls=[{**broken, "id": "3"}]),
        ToolMessage("Too bad.", tool_call_id="3", status="error", name="g"),
        AIMessage([{"type": "reasoning", "reasoning": "Hm.", "extras": {"signature": "eA=="}}]),
    ]


def test_messages_make_the_round_trip() -> None:
    messages = every_kind()
    assert from_openai(to_openai(messages)) == messages
    assert to_openai(from_openai(to_openai(messages))) == to_openai(messages)


def test_a_broken_call_waits_for_a_result_only_if_one_comes() -> None:
    written = to_openai(every_kind())
    assert [call["id"] for call in written[5]["tool_calls"]] == ["1"]
    assert [call["id"] for call in written[5]["invalid_tool_calls"]] == ["2"]
    assert [call["id"] for call in written[6]["tool_calls"]] == ["3"]


def test_the_original_comes_back_where_nothing_was_cut() -> None:
    for message, written in zip(every_kind(), to_openai(every_kind()), strict=True):
        assert restored(written, message) is message


def test_blocks_of_every_shape_come_back() -> None:
    blocks = ["First.", {"text": "untyped"}, {"type": "text", "text": "Second. Third."}]
    message = AIMessage(blocks, id="1", additional_kwargs={"mine": 1}, response_metadata={"a": 1})
    (written,) = to_openai([message])
    assert restored(written, message) is message
    written["content"][0]["text"] = ""
    written["content"][2]["text"] = "Third."
    cut = restored(written, message)
    assert cut.content == [{"text": "untyped"}, {"type": "text", "text": "Third."}]
    assert cut.model_copy(update={"content": blocks}) == message


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("RemoveMessage", "nothing that was said"),
        ("ChatMessage", "has the role 'narrator'"),
        ("args", "with no JSON"),
    ],
)
def test_what_no_model_can_be_sent_is_refused(message, told) -> None:
    wrong = {
        "RemoveMessage": RemoveMessage(id="1"),
        "ChatMessage": ChatMessage("Once", role="narrator"),
        "args": AIMessage("", tool_calls=[{"id": "1", "name": "f", "args": {"q": object()}}]),
    }
    with pytest.raises(InputError, match=told):
        to_openai([wrong[message]])


def test_a_chat_message_of_a_known_role_is_one_of_that_role() -> None:
    written = to_openai([ChatMessage("Hi", role="human"), ChatMessage("Ho", role="assistant")])
    assert [message["role"] for message in written] == ["user", "assistant"]


@pytest.mark.parametrize("wrong", [{"role": "narrator"}, {"role": "tool", "content": "x"}, {}])
def test_dicts_of_no_known_role_are_refused(wrong) -> None:
    with pytest.raises(InputError, match="has the role"):
        from_openai([wrong])
