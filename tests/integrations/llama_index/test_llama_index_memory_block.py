"""A block in LlamaIndex's own `Memory`."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import MessageStatus
from pydantic import ValidationError

from laconic.core import TokenCounter
from laconic.errors import BudgetError, StateError
from laconic.integrations.llama_index import CompressedMemoryBlock

COUNT = TokenCounter.of(None).count


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def answer(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


@pytest.fixture
def stock() -> Iterator[Any]:
    """Makes memories of LlamaIndex, and closes their databases."""
    made = []

    def make(session: str, *blocks: CompressedMemoryBlock, **options: Any) -> Memory:
        options = {"token_limit": 600, "token_flush_size": 60, **options}
        made.append(Memory.from_defaults(session, memory_blocks=list(blocks), **options))
        return made[-1]

    yield make
    for memory in made:
        asyncio.run(memory.sql_store._async_engine.dispose())


async def talk(memory: Memory, turns: int, animal: str = "cat") -> None:
    await memory.aput(user(f"My {animal} Tom lives in Lisbon."))
    await memory.aput(answer("How nice."))
    for turn in range(turns):
        await memory.aput(user(f"Day {turn}: it rained in the old town and the tram was late."))
        await memory.aput(answer(f"What a pity, {turn}."))


def text_of(messages: list[ChatMessage]) -> str:
    return "\n".join(m.content or "" for m in messages)


def test_what_leaves_the_queue_is_found_again(stock: Any) -> None:
    block = CompressedMemoryBlock(budget=150)
    memory = stock("one", block)

    async def run() -> tuple[list[ChatMessage], list[ChatMessage], str]:
        await talk(memory, 80)
        queue = await memory.sql_store.get_messages("one", status=MessageStatus.ACTIVE)
        shown = await memory.aget(input="Where does the cat live?")
        return queue, shown, await block.aget([user("Where does the cat?")], session_id="one")

    queue, shown, text = asyncio.run(run())
    assert "Lisbon" not in text_of(queue)
    assert "Lisbon" in text_of(shown) and "<earlier_conversation>" in text_of(shown)
    assert 0 < COUNT(text) <= 150
    assert sum(COUNT(m.content or "") for m in shown) <= 600
    assert "session_id" not in text


def test_the_text_is_within_the_budget_after_every_turn() -> None:
    block = CompressedMemoryBlock(budget=90)

    async def run() -> None:
        for turn in range(60):
            call = ToolCallBlock(tool_call_id=f"{turn}", tool_name="look", tool_kwargs={"n": turn})
            done = ChatMessage(
                role="tool", content="Sun. " * 50, additional_kwargs={"tool_call_id": f"{turn}"}
            )
            said = [user(f"Look at {turn}."), ChatMessage(role="assistant", blocks=[call]), done]
            await block.aput(said, session_id="one")
            for asked in ([], [user(f"What was {turn // 2}?")]):
                assert 0 < COUNT(await block.aget(asked, session_id="one")) <= 90

    asyncio.run(run())


def test_sessions_never_see_each_other(stock: Any) -> None:
    block = CompressedMemoryBlock(budget=300)
    first, second = stock("one", block), stock("two", block)

    async def run() -> tuple[str, ...]:
        await asyncio.gather(talk(first, 40, "cat"), talk(second, 40, "dog"))
        return (
            await block.aget([user("Where is the cat, where the dog?")], session_id="one"),
            await block.aget([user("Where is the cat, where the dog?")], session_id="two"),
            await block.aget([user("Where is the cat?")], session_id="three"),
        )

    one, two, three = asyncio.run(run())
    assert "cat" in one and "dog" not in one
    assert "dog" in two and "cat" not in two
    assert three == ""


def test_a_block_is_shortened_rather_than_left_out(stock: Any) -> None:
    block = CompressedMemoryBlock(budget=400)
    memory = stock("one", block, token_limit=500, chat_history_token_ratio=0.9)

    async def run() -> tuple[str, list[ChatMessage]]:
        await talk(memory, 80)
        await memory.aput(user("Tell me about the cat. " + "It is a long story. " * 14))
        return await block.aget([user("cat")], session_id="one"), await memory.aget(input="cat?")

    whole, shown = asyncio.run(run())
    system = text_of([m for m in shown if m.role == "system"])
    assert "<earlier_conversation>" in system
    assert COUNT(system) < COUNT(whole)
    assert sum(COUNT(m.content or "") for m in shown if m.role != "system") + COUNT(whole) > 500


@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_truncating_takes_at_least_so_many_tokens(tokens: int) -> None:
    block, text = CompressedMemoryBlock(), "The cat sleeps. The dog barks. " * 8
    left = asyncio.run(block.atruncate(text, tokens))
    assert left
    assert 0 < COUNT(left) <= COUNT(text) - tokens
    assert asyncio.run(block.atruncate(text, COUNT(text))) is None
    assert asyncio.run(block.atruncate("", 3)) is None


@pytest.mark.parametrize("how", ["dump", "json", "pickle", "deepcopy"])
def test_a_copy_knows_the_same_and_goes_its_own_way(how: str) -> None:
    block = CompressedMemoryBlock(budget=200, priority=3, name="past")

    async def said(of: CompressedMemoryBlock, session: str) -> str:
        return await of.aget([user("cat")], session_id=session)

    async def run() -> None:
        await block.aput([user("My cat is Tom."), answer("Nice.")], session_id="one")
        await block.aput([user("My dog is Rex.")], session_id="two")
        other = {
            "dump": lambda: CompressedMemoryBlock(**block.model_dump()),
            "json": lambda: CompressedMemoryBlock(**json.loads(block.model_dump_json())),
            "pickle": lambda: pickle.loads(pickle.dumps(block)),
            "deepcopy": lambda: copy.deepcopy(block),
        }[how]()
        assert (other.budget, other.priority, other.name) == (200, 3, "past")
        for session in ("one", "two"):
            assert await said(other, session) == await said(block, session) != ""
        await other.aput([user("Something else.")], session_id="one")
        assert await said(other, "one") != await said(block, "one")

    asyncio.run(run())


def test_a_block_is_written_while_sessions_come() -> None:
    block = CompressedMemoryBlock(budget=200)

    async def run() -> None:
        comes = [block.aput([user("Hello.")], session_id=str(n)) for n in range(40)]
        writes = [asyncio.to_thread(block.model_dump) for _ in range(40)]
        await asyncio.gather(*(one for pair in zip(comes, writes, strict=True) for one in pair))

    asyncio.run(run())
    assert len(block.model_dump()["states"]) == 40


def test_wrong_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="budgett"):
        CompressedMemoryBlock(budgett=3)
    with pytest.raises(BudgetError):
        CompressedMemoryBlock(budget=0)
    with pytest.raises(StateError, match="damaged"):
        CompressedMemoryBlock(states={"one": "x"})


def test_what_a_text_cannot_hold_is_named() -> None:
    block = CompressedMemoryBlock()
    image = ImageBlock(image=b"\x89PNG\r\n\x1a\n", image_mimetype="image/png")
    photo = ChatMessage(role="user", blocks=[TextBlock(text="A photo of Rome."), image])

    async def run() -> str:
        await block.aput([photo, ChatMessage(role="assistant", content="How nice.")])
        return str(await block.aget())

    said = asyncio.run(run())
    assert "user: A photo of Rome.\n[image" in said
    assert "assistant: How nice." in said
