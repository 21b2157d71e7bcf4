"""What tools give back to an agent, shortened as soon as it comes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.types import Command

from ...core import Budget, Compressor, Passage, get_compressor
from ...core.budget import TokenCounter
from ...core.errors import BudgetError, InputError, LaconicError
from ...core.json_text import compress_json
from .._settings import CompressionSettings
from ._messages import last_question

__all__ = ["Shortener", "ToolOutputCompressionMiddleware"]

logger = logging.getLogger(__name__)

_STEPS = 4
"""Larger and larger budgets that are tried for JSON whose structure takes more than the first."""


class Shortener:
    """Shortens the texts of tool messages.

    Parameters
    ----------
    settings
        How.
    exclude_tools
        Names of tools whose output stays as it is.
    """

    def __init__(self, settings: CompressionSettings, exclude_tools: Collection[str]) -> None:
        if isinstance(exclude_tools, str):
            raise InputError(f"exclude_tools is a list of names, got {exclude_tools!r}")
        self.settings = settings
        self.counter = TokenCounter.of(settings.counter)
        self.exclude_tools = frozenset(exclude_tools)

    def tokens(self, message: ToolMessage) -> int:
        """Tokens of the texts of a message."""
        return sum(map(self.counter.count, _texts(message)))

    def spares(self, message: ToolMessage, name: str | None = None) -> bool:
        """Whether a message stays as it is: its tool failed, or its texts are not to change."""
        return message.status == "error" or (message.name or name) in self.exclude_tools

    def shortened(self, message: ToolMessage, query: str | None) -> tuple[Any, dict[str, Any]]:
        """What a message says with fewer tokens, and what was done; no facts if that failed."""
        before, content = self.tokens(message), message.content
        try:
            blocks: Any = [content] if isinstance(content, str) else content
            texts = iter(self._shorter(_texts(message), query))
            written = [_with_text(block, texts) for block in blocks]
            left: Any = [block for block in written if block]
            if isinstance(content, str):
                left = "".join(left)
        except LaconicError as error:
            logger.warning("the output of %s is used as it is: %s", message.name, error)
            return content, {}
        except Exception:  # a compressor can be anything
            logger.warning("the output of %s is used as it is", message.name, exc_info=True)
            return content, {}
        after = self.tokens(message.model_copy(update={"content": left}))
        counts = {"tokens_before": before, "tokens_after": after, "counter": self.counter.name}
        return (left, counts) if after < before else (content, {})

    def _shorter(self, texts: Sequence[str], query: str | None) -> list[str]:
        """What is left of texts: each JSON within the budget, and all others together."""
        left = [self._json(text, query) if _is_json(text) else text for text in texts]
        places = [i for i, text in enumerate(texts) if text.strip() and not _is_json(text)]
        compression = self._compressor.compress(
            [Passage(texts[place]) for place in places],
            query=query,
            budget=self.settings.budget,
            keep=self.settings.keep,
            counter=self.counter,
        )
        kept = {passage.index: passage.text for passage in compression.passages}
        for index, place in enumerate(places):
            left[place] = kept.get(index, "")
        return left

    def _json(self, text: str, query: str | None) -> str:
        """JSON with shorter strings; with the shortest there can be where structure is most."""
        whole = self.counter.count(text)
        limit = self.settings.budget.limit(whole)
        for step in range(_STEPS):
            budget = Budget.tokens(limit + step * (whole - limit) // _STEPS)
            try:
                return compress_json(
                    text,
                    query=query,
                    budget=budget,
                    method=self._compressor,
                    keep=self.settings.keep,
                    counter=self.counter,
                ).text
            except BudgetError:
                continue
        return text

    @cached_property
    def _compressor(self) -> Compressor:
        settings = self.settings
        return settings.compressor or get_compressor(settings.method, **settings.method_options)


class ToolOutputCompressionMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Shorten what tools give back, once, before it goes into the state of an agent.

    Only texts get shorter. JSON stays valid JSON of the same structure, which takes what it
    takes. Errors, commands, images and other blocks are not touched. The message keeps its id,
    name and call; ``additional_kwargs["compression"]`` says tokens before and after; the whole
    output is its `artifact`, or is found there under ``"original"`` if the tool gave an artifact.

    Parameters
    ----------
    trigger_tokens
        Outputs of up to so many tokens stay as they are.
    exclude_tools
        Names of tools whose output stays as it is.
    query_from
        Says what an output is wanted for, from the request; by default the last message of the
        user.
    **settings
        The fields of `CompressionSettings`.

    Raises
    ------
    InputError
        `trigger_tokens` is no number of tokens, or `exclude_tools` is one name.
    ValidationError
        A setting is unknown or out of its range.

    Examples
    --------
    >>> agent = create_agent(                                         # doctest: +SKIP
    ...     model, tools, middleware=[ToolOutputCompressionMiddleware(target_tokens=500)]
    ... )
    """

    def __init__(
        self,
        *,
        trigger_tokens: int = 1000,
        exclude_tools: Collection[str] = (),
        query_from: Callable[[ToolCallRequest], str | None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        is_count = isinstance(trigger_tokens, int) and not isinstance(trigger_tokens, bool)
        if not is_count or trigger_tokens < 0:
            raise InputError(f"trigger_tokens is a number of tokens, got {trigger_tokens!r}")
        self.trigger_tokens = trigger_tokens
        self._query_from = query_from or _asked
        self._shortener = Shortener(CompressionSettings(**settings), exclude_tools)

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Call the tool and shorten what it gives."""
        return self._shortened(handler(request), request)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """`wrap_tool_call`, with the work in a thread."""
        return await asyncio.to_thread(self._shortened, await handler(request), request)

    def _shortened(
        self, output: ToolMessage | Command[Any], request: ToolCallRequest
    ) -> ToolMessage | Command[Any]:
        shortener = self._shortener
        if not isinstance(output, ToolMessage) or shortener.spares(
            output, request.tool_call["name"]
        ):
            return output
        if shortener.tokens(output) <= self.trigger_tokens:
            return output
        content, facts = shortener.shortened(output, self._query_from(request))
        if not facts:
            return output
        update: dict[str, Any] = {"content": content}
        if output.artifact is None:
            update["artifact"] = output.content
        else:
            facts["original"] = output.content
        update["additional_kwargs"] = {**output.additional_kwargs, "compression": facts}
        return output.model_copy(update=update)


def _asked(request: ToolCallRequest) -> str | None:
    state = request.state
    if not isinstance(state, list):
        state = state["messages"] if isinstance(state, dict) else state.messages
    return last_question(state)


def _texts(message: ToolMessage) -> list[str]:
    content = message.content
    if isinstance(content, str):
        return [content]
    return [b if isinstance(b, str) else b["text"] for b in content if _is_text(b)]


def _is_text(block: Any) -> bool:
    if isinstance(block, str):
        return True
    return block.get("type") == "text" and isinstance(block.get("text"), str)


def _with_text(block: Any, texts: Iterator[str]) -> Any:
    """A block with the next of the texts, if it has one."""
    if not _is_text(block):
        return block
    text = next(texts)
    if isinstance(block, str):
        return text
    return {**block, "text": text} if text else None


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in "{[":
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
