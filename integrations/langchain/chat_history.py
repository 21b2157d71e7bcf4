"""A chat history of any kind, read within a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage

from ...core.compressor import Compressor
from ...core.errors import InputError
from ...memory.following import Follower
from ...memory.text import TextMemory
from ._bounded import bounded
from ._messages import from_openai, to_openai

__all__ = ["ArchivedChatMessageHistory", "CompressedChatMessageHistory"]


class CompressedChatMessageHistory(BaseChatMessageHistory):
    """What another history holds, never in more tokens than the budget.

    All messages stay in the other history as they were said, in RAM, Redis or SQL. What `messages`
    gives depends on them alone, so it stays the same until some are added, by whomever. What
    cannot be brought into the budget is given as it is, and a warning is logged.

    Keep one for each session: a new one reads all messages again.

    Parameters
    ----------
    history
        The other history.
    budget
        The most tokens that are given, those for roles included. An image counts as 1600.
    method
        Compresses what is long: a compressor that needs no query, or the name of one.
    encoder
        Finds turns by their meaning too, as for `TextMemory`.
    counter
        Whose tokens are counted; None: cl100k_base or an estimate.
    recall
        The part of the budget that is kept for what a query of `read` needs.

    Raises
    ------
    BudgetError
        The budget is no number of tokens.
    InputError
        `history` is no chat history, or another parameter is out of its range.

    Examples
    --------
    >>> from langchain_core.chat_history import InMemoryChatMessageHistory
    >>> history = CompressedChatMessageHistory(InMemoryChatMessageHistory(), budget=60)
    >>> for day in range(40):
    ...     history.add_user_message(f"On day {day} it rained and the streets were wet.")
    >>> len(history.messages) < len(history.history.messages) == 40
    True
    """

    def __init__(
        self,
        history: BaseChatMessageHistory,
        budget: int = 2000,
        *,
        method: Compressor | str = "lexical",
        encoder: Any = None,
        counter: Any = None,
        recall: float = 0.0,
    ) -> None:
        if not isinstance(history, BaseChatMessageHistory):
            raise InputError(
                f"history is {type(history).__name__}, expected a BaseChatMessageHistory, for "
                f"example InMemoryChatMessageHistory()"
            )
        self.history = history
        self._follower = Follower(
            TextMemory(budget, counter=counter, method=method, encoder=encoder, recall=recall)
        )

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """The messages within the budget, in a new list."""
        return self.read()

    def read(self, query: str | None = None) -> list[BaseMessage]:
        """Give the messages within the budget, with a quotation of those that a query needs."""
        return bounded(self._follower, self.history.messages, query)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages to the other history."""
        self.history.add_messages(messages)

    def clear(self) -> None:
        """Remove all messages from the other history."""
        self.history.clear()

    async def aread(self, query: str | None = None) -> list[BaseMessage]:
        """`read` with the other history's own way to wait, and in a thread."""
        messages = await self.history.aget_messages()
        return await asyncio.to_thread(bounded, self._follower, messages, query)

    async def aget_messages(self) -> list[BaseMessage]:
        """`messages`, as `aread` gives them."""
        return await self.aread()

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """`add_messages` with the other history's own way to wait."""
        await self.history.aadd_messages(messages)

    async def aclear(self) -> None:
        """`clear` with the other history's own way to wait."""
        await self.history.aclear()


class ArchivedChatMessageHistory(BaseChatMessageHistory):
    """A text memory as a chat history, which holds in RAM no more than its budget.

    A message is kept as a model is sent it: without its id, artifact or metadata.

    Parameters
    ----------
    memory
        The memory; it may know something already.
    """

    def __init__(self, memory: TextMemory) -> None:
        self.memory = memory

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """The messages within the budget, in a new list."""
        return self.read()

    def read(self, query: str | None = None) -> list[BaseMessage]:
        """Give the messages within the budget, with a quotation of those that a query needs."""
        return from_openai(self.memory.read(query))

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Remember messages.

        Raises
        ------
        BudgetError
            The last one does not fit in the budget, however compressed.
        InputError
            A message is none that a model can be sent, or a tool's result has no call.
        """
        self.memory.observe(to_openai(messages))

    def clear(self) -> None:
        """Forget everything."""
        self.memory.clear()

    async def aread(self, query: str | None = None) -> list[BaseMessage]:
        """`read` in a thread."""
        return await asyncio.to_thread(self.read, query)

    def __deepcopy__(self, memo: dict[int, Any]) -> ArchivedChatMessageHistory:
        return ArchivedChatMessageHistory(self.memory.fork())
