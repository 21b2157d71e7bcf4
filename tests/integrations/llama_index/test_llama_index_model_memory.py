"""Memories that are states of a model, in real engines, agents and contexts of LlamaIndex."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import pytest
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import Context, JsonSerializer
from pydantic import ValidationError

from laconic.errors import InputError, StateError
from laconic.integrations.llama_index import (
    CCMMemory,
    InfiniPotMemory,
    LaconicLLM,
    model_memory,
)
from laconic.integrations.llama_index.llm import STATE

Kind = type[InfiniPotMemory] | type[CCMMemory]
Make = Callable[..., LaconicLLM]


@pytest.fixture(params=[InfiniPotMemory, CCMMemory])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def make(kind: Kind, local_model: tuple[Any, Any], ccm: Any) -> Make:
    def made(**fields: Any) -> LaconicLLM:
        fields = {"max_tokens": 8, **fields}
        if kind is CCMMemory:
            return LaconicLLM(*local_model, memory="ccm", adapter=ccm, **fields)
        return LaconicLLM(*local_model, **{"budget": 160, **fields})

    return made


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def answer(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def turn(memory: Any, llm: LaconicLLM, text: str) -> str:
    memory.put(user(text))
    reply = llm.chat(memory.get())
    memory.put(reply.message)
    return str(reply.message.content)


TEXTS = [f"Stop {n}: the tram was late and it rained. What is next?" for n in range(8)]


def test_the_state_stands_for_what_was_said(kind: Kind, make: Make) -> None:
    llm, other, said = make(), make(), []
    memory = kind(llm)
    assert memory.get() == []
    for text in TEXTS:
        got = turn(memory, llm, text)
        expected = other.chat([*said, user(text)]).message
        assert got == expected.content
        said += [user(text), expected]
    handle, pending = [*memory.get(), *(memory.put(user("?")) or memory.get())][0::2]
    assert STATE in handle.additional_kwargs and handle.content == ""
    assert pending == user("?")


def test_the_state_does_not_grow(kind: Kind, make: Make) -> None:
    llm = make()
    memory, sizes = kind(llm), []
    for n in range(40):
        memory.put_messages([user(TEXTS[n % 8]), answer(f"The square, {n}.")])
        sizes.append(memory.nbytes)
        assert len(memory.get()) == 1
    assert max(sizes) < 1.1 * max(sizes[:5])
    assert kind().nbytes == 0


def test_it_does_not_matter_what_the_llm_keeps(kind: Kind, make: Make) -> None:
    warm, cold = make(), make(max_bytes=0)
    first, second, third = kind(warm), kind(cold), kind(cold)
    for text in TEXTS:
        expected = turn(first, warm, text)
        assert turn(second, cold, text) == expected
        # A third conversation drives the state out each time.
        assert turn(third, cold, text) == expected
    second.put(user("And then?"))
    given = second.get()
    for text in TEXTS:
        cold.chat([user(text)])
    first.put(user("And then?"))
    assert cold.chat(given).message == warm.chat(first.get()).message


def test_a_message_never_stands_for_another_state(kind: Kind, make: Make) -> None:
    llm = make(max_bytes=0)
    memory = kind(llm)
    memory.put_messages([user(TEXTS[0]), answer("The square."), user("And then?")])
    given = memory.get()
    expected = llm.chat(given).message
    memory.put(answer("Something else."))
    llm.chat([user("Hello.")])  # which takes all the room there is
    with pytest.raises(StateError, match="not kept any more"):
        llm.chat(given)
    again = kind(llm)
    again.put_messages([user(TEXTS[0]), answer("The square."), user("And then?")])
    assert llm.chat(again.get()).message == expected


def test_two_conversations_never_see_each_other(kind: Kind, make: Make) -> None:
    llm, alone = make(), make()
    first, second, only = kind(llm), kind(llm), kind(alone)
    for text in TEXTS:
        turn(second, llm, f"Something else: {text[::-1]}")
        assert turn(first, llm, text) == turn(only, alone, text)


def test_asking_again_changes_nothing(kind: Kind, make: Make) -> None:
    llm = make()
    memory = kind(llm)
    turn(memory, llm, TEXTS[0])
    memory.put(user("And then?"))
    before = memory.to_dict()
    replies = {llm.chat(memory.get(input="x", initial_token_count=3)).message.content for _ in "ab"}
    assert len(replies) == 1
    assert memory.to_dict() == before
    assert memory.get_all() == memory.get()


def test_a_prompt_is_read_behind_the_state_and_not_remembered(kind: Kind, make: Make) -> None:
    llm = make()
    memory, plain = kind(llm), kind(llm)
    prompt = ChatMessage(role="system", content="Answer with a number.")
    for text in TEXTS[:3]:
        for one in (memory, plain):
            one.put(user(text))
        llm.chat([prompt, *memory.get()])
        for one in (memory, plain):
            one.put(answer("The square."))
    memory.put(user("And?"))
    plain.put(user("And?"))
    assert llm.chat(memory.get()).message == llm.chat(plain.get()).message
    assert llm.chat([prompt, *memory.get()]).message != llm.chat(memory.get()).message


# engines and agents


class Fixed(BaseRetriever):
    """Retrieves the same nodes for every question."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle: Any) -> list[NodeWithScore]:
        return self.nodes


