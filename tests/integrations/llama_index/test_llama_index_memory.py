"""Real engines, agents and contexts of LlamaIndex; only the model is scripted."""

from __future__ import annotations

import asyncio
import base64
import copy
import gc
import json
import logging
import pickle
import subprocess
import sys
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import (
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import Context, JsonSerializer
from pydantic import BaseModel, ValidationError

from laconic.core.methods.lexical import Lexical
from laconic.errors import BudgetError, InputError, StateError
from laconic.integrations.llama_index import CompressedMemory
from laconic.integrations.llama_index._messages import from_openai, to_openai

BUDGET = 300
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


class Call(BaseModel):
    """As the client of OpenAI has them: no dict."""

    id: str
    type: str = "function"
    function: dict[str, str]


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def answer(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def called(*names: str) -> ChatMessage:
    blocks = [ToolCallBlock(tool_call_id=n, tool_name="look", tool_kwargs={"at": n}) for n in names]
    return ChatMessage(role="assistant", blocks=blocks)


def result(name: str, text: str = "It rains.") -> ChatMessage:
    return ChatMessage(role="tool", content=text, additional_kwargs={"tool_call_id": name})


def fill(memory: CompressedMemory, turns: int = 40) -> CompressedMemory:
    memory.put(user("My cat Tom lives in Lisbon."))
    for turn in range(turns):
        memory.put(user(f"Day {turn}: it rained in the old town and the tram was late."))
        memory.put(answer("What a pity."))
    return memory


def check_pairs(messages: list[ChatMessage]) -> None:
    """Every call is followed by its results, and every result has a call."""
    waiting: list[str] = []
    for message in map(to_openai, messages):
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting
            waiting = [call["id"] for call in message.get("tool_calls", [])]
    assert not waiting


def scripted(*answers: ChatMessage) -> tuple[Any, list[list[ChatMessage]]]:
    """A model that says these one after the other, then the last; and what it was sent."""
    sent: list[list[ChatMessage]] = []
    left = list(answers)

    def say(messages: Any, **_: Any) -> ChatMessage:
        sent.append(copy.deepcopy(list(messages)))
        return (left.pop(0) if len(left) > 1 else left[0]).model_copy(deep=True)

    return MockFunctionCallingLLM(response_generator=say, is_chat_model=True), sent


# messages

OPENAI = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
MESSAGES = {
    "text": user("Hello."),
    "system": ChatMessage(role="system", content="Be brief.", additional_kwargs={"x": [1]}),
    "model": ChatMessage(role="model", content="Yes."),
    "image": ChatMessage(role="user", blocks=[TextBlock(text="See"), ImageBlock(image=PNG)]),
    "document": ChatMessage(blocks=[DocumentBlock(data=b"abc", title="t"), TextBlock(text="?")]),
    "url": ChatMessage(blocks=[ImageBlock(url="https://example.com/a.png", detail="low")]),
    "thinking": ChatMessage(
        role="assistant",
        blocks=[
            ThinkingBlock(content="Hm.", additional_information={"signature": "s"}),
            TextBlock(text="Look."),
            ToolCallBlock(tool_call_id="a", tool_name="look", tool_kwargs={"at": "x"}),
            CitationBlock(
                cited_content=TextBlock(text="q"),
                source="s",
                title="t",
                additional_location_info={"page": 1},
            ),
        ],
    ),
    "two forms": ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_call_id="a", tool_name="look", tool_kwargs='{"at": "x"}')],
        additional_kwargs={"tool_calls": [OPENAI], "other": 1},
    ),
    "two calls": ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_call_id="b", tool_name="look", tool_kwargs={})],
        additional_kwargs={"tool_calls": [OPENAI, OPENAI | {"id": "b"}]},
    ),
    "no ids": ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_name="look")],
        additional_kwargs={"tool_calls": [{"function": {"name": "find", "arguments": {}}}]},
    ),
    "result": ChatMessage(
        role="tool", content="r", additional_kwargs={"tool_call_id": "a", "name": "look"}
    ),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_a_message_comes_back_equal_through_json(message: ChatMessage) -> None:
    before = message.model_copy(deep=True)
    written = json.loads(json.dumps(to_openai(message)))
    assert from_openai(written) == message == before


@pytest.mark.parametrize("name", MESSAGES)
def test_a_memory_gives_back_what_fits_as_it_was_put(name: str) -> None:
    message = MESSAGES[name]
    ids = [call["id"] for call in to_openai(message).get("tool_calls", [])]
    said = [called("a"), message] if name == "result" else [message, *map(result, ids)]
    memory = CompressedMemory(budget=8000)
    memory.put_messages(said)
    assert memory.get() == memory.get_all() == said
    again = CompressedMemory.from_dict(json.loads(json.dumps(memory.to_dict())))
    assert again.get() == again.get_all() == said


