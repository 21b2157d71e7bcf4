"""An agent's context within a budget, whatever the model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from operator import is_
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime

from ...core.compressor import Compressor
from ...memory.following import Follower, Followers
from ...memory.text import TextMemory
from ._bounded import bounded
from ._messages import last_question, to_openai

__all__ = ["ContextCompressionMiddleware"]


class ContextCompressionMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Send the model of an agent no more tokens than the budget.

    System message, tools, the form of the response and messages count. As long as they fit, all
    is sent as it is. Then older messages are compressed once or left out, earlier ones that the
    last question needs are quoted before it, and calls of tools stay with their results. Without
    a query nothing moves, so that a provider's prompt cache goes on hitting. The checkpoint keeps
    all messages.

    Each thread has a view of its own, made of the messages of the request alone: after a fork,
    an edit or a restart it is made anew. A newest message larger than the budget is compressed
    too. Where the budget cannot be kept (a tool's result has no call, the newest call's arguments
    are too long, a compressor fails) all is sent as it is, and a warning is logged.

    Parameters
    ----------
    budget
        The most tokens that are sent, those for roles included. An image counts as 1600.
    method
        Compresses what is long: a compressor that needs no query, or the name of one.
    encoder
        Finds turns by their meaning too, as for `TextMemory`.
    counter
        Whose tokens are counted; None: cl100k_base or an estimate.
    recall
        The part of the budget that is kept for what the last question needs.
    persist
        Whether the checkpoint, too, is to hold no more than what fits. What it loses is lost.
    max_threads
        How many threads' views are kept between calls.

    Raises
    ------
    BudgetError
        The budget is no number of tokens.
    InputError
        Another parameter is out of its range.

    Examples
    --------
    >>> agent = create_agent(                                         # doctest: +SKIP
    ...     model, tools, middleware=[ContextCompressionMiddleware(4000)]
    ... )
    """

    def __init__(
        self,
        budget: int = 4000,
        *,
        method: Compressor | str = "lexical",
        encoder: Any = None,
        counter: Any = None,
        recall: float = 0.6,
        persist: bool = False,
        max_threads: int = 128,
    ) -> None:
        super().__init__()
        self.persist = persist
        like = TextMemory(budget, counter=counter, method=method, encoder=encoder, recall=recall)
        self._like = like
        self._threads = Followers(like, max_threads)

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any] | AIMessage:
        """Call the model with messages within the budget."""
        return handler(self._within(request))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """`wrap_model_call`, with the work in a thread."""
        return await handler(await asyncio.to_thread(self._within, request))

    def before_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Put what fits in place of the messages of the state, if that is to be."""
        if not self.persist:
            return None
        messages: Sequence[BaseMessage] = state["messages"]
        shown = bounded(self._follower(runtime), messages)
        if len(shown) == len(messages) and all(map(is_, shown, messages)):
            return None
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *shown]}

    async def abefore_model(
        self, state: AgentState[Any], runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """`before_model`, with the work in a thread."""
        return await asyncio.to_thread(self.before_model, state, runtime)

    def _within(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        follower, query = self._follower(request.runtime), last_question(request.messages)
        messages: Any = bounded(follower, request.messages, query, taken=self._taken(request))
        return request.override(messages=messages)

    def _taken(self, request: ModelRequest[Any]) -> int:
        """Tokens of the system message, of the tools and of the form of the response."""
        system = [request.system_message] if request.system_message else []
        tools = [t if isinstance(t, dict) else convert_to_openai_tool(t) for t in request.tools]
        if request.response_format is not None:  # whatever the strategy, it is sent like a tool
            for spec in ToolStrategy(request.response_format.schema).schema_specs:
                about = {"name": spec.name, "description": spec.description}
                tools.append({"function": {**about, "parameters": spec.json_schema}})
        written = json.dumps(tools, default=str) if tools else ""
        return self._like.count(to_openai(system)) + self._like.counter.count(written)

    def _follower(self, runtime: Runtime[Any] | None) -> Follower:
        """What follows the thread; one of no use later where there is no thread to go on with."""
        info = runtime.execution_info if runtime else None
        return self._threads.of(info.thread_id if info else None)
