"""`CompressedMemoryMiddleware`: an agent whose conversations a local model keeps in mind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
)
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.types import Command
from typing_extensions import NotRequired

from ...core.errors import StateError
from ._messages import to_openai
from .chat_model import ChatLaconic, handle

if TYPE_CHECKING:
    from ...memory.base import ModelMemory

__all__ = ["CompressedMemoryMiddleware"]


class _State(AgentState[Any]):
    laconic_memory: NotRequired[Annotated[bytes, PrivateStateAttr]]
    laconic_read: NotRequired[Annotated[str, PrivateStateAttr]]


class CompressedMemoryMiddleware(AgentMiddleware[_State, Any, Any]):
    """Keep what the model of an agent has read in a memory of bounded size, thread by thread.

    What the memory has read is not sent again. It is stored in the checkpoint, so that a thread
    goes on in another process, and a fork from where it was. Where the messages that were read
    have changed since, they are read anew. Without a checkpointer each call of the agent reads
    all that it is given.

    Parameters
    ----------
    llm
        The model of the agent. Its chat template must know system messages if the agent has one.
    forget
        Whether messages that the memory has read leave the checkpoint, which then is bounded
        too; those of the last exchange stay. What has changed cannot be read anew then.

    Examples
    --------
    >>> llm = ChatLaconic(model="Qwen/Qwen3-0.6B")                # doctest: +SKIP
    >>> keeps = CompressedMemoryMiddleware(llm)                   # doctest: +SKIP
    >>> create_agent(llm, tools, middleware=[keeps], checkpointer=saver)  # doctest: +SKIP
    """

    state_schema = _State

    def __init__(self, llm: ChatLaconic, *, forget: bool = False) -> None:
        super().__init__()
        self._llm = llm
        self._forget = forget

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ExtendedModelResponse[Any]:
        """Send what the memory has not read, and store what it knows then."""
        memory, key, new = self._before(request)
        response = handler(request.override(messages=[handle(key, memory.seen > 0), *new]))
        return self._after(request, memory, key, new, response)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ExtendedModelResponse[Any]:
        """`wrap_model_call`, with the work of the memory in a thread."""
        memory, key, new = await asyncio.to_thread(self._before, request)
        response = await handler(request.override(messages=[handle(key, memory.seen > 0), *new]))
        return await asyncio.to_thread(self._after, request, memory, key, new, response)

    def _before(self, request: ModelRequest[Any]) -> tuple[ModelMemory[Any], str, list[Any]]:
        """The memory to go on from, its key, and the messages that it has not read."""
        stored: Any = request.state.get("laconic_memory") or b""
        known: Any = request.state.get("laconic_read")
        digest, ids = json.loads(known) if known else (None, [])
        chat, messages = self._llm.chat, list(request.messages)
        new = messages[len(ids) :]
        is_same = _digest(request, messages[: len(ids)]) == digest
        if self._forget and not is_same:
            # What has gone cannot be read again, and what is left may have been edited.
            new, is_same = [m for m in messages if m.id not in ids], True
        if not stored or not is_same:
            memory = self._llm.new_memory()
            return memory, chat.hold(memory), messages
        key = _key(stored)
        try:
            memory = chat.get(key)
        except StateError:  # other conversations have pushed it out
            memory = self._llm.new_memory()
            memory.load_bytes(stored)
        return memory, chat.hold(memory, key), new

    def _after(
        self,
        request: ModelRequest[Any],
        memory: ModelMemory[Any],
        key: str,
        new: Sequence[BaseMessage],
        response: ModelResponse[Any],
    ) -> ExtendedModelResponse[Any]:
        """The response, with the memory as it is after it."""
        messages = [*request.messages, *response.result]
        spoken = [i for i, m in enumerate(messages) if isinstance(m, AIMessage)]
        if not spoken or spoken[-1] < len(request.messages):
            return ExtendedModelResponse(model_response=response)
        end = spoken[-1] + 1
        system = [request.system_message] if request.system_message and not memory.seen else []
        told = [*system, *new, *messages[len(request.messages) : end]]
        memory = self._told(request, key, to_openai(told))
        stored = memory.to_bytes()
        self._llm.chat.put(memory, _key(stored))
        begin = 0
        if self._forget:
            begin = max((i + 1 for i in spoken[:-1]), default=0)
            # The calls that the first of those that stay answers stay with it.
            while begin and messages[begin].type == "tool":
                begin = max((i for i in spoken if i < begin), default=0)
        kept = messages[begin:end]
        update: dict[str, Any] = {
            "laconic_memory": stored,
            "laconic_read": json.dumps([_digest(request, kept), [m.id for m in kept]]),
        }
        there = {message.id for message in request.state["messages"]}
        gone = [RemoveMessage(id=str(m.id)) for m in messages[:begin] if m.id in there]
        if gone:
            update["messages"] = gone
        return ExtendedModelResponse(model_response=response, command=Command(update=update))

    def _told(
        self, request: ModelRequest[Any], key: str, told: list[dict[str, Any]]
    ) -> ModelMemory[Any]:
        """A memory that knows what was asked and answered."""
        chat = self._llm.chat
        asked = told[-2]["content"] if len(told) > 1 else ""
        replied = chat.replied(key, asked if isinstance(asked, str) else "", told[-1])
        if replied:
            return chat.get(replied)
        return chat.read(told, behind=key, tools=_tools(request))


def _tools(request: ModelRequest[Any]) -> list[dict[str, Any]]:
    return [convert_to_openai_tool(tool) for tool in request.tools]


def _digest(request: ModelRequest[Any], messages: Sequence[BaseMessage]) -> str:
    """What tells whether a memory has read just this, and in the light of what."""
    system = to_openai([request.system_message]) if request.system_message else []
    read = json.dumps([system, _tools(request), to_openai(messages)], sort_keys=True)
    return sha256(read.encode("utf-8", "surrogatepass")).hexdigest()


def _key(stored: bytes) -> str:
    return sha256(stored).hexdigest()