def test_objects_of_a_provider_stay_what_they_are() -> None:
    call = Call(id="a", function={"name": "look", "arguments": "{}"})
    said = [ChatMessage(role="assistant", additional_kwargs={"tool_calls": [call]}), result("a")]
    memory = CompressedMemory()
    memory.put_messages(said)
    assert memory.get() == said
    assert isinstance(memory.get()[0].additional_kwargs["tool_calls"][0], Call)


def test_messages_are_the_memorys_own() -> None:
    memory, message = CompressedMemory(), MESSAGES["image"].model_copy(deep=True)
    memory.put(message)
    message.blocks[0].text = "changed"
    given = memory.get()[0]
    assert given == MESSAGES["image"]
    given.additional_kwargs["x"] = 1
    assert memory.get()[0] == MESSAGES["image"]


# the budget


def test_ten_thousand_turns_one_of_a_megabyte() -> None:
    memory = CompressedMemory(budget=512)
    for turn in range(10_000):
        text = "Rain fell on the roofs. " * 43_000 if turn == 5000 else f"Note {turn}: all is well."
        memory.put(user(text))
        if turn % 500 == 0 or 4999 <= turn <= 5002:
            assert memory.count(memory.get()) <= 512
            assert memory.count(memory.get(input=f"What was note {turn // 2}?")) <= 512
    assert len(memory.get_all()) == 10_000
    assert len(memory._originals) <= 2 * len(memory.get()) + 16
    assert any("Note 1234:" in (m.content or "") for m in memory.get(input="Note 1234?"))


def test_get_is_pure_and_the_question_recalls_what_it_needs() -> None:
    memory = fill(CompressedMemory(budget=BUDGET))
    before = memory.to_dict()
    asked = memory.get(input="Where does the cat live?")
    assert any("Lisbon" in m.content for m in asked)
    assert memory.get(input="Where does the cat live?") == asked
    assert memory.to_dict() == before
    plain = CompressedMemory(budget=BUDGET, recall=0)
    fill(plain)
    assert plain.get(input="Did it rain on day 7?") == plain.get()
    memory.put(user("Where does the cat live?"))  # SimpleChatEngine gives no input
    assert any("Lisbon" in m.content for m in memory.get(initial_token_count=0))


def test_a_view_begins_with_what_it_began_with() -> None:
    memory = fill(CompressedMemory(budget=2000), 20)
    before = memory.get()
    memory.put(user("Day 20 was dry."))
    assert memory.get()[: len(before)] == before


@pytest.mark.parametrize("taken", [40, 100, 150, 200, 260])
def test_initial_tokens_are_left_free(taken: int) -> None:
    memory = fill(CompressedMemory(budget=BUDGET))
    for query in ("Where does the cat live?", "When was the tram late in the old town?"):
        given = memory.get(input=query, initial_token_count=taken)
        assert memory.count(given) + taken <= BUDGET
        assert given[-1].content
    assert memory.count(memory.get(input=query)) + taken > BUDGET
    if taken <= 100:
        given = memory.get(input="Where does the cat live?", initial_token_count=taken)
        assert any("Lisbon" in m.content for m in given)


def test_impossible_initial_tokens_are_an_error() -> None:
    memory = fill(CompressedMemory(budget=BUDGET))
    for taken in (BUDGET - 1, BUDGET, 10 * BUDGET):
        with pytest.raises(BudgetError, match=f"leaves {BUDGET - taken} tokens"):
            memory.get(initial_token_count=taken)
    with pytest.raises(InputError, match="is a number of tokens"):
        memory.get(initial_token_count=-1)


def test_a_turn_that_cannot_fit_changes_nothing() -> None:
    memory = fill(CompressedMemory(budget=BUDGET))
    before = memory.get_all()
    big = ToolCallBlock(tool_call_id="a", tool_name="f", tool_kwargs={"x": "word " * 500})
    with pytest.raises(BudgetError, match="raise the budget"):
        memory.put_messages([user("x"), ChatMessage(role="assistant", blocks=[big]), result("a")])
    assert memory.get_all() == before
    with pytest.raises(BudgetError):
        memory.set([ChatMessage(role="system", content="word " * 500)])
    assert memory.get_all() == before


