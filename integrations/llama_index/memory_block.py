"""What LlamaIndex's own `Memory` lets go of, kept in a block within a budget."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.memory import BaseMemoryBlock
from pydantic import (
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from ...core import Budget, get_compressor
from ...memory.quotation import as_text
from ...memory.text import TextMemory
from ._memory_settings import MemorySettings
from ._messages import last_question, to_openai
from .memory import from_base64, to_base64

__all__ = ["CompressedMemoryBlock"]

_SESSION = "session_id"
"""Where LlamaIndex's memory writes the session of a message."""


class CompressedMemoryBlock(MemorySettings, BaseMemoryBlock[str]):
    """A block of LlamaIndex's ``Memory`` that compresses the messages that leave its queue.

    It gives them as one text within the budget, with what the newest question needs, and is
    shortened rather than left out where ``Memory`` wants room. No model is called. Sessions that
    share the block never see each other. Copies and ``model_dump`` hold all that was said.

    Parameters
    ----------
    states
        What ``model_dump`` of another block has under this name.
    **fields
        The fields below, and those of `MemorySettings` and ``BaseMemoryBlock``.

    Raises
    ------
    BudgetError
        The budget is no number of tokens.
    InputError
        Another field is out of its range.
    StateError
        A state is damaged, or was made with another tokenizer.
    ValidationError
        A field is unknown.

    Examples
    --------
    >>> block = CompressedMemoryBlock(budget=512)
    >>> memory = Memory.from_defaults(token_limit=4000, memory_blocks=[block])  # doctest: +SKIP
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    name: str = "earlier_conversation"
    """The tag around the block in the prompt."""

    description: str | None = "What was said earlier in this conversation, shortened."
    """What is in the block."""

    priority: int = 1
    """0 if it is never to be shortened further."""

    budget: int = 512
    """The most tokens of the text."""

    _memories: dict[str, TextMemory] = PrivateAttr(default_factory=dict)
    _like: TextMemory = PrivateAttr()
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, *, states: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self._like = self.made(self.budget, self.recall)
        for session, state in (states or {}).items():
            from_base64(state, self._of(session))

    @model_serializer(mode="wrap")
    def _with_states(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {**data, "states": self._states(), **self.attached()}

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return partial(type(self), states=self._states(), **fields), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> CompressedMemoryBlock:
        make, _ = self.__reduce__()
        return make()  # type: ignore[no-any-return]

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        session = str(block_kwargs.get(_SESSION) or "")
        return await asyncio.to_thread(self._text, session, last_question(messages or []))

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await asyncio.to_thread(self._tell, messages)

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """Compress the text further; None if nothing of it would be left."""
        room = self._like.counter.count(content) - tokens_to_truncate if content else 0
        if room <= 0:
            return None
        return await asyncio.to_thread(self._shorter, content, room)

    def _of(self, session: str) -> TextMemory:
        with self._lock:
            return self._memories.setdefault(session, self.made(self.budget, self.recall))

    def _states(self) -> dict[str, str]:
        with self._lock:
            memories = dict(self._memories)
        return {session: to_base64(memory) for session, memory in memories.items()}

    def _tell(self, messages: Sequence[ChatMessage]) -> None:
        for message in messages:
            kwargs = dict(message.additional_kwargs)
            session = str(kwargs.pop(_SESSION, None) or "")
            said = to_openai(message.model_copy(update={"additional_kwargs": kwargs}))
            # A block gives one text, so that nothing is too large and no call waits for a result.
            role = "assistant" if said["role"] == "assistant" else "user"
            line = f"{said['role']}: {as_text(said)}"
            self._of(session).observe({"role": role, "content": line})

    def _text(self, session: str, query: str | None) -> str:
        """All that a session's memory gives, as one text within the budget."""
        lines = [m["content"] for m in self._of(session).read(query)]
        while lines and self._like.counter.count("\n".join(lines)) > self.budget:
            del lines[0]
        return "\n".join(lines)

    def _shorter(self, content: str, room: int) -> str | None:
        method = self.compressor or get_compressor(self.method)
        budget = Budget.tokens(room)
        return method.compress(content, budget=budget, counter=self._like.counter).text or None
