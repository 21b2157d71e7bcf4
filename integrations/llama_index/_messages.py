"""LlamaIndex's messages as dicts in the form of OpenAI's API, and back.

A dict holds all that a message does, so that one can be made of it again: what the form has no
place for stands under keys of its own. A tool call that stands in a block has the place of that
block, and one that stands in ``additional_kwargs`` as well has how it reads there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ContentBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from ...memory.turns import ADDED, Message, completed, waiting

__all__ = ["from_openai", "last_question", "to_openai", "was_said", "whole"]

logger = logging.getLogger(__name__)

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "developer",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}

_BLOCK: TypeAdapter[Any] = TypeAdapter(ContentBlock)

_ROLE, _KWARGS = "llama_role", "additional_kwargs"
_AT, _ALSO, _OWN = "at", "also", "own_id"
_NUMBER = "#"
"""Between an id and a number, for its second call: some providers take the tool's name for an id,
others give none."""


def to_openai(message: ChatMessage) -> Message:
    """Write a message as a dict that shares nothing with it."""
    role = _ROLES[message.role]
    kwargs = to_jsonable_python(
        message.additional_kwargs, bytes_mode="base64", serialize_unknown=True
    )
    said = [block for block in message.blocks if not _is_call(block, role)]
    written: Message = {"role": role, "content": _content(said)}
    if role == "assistant":
        listed = kwargs.get("tool_calls")
        is_known = isinstance(listed, list) and all(_id(call) for call in listed)
        calls = _calls(message.blocks, kwargs.pop("tool_calls") if is_known else [])
        written |= {"tool_calls": calls} if calls else {}
    elif role == "tool" and isinstance(kwargs.get("tool_call_id"), str):
        written["tool_call_id"] = kwargs.pop("tool_call_id")
    written |= {_KWARGS: kwargs} if kwargs else {}
    return written if message.role.value == role else written | {_ROLE: message.role.value}


def _is_call(block: Any, role: str) -> bool:
    return role == "assistant" and isinstance(block, ToolCallBlock)


def _content(blocks: Sequence[Any]) -> str | list[dict[str, Any]] | None:
    if not blocks:
        return None
    if len(blocks) == 1 and isinstance(blocks[0], TextBlock):
        return blocks[0].text
    dumps = [block.model_dump(mode="json", exclude_none=True) for block in blocks]
    return [{"type": dump.pop("block_type"), **dump} for dump in dumps]


def _calls(blocks: Sequence[Any], listed: Sequence[Message]) -> list[Message]:
    """All tool calls of a message: those that are listed, and those that are blocks only."""
    places = [place for place, block in enumerate(blocks) if isinstance(block, ToolCallBlock)]
    calls: list[Message] = []
    for listing in listed:
        name = str(_id(listing))
        own = [place for place in places if _name(blocks[place]) == name]
        if own:
            places.remove(own[0])
            calls.append(_from_block(blocks[own[0]], own[0], listing))
        else:
            calls.append(listing if listing.get("id") else {**listing, "id": name, _OWN: None})
    calls += [_from_block(blocks[place], place) for place in places]
    taken: set[str] = set()
    for call in calls:
        name, number = call["id"], 1
        while call["id"] in taken:
            number += 1
            call |= {_OWN: call.get(_OWN, name), "id": f"{name}{_NUMBER}{number}"}
        taken.add(call["id"])
    return to_jsonable_python(calls, serialize_unknown=True)  # type: ignore[no-any-return]


def _name(block: ToolCallBlock) -> str:
    return block.tool_call_id or block.tool_name


def _from_block(block: ToolCallBlock, place: int, listing: Message | None = None) -> Message:
    function = {"name": block.tool_name, "arguments": block.tool_kwargs}
    call: Message = {"id": _name(block), "type": "function", "function": function}
    also = {} if listing is None else {_ALSO: listing == call or listing}
    return call | also | {_AT: place} | ({} if block.tool_call_id else {_OWN: None})


def _id(call: Any) -> str | None:
    """What results name a call by: its id, or the tool's name where a provider gives none."""
    if not isinstance(call, Mapping):
        return None
    function = call.get("function")
    name = call.get("id") or (function.get("name") if isinstance(function, Mapping) else None)
    return name if isinstance(name, str) else None


