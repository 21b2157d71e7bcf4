"""laconic for LangChain's own middleware, and for graphs without an agent."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from ...core import Passage, TokenCounter
from ...core.compressor import Compressor
from ...core.errors import InputError
from ...core.regions import fitted
from ...memory.following import Followers
from ...memory.text import TextMemory
from .._settings import CompressionSettings
from ._bounded import bounded
from ._messages import last_question
from .tool_output_middleware import Shortener

__all__ = ["CompressToolUsesEdit", "as_summarizer", "compress_messages_node"]

_REMEMBERED = 256
"""Shortened outputs that are kept for the next call."""

_MARK = "context_editing"
"""Where LangChain's own edits say in ``response_metadata`` what they did."""


def as_summarizer(**settings: Any) -> Callable[[Sequence[BaseMessage]], str]:
    """Make a summarizer for LangChain's ``SummarizationMiddleware`` that calls no model.

    Give the middleware ``trim_tokens_to_summarize=None`` too: by default it hands over no more
    than the last 4000 tokens.

    Parameters
    ----------
    **settings
        The fields of `CompressionSettings`. The method is given no query.

    Returns
    -------
    callable
        Gives for messages the text of what is kept of them, each with who said it, which is in
        the budget too unless that is `per_document`. It raises what `Compressor.compress` does.

    Raises
    ------
    ValidationError
        A setting is unknown or out of its range.

    Examples
    --------
    >>> from langchain_core.messages import AIMessage, HumanMessage
    >>> summarize = as_summarizer(method="lexical", target_tokens=9)
    >>> summarize([HumanMessage("My cat Tom is 9."), AIMessage("I see, thank you so much.")])
    'human: My cat Tom is 9.'
    """
    chosen = CompressionSettings(**settings)
    budget = chosen.budget

    def summarize(messages: Sequence[BaseMessage]) -> str:
        count = TokenCounter.of(chosen.counter).count
        who = [message.name or message.type for message in messages]
        passages = [Passage(_said(message)) for message in messages]

        def attempt(room: int | None) -> tuple[int, int, str]:
            to = budget if room is None else replace(budget, kind="tokens", amount=room)
            left = chosen.compress(passages, None, to)
            kept = "\n".join(f"{who[p.index]}: {p.text}" for p in left.passages if p.text.strip())
            return left.tokens_after, count(kept), kept

        if budget.per_passage:
            return attempt(None)[2]
        whole = "\n".join(f"{name}: {p.text}" for name, p in zip(who, passages, strict=True))
        limit = budget.limit(count(whole))
        return fitted(attempt, limit=limit, base=0, room=limit, most=limit)

    return summarize


def _said(message: BaseMessage) -> str:
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    written = [f"{c['name']}({json.dumps(c['args'], default=str)})" for c in calls]
    return "\n".join(filter(None, [str(message.text), *written]))


