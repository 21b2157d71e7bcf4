from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from langchain_classic.chains import ConversationChain
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from pydantic import Field, ValidationError

from laconic.core import TokenCounter
from laconic.integrations.langchain import CompressedChatMemory, CompressedChatMessageHistory

COUNTER = TokenCounter.of(None)
TURNS = 45
BUDGET = 250


class Scripted(GenericFakeChatModel):
    """Answers as it is told, and records what it was sent."""

    sent: list[list[BaseMessage]] = Field(default_factory=list)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.sent.append(list(messages))
        return super()._generate(messages, *args, **kwargs)


def answering() -> Scripted:
    return Scripted(messages=iter([f"I see, that was day {turn}." for turn in range(999)]))


def tokens(messages: list[BaseMessage]) -> int:
    return sum(4 + COUNTER.count(str(message.text)) for message in messages)


def fill(memory: CompressedChatMemory, turns: int = TURNS) -> CompressedChatMemory:
    memory.save_context({"input": "My cat Tom lives in Lisbon."}, {"output": "How nice."})
    for turn in range(turns):
        text = f"Day {turn}: it rained in the old town and the tram was late."
        memory.save_context({"input": text}, {"output": "What a pity."})
    return memory


@pytest.mark.parametrize("is_async", [False, True])
def test_a_chain_with_a_text_prompt(is_async) -> None:
    model, memory = answering(), CompressedChatMemory(budget=BUDGET)
    chain = ConversationChain(llm=model, memory=memory)

    def say(text: str) -> None:
        if is_async:
            asyncio.run(chain.ainvoke({"input": text}))
        else:
            chain.invoke({"input": text})

    around = None
    say("My cat Tom lives in Lisbon.")
    for turn in range(TURNS):
        text = f"Day {turn}: it rained in the old town and the tram was late."
        say(text)
        prompt = str(model.sent[-1][0].text)
        around = around or COUNTER.count(chain.prompt.format(input=text, history=""))
        assert prompt.count(f"Human: {text}\n") == 1
        assert COUNTER.count(prompt) <= BUDGET + around
    say("Where does the cat live?")
    assert "Lisbon" in str(model.sent[-1][0].text)


def test_a_chain_with_a_chat_prompt() -> None:
    model = answering()
    memory = CompressedChatMemory(
        max_token_limit=BUDGET, memory_key="past", return_messages=True, input_key="question"
    )
    prompt = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("past"), ("human", "{question}")]
    )
    chain = ConversationChain(llm=model, memory=memory, prompt=prompt, input_key="question")
    chain.invoke({"question": "My cat Tom lives in Lisbon."})
    for turn in range(TURNS):
        chain.invoke({"question": f"Day {turn}: it rained and the tram was late."})
        assert tokens(model.sent[-1][:-1]) <= BUDGET
    chain.invoke({"question": "Where does the cat live?"})
    *past, question = model.sent[-1]
    assert question.content == "Where does the cat live?"
    assert any("Lisbon" in str(message.text) for message in past)
    assert past[-2:] == [
        HumanMessage(f"Day {TURNS - 1}: it rained and the tram was late."),
        AIMessage(f"I see, that was day {TURNS}."),
    ]


def test_buffers_are_as_langchain_has_them() -> None:
    memory = fill(CompressedChatMemory(budget=BUDGET, human_prefix="Ann", ai_prefix="Bot"))
    messages = memory.buffer_as_messages
    assert 2 < len(messages) < TURNS
    assert tokens(messages) <= BUDGET
    assert memory.buffer == memory.buffer_as_str
    assert memory.buffer.endswith("Bot: What a pity.")
    assert memory.load_memory_variables({}) == {"history": memory.buffer}
    assert COUNTER.count(memory.buffer) <= BUDGET
    memory.return_messages = True
    assert memory.buffer == memory.load_memory_variables({})["history"] == messages


def test_the_input_is_the_query() -> None:
    memory = CompressedChatMemory(budget=160, return_messages=True)
    memory.save_context({"input": "One. " * 40}, {"output": "My bicycle is in Oslo."})
    fill(memory, 60)

    def past(**inputs: Any) -> str:
        messages = memory.load_memory_variables(inputs)["history"]
        assert tokens(messages) <= 160
        return "\n".join(str(message.text) for message in messages)

    assert "day 31" not in past(input="").lower()
    assert "Day 31:" in past(input="Did it rain on day 31?")
    # Of two inputs it is not clear which is meant.
    assert "Day 31:" not in past(input="Did it rain on day 31?", other="x")
    memory.input_key = "input"
    assert "Day 31:" in past(input="Did it rain on day 31?", other="x")


def test_ram_does_not_grow_with_turns_where_the_archive_is_a_file(tmp_path) -> None:
    memory = fill(CompressedChatMemory(budget=BUDGET, archive=tmp_path / "a"), 30)
    held = memory.chat_memory.memory.nbytes
    fill(memory, 150)
    assert memory.chat_memory.memory.nbytes <= 2 * held


