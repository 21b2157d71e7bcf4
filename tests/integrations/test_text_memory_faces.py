"""What every face of the text memory promises, whatever the framework."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laconic.core import TokenCounter
from laconic.memory.text import TextMemory
from laconic.memory.turns import Costs

BUDGET = 300


def words(text: str) -> int:
    return len(text.split())


COUNTER = TokenCounter("words", words)
COSTS = Costs(COUNTER, 1600)
Sent = list[dict[str, Any]]


class Text:
    """The memory itself; the other faces are made to look like it."""

    def __init__(self, path: Path) -> None:
        self.memory = TextMemory(BUDGET, counter=COUNTER, archive=path)

    def tell(self, messages: Sent) -> None:
        self.memory.observe(messages)

    async def atell(self, messages: Sent) -> None:
        await asyncio.to_thread(self.tell, messages)

    def sent(self, query: str) -> Sent:
        """What a model would be sent for a question that is told next."""
        return self.memory.read(query)

    async def asent(self, query: str) -> Sent:
        return await asyncio.to_thread(self.sent, query)

    def leave(self) -> None:
        """The process ends."""
        self.memory.close()


class ChatMemory:
    """`CompressedChatMemory`; it knows what people and models say, and no tools."""

    def __init__(self, path: Path) -> None:
        from laconic.integrations.langchain import CompressedChatMemory

        self.memory = CompressedChatMemory(
            budget=BUDGET, counter=words, archive=path, return_messages=True
        )

    def tell(self, messages: Sent) -> None:
        self.memory.chat_memory.add_messages(as_langchain(messages))

    async def atell(self, messages: Sent) -> None:
        await self.memory.chat_memory.aadd_messages(as_langchain(messages))

    def sent(self, query: str) -> Sent:
        return as_dicts(self.memory.load_memory_variables({"input": query})["history"])

    async def asent(self, query: str) -> Sent:
        return as_dicts((await self.memory.aload_memory_variables({"input": query}))["history"])

    def leave(self) -> None:
        self.memory.chat_memory.memory.close()  # type: ignore[attr-defined]


class History:
    """`CompressedChatMessageHistory` over one in a file."""

    def __init__(self, path: Path) -> None:
        from langchain_core.chat_history import InMemoryChatMessageHistory
        from langchain_core.messages import messages_from_dict

        from laconic.integrations.langchain import CompressedChatMessageHistory

        self.path = path
        held = messages_from_dict(json.loads(path.read_text())) if path.is_file() else []
        self.history = CompressedChatMessageHistory(
            InMemoryChatMessageHistory(messages=held), BUDGET, counter=words, recall=0.6
        )

    def tell(self, messages: Sent) -> None:
        self.history.add_messages(as_langchain(messages))

    async def atell(self, messages: Sent) -> None:
        await self.history.aadd_messages(as_langchain(messages))

    def sent(self, query: str) -> Sent:
        return as_dicts(self.history.read(query))

    async def asent(self, query: str) -> Sent:
        return as_dicts(await self.history.aread(query))

    def leave(self) -> None:
        from langchain_core.messages import messages_to_dict

        self.path.write_text(json.dumps(messages_to_dict(self.history.history.messages)))


class Middleware:
    """`ContextCompressionMiddleware`, given requests as an agent makes them."""

    def __init__(self, path: Path) -> None:
        from langchain_core.messages import messages_from_dict

        from laconic.integrations.langchain import ContextCompressionMiddleware

        self.path = path
        self.messages = messages_from_dict(json.loads(path.read_text())) if path.is_file() else []
        self.middleware = ContextCompressionMiddleware(BUDGET, counter=words, recall=0.6)

    def tell(self, messages: Sent) -> None:
        self.messages += as_langchain(messages)

    async def atell(self, messages: Sent) -> None:
        self.tell(messages)

    def _request(self, query: str) -> Any:
        from langchain.agents.middleware import ModelRequest
        from langchain_core.language_models import GenericFakeChatModel
        from langchain_core.messages import HumanMessage
        from langgraph.runtime import ExecutionInfo, Runtime

        info = ExecutionInfo(
            checkpoint_id="c", checkpoint_ns="", task_id="t", thread_id=str(self.path)
        )
        return ModelRequest(
            model=GenericFakeChatModel(messages=iter([])),
            messages=[*self.messages, HumanMessage(query, id="asked")],
            runtime=Runtime(execution_info=info),
        )

    def sent(self, query: str) -> Sent:
        seen: list[Any] = []
        self.middleware.wrap_model_call(self._request(query), seen.append)  # type: ignore[arg-type]
        return as_dicts(seen[0].messages)

    async def asent(self, query: str) -> Sent:
        seen: list[Any] = []

        async def handler(request: Any) -> Any:
            seen.append(request)

        await self.middleware.awrap_model_call(self._request(query), handler)
        return as_dicts(seen[0].messages)

    def leave(self) -> None:
        from langchain_core.messages import messages_to_dict

        self.path.write_text(json.dumps(messages_to_dict(self.messages)))


class LlamaIndexMemory:
    """`CompressedMemory`, which goes on from its dict."""

    def __init__(self, path: Path) -> None:
        from laconic.integrations.llama_index import CompressedMemory

        self.path = path
        state = json.loads(path.read_text()) if path.is_file() else {}
        self.memory = CompressedMemory(
            **{"budget": BUDGET, **state, "counter": COUNTER}  # a counter is not written
        )

    def tell(self, messages: Sent) -> None:
        self.memory.put_messages(as_llama_index(messages))

    async def atell(self, messages: Sent) -> None:
        await self.memory.aput_messages(as_llama_index(messages))

    def sent(self, query: str) -> Sent:
        return from_llama_index(self.memory.get(input=query))

    async def asent(self, query: str) -> Sent:
        return from_llama_index(await self.memory.aget(input=query))

    def leave(self) -> None:
        self.path.write_text(json.dumps(self.memory.to_dict()))


def as_langchain(messages: Sent) -> Any:
    from langchain_core.messages import convert_to_messages

    return convert_to_messages(messages)


def as_dicts(messages: Any) -> Sent:
    from langchain_core.messages import convert_to_openai_messages

    written = convert_to_openai_messages(messages)
    return written if isinstance(written, list) else [written]


def as_llama_index(messages: Sent) -> list[Any]:
    from laconic.integrations.llama_index._messages import from_openai

    return [from_openai(message) for message in messages]


def from_llama_index(messages: list[Any]) -> Sent:
    from laconic.integrations.llama_index._messages import to_openai

    return [to_openai(message) for message in messages]


FACES: dict[str, Callable[[Path], Any]] = {
    face.__name__: face for face in (Text, ChatMemory, History, Middleware, LlamaIndexMemory)
}
each_face = pytest.mark.parametrize("make", FACES.values(), ids=FACES)
Make = Callable[[Path], Any]


def exchange(number: int, who: str = "Ann") -> Sent:
    return [
        {"role": "user", "content": f"On day {number} {who} met Person{number} in Town{number}."},
        {"role": "assistant", "content": f"I will remember day {number} of {who}."},
    ]


def tool_turn(number: int) -> Sent:
    function = {"name": "look", "arguments": json.dumps({"at": number})}
    calls = [{"id": f"{p}{number}", "type": "function", "function": function} for p in "ab"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"Sight {number} is nice. " * 9}
        for call in reversed(calls)
    ]
    asked = {"role": "user", "content": f"Look at sight {number}."}
    answer = {"role": "assistant", "content": f"Sight {number} is nice."}
    return [asked, {"role": "assistant", "content": "", "tool_calls": calls}, *results, answer]


def text_of(messages: Sent) -> str:
    return "\n".join(str(message["content"]) for message in messages)


def assert_sendable(messages: Sent) -> None:
    """Within the budget, and every result with its call."""
    assert COSTS.of(messages) <= BUDGET
    waiting: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting
            waiting = {call["id"] for call in message.get("tool_calls") or ()}
    assert not waiting


@each_face
def test_the_budget_holds_after_every_turn_and_tool_calls_keep_their_results(
    make: Make, tmp_path: Path
) -> None:
    face = make(tmp_path / "state")
    for number in range(60):
        face.tell(exchange(number) if number % 3 else tool_turn(number))
        assert_sendable(face.sent(f"Whom did Ann meet on day {number // 2}?"))
    assert "Person1 in Town1" in text_of(face.sent("Whom did Ann meet on day 1?"))
    face.leave()


@each_face
def test_conversations_never_see_each_other(make: Make, tmp_path: Path) -> None:
    faces = {who: make(tmp_path / who) for who in ("Ann", "Bob")}
    for number in range(30):
        for who, face in faces.items():
            face.tell(exchange(number, who))
    for who, other in (("Ann", "Bob"), ("Bob", "Ann")):
        said = text_of(faces[who].sent("Whom did Ann and Bob meet on day 3?"))
        assert f"{who} met Person3 " in said
        assert f"{other} met" not in said
        faces[who].leave()


@each_face
def test_async_equals_sync(make: Make, tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    question = "Whom did Ann meet on day 4?"

    async def tell_all() -> Sent:
        for number in range(30):
            await other.atell(exchange(number))
        return await other.asent(question)  # type: ignore[no-any-return]

    for number in range(30):
        one.tell(exchange(number))
    assert one.sent(question) == asyncio.run(tell_all())
    one.leave()
    other.leave()


_RESUME = """
import json, pathlib, runpy, sys
test = runpy.run_path(sys.argv[1])
face = test["FACES"][sys.argv[2]](pathlib.Path(sys.argv[3]))
face.tell(test["exchange"](30))
print(json.dumps(face.sent("Whom did Ann meet on day 2?")))
face.leave()
"""


@each_face
def test_another_process_goes_on(make: Make, tmp_path: Path) -> None:
    face, alone = make(tmp_path / "state"), make(tmp_path / "alone")
    for number in range(30):
        face.tell(exchange(number))
        alone.tell(exchange(number))
    face.leave()
    name = next(name for name, one in FACES.items() if one is make)
    arguments = [sys.executable, "-c", _RESUME, __file__, name, str(tmp_path / "state")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    alone.tell(exchange(30))
    assert json.loads(done.stdout.splitlines()[-1]) == alone.sent("Whom did Ann meet on day 2?")
    alone.leave()


@each_face
def test_ten_thousand_turns_and_one_of_a_megabyte(make: Make, tmp_path: Path) -> None:
    face = make(tmp_path / "state")
    long = " ".join(f"Sentence number {i} says little." for i in range(32_000))
    for number in range(5000):
        face.tell(exchange(number))
        if number == 2500:
            face.tell([{"role": "user", "content": f"{long} The code is swordfish. {long[:5000]}"}])
        if number % 500 == 0:
            assert_sendable(face.sent(f"Whom did Ann meet on day {number // 2}?"))
    assert_sendable(asked := face.sent("Whom did Ann meet on day 7?"))
    assert "Person7 in Town7" in text_of(asked)
    face.leave()