def test_a_compressor_that_fails_leaves_the_original(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Lexical):
        def score(self, request: Any) -> Any:
            raise RuntimeError("broken")

    memory = CompressedMemory(budget=BUDGET, compressor=Broken(), recall=0)
    long = "The harbour was full of boats that day. " * 13
    with caplog.at_level(logging.WARNING, "laconic"):
        memory.put(user(long))
        for turn in range(12):
            memory.put(user(f"Day {turn}: it rained in the old town."))
            assert memory.count(memory.get()) <= BUDGET
    assert "the original is used" in caplog.text
    assert memory.get_all()[0] == user(long)


def test_images_are_not_touched() -> None:
    memory = CompressedMemory(budget=2200, recall=0)
    shown = ChatMessage(
        role="user", blocks=[TextBlock(text="Look. " + "It is red. " * 300), ImageBlock(image=PNG)]
    )
    memory.put(shown)
    [kept] = memory.get()
    assert kept.blocks[1] == shown.blocks[1]
    assert 0 < len(kept.content) < len(shown.content)
    assert memory.count([kept]) <= 2200 < memory.count([shown])


# tools


def test_calls_and_results_stay_together() -> None:
    memory = CompressedMemory(budget=BUDGET)
    for turn in range(30):
        memory.put(user(f"Weather {turn}?"))
        memory.put(called(f"{turn}a", f"{turn}b"))
        check_pairs(memory.get())
        memory.put(result(f"{turn}b", "Sun and wind. " * 20))
        check_pairs(memory.get())
        memory.put(result(f"{turn}a"))
        check_pairs(memory.get(input="wind"))
        assert memory.get(initial_token_count=1)[-1].role == "tool"
        assert memory.count(memory.get(input="wind")) <= BUDGET


def test_what_an_agent_leaves_out_is_added(caplog: pytest.LogCaptureFixture) -> None:
    said = [
        result("lost", "Found."),
        user("Go on."),
        called("a", "b"),
        result("a"),
        answer("That is all."),
        result("b", "Late."),
        called("c"),
    ]
    memory = CompressedMemory()
    with caplog.at_level(logging.WARNING, "laconic"):
        memory.put_messages(said)
        memory.put(user("Stop."))
    assert "'b' has no result" in caplog.text and "'lost' has no call" in caplog.text
    assert memory.get_all() == [*said, user("Stop.")]
    given = memory.get()
    check_pairs(given)
    assert [m for m in given if m in said] == said


def test_calls_without_ids_go_with_the_results_of_their_tool() -> None:
    twice = [ToolCallBlock(tool_name="look", tool_kwargs={"at": place}) for place in ("a", "b")]
    other = ToolCallBlock(tool_name="find")
    asks = ChatMessage(role="assistant", blocks=[*twice, other])
    said = [
        asks,
        result("look", "A."),
        result("look", "B."),
        ChatMessage(role="tool", content="C."),
    ]
    memory = CompressedMemory()
    for message in said[:-1]:
        memory.put(message)
        assert memory.get() == []
    memory.put(said[-1])
    assert memory.get() == memory.get_all() == said
    assert CompressedMemory.from_dict(memory.to_dict()).get() == said


def test_calls_of_one_id_go_with_their_results() -> None:
    blocks = [
        ToolCallBlock(tool_call_id="look", tool_name="look", tool_kwargs={"at": place})
        for place in ("a", "b", "c")
    ]
    blocks[2].tool_call_id = "look#2"
    said = [
        ChatMessage(role="assistant", blocks=blocks),
        *(result("look", text) for text in ("A.", "B.")),
        result("look#2", "C."),
    ]
    memory = CompressedMemory()
    memory.put_messages(said[:1])
    memory.put_messages(said[1:])
    assert memory.get() == memory.get_all() == said
    assert CompressedMemory.from_dict(memory.to_dict()).get_all() == said


def test_messages_that_say_nothing_are_left_out() -> None:
    memory = CompressedMemory()
    memory.put_messages([user(""), called("a"), ChatMessage(role="assistant"), result("a", "")])
    assert memory.get() == [called("a"), result("a", "")]


# engines and agents


