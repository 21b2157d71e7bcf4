"""Earlier turns, quoted in a message behind what a provider has cached."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..core.compressor import Compressor
from ..core.method import Floats
from .archive import Archive
from .relevance import best
from .shortening import cut
from .stored import messages_of
from .turns import Costs, Message

__all__ = ["as_text", "quotation", "quoted", "quoted_line"]

_QUOTED = "Quoted from earlier in this conversation, with the number of each turn:"

_LONG = 0.25
"""A turn that takes more than this part of the room is compressed for the query."""

_READABLE = 20_000
"""Tokens up to which a turn is compressed for a query; longer ones would take seconds."""


def quoted(
    query: str, scores: Floats, archive: Archive, room: int, costs: Costs, method: Compressor
) -> list[Message]:
    """A message that quotes the units with the highest scores, or nothing if none fits.

    Parameters
    ----------
    query
        What long units are compressed for.
    scores
        How much each unit is needed; shape ``(units + 1,)``, for there is no unit 0.
    archive
        Where the units are.
    room
        Tokens that the message may take.
    costs, method
        What counts and what compresses.
    """
    left = room - costs.of([quotation([])])
    lines = {}
    for unit in best(archive, scores, left, limit := int(_LONG * left)):
        if unit.tokens <= _READABLE:
            unit = cut(unit, limit, costs, method, query=query)
        line = quoted_line(unit.id, messages_of([unit]))
        cost = costs.counter.count(f"{line}\n\n")
        if cost <= left:
            lines[unit.id] = line
            left -= cost
    while lines:
        message = quotation([lines[number] for number in sorted(lines)])
        if costs.of([message]) <= room:
            return [message]
        lines.popitem()  # texts joined can count more than each alone
    return []


def quotation(lines: Sequence[str]) -> Message:
    """The message in which earlier turns are quoted."""
    return {"role": "user", "content": "\n\n".join([_QUOTED, *lines])}


def quoted_line(number: int, unit: Sequence[Message]) -> str:
    """A unit as it is quoted: its number, and who said what."""
    lines = (f"{m.get('name') or m['role']}: {as_text(m)}" for m in unit)
    return f"[{number}] " + "\n".join(lines)


def as_text(message: Message) -> str:
    """All that a message says in words, with the names of blocks that are none."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        parts = (b["text"] if b["type"] == "text" else f"[{b['type']}]" for b in content)
        content = "\n".join(parts)
    calls = message.get("tool_calls") or ()
    called = [json.dumps(call.get("function", {}), ensure_ascii=False) for call in calls]
    return "\n".join(filter(None, [content, *called]))
