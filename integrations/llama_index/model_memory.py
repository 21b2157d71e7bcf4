"""Memories for `LaconicLLM`: what was said is in a state of the model, of fixed size."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory.types import BaseMemory
from pydantic import (
    ConfigDict,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from ...core.errors import InputError, StateError
from ...memory.base import ModelMemory
from ...memory.exchanges import exchanges, plain
from ._messages import from_openai, to_openai
from .llm import STATE, LaconicLLM, spoken
from .memory import from_base64, to_base64

__all__ = ["CCMMemory", "InfiniPotMemory", "StateMemory"]


_ATTACHED: WeakValueDictionary[str, LaconicLLM] = WeakValueDictionary()
"""The LLMs of memories in this process. LlamaIndex writes a context's memory to a dict and back
at every run, and a dict holds no model."""


def _named(llm: LaconicLLM) -> str:
    """A name of an LLM that no other has, in any process."""
    name = next((name for name, one in _ATTACHED.items() if one is llm), uuid.uuid4().hex)
    _ATTACHED[name] = llm
    return name


class StateMemory(BaseMemory):
    """A conversation of any length in a state of a `LaconicLLM`.

    `get` gives a message that stands for the state, which only the memory's own LLM
    understands, and behind it the messages that no answer has followed. An answer that is put
    is read with all that came before it. What was read is in the state and nowhere else.

    ``to_dict`` holds the state, but not the model. In the same process the model is found again,
    so a ``Context`` goes on from run to run; in another one ``from_dict(data, llm=llm)`` does, or
    `attach` and passing the memory to ``run``. Until then it takes messages, but gives none.

    Parameters
    ----------
    llm
        The LLM; None to attach it later.
    state, unread, attached
        What ``to_dict`` of another memory has under these names.

    Raises
    ------
    InputError
        The LLM has another kind of memory.
    StateError
        The state is damaged, or of another model, adapter or budget.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    _is_ccm: ClassVar[bool]

    _llm: LaconicLLM | None = PrivateAttr(default=None)
    _memory: ModelMemory[Any] | None = PrivateAttr(default=None)
    _key: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _state: str | None = PrivateAttr(default=None)
    _unread: list[ChatMessage] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.RLock)

    def __init__(
        self,
        llm: LaconicLLM | None = None,
        *,
        state: str | None = None,
        unread: Sequence[Mapping[str, Any]] = (),
        attached: str | None = None,
        **fields: Any,
    ) -> None:
        fields.pop("class_name", None)
        super().__init__(**fields)
        self._state = state
        self._unread = [from_openai(message) for message in unread]
        llm = _ATTACHED.get(attached or "") if llm is None else llm
        if llm is not None:
            self.attach(llm)

    @classmethod
    def from_defaults(
        cls,
        chat_history: Sequence[ChatMessage] | None = None,
        llm: LaconicLLM | None = None,
        **fields: Any,
    ) -> StateMemory:
        """Make a memory that has read messages."""
        memory = cls(llm, **fields)
        memory.put_messages(list(chat_history or ()))
        return memory

    def attach(self, llm: LaconicLLM) -> None:
        """Go on with a model.

        Raises
        ------
        InputError
            The LLM is no `LaconicLLM`, or has another kind of memory.
        StateError
            The state is damaged, or of another model or budget. The memory stays as it was.
        """
        if not isinstance(llm, LaconicLLM) or (llm.memory == "ccm") != self._is_ccm:
            wanted = "'ccm'" if self._is_ccm else "a policy such as 'infinipot'"
            raise InputError(
                f"{type(self).__name__} goes with a LaconicLLM that has the memory {wanted}, got "
                f"{getattr(llm, 'memory', type(llm).__name__)!r}"
            )
        with self._lock:
            memory, state = llm.new_memory(), self._written()
            if state is not None:
                from_base64(state, memory)
            self._llm, self._memory, self._key = llm, memory, uuid.uuid4().hex

    @property
    def nbytes(self) -> int:
        """Bytes of the state; 0 without an LLM."""
        return 0 if self._memory is None else self._memory.nbytes

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:  # noqa: A002
        """Give a message that stands for the state, and those that no answer has followed.

        Raises
        ------
        StateError
            There is no LLM.
        """
        del input, kwargs  # a state has one size, and is the same for all questions
        with self._lock:
            if self._llm is None:
                raise StateError(f"{type(self).__name__} has no model; attach(llm) first")
            self._read()
            assert self._memory is not None
            unread = [message.model_copy(deep=True) for message in self._unread]
            if not self._memory.seen:
                return unread
            self._llm.hold(self._memory, self._key)
            # Of this role no chat engine and no agent expects anything.
            stands_for = ChatMessage(
                role=MessageRole.ASSISTANT, content="", additional_kwargs={STATE: self._key}
            )
            return [stands_for, *unread]

    def get_all(self) -> list[ChatMessage]:
        """Give what `get` does: messages that were read are in the state only."""
        return self.get()

    def put(self, message: ChatMessage) -> None:
        """Remember a message; see `put_messages`."""
        self.put_messages([message])

    def put_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Remember messages, and read them up to the last of the assistant; all or none.

        Raises
        ------
        InputError
            A message holds more than text, or is none that the chat template can write.
        """
        with self._lock:
            before = self._unread
            new = [m.model_copy(deep=True) for m in messages if STATE not in m.additional_kwargs]
            self._unread = [*before, *new]
            try:
                plain([spoken(message) for message in new])
                self._read()
            except BaseException:
                self._unread = before
                raise

    def set(self, messages: Sequence[ChatMessage]) -> None:
        """Remember these messages and nothing else."""
        with self._lock:
            if any(STATE in message.additional_kwargs for message in messages):
                raise InputError(
                    "a message that stands for a state cannot be set; put() what is new"
                )
            before = self._memory, self._key, self._state, self._unread
            self.reset()
            try:
                self.put_messages(messages)
            except BaseException:
                self._memory, self._key, self._state, self._unread = before
                raise

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._memory = self._llm.new_memory() if self._llm else None
            self._state, self._unread, self._key = None, [], uuid.uuid4().hex

    def _read(self) -> None:
        """Read what answers have followed."""
        if self._memory is None:
            return
        answered, begun = exchanges(plain([spoken(message) for message in self._unread]))
        if answered:
            memory = self._memory.fork()
            for exchange in answered:
                memory.observe(list(exchange))
            self._memory, self._key, self._state = memory, uuid.uuid4().hex, None
            self._unread = self._unread[len(self._unread) - len(begun) :]

    def _written(self) -> str | None:
        """The state as a text, which is kept: a context is stored more often than it changes."""
        if self._state is None and self._memory is not None:
            self._state = to_base64(self._memory)
        return self._state

    @model_serializer(mode="wrap")
    def custom_model_dump(
        self,
        handler: SerializerFunctionWrapHandler,
        info: SerializationInfo,  # noqa: ARG002
    ) -> dict[str, Any]:
        """The state, and the messages that no answer has followed."""
        data: dict[str, Any] = handler(self)
        return {**data, "class_name": self.class_name(), **self._parts()}

    def _parts(self) -> dict[str, Any]:
        with self._lock:
            unread = [to_openai(message) for message in self._unread]
            attached = None if self._llm is None else _named(self._llm)
            return {"state": self._written(), "unread": unread, "attached": attached}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._parts()), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> StateMemory:
        return type(self)(self._llm, **self._parts())


class InfiniPotMemory(StateMemory):
    """A conversation of any length in the bounded KV cache of a `LaconicLLM`.

    Parameters
    ----------
    llm
        The LLM, with a policy of a `KVMemory` as its memory; None to attach it later.
    **fields
        As `StateMemory` takes them.

    Examples
    --------
    >>> memory = InfiniPotMemory(llm)                                        # doctest: +SKIP
    >>> engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)      # doctest: +SKIP
    """

    _is_ccm = False

    def __init__(self, llm: LaconicLLM | None = None, **fields: Any) -> None:
        super().__init__(llm, **fields)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized form."""
        return "InfiniPotMemory"


class CCMMemory(StateMemory):
    """A conversation of any length in what a trained adapter leaves of it.

    Parameters
    ----------
    llm
        The LLM, with ``"ccm"`` as its memory; None to attach it later.
    **fields
        As `StateMemory` takes them.

    Examples
    --------
    >>> llm = LaconicLLM(model, tokenizer, memory="ccm", adapter="folder")   # doctest: +SKIP
    >>> memory = CCMMemory(llm)                                              # doctest: +SKIP
    """

    _is_ccm = True

    def __init__(self, llm: LaconicLLM | None = None, **fields: Any) -> None:
        super().__init__(llm, **fields)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized form."""
        return "CCMMemory"
