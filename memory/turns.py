"""What a text memory is told: messages in the form of OpenAI's API, in units that stay whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.budget import TokenCounter
from ..core.errors import InputError

__all__ = [
    "ADDED",
    "SYSTEM_ROLES",
    "Costs",
    "Message",
    "as_messages",
    "completed",
    "grouped",
    "is_open",
    "searchable",
    "texts",
    "waiting",
]

logger = logging.getLogger(__name__)

Message = dict[str, Any]

SYSTEM_ROLES = frozenset({"system", "developer"})
"""Roles whose messages are never left out."""

ADDED = "added"
"""A key of messages that nobody has said."""

_ROLES = SYSTEM_ROLES | {"user", "assistant", "tool"}

_NO_RESULT = "No result was given."

_OVERHEAD = 4
"""Tokens that an API adds for a message and its role, rounded up."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Counts the tokens of messages, and rather too many than too few.

    Attributes
    ----------
    counter
        Counts texts. All that is neither text nor image is counted as its JSON.
    image_tokens
        Counted for an image, whatever its size.
    """

    counter: TokenCounter
    image_tokens: int

    def of(self, messages: Sequence[Message]) -> int:
        """Tokens of messages, with those that an API adds for each."""
        return sum(_OVERHEAD + sum(self._parts(message)) for message in messages)

    def _parts(self, message: Message) -> Iterator[int]:
        for key, value in message.items():
            if key == "content" and isinstance(value, list):
                yield from map(self._block, value)
            elif key == "content" or key == "role":
                yield self.counter.count(value) if key == "content" and value else 0
            else:
                yield 1 + self.counter.count(value if isinstance(value, str) else _json(value))

    def _block(self, block: Mapping[str, Any]) -> int:
        if block["type"] == "text":
            return self.counter.count(block["text"])
        if "image" in block["type"]:
            return self.image_tokens
        return self.counter.count(_json(block))


def as_messages(given: Any) -> list[Message]:
    """Read a text, a message or several; what comes back shares nothing with what was given.

    Messages that say nothing are left out, results of tools excepted.

    Raises
    ------
    InputError
        It is nothing of these, or holds what JSON cannot.
    """
    if isinstance(given, str):
        given = {"role": "user", "content": given}
    if isinstance(given, Mapping):
        given = [given]
    if isinstance(given, (bytes, bytearray)) or not isinstance(given, Sequence):
        raise InputError(
            f"a turn is a text, a message or a list of messages, got {type(given).__name__}"
        )
    for place, message in enumerate(given):
        _check(message, place)
    try:
        read: list[Message] = json.loads(_json([dict(message) for message in given]))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages hold what JSON can write: {error}") from error
    return [m for m in read if m.get("content") or m.get("tool_calls") or m["role"] == "tool"]


def _check(message: Any, place: int) -> None:
    """Raise `InputError` unless it is a message."""
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        known = ", ".join(sorted(_ROLES))
        raise InputError(f"message {place} is a dict with a role of {known}, got {message!r:.200}")
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        for block in content:
            if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
                raise InputError(f"message {place} has a block without a type: {block!r:.200}")
            if block["type"] == "text" and not isinstance(block.get("text"), str):
                raise InputError(f"message {place} has a text block without a text")
    elif content is not None and not isinstance(content, str):
        raise InputError(
            f"the content of message {place} is {type(content).__name__}, expected a str, None "
            f"or a list of blocks"
        )
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, (list, tuple)) or not all(
        isinstance(call, Mapping) and isinstance(call.get("id"), str) and call["id"]
        for call in calls
    ):
        raise InputError(f"message {place} has tool calls that are no dicts with an id")
    if calls and message["role"] != "assistant":
        raise InputError(f"message {place} calls tools, which only an assistant does")
    if len({call["id"] for call in calls}) < len(calls):
        raise InputError(f"message {place} has two tool calls with the same id")


def grouped(messages: Sequence[Message], begun: Sequence[Message] = ()) -> list[list[Message]]:
    """Put tool calls and their results together; all else is a unit alone.

    Parameters
    ----------
    messages
        What comes next.
    begun
        A unit whose results have not all come. It is the first of what is given back.

    Raises
    ------
    InputError
        A result has no call or comes twice, or something else comes before a call's result.
    """
    units = [list(begun)] if begun else []
    for message in messages:
        expected = waiting(units[-1]) if units else []
        if message["role"] == "tool":
            name = message.get("tool_call_id")
            if name not in expected:
                raise InputError(
                    f"the tool result {name!r} answers no open call; observe the assistant's "
                    f"message with the call first, and each result once"
                )
            units[-1].append(message)
        elif expected:
            raise InputError(
                f"the tool call {expected[0]!r} has no result yet; observe it before another "
                f"{message['role']} message"
            )
        else:
            units.append([message])
    return units


def completed(messages: Iterable[Message], open_calls: Iterable[str] = ()) -> Iterator[Message]:
    """Messages in which each tool call has its result before another message comes.

    A run that was stopped leaves calls without results, and one that returns directly as well.
    No API takes them, so a result that says so is added, and a warning is logged.

    Parameters
    ----------
    messages
        What comes next.
    open_calls
        The ids of calls whose results have not come yet.
    """
    left = list(open_calls)
    for message in messages:
        if message["role"] != "tool":
            yield from map(_no_result, left)
            left = waiting([message])
        elif message.get("tool_call_id") in left:
            left.remove(message["tool_call_id"])
        yield message


def _no_result(name: str) -> Message:
    logger.warning("the tool call %r has no result; the model is told so", name)
    return {"role": "tool", "tool_call_id": name, "content": _NO_RESULT, ADDED: True}


def is_open(unit: Sequence[Message]) -> bool:
    """Whether results of its tool calls are to come."""
    return bool(waiting(unit))


def waiting(unit: Sequence[Message]) -> list[str]:
    """The ids of tool calls that have no result."""
    answered = {message.get("tool_call_id") for message in unit[1:]}
    calls = unit[0].get("tool_calls") or ()
    return [call["id"] for call in calls if call["id"] not in answered]


def searchable(unit: Sequence[Message]) -> str:
    """What a unit can be found by: names, texts and what tools were called with."""
    parts: list[str] = []
    for message in unit:
        called = [_json(call.get("function", "")) for call in message.get("tool_calls") or ()]
        parts += [str(message.get("name") or ""), *texts([message]), *called]
    return "\n".join(part for part in parts if part)


def texts(unit: Sequence[Message]) -> Iterator[str]:
    """Every text of a unit."""
    for message in unit:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        else:
            yield from (block["text"] for block in content or () if block["type"] == "text")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
