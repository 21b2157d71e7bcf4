"""Tool calls in the text of a local model, and how one is asked for."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage

from ...core.errors import InputError

__all__ = ["MARK", "beginning", "read_calls", "shown"]

MARK = "<tool_call>"
"""What stands before a call; most models that were trained to call tools write it."""


def beginning(tools: Sequence[Mapping[str, Any]], choice: Any) -> str:
    """What an answer begins with so that it calls a tool as it is told; empty for no matter.

    Parameters
    ----------
    tools
        JSON schemas of tools.
    choice
        None or ``"auto"``; ``"any"``, ``"required"`` or True; or the name of a tool, alone or as
        OpenAI's API has it.

    Raises
    ------
    InputError
        There is no such tool, or no such choice.
    """
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name")
    if choice in (None, False, "auto"):
        return ""
    forced = choice in (True, "any", "required")
    if not names or not (forced or choice in names):
        raise InputError(
            f"tool_choice is 'auto', 'any', 'none' or the name of a bound tool "
            f"({', '.join(names) or 'there is none'}), got {choice!r}"
        )
    if forced and len(names) > 1:
        return f'{MARK}\n{{"name": "'
    name = json.dumps(names[0] if forced else choice)
    return f'{MARK}\n{{"name": {name}, "arguments": '


def shown(text: str) -> str:
    """The part of a text that grows which is said to the user whatever may follow."""
    if MARK in text:
        return text[: text.index(MARK)]
    if not text.strip() or text.lstrip().startswith("{"):
        return ""
    begun = (n for n in range(len(MARK) - 1, 0, -1) if text.endswith(MARK[:n]))
    return text[: len(text) - next(begun, 0)]


def read_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> AIMessage:
    """The message that a text stands for.

    Calls stand behind `MARK`, or are all of the text: a JSON object with a name and arguments,
    or parameters. What is marked and no such object is an invalid call.
    """
    names = {tool["function"]["name"] for tool in tools}
    content, *marked = text.split(MARK)
    if not marked:
        alone = _object(text)
        if alone is None or alone["name"] not in names:
            return AIMessage(content=text)
        return AIMessage(content="", tool_calls=[_valid(alone)])
    valid, invalid = [], []
    for part in filter(str.strip, marked):
        found = _object(part)
        if found:
            valid.append(_valid(found))
        else:
            # With its mark nobody takes it for the beginning of a call that is to come.
            args = MARK + part.partition("</tool_call>")[0]
            error = "this is no JSON object with a name and arguments"
            broken = {"name": None, "args": args, "id": _id(), "error": error}
            invalid.append({**broken, "type": "invalid_tool_call"})
    fields: dict[str, Any] = {"tool_calls": valid, "invalid_tool_calls": invalid}
    return AIMessage(content=content, **fields)


def _object(text: str) -> dict[str, Any] | None:
    """The call that a text begins with."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text.strip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    args = found.get("arguments", found.get("parameters", {}))
    return {"name": found["name"], "args": args} if isinstance(args, dict) else None


def _valid(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, "id": _id(), "type": "tool_call"}


def _id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
