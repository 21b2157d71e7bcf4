"""Compressing what a text memory was told, so that a limit holds whatever the compressor does."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from ..core.budget import Budget
from ..core.compressor import Compressor
from ..core.errors import BudgetError
from ..core.messages import compress_messages
from ..core.methods.lexical import Lexical
from .stored import Unit
from .turns import Costs, Message, texts, waiting

__all__ = ["check_fits", "cut"]

logger = logging.getLogger(__name__)


def check_fits(begun: Sequence[Message], room: int, costs: Costs) -> None:
    """Raise `BudgetError` if tool calls leave no room for their results."""
    least = [{"role": "tool", "tool_call_id": call, "content": "."} for call in waiting(begun)]
    tokens = costs.of([*begun, *least])
    if tokens > room:
        raise BudgetError(
            f"tool calls and their results take {tokens} tokens at least, and there is room for "
            f"{room}; raise the budget, or shorten the calls' arguments"
        )


def cut(
    unit: Unit,
    limit: int,
    costs: Costs,
    method: Compressor,
    *,
    query: str | None = None,
    must: bool = False,
) -> Unit:
    """Compress a unit to a limit; give it as it is if that is impossible, unless it `must` be.

    Raises
    ------
    BudgetError
        It must fit and cannot.
    """
    if unit.tokens <= limit:
        return unit._replace(short=None, short_tokens=unit.tokens)
    messages = json.loads(unit.messages)
    try:
        shorter = _shortened(messages, limit, costs, method, query)
    except BudgetError:
        if must:
            raise
        return unit
    except Exception:  # a compressor can be anything
        logger.warning("%s failed; the original is used", method.name, exc_info=True)
        if not must:
            return unit
        shorter = _shortened(messages, limit, costs, Lexical())
    return unit._replace(short=json.dumps(shorter), short_tokens=costs.of(shorter))


def _shortened(
    unit: Sequence[Message], limit: int, costs: Costs, method: Compressor, query: str | None = None
) -> list[Message]:
    """Compress the texts of a unit until all of it costs no more than `limit`.

    Raises
    ------
    BudgetError
        What is no text is too large already, or no text would be left.
    """
    room = limit - costs.of(unit) + sum(costs.counter.count(text) for text in texts(unit))
    while room > 0:
        shorter = compress_messages(
            unit,
            query=query or "",
            budget=Budget.tokens(room),
            method=method,
            counter=costs.counter,
            keep_last=0,
        ).messages
        excess = costs.of(shorter) - limit
        if excess <= 0:
            if any(text.strip() for text in texts(shorter)):
                return shorter
            break
        # Texts joined can count less than each alone.
        room -= excess
    raise BudgetError(
        f"a turn takes {costs.of(unit)} tokens and cannot be compressed to the {limit} that are "
        f"free; raise the budget, or shorten its tool calls, blocks or the system messages"
    )