def from_openai(written: Mapping[str, Any]) -> ChatMessage:
    """Make a message of a dict of `to_openai`, or of one with less text."""
    kwargs = dict(written.get(_KWARGS, {}))
    content = written.get("content")
    blocks: list[Any]
    if isinstance(content, list):
        left = [{**block, "block_type": block["type"]} for block in content if _says(block)]
        blocks = [_BLOCK.validate_python(block) for block in left]
    else:
        blocks = [] if content is None else [TextBlock(text=content)]
    calls = written.get("tool_calls") or ()
    for call in sorted((call for call in calls if _AT in call), key=lambda call: call[_AT]):
        block = ToolCallBlock(
            tool_call_id=call.get(_OWN, call["id"]),
            tool_name=call["function"]["name"],
            tool_kwargs=call["function"]["arguments"],
        )
        blocks.insert(call[_AT], block)
    listed = [_listing(call) for call in calls if _AT not in call or _ALSO in call]
    kwargs |= {"tool_calls": listed} if listed else {}
    name = written.get(_OWN, written.get("tool_call_id"))
    kwargs |= {"tool_call_id": name} if name else {}
    role = MessageRole(written.get(_ROLE, written["role"]))
    # Not by its constructor, which makes blocks of images in kwargs once more.
    return ChatMessage.model_construct(role=role, additional_kwargs=kwargs, blocks=blocks)


def _listing(call: Mapping[str, Any]) -> Any:
    """A tool call as it reads in ``additional_kwargs``."""
    if isinstance(call.get(_ALSO), Mapping):
        return call[_ALSO]
    listing = {key: value for key, value in call.items() if key not in ("id", _AT, _ALSO, _OWN)}
    own = call.get(_OWN, call["id"])
    return listing if own is None else {"id": own, **listing}


def _says(block: Mapping[str, Any]) -> bool:
    """Whether something is left of a block, for APIs refuse empty texts."""
    return bool(block["type"] != "text" or block["text"])


def whole(messages: Sequence[Message], open_calls: Sequence[str]) -> Iterator[Message]:
    """Messages in which every tool call has one result, and every result a call.

    What is missing is added, for no API takes one without the other: results as `completed`
    does, and calls, for a history that was cut has results without them.

    Parameters
    ----------
    messages
        What comes next.
    open_calls
        The ids of calls whose results have not come yet.
    """
    return completed(_called(messages, open_calls), open_calls)


def _called(messages: Sequence[Message], open_calls: Sequence[str]) -> Iterator[Message]:
    """Messages in which every result has a call, and names it."""
    left = list(open_calls)
    for message in messages:
        if message["role"] != "tool":
            left = waiting([message])
        elif name := _answered(message, left):
            left.remove(name)
            own = message.get("tool_call_id")
            message = message if own == name else {**message, "tool_call_id": name, _OWN: own}
        else:
            left = []
            own = message.get("tool_call_id")
            message = message if own else {**message, "tool_call_id": "unknown", _OWN: own}
            yield _no_call(message)
        yield message


def _answered(result: Message, open_calls: Sequence[str]) -> str | None:
    """The open call that a result is of: of its id, else the next one of its tool."""
    name = result.get("tool_call_id") or ""
    if name in open_calls:
        return name
    start = f"{name}{_NUMBER}" if name else ""
    return next((call for call in open_calls if call.startswith(start)), None)


def _no_call(result: Message) -> Message:
    name = result["tool_call_id"]
    logger.warning("the tool result %r has no call; one is put before it", name)
    tool = str(result.get(_KWARGS, {}).get("name") or "unknown")
    call = {"id": name, "type": "function", "function": {"name": tool, "arguments": "{}"}}
    return {"role": "assistant", "content": None, "tool_calls": [call], ADDED: True}


def was_said(message: Mapping[str, Any]) -> bool:
    """Whether a message was put, rather than added by `whole`."""
    return ADDED not in message


def last_question(messages: Sequence[ChatMessage]) -> str | None:
    """The text of the last message of the user; None where there is none."""
    asked = (m for m in reversed(messages) if m.role == MessageRole.USER)
    return next((message.content or None for message in asked), None)