@pytest.mark.parametrize("is_async", [False, True])
def test_a_simple_chat_engine(kind: Kind, make: Make, is_async: bool) -> None:
    llm, other = make(), make()
    memory = kind(other)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=kind(llm))
    for text in TEXTS[:4]:
        said = asyncio.run(engine.achat(text)) if is_async else engine.chat(text)
        assert str(said) == turn(memory, other, text)
    streamed = "".join(engine.stream_chat(TEXTS[4]).response_gen)
    assert streamed == turn(memory, other, TEXTS[4])
    engine.reset()
    assert str(engine.chat(TEXTS[0])) == turn(kind(other), other, TEXTS[0])


@pytest.mark.parametrize("engine_type", [ContextChatEngine, CondensePlusContextChatEngine])
def test_engines_with_context(
    kind: Kind, make: Make, engine_type: Any, nodes: list[NodeWithScore]
) -> None:
    llm = make()
    memory = kind(llm)
    engine = engine_type.from_defaults(retriever=Fixed(nodes[:1]), llm=llm, memory=memory)
    answers = [str(engine.chat(text)) for text in TEXTS[:4]]
    expected = kind(make())
    for text, said in zip(TEXTS, answers, strict=False):
        expected.put_messages([user(text), answer(said)])
    # What was retrieved for one question is not carried along.
    assert memory.to_dict()["state"] is not None
    memory.put(user("And?"))
    expected.put(user("And?"))
    assert llm.chat(memory.get()).message == expected._llm.chat(expected.get()).message


def test_a_react_agent(kind: Kind, make: Make) -> None:
    llm = make(max_tokens=4)
    memory, expected = kind(llm), kind(llm)
    for one in (memory, expected):
        one.put_messages([user(TEXTS[0]), answer("The square.")])

    async def run() -> str:
        agent = ReActAgent(tools=[], llm=llm)
        return str(await agent.run("Where to?", memory=memory))

    # What names no action is an answer to this agent.
    said = asyncio.run(run())
    thought = "Thought: (Implicit) I can answer without any more tools!"
    expected.put_messages([user("Where to?"), answer(f"{thought}\nAnswer: {said}")])
    for one in (memory, expected):
        one.put(user("And then?"))
    assert llm.chat(memory.get()).message == llm.chat(expected.get()).message


def test_a_react_agent_goes_on_in_its_context(kind: Kind, make: Make) -> None:
    llm = make(max_tokens=4)
    memory, alone = kind(llm), kind(llm)
    agent = ReActAgent(tools=[], llm=llm)

    async def run() -> list[str]:
        ctx = Context(agent)
        first = await agent.run("Where to?", memory=memory, ctx=ctx)
        return [str(first), str(await agent.run("And then?", ctx=ctx))]

    async def run_without() -> list[str]:
        asked = ("Where to?", "And then?")
        return [str(await agent.run(question, memory=alone)) for question in asked]

    assert asyncio.run(run()) == asyncio.run(run_without())