class CompressToolUsesEdit:
    """Shorten older tool outputs in LangChain's ``ContextEditingMiddleware``.

    It takes the place of ``ClearToolUsesEdit``, which leaves nothing of an output. What it
    leaves depends on the output and on the question before it, so that it stays the same from
    call to call. A message that was edited says so in ``response_metadata["context_editing"]``
    and is not edited again.

    Parameters
    ----------
    trigger
        Tokens above which outputs are shortened, as the middleware counts them.
    keep
        How many of the newest outputs stay as they are.
    exclude_tools
        Names of tools whose outputs stay as they are.
    **settings
        The fields of `CompressionSettings`.

    Raises
    ------
    InputError
        `trigger` or `keep` is no number, or `exclude_tools` is one name.
    ValidationError
        A setting is unknown or out of its range.

    Examples
    --------
    >>> edits = [CompressToolUsesEdit(trigger=20_000, keep=3, target_tokens=200)]
    """

    def __init__(
        self,
        trigger: int = 100_000,
        keep: int = 3,
        exclude_tools: Collection[str] = (),
        **settings: Any,
    ) -> None:
        for name, number in (("trigger", trigger), ("keep", keep)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise InputError(f"{name} is a number, at least 0, got {number!r}")
        self.trigger, self.keep = trigger, keep
        self._shortener = Shortener(CompressionSettings(**settings), exclude_tools)
        # The middleware edits a new copy of all messages before each call of the model.
        self._done: OrderedDict[bytes, tuple[Any, dict[str, Any]]] = OrderedDict()

    def apply(
        self, messages: list[AnyMessage], *, count_tokens: Callable[[Sequence[BaseMessage]], int]
    ) -> None:
        """Put shortened outputs in the places of the old ones."""
        if count_tokens(messages) <= self.trigger:
            return
        outputs = [i for i, message in enumerate(messages) if isinstance(message, ToolMessage)]
        for place in outputs[: max(0, len(outputs) - self.keep)]:
            message = messages[place]
            assert isinstance(message, ToolMessage)
            if _MARK not in message.response_metadata:
                messages[place] = self._edited(message, messages[:place])

    def _edited(self, message: ToolMessage, before: Sequence[BaseMessage]) -> ToolMessage:
        if self._shortener.spares(message, _called(message, before)):
            return message
        content, facts = self._shortened(message, last_question(before))
        if not facts:
            return message
        edit = {"compressed": True, "strategy": "compress_tool_uses", **facts}
        metadata = {**message.response_metadata, _MARK: edit}
        return message.model_copy(update={"content": content, "response_metadata": metadata})

    def _shortened(self, message: ToolMessage, query: str | None) -> tuple[Any, dict[str, Any]]:
        said = json.dumps([message.content, query], default=repr)
        key = blake2b(said.encode("utf-8", "backslashreplace"), digest_size=16).digest()
        done = self._done.pop(key, None) or self._shortener.shortened(message, query)
        self._done[key] = done
        while len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        return done


def _called(message: ToolMessage, before: Sequence[BaseMessage]) -> str | None:
    """The name of the tool that a message is the output of."""
    for earlier in reversed(before):
        for call in earlier.tool_calls if isinstance(earlier, AIMessage) else ():
            if call["id"] == message.tool_call_id:
                return call["name"]
    return None


def compress_messages_node(
    budget: int = 4000,
    *,
    method: Compressor | str = "lexical",
    encoder: Any = None,
    counter: Any = None,
    recall: float = 0.6,
    input_key: str = "messages",
    output_key: str = "llm_input_messages",
    max_threads: int = 128,
) -> Runnable[Any, dict[str, list[BaseMessage]]]:
    """Make a node of a graph that writes messages within the budget to a key of their own.

    The messages of the conversation stay as they are: let the next node send the model those
    under `output_key`, a key of the state without a reducer. What cannot be brought into the
    budget is given as it is, and a warning is logged.

    Parameters
    ----------
    input_key, output_key
        Where the state has all messages, and where those to send are written.

    The other parameters are those of `ContextCompressionMiddleware`.

    Returns
    -------
    Runnable
        Takes the state, a dict or an object; raises `InputError` for one without messages.

    Raises
    ------
    BudgetError
        The budget is no number of tokens.
    InputError
        Another parameter is out of its range.

    Examples
    --------
    >>> graph.add_node("compress", compress_messages_node(4000))          # doctest: +SKIP
    """
    like = TextMemory(budget, counter=counter, method=method, encoder=encoder, recall=recall)
    threads = Followers(like, max_threads)

    def compress(state: Any, config: RunnableConfig) -> dict[str, list[BaseMessage]]:
        is_dict = isinstance(state, Mapping)
        messages = state.get(input_key) if is_dict else getattr(state, input_key, None)
        if not isinstance(messages, list):
            raise InputError(f"the state has no list of messages under {input_key!r}")
        thread = config.get("configurable", {}).get("thread_id")
        follower = threads.of(None if thread is None else str(thread))
        return {output_key: bounded(follower, messages, last_question(messages))}

    async def acompress(state: Any, config: RunnableConfig) -> dict[str, list[BaseMessage]]:
        return await asyncio.to_thread(compress, state, config)

    return RunnableLambda(compress, acompress, name="compress_messages")