class Fixed(BaseRetriever):
    """Retrieves the same nodes for every question."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle: Any) -> list[NodeWithScore]:
        return self.nodes


@pytest.mark.parametrize("kind", ["simple", "stream", "async", "context", "condense"])
def test_chat_engines(kind: str, nodes: list[NodeWithScore]) -> None:
    memory = CompressedMemory.from_defaults(token_limit=BUDGET)
    llm, sent = scripted(answer("I see, what a pity for the two of you."))
    if kind == "context":
        engine: Any = ContextChatEngine.from_defaults(
            retriever=Fixed(nodes[:2]), llm=llm, memory=memory
        )
    elif kind == "condense":
        engine = CondensePlusContextChatEngine.from_defaults(
            retriever=Fixed(nodes[:2]), llm=llm, memory=memory
        )
    else:
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory, system_prompt="Be brief.")

    def say(text: str) -> str:
        if kind == "async":
            return str(asyncio.run(engine.achat(text)))
        if kind == "stream":
            return "".join(engine.stream_chat(text).response_gen)
        return str(engine.chat(text))

    assert say("My cat Tom lives in Lisbon.") == "I see, what a pity for the two of you."
    for turn in range(25):
        say(f"Day {turn}: it rained in the old town and the tram was late.")
        past = [m for m in sent[-1] if m.role != "system"][:-1]
        assert memory.count(past) <= BUDGET
    say("Where does the cat live?")
    assert any("Lisbon" in (m.content or "") for m in sent[-1])
    assert len(engine.chat_history) == 2 * 27
    engine.reset()
    assert memory.get() == []


def weather(city: str) -> str:
    """Weather of a city."""
    return f"In {city} it rains and the wind blows from the west. " * 10


def tool_call(name: str, city: str) -> ChatMessage:
    call = ToolCallBlock(tool_call_id=name, tool_name="weather", tool_kwargs={"city": city})
    return ChatMessage(role="assistant", blocks=[call])


async def run_agent(memory: CompressedMemory, turns: int) -> Any:
    script = []
    for turn in range(turns):
        script += [tool_call(f"call{turn}", f"Town{turn}"), answer(f"Rain in Town{turn}.")]
    llm, sent = scripted(*script)
    agent = FunctionAgent(tools=[weather], llm=llm, system_prompt="Be brief.")
    ctx = Context(agent)
    for turn in range(turns):
        said = await agent.run(f"What about Town{turn}?", ctx=ctx, memory=memory)
        assert str(said) == f"Rain in Town{turn}."
    return agent, ctx, sent


def test_a_function_agent() -> None:
    async def run() -> tuple[CompressedMemory, list[list[ChatMessage]]]:
        _, ctx, sent = await run_agent(CompressedMemory(budget=BUDGET), 12)
        return await ctx.store.get("memory"), sent

    memory, sent = asyncio.run(run())
    assert len(sent) == 24
    for messages in sent:
        check_pairs(messages)
    assert memory.count(memory.get()) <= BUDGET
    roles = [m.role.value for m in memory.get_all()]
    assert roles == ["user", "assistant", "tool", "assistant"] * 12
    assert memory.get_all()[2].content == weather("Town0")
    assert any("Town1 " in (m.content or "") for m in memory.get(input="What about Town1 rain?"))


def test_a_react_agent() -> None:
    memory = CompressedMemory()
    thought = 'Thought: I look.\nAction: weather\nAction Input: {"city": "Oslo"}'
    llm, sent = scripted(answer(thought), answer("Thought: I can answer.\nAnswer: It rains."))

    async def run() -> str:
        agent = ReActAgent(tools=[weather], llm=llm)
        return str(await agent.run("What about Oslo?", memory=memory))

    assert asyncio.run(run()) == "It rains."
    assert any("the wind blows" in (m.content or "") for m in sent[1])
    assert memory.get()[0] == user("What about Oslo?")


RESTORE = """
import json, sys
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.workflow import Context, JsonSerializer
import asyncio

async def main():
    agent = FunctionAgent(tools=[], llm=MockFunctionCallingLLM())
    ctx = Context.from_dict(agent, json.load(sys.stdin), serializer=JsonSerializer())
    memory = await ctx.store.get("memory")
    shown = memory.get(input="What about Town1 rain?")
    print(json.dumps([
        [m.model_dump(mode="json") for m in said]
        for said in (memory.get(), shown, memory.get_all())
    ]))