def test_a_context_keeps_the_state_until_a_model_is_attached(
    kind: Kind, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make()
    memory = kind(llm)
    for text in TEXTS[:3]:
        turn(memory, llm, text)
    memory.put(user("And then?"))
    expected = llm.chat(memory.get()).message

    agent = ReActAgent(tools=[], llm=MockLLM())

    async def stored() -> Any:
        ctx = Context(agent)
        await ctx.store.set("memory", memory)
        return json.loads(json.dumps(ctx.to_dict(serializer=JsonSerializer())))

    async def restored_from(data: Any) -> Any:
        ctx = Context.from_dict(agent, data, serializer=JsonSerializer())
        return await ctx.store.get("memory")

    data = asyncio.run(stored())
    # As in another process, which knows no LLM of this one.
    monkeypatch.setattr(model_memory, "_ATTACHED", WeakValueDictionary())
    restored = asyncio.run(restored_from(data))
    assert type(restored) is kind
    with pytest.raises(StateError, match="attach"):
        restored.get()
    again = kind.from_dict(restored.to_dict())
    cold = make()
    again.attach(cold)
    assert cold.chat(again.get()).message == expected


@pytest.mark.parametrize("how", ["dict", "json", "pickle", "deepcopy"])
def test_a_copy_knows_the_same_and_goes_its_own_way(kind: Kind, make: Make, how: str) -> None:
    llm = make()
    memory = kind(llm)
    turn(memory, llm, TEXTS[0])
    memory.put(user("And then?"))
    expected = llm.chat(memory.get()).message
    other = {
        "dict": lambda: kind.from_dict(memory.to_dict(), llm=llm),
        "json": lambda: kind.from_json(memory.to_json()),
        "pickle": lambda: pickle.loads(pickle.dumps(memory)),
        "deepcopy": lambda: copy.deepcopy(memory),
    }[how]()
    if how in ("json", "pickle"):
        other.attach(llm)
    assert llm.chat(other.get()).message == expected
    other.put(answer("Something else."))
    assert llm.chat(memory.get()).message == expected


def test_messages_wait_for_a_model(kind: Kind, make: Make) -> None:
    waiting, llm = kind(), make()
    said = [user(TEXTS[0]), answer("The square."), user("And then?")]
    waiting.put_messages(said)
    assert kind.from_dict(waiting.to_dict()).to_dict() == waiting.to_dict()
    waiting.attach(llm)
    ready = kind.from_defaults(said, llm=llm)
    assert llm.chat(waiting.get()).message == llm.chat(ready.get()).message
    ready.set(said[:1])
    assert ready.get() == said[:1]
    ready.reset()
    assert ready.get() == []


def test_waiting_gives_the_same(kind: Kind, make: Make) -> None:
    llm = make()

    async def run() -> Any:
        memory = kind(llm)
        for text in TEXTS[:3]:
            await memory.aput(user(text))
            await memory.aput((await llm.achat(await memory.aget())).message)
        await memory.aput_messages([user("And then?")])
        return (await llm.achat(await memory.aget())).message

    memory = kind(llm)
    for text in TEXTS[:3]:
        turn(memory, llm, text)
    memory.put(user("And then?"))
    assert asyncio.run(run()) == llm.chat(memory.get()).message


def test_what_fails_changes_nothing(kind: Kind, make: Make, local_model: Any, ccm: Any) -> None:
    llm = make()
    memory = kind(llm)
    turn(memory, llm, TEXTS[0])
    before = memory.to_dict()
    shown = ChatMessage(blocks=[ImageBlock(url="https://example.com/a.png")])
    for said in ([user("x"), shown], [shown, answer("y")]):
        with pytest.raises(InputError, match="reads text only"):
            memory.put_messages(said)
        with pytest.raises(InputError, match="reads text only"):
            memory.set(said)
    with pytest.raises(InputError, match="cannot be set"):
        memory.set(memory.get())
    assert memory.to_dict() == before
    for state in ("", "not base64", before["state"][:-40]):
        with pytest.raises(StateError, match="damaged"):
            kind(llm, state=state)
    with pytest.raises(InputError, match="goes with a LaconicLLM"):
        kind(MockLLM())
    other = CCMMemory if kind is InfiniPotMemory else InfiniPotMemory
    with pytest.raises(InputError, match=f"{other.__name__} goes with"):
        other(llm)
    with pytest.raises(ValidationError, match="budget"):
        kind(llm, budget=3)


def test_a_state_of_another_budget_is_refused(local_model: Any) -> None:
    memory = InfiniPotMemory(LaconicLLM(*local_model, budget=160))
    memory.put_messages([user("x"), answer("y")])
    with pytest.raises(StateError, match="another"):
        InfiniPotMemory.from_dict(memory.to_dict(), llm=LaconicLLM(*local_model, budget=200))
