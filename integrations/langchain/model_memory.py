"""Memory for chains with a local model: what was said stays in the model's own bounded memory."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_classic.memory.chat_memory import BaseChatMemory
from langchain_core.messages import BaseMessage
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from ...core.errors import InputError
from .chat_model import ChatLaconic, handle

if TYPE_CHECKING:
    from ...memory.base import ModelMemory

__all__ = ["CCMChatMemory", "InfiniPotChatMemory"]


class InfiniPotChatMemory(BaseChatMemory):
    """A conversation of any length for a chain, in the KV cache of its local model.

    What the model has in mind cannot travel in a list of messages. The prompt is given one
    message that stands for it, and `llm`, which must be the model of the chain, goes on from
    there. The prompt must take messages: a ``MessagesPlaceholder``, behind the system prompt.

    Parameters
    ----------
    **fields
        The fields below, and those of ``BaseChatMemory``.

    Raises
    ------
    ValidationError
        A field is unknown or of a wrong type, `return_messages` is false, or `llm` has another
        kind of memory.

    Examples
    --------
    >>> llm = ChatLaconic(model="Qwen/Qwen3-0.6B")                # doctest: +SKIP
    >>> memory = InfiniPotChatMemory(llm=llm)                     # doctest: +SKIP
    >>> chain = ConversationChain(llm=llm, memory=memory, prompt=prompt)  # doctest: +SKIP
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    llm: ChatLaconic = Field(exclude=True, repr=False)
    """The model that reads and answers."""

    memory_key: str = "history"
    """The name under which a prompt finds the conversation."""

    return_messages: bool = True
    """Must be true: a text cannot stand for what a model has in mind."""

    _memory: Any = PrivateAttr(default=None)
    _key: str | None = PrivateAttr(default=None)
    _begun: bool = PrivateAttr(default=False)
    _lock: Any = PrivateAttr(default_factory=threading.RLock)

    @model_validator(mode="after")
    def _check(self) -> InfiniPotChatMemory:
        if not self.return_messages:
            raise InputError(
                "return_messages is true here: a text cannot stand for what a model has in mind; "
                "use a prompt with a MessagesPlaceholder"
            )
        self._check_kind()
        return self

    def _check_kind(self) -> None:
        if self.llm.memory == "ccm":
            raise InputError("the llm has memory='ccm'; take CCMChatMemory")

    @property
    def memory_variables(self) -> list[str]:
        """The name under which a prompt finds the conversation."""
        return [self.memory_key]

    @property
    def n_tokens(self) -> int:
        """Entries that each layer holds."""
        return self._committed().n_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return self._committed().nbytes

    def load_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Give the message that stands for the conversation."""
        del inputs
        with self._lock:
            if self._key is None or self._key not in self.llm.chat:
                self._key = self.llm.chat.hold(self._committed())
            message: BaseMessage = handle(self._key, self._begun)
        return {self.memory_key: [message]}

    async def aload_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`load_memory_variables`, in a thread: the model may have to be loaded."""
        return await asyncio.to_thread(self.load_memory_variables, inputs)

    def save_context(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Remember a turn: as the model has read it, if the llm has just answered so, else read it.

        Raises
        ------
        InputError
            The chat template cannot write it.
        ValueError
            It is not clear which of several keys is meant.
        """
        asked, said = self._get_input_output(inputs, outputs)
        answer = {"role": "assistant", "content": said}
        with self._lock:
            chat = self.llm.chat
            replied = self._key and chat.replied(self._key, asked, answer)
            if replied:
                memory = chat.get(replied)
            else:
                memory = self._committed().fork()
                memory.observe([{"role": "user", "content": asked}, answer])
            self._memory, self._key = memory, None
            self._begun = self._begun or bool(replied)

    async def asave_context(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """`save_context`, in a thread."""
        await asyncio.to_thread(self.save_context, inputs, outputs)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._memory = self._key = None
            self._begun = False

    async def aclear(self) -> None:
        """`clear`, as a coroutine."""
        self.clear()

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        with self._lock:
            self._committed().save(path)

    def load(self, path: str | Path) -> None:
        """Take the conversation from a file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StateError
            The file is damaged, or of another model, tokenizer or memory. The conversation stays
            as it was.
        """
        memory = self.llm.new_memory()
        memory.load(path)
        with self._lock:
            self._memory, self._key, self._begun = memory, None, memory.seen > 0

    def _committed(self) -> ModelMemory[Any]:
        """The memory of all turns so far; it is never changed, only replaced."""
        with self._lock:
            if self._memory is None:
                self._memory = self.llm.new_memory()
            memory: ModelMemory[Any] = self._memory
            return memory


class CCMChatMemory(InfiniPotChatMemory):
    """A conversation of any length for a chain, in the entries of a compressed context memory.

    It is used as `InfiniPotChatMemory` is, with an `llm` whose memory is ``"ccm"``.

    Parameters
    ----------
    **fields
        The fields of `InfiniPotChatMemory`.
    """

    def _check_kind(self) -> None:
        if self.llm.memory != "ccm":
            raise InputError(f"the llm has memory={self.llm.memory!r}; set memory='ccm'")
