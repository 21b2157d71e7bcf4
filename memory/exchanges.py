"""Lists of messages as chat templates of local models take them, in parts that stay whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..core.errors import InputError
from .turns import SYSTEM_ROLES

__all__ = ["Message", "exchanges", "jsonable", "plain"]

Message = Mapping[str, Any]

_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name")
"""What chat templates may write of a message."""


def exchanges(messages: Sequence[Message]) -> tuple[list[tuple[Message, ...]], list[Message]]:
    """The messages up to each one of the assistant, and those behind the last."""
    exchanges: list[tuple[Message, ...]] = []
    begun: list[Message] = []
    for message in messages:
        begun.append(message)
        if message["role"] == "assistant":
            exchanges.append(tuple(begun))
            begun = []
    return exchanges, begun


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates of local models take them.

    Raises
    ------
    InputError
        They are no messages, or hold more than text.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InputError(f"messages is a list of dicts, got {type(messages).__name__}")
    plain = []
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {place} is a dict with a role, got {message!r:.200}")
        read = {name: message[name] for name in _FIELDS if message.get(name)}
        read["content"] = _text(message.get("content"), place)
        read["role"] = "system" if message["role"] in SYSTEM_ROLES else message["role"]
        if read["role"] == "assistant":
            read.pop("name", None)  # a framework may give it later
        if "tool_calls" in read:
            read["tool_calls"] = [_call(call, place) for call in read["tool_calls"]]
        plain.append(read)
    listed: list[dict[str, Any]] = jsonable(plain)
    return listed


def _text(content: Any, place: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for block in content if isinstance(content, (list, tuple)) else [content]:
        text = block if isinstance(block, str) else None
        if isinstance(block, Mapping) and block.get("type") == "text":
            text = block.get("text")
        if not isinstance(text, str):
            kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
            raise InputError(
                f"message {place} has a block of type {kind!r}, and this model reads text only; "
                f"leave it out, or say in words what it holds"
            )
        texts.append(text)
    return "\n".join(texts)


def _call(call: Any, place: int) -> dict[str, Any]:
    """A tool call whose arguments are what their JSON says, as chat templates want them."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(f"message {place} has a tool call without a function: {call!r:.200}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with suppress(ValueError):  # a model's broken call is shown as it was
            arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def jsonable(value: Any) -> Any:
    """A copy of what JSON can write.

    Raises
    ------
    InputError
        JSON cannot write it.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages and tools hold what JSON can write: {error}") from error
