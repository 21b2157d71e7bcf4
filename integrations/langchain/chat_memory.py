"""Memory for LangChain's chains of old, which never takes more than its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from langchain_classic.memory.chat_memory import BaseChatMemory
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, get_buffer_string
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from ...core.errors import InputError
from ...memory.text import TextMemory
from .chat_history import ArchivedChatMessageHistory, CompressedChatMessageHistory

__all__ = ["CompressedChatMemory"]

_BOUNDED = (ArchivedChatMessageHistory, CompressedChatMessageHistory)


class CompressedChatMemory(BaseChatMemory):
    """A conversation of any length for a chain, in no more tokens than the budget.

    It takes the place of ``ConversationSummaryBufferMemory`` and its kin, calls no model, and
    quotes earlier turns that the new input needs. What was said is kept in an archive, not in
    RAM: a private one, or a file that the next process goes on with. LangChain removes its
    memories in 2.0; agents take `ContextCompressionMiddleware`.

    Parameters
    ----------
    **fields
        The fields below, and those of ``BaseChatMemory``. For one of them, `chat_memory`, any
        history may be given: it then keeps the messages as they were said. One that is bounded
        already comes with a budget and settings of its own.

    Raises
    ------
    ValidationError
        A field is unknown or out of its range, or the archive is damaged, in use, or was written
        with another tokenizer.

    Examples
    --------
    >>> memory = CompressedChatMemory(budget=120)
    >>> memory.save_context({"input": "My cat is called Tom."}, {"output": "Noted."})
    >>> for day in range(40):
    ...     memory.save_context({"input": f"Day {day} was rainy."}, {"output": "What a pity."})
    >>> "Tom" in memory.load_memory_variables({"input": "How is the cat called?"})["history"]
    True
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    chat_memory: BaseChatMessageHistory = Field(
        default=cast("BaseChatMessageHistory", None), exclude=True, repr=False
    )
    """The history that is written to: as long as none is given, one over the archive."""

    budget: int = Field(default=2000, validation_alias=AliasChoices("budget", "max_token_limit"))
    """The most tokens that are given, prefixes of up to 3 tokens included."""

    method: Any = "lexical"
    """Compresses what is long: a compressor that needs no query, or the name of one."""

    encoder: Any = Field(default=None, exclude=True, repr=False)
    """Finds turns by their meaning too, as for `TextMemory`."""

    counter: Any = None
    """Whose tokens are counted; None: cl100k_base or an estimate."""

    recall: float = 0.6
    """The part of the budget that is kept for what the input needs."""

    archive: Path | None = None
    """A file for all that was said; None for a private archive."""

    memory_key: str = "history"
    """The name under which a prompt finds the conversation."""

    human_prefix: str = "Human"
    """Who the user is in a text."""

    ai_prefix: str = "AI"
    """Who the model is in a text."""

    @model_validator(mode="after")
    def _with_history(self) -> CompressedChatMemory:
        settings = self._settings()
        given = cast("BaseChatMessageHistory | None", self.chat_memory)
        if given is None:
            memory = TextMemory(self.budget, archive=self.archive, **settings)
            self.chat_memory = ArchivedChatMessageHistory(memory)
        elif self.archive is not None:
            raise InputError("give an archive or a chat_memory, not both: each keeps all messages")
        elif isinstance(given, _BOUNDED):
            if own := self.model_fields_set & {"budget", *settings}:
                raise InputError(
                    f"the chat_memory has a budget and settings of its own; leave {min(own)} out"
                )
        else:
            self.chat_memory = given
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "chat_memory" and not isinstance(value, _BOUNDED):
            value = CompressedChatMessageHistory(value, self.budget, **self._settings())
        super().__setattr__(name, value)

    def _settings(self) -> dict[str, Any]:
        """Those of a memory, but for its budget."""
        return {name: getattr(self, name) for name in ("method", "encoder", "counter", "recall")}

    @property
    def memory_variables(self) -> list[str]:
        """The name under which a prompt finds the conversation."""
        return [self.memory_key]

    @property
    def buffer(self) -> str | list[BaseMessage]:
        """The conversation without what a query would need, as `return_messages` says."""
        return self._shown(self.buffer_as_messages)

    @property
    def buffer_as_str(self) -> str:
        """The conversation as a text."""
        return self._text(self.buffer_as_messages)

    @property
    def buffer_as_messages(self) -> list[BaseMessage]:
        """The conversation as messages."""
        return self.chat_memory.messages

    def load_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Give the conversation, with what the input needs of earlier turns."""
        return {self.memory_key: self._shown(self._history.read(self._query(inputs)))}

    async def aload_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`load_memory_variables`, waiting for the history."""
        return {self.memory_key: self._shown(await self._history.aread(self._query(inputs)))}

    @property
    def _history(self) -> ArchivedChatMessageHistory | CompressedChatMessageHistory:
        assert isinstance(self.chat_memory, _BOUNDED)
        return self.chat_memory

    def _query(self, inputs: dict[str, Any]) -> str | None:
        """The text of the input; None if it is not clear which of several it is."""
        own = {*self.memory_variables, "stop"}
        keys = [self.input_key] if self.input_key else [key for key in inputs if key not in own]
        text = inputs.get(keys[0]) if len(keys) == 1 else None
        return text if isinstance(text, str) and self.recall else None

    def _shown(self, messages: list[BaseMessage]) -> str | list[BaseMessage]:
        return messages if self.return_messages else self._text(messages)

    def _text(self, messages: list[BaseMessage]) -> str:
        return get_buffer_string(messages, self.human_prefix, self.ai_prefix)
