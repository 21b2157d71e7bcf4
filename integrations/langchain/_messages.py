"""LangChain's messages as dicts in the form of OpenAI's API, and back.

The dicts hold what a model is sent. What only LangChain knows (ids, artifacts, metadata) stays
with the original message, of which `restored` makes what is given back.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from ...core.errors import InputError
from ...memory.turns import SYSTEM_ROLES, Message

__all__ = [
    "from_openai",
    "last_question",
    "restored",
    "to_openai",
]

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
)
_SYNONYMS = {"human": "user", "ai": "assistant"}
_SPOKEN = {"user", "assistant"} | SYSTEM_ROLES

_ROLE = "__openai_role__"
"""Where langchain-openai keeps the role of a developer's message."""


def to_openai(messages: Sequence[BaseMessage]) -> list[Message]:
    """Write messages as dicts that share nothing with them.

    A tool call whose arguments are no JSON is a call like others if it has a result; if not, it
    stands under ``invalid_tool_calls``, for it waits for none. A result of a tool that failed
    has ``"status": "error"``.

    Raises
    ------
    InputError
        A message has a role that no chat API knows, or arguments that JSON cannot write.
    """
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    return [_written(message, place, answered) for place, message in enumerate(messages)]


def _written(message: BaseMessage, place: int, answered: Collection[str]) -> Message:
    written: Message = {"role": _role(message, place), "content": _content(message.content)}
    if isinstance(message, AIMessage):
        try:
            calls = [_call(c["id"], c["name"], json.dumps(c["args"])) for c in message.tool_calls]
        except (TypeError, ValueError) as error:
            raise InputError(f"message {place} calls a tool with no JSON: {error}") from error
        broken = [_call(c["id"], c["name"], c["args"]) for c in message.invalid_tool_calls]
        calls += [call for call in broken if call["id"] in answered]
        waiting = [call for call in broken if call["id"] not in answered]
        written |= {"tool_calls": calls} if calls else {}
        written |= {"invalid_tool_calls": waiting} if waiting else {}
    elif isinstance(message, ToolMessage):
        written["tool_call_id"] = message.tool_call_id
        if message.status == "error":
            written["status"] = "error"
    if message.name:
        written["name"] = message.name
    return written


def _role(message: BaseMessage, place: int) -> str:
    if isinstance(message, ChatMessage):
        role = _SYNONYMS.get(message.role, message.role)
        if role in _SPOKEN:
            return role
        raise InputError(
            f"message {place} has the role {message.role!r}, expected one of {sorted(_SPOKEN)}"
        )
    if isinstance(message, SystemMessage) and message.additional_kwargs.get(_ROLE) == "developer":
        return "developer"
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    raise InputError(
        f"message {place} is a {type(message).__name__}, which is nothing that was said; expected "
        f"HumanMessage, AIMessage, SystemMessage, ToolMessage or ChatMessage"
    )


def _content(content: str | Sequence[str | Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    # Some providers' blocks have no type.
    return [
        {"type": "text", "text": block} if isinstance(block, str) else {"type": "other", **block}
        for block in content
    ]


def _call(name: str | None, function: str | None, arguments: str | None) -> dict[str, Any]:
    called = {"name": function or "", "arguments": arguments or ""}
    return {"id": name, "type": "function", "function": called}


def from_openai(messages: Sequence[Mapping[str, Any]]) -> list[BaseMessage]:
    """Make messages of dicts; what a model is sent is what `to_openai` was given.

    Raises
    ------
    InputError
        A dict has a role that `to_openai` does not write, or a tool's result names no call.
    """
    return [_read(message, place) for place, message in enumerate(messages)]


def _read(message: Mapping[str, Any], place: int) -> BaseMessage:
    role, content = message.get("role"), message.get("content") or ""
    fields: dict[str, Any] = {"content": content, "name": message.get("name")}
    if role == "user":
        return HumanMessage(**fields)
    if role == "assistant":
        return AIMessage(**fields, **_calls(message))
    if role == "developer":
        return SystemMessage(**fields, additional_kwargs={_ROLE: role})
    if role == "system":
        return SystemMessage(**fields)
    if role == "tool" and isinstance(message.get("tool_call_id"), str):
        status = message.get("status", "success")
        return ToolMessage(**fields, tool_call_id=message["tool_call_id"], status=status)
    raise InputError(
        f"message {place} has the role {role!r}, expected user, assistant, system, developer, or "
        f"tool with a tool_call_id"
    )


def _calls(message: Mapping[str, Any]) -> dict[str, Any]:
    """The tool calls of a message as the fields of an `AIMessage`."""
    valid, invalid = [], []
    listed = [*(message.get("tool_calls") or ()), *(message.get("invalid_tool_calls") or ())]
    for call in listed:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        try:
            args = json.loads(arguments)
        except ValueError:
            args = None
        if isinstance(args, dict):
            valid.append({"id": call["id"], "name": name, "args": args, "type": "tool_call"})
        else:
            broken = {"id": call["id"], "name": name, "args": arguments, "error": None}
            invalid.append({**broken, "type": "invalid_tool_call"})
    return {"tool_calls": valid, "invalid_tool_calls": invalid}


def restored(message: Mapping[str, Any], original: BaseMessage) -> BaseMessage:
    """The original message with the texts of a dict that was made of it.

    It is the same object where no text differs. Blocks that are no text are those of the
    original; text blocks of which nothing is left are left out, for APIs refuse them.
    """
    before: Any = original.content
    after: Any = message.get("content") or ""
    if isinstance(before, str):
        content = after
    else:
        pairs = [(old, _block(old, new)) for old, new in zip(before, after, strict=True)]
        content = [new for old, new in pairs if new is old or _text(new)]
    return original if content == before else original.model_copy(update={"content": content})


def _block(old: Any, new: Mapping[str, Any]) -> Any:
    if new["type"] != "text" or new["text"] == _text(old):
        return old
    return new["text"] if isinstance(old, str) else {**old, "text": new["text"]}


def _text(block: Any) -> Any:
    return block if isinstance(block, str) else block.get("text")


def last_question(messages: Sequence[BaseMessage]) -> str | None:
    """The text of the last message of the user; None where there is none."""
    asked = (m for m in reversed(messages) if isinstance(m, HumanMessage))
    return next((str(message.text) or None for message in asked), None)
