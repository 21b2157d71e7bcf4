"""Memory for LlamaIndex's agents and chat engines that never takes more than its budget."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM
from llama_index.core.memory.types import BaseMemory
from pydantic import (
    ConfigDict,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from ...core.errors import BudgetError, InputError, StateError
from ...memory.base import Memory
from ...memory.text import TextMemory
from ...memory.turns import Message, waiting
from ._memory_settings import MemorySettings
from ._messages import from_openai, last_question, to_openai, was_said, whole

__all__ = ["CompressedMemory", "from_base64", "said", "tell", "to_base64"]

_WINDOW = 0.75
"""The part of a model's window that its memory takes where no budget is given."""


class CompressedMemory(MemorySettings, BaseMemory):
    """A conversation of any length for an agent or a chat engine, within a budget.

    It takes the place of ``ChatMemoryBuffer`` and ``ChatSummaryMemoryBuffer``, calls no model,
    and quotes earlier turns that the newest question needs. Messages that are not shortened
    come back as they were put. Tool calls and their results come together or not at all; where
    an agent leaves one of them out, it is added, so that every API takes what `get` gives.

    ``to_dict`` holds all that was said, so that a ``Context`` with this memory can go on in
    another process. An agent that is run again with its context goes on with a copy, too:
    ``await ctx.store.get("memory")``. Threads and tasks may share a memory.

    Parameters
    ----------
    state
        What ``to_dict`` of another memory has under this name.
    **fields
        The fields below, and those of `MemorySettings`.

    Raises
    ------
    BudgetError
        The budget is no number of tokens.
    InputError
        Another field is out of its range.
    StateError
        The state is damaged, or was made with another tokenizer.
    ValidationError
        A field is unknown.

    Examples
    --------
    >>> from llama_index.core.llms import ChatMessage
    >>> memory = CompressedMemory(budget=160)
    >>> memory.put(ChatMessage(role="user", content="My cat is called Tom."))
    >>> for day in range(40):
    ...     memory.put(ChatMessage(role="user", content=f"Day {day} was rainy and cold."))
    >>> any("Tom" in m.content for m in memory.get(input="How is the cat called?"))
    True
    >>> len(memory.get()) < len(memory.get_all()) == 41
    True
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    budget: int = 2048
    """The most tokens that `get` gives, those for roles included. An image counts as 1600."""

    _memory: TextMemory = PrivateAttr()
    _originals: dict[str, ChatMessage] = PrivateAttr(default_factory=dict)
    _lock: Any = PrivateAttr(default_factory=threading.RLock)

    def __init__(self, *, state: str | None = None, **fields: Any) -> None:
        fields.pop("class_name", None)
        super().__init__(**fields)
        self._memory = self.made(self.budget, self.recall)
        if state is not None:
            from_base64(state, self._memory)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized form."""
        return "CompressedMemory"

    @classmethod
    def from_defaults(
        cls,
        chat_history: Sequence[ChatMessage] | None = None,
        llm: LLM | None = None,
        token_limit: int | None = None,
        **fields: Any,
    ) -> CompressedMemory:
        """Make a memory.

        Parameters
        ----------
        chat_history
            What was said before.
        llm
            Whose window gives the budget, three quarters of it, where none is given.
        token_limit
            Another name of the budget.
        **fields
            Those of the class.

        Raises
        ------
        InputError
            Both a `token_limit` and a `budget` are given.
        """
        if token_limit is not None and "budget" in fields:
            raise InputError("give a budget or a token_limit, not both: they are the same")
        if token_limit is None and llm is not None:
            token_limit = max(1, int(_WINDOW * llm.metadata.context_window))
        if token_limit is not None:
            fields.setdefault("budget", token_limit)
        memory = cls(**fields)
        memory.put_messages(list(chat_history or ()))
        return memory

    @property
    def tokenizer_fn(self) -> Any:
        """What chat engines count their prompt with: a text to something of so many items."""
        count = self._memory.counter.count
        return lambda text: range(count(text))

    def count(self, messages: Sequence[ChatMessage]) -> int:
        """Tokens of messages as the budget counts them."""
        return self._memory.count([to_openai(message) for message in messages])

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:  # noqa: A002
        """Give messages within the budget, in the order in which they came.

        Parameters
        ----------
        input
            What they are wanted for; None for the last message of the user. Earlier turns that
            it needs are quoted in one more message.
        **kwargs
            Of these ``initial_token_count`` is heeded: tokens of the budget to leave free.

        Raises
        ------
        BudgetError
            The newest turn and the messages of the system do not fit in what is left.
        """
        taken = kwargs.get("initial_token_count", 0)
        if isinstance(taken, bool) or not isinstance(taken, int) or taken < 0:
            raise InputError(f"initial_token_count is a number of tokens, got {taken!r}")
        with self._lock:
            shown = self._memory.read()
            query = input or last_question([self._restored(message) for message in shown])
            if taken:
                shown = self._within(self.budget - taken, query)
            elif query:
                shown = self._memory.read(query)
            return [self._restored(message) for message in shown]

    def get_all(self) -> list[ChatMessage]:
        """Give all that was put, as it was."""
        with self._lock:
            return [self._restored(message) for message in said(self._memory)]

    def put(self, message: ChatMessage) -> None:
        """Remember a message; see `put_messages`."""
        self.put_messages([message])

    def put_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Remember messages, all or none of them.

        Raises
        ------
        BudgetError
            The newest turn does not fit, however compressed.
        """
        with self._lock:
            self._tell(self._memory, messages)

    def set(self, messages: Sequence[ChatMessage]) -> None:
        """Remember these messages and nothing else.

        Raises
        ------
        BudgetError
            As `put_messages` does; the memory stays as it was.
        """
        with self._lock:
            memory = self.made(self.budget, self.recall)
            self._tell(memory, messages)
            self._memory.close()
            self._memory = memory

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._memory.clear()
            self._originals = {}

    @model_serializer(mode="wrap")
    def custom_model_dump(
        self,
        handler: SerializerFunctionWrapHandler,
        info: SerializationInfo,  # noqa: ARG002
    ) -> dict[str, Any]:
        """The fields, and all that was said."""
        data: dict[str, Any] = handler(self)
        state = to_base64(self._memory)
        return {**data, "class_name": self.class_name(), "state": state, **self.attached()}

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return partial(type(self), state=to_base64(self._memory), **fields), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> CompressedMemory:
        make, _ = self.__reduce__()
        return make()  # type: ignore[no-any-return]

    def _tell(self, memory: TextMemory, messages: Sequence[ChatMessage]) -> None:
        # What is given back may be changed, and what was given too.
        originals = [message.model_copy(deep=True) for message in messages]
        written = [to_openai(message) for message in originals]
        tell(memory, written)
        self._originals |= dict(zip(map(_key, written), originals, strict=True))
        shown = memory.read()
        if len(self._originals) > 2 * len(shown) + 16:
            keys = {_key(message) for message in shown}
            self._originals = {k: m for k, m in self._originals.items() if k in keys}

    def _within(self, free: int, query: str | None) -> list[Message]:
        """What is read if only so many tokens are free."""
        if self._memory.n_tokens <= free:
            return self._memory.read(query, room=free)
        try:
            smaller = self.made(free, recall=0.0)
            smaller.observe(self._memory.read())
            return smaller.read()
        except BudgetError as error:
            raise BudgetError(
                f"initial_token_count leaves {free} tokens of the budget of {self.budget}, which "
                f"is too few: {error}"
            ) from error

    def _restored(self, message: Message) -> ChatMessage:
        original = self._originals.get(_key(message))
        return from_openai(message) if original is None else original.model_copy(deep=True)


def tell(memory: TextMemory, messages: Sequence[Message]) -> None:
    """Let a memory observe messages, after what is missing of tool calls was added."""
    open_calls = [call for unit in memory.said(memory.turns) for call in waiting(unit)]
    told = [m for m in messages if m["content"] or m.get("tool_calls") or m["role"] == "tool"]
    memory.observe(list(whole(told, open_calls)))


def said(memory: TextMemory) -> list[Message]:
    """All messages that a memory was told by `tell`."""
    return [message for unit in memory.said() for message in unit if was_said(message)]


def _key(message: Message) -> str:
    return json.dumps(message, sort_keys=True)


def to_base64(memory: Memory) -> str:
    """What a memory would write to a file, as a text."""
    return base64.b64encode(zlib.compress(memory.to_bytes())).decode()


def from_base64(state: str, memory: Memory) -> None:
    """Let a memory load what another one wrote.

    Raises
    ------
    StateError
        It is damaged, or of another memory.
    """
    try:
        content = zlib.decompress(base64.b64decode(state, validate=True))
    except (TypeError, binascii.Error, zlib.error) as error:
        raise StateError(f"the state of the memory is damaged: {error}") from error
    memory.load_bytes(content)
