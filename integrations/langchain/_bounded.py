"""LangChain's messages within a budget."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from langchain_core.messages import BaseMessage

from ...core.errors import LaconicError
from ...memory.following import PLACE, Follower
from ...memory.turns import Message
from ._messages import from_openai, restored, to_openai

__all__ = ["bounded"]

logger = logging.getLogger(__name__)


def bounded(
    follower: Follower,
    messages: Sequence[BaseMessage],
    query: str | None = None,
    *,
    taken: int | None = None,
) -> list[BaseMessage]:
    """Give messages that take no more tokens than the budget.

    Where that is impossible, for the newest turn does not fit, a tool's result has no call or
    the compressor fails, all messages are given as they are, and a warning is logged.

    Parameters
    ----------
    follower
        What follows them.
    messages
        All of them. They are not changed.
    query, taken
        As for `Follower.read`.

    Returns
    -------
    list of BaseMessage
        Those of which nothing was cut are the same objects; those of which something was are
        copies with the same id, artifact and metadata. The message that quotes earlier ones has
        ``additional_kwargs["lc_source"] == "laconic"``.
    """
    try:
        shown = follower.read(to_openai(messages), query, taken=taken)
        if shown is not None:
            return [restored(m, messages[m[PLACE]]) if PLACE in m else _added(m) for m in shown]
    except LaconicError as error:
        logger.warning("messages are used as they are: %s", error)
    except Exception:  # a compressor or an encoder can be anything
        logger.warning("messages are used as they are", exc_info=True)
    return list(messages)


def _added(message: Message) -> BaseMessage:
    """A message that was not among the originals: a quotation, or a result that never came."""
    (made,) = from_openai([message])
    made.additional_kwargs["lc_source"] = "laconic"
    return made