asyncio.run(main())
"""


def test_a_context_goes_on_in_another_process() -> None:
    async def run() -> tuple[str, CompressedMemory]:
        _, ctx, _ = await run_agent(CompressedMemory(budget=BUDGET), 8)
        stored = json.dumps(ctx.to_dict(serializer=JsonSerializer()))
        return stored, await ctx.store.get("memory")

    stored, memory = asyncio.run(run())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RESTORE],
        input=stored,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(memory.get_all()) == 32
    expected = [
        [m.model_dump(mode="json") for m in said]
        for said in (memory.get(), memory.get(input="What about Town1 rain?"), memory.get_all())
    ]
    assert json.loads(done.stdout) == expected


# copies


@pytest.mark.parametrize("how", ["dict", "json", "model", "pickle", "deepcopy"])
def test_a_copy_knows_the_same_and_goes_its_own_way(how: str) -> None:
    memory = fill(CompressedMemory(budget=BUDGET, recall=0.4, compressor=Lexical()))
    memory.put(called("a"))
    other = {
        "dict": lambda: CompressedMemory.from_dict(memory.to_dict(), compressor=Lexical()),
        "json": lambda: CompressedMemory.from_json(memory.to_json()),
        "model": lambda: CompressedMemory.model_validate(memory.model_dump()),
        "pickle": lambda: pickle.loads(pickle.dumps(memory)),
        "deepcopy": lambda: copy.deepcopy(memory),
    }[how]()
    assert (other.budget, other.recall) == (BUDGET, 0.4)
    assert other.get() == memory.get() and other.get_all() == memory.get_all()
    other.put(result("a"))
    assert other.get()[-1] == result("a") and memory.get()[-1] != result("a")
    memory.put(result("a"))
    assert memory.get(input="cat") == other.get(input="cat")


def test_a_counter_that_is_no_name_is_given_again() -> None:
    memory = fill(CompressedMemory(budget=BUDGET, counter=len))
    data = json.loads(json.dumps(memory.to_dict()))
    assert data["counter"] is None
    assert CompressedMemory.from_dict(data).get() == memory.get()
    del memory
    gc.collect()  # as in another process
    with pytest.raises(StateError, match="counter"):
        CompressedMemory.from_dict(data)
    assert CompressedMemory.from_dict(data, counter=len).count([user("abc")]) > 0


def test_an_agent_keeps_what_no_dict_can_hold() -> None:
    class Model:
        def encode(self, texts: list[str]) -> Any:
            return [[1.0, float(len(text))] for text in texts]

    settings = {"encoder": Model(), "compressor": Lexical(), "counter": len}
    memory = CompressedMemory(budget=2000, **settings)
    _, ctx, _ = asyncio.run(run_agent(memory, 3))
    kept = asyncio.run(ctx.store.get("memory"))
    assert kept is not memory
    assert {name: getattr(kept, name) for name in settings} == settings
    other = Lexical()
    given = CompressedMemory.from_dict(kept.to_dict(), compressor=other)
    assert CompressedMemory.from_dict(given.to_dict()).compressor is other
    assert len(kept.get_all()) == 12


@pytest.mark.parametrize("state", ["", "not base64", base64.b64encode(b"x").decode(), "AAAA"])
def test_a_damaged_state_is_refused(state: str) -> None:
    with pytest.raises(StateError, match="damaged"):
        CompressedMemory(state=state)


def test_wrong_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="budgett"):
        CompressedMemory(budgett=3)
    with pytest.raises(BudgetError, match="at least 1"):
        CompressedMemory(budget=0)
    with pytest.raises(InputError, match="not both"):
        CompressedMemory.from_defaults(token_limit=3, budget=3)
    llm, _ = scripted(answer("x"))
    window = llm.metadata.context_window
    assert CompressedMemory.from_defaults(llm=llm).budget == int(0.75 * window)


def test_waiting_gives_the_same() -> None:
    async def run() -> list[Any]:
        memory = CompressedMemory(budget=BUDGET)
        for turn in range(30):
            await memory.aput(user(f"Day {turn}: it rained in the old town."))
            await memory.aput_messages([called(f"{turn}"), result(f"{turn}")])
        found = [await memory.aget(), await memory.aget(input="day 3"), await memory.aget_all()]
        await memory.aset([user("New.")])
        found.append(await memory.aget())
        await memory.areset()
        return [*found, await memory.aget_all()]

    memory = CompressedMemory(budget=BUDGET)
    for turn in range(30):
        memory.put(user(f"Day {turn}: it rained in the old town."))
        memory.put_messages([called(f"{turn}"), result(f"{turn}")])
    expected = [memory.get(), memory.get(input="day 3"), memory.get_all(), [user("New.")], []]
    assert asyncio.run(run()) == expected


def test_tasks_may_share_a_memory() -> None:
    memory = CompressedMemory(budget=BUDGET)

    async def run() -> None:
        await asyncio.gather(*(memory.aput(user(f"Note {n}.")) for n in range(60)))

    asyncio.run(run())
    assert sorted(m.content for m in memory.get_all()) == sorted(f"Note {n}." for n in range(60))