def test_the_next_process_goes_on_with_the_archive(tmp_path) -> None:
    first = fill(CompressedChatMemory(budget=BUDGET, archive=tmp_path / "a"))
    buffer = first.buffer
    first.chat_memory.memory.close()
    then = CompressedChatMemory(budget=BUDGET, archive=tmp_path / "a")
    assert then.buffer == buffer
    assert "Lisbon" in then.load_memory_variables({"input": "Where does the cat live?"})["history"]


def test_clear_forgets_everything() -> None:
    for memory in (
        fill(CompressedChatMemory(budget=BUDGET)),
        fill(CompressedChatMemory(budget=BUDGET, chat_memory=InMemoryChatMessageHistory())),
    ):
        memory.clear()
        assert memory.load_memory_variables({"input": "cat"}) == {"history": ""}


def test_waiting_gives_the_same() -> None:
    async def run(memory: CompressedChatMemory) -> tuple[Any, Any]:
        for turn in range(TURNS):
            await memory.asave_context({"input": f"Day {turn} was wet."}, {"output": "Oh."})
        full = await memory.aload_memory_variables({"input": "day 3"})
        await memory.aclear()
        return full, await memory.aload_memory_variables({"input": "day 3"})

    expected = CompressedChatMemory(budget=BUDGET)
    for turn in range(TURNS):
        expected.save_context({"input": f"Day {turn} was wet."}, {"output": "Oh."})
    wanted = expected.load_memory_variables({"input": "day 3"}), {"history": ""}
    assert asyncio.run(run(CompressedChatMemory(budget=BUDGET))) == wanted
    raw = InMemoryChatMessageHistory()
    given = CompressedChatMemory(budget=BUDGET, chat_memory=raw, return_messages=True)
    full, empty = asyncio.run(run(given))
    assert tokens(full["history"]) <= BUDGET
    assert empty == {"history": []}


def test_a_history_that_is_given_keeps_the_messages_as_they_were_said() -> None:
    raw = InMemoryChatMessageHistory()
    memory = fill(CompressedChatMemory(budget=BUDGET, chat_memory=raw, return_messages=True))
    assert len(raw.messages) == 2 * TURNS + 2
    assert tokens(memory.buffer) <= BUDGET
    asked = memory.load_memory_variables({"input": "Did it rain on day 20?"})["history"]
    assert any("Day 20:" in str(message.text) for message in asked)
    assert tokens(asked) <= BUDGET


def test_a_history_may_be_set_later() -> None:
    raw = InMemoryChatMessageHistory()
    memory = CompressedChatMemory(budget=BUDGET, return_messages=True)
    memory.chat_memory = raw
    fill(memory)
    assert len(raw.messages) == 2 * TURNS + 2
    assert tokens(memory.buffer) <= BUDGET
    assert tokens(memory.load_memory_variables({"input": "day 20?"})["history"]) <= BUDGET


def test_a_history_with_a_budget_takes_no_second_one() -> None:
    bounded = CompressedChatMessageHistory(InMemoryChatMessageHistory(), BUDGET)
    assert CompressedChatMemory(chat_memory=bounded).chat_memory is bounded
    for setting in ({"budget": 100}, {"max_token_limit": 100}, {"counter": len}, {"recall": 0}):
        with pytest.raises(ValidationError, match="settings of its own"):
            CompressedChatMemory(chat_memory=bounded, **setting)


def test_messages_may_be_added_to_the_history_itself() -> None:
    memory = CompressedChatMemory(budget=BUDGET)
    memory.chat_memory.add_user_message("Hello.")
    memory.chat_memory.add_ai_message("Good morning.")
    assert memory.buffer == "Human: Hello.\nAI: Good morning."


def test_fields_are_plain_and_make_the_round_trip() -> None:
    memory = fill(CompressedChatMemory(budget=BUDGET, recall=0.3, memory_key="past"))
    fields = memory.model_dump()
    assert "chat_memory" not in fields
    again = CompressedChatMemory(**fields)
    assert again.model_dump() == fields
    assert again.buffer == ""
    assert len(memory.model_dump_json()) < 400


def test_a_deep_copy_goes_its_own_way() -> None:
    memory = fill(CompressedChatMemory(budget=BUDGET))
    other, before = copy.deepcopy(memory), memory.buffer
    assert other.buffer == before
    other.save_context({"input": "Something else."}, {"output": "Yes."})
    assert memory.buffer == before != other.buffer


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"budgett": 100}, "budgett"),
        ({"budget": 0}, "budget is a number"),
        ({"recall": 3}, "recall"),
        ({"method": "no such method"}, "no such method"),
        ({"archive": "a", "chat_memory": InMemoryChatMessageHistory}, "not both"),
    ],
)
def test_wrong_fields_are_refused_at_once(fields, told, tmp_path) -> None:
    if "chat_memory" in fields:
        fields = {"archive": tmp_path / "a", "chat_memory": fields["chat_memory"]()}
    with pytest.raises(ValidationError, match=told):
        CompressedChatMemory(**fields)
