"""A view within a budget of LangChain's messages, for one thread and for many."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from langchain_core.messages import BaseMessage

from ...core.errors import BudgetError, InputError, LaconicError
from ...memory.text import TextMemory
from ...memory.turns import Message, grouped
from ._messages import from_openai, restored, to_openai

__all__ = ["BoundedMessages", "Conversations"]

logger = logging.getLogger(__name__)

_PLACE = "place"
_NO_RESULT = {"role": "tool", "content": "No result was given."}


class BoundedMessages:
    """A view within a budget of messages that mostly grow by their end.

    Messages that fit are given back as they are. Otherwise a memory follows them: it reads what
    is new, and begins again where what it read before has changed. Threads may share it.

    Parameters
    ----------
    like
        A memory with the settings of those to be made.
    """

    def __init__(self, like: TextMemory) -> None:
        self._like = like
        self._lock = threading.Lock()
        self._taken = 0
        self._forget()

    def read(
        self, messages: Sequence[BaseMessage], query: str | None = None, *, taken: int | None = None
    ) -> list[BaseMessage]:
        """Give messages that take no more tokens than the budget.

        Where that is impossible, for the newest turn does not fit, a tool's result has no call
        or the compressor fails, all messages are given as they are, and a warning is logged. An
        earlier turn that does not fit, however compressed, is left out.

        Parameters
        ----------
        messages
            All of them. They are not changed.
        query
            What the view is wanted for, as for `TextMemory.read`.
        taken
            Tokens of the budget that something else takes; None for as many as last time.

        Returns
        -------
        list of BaseMessage
            Those of which nothing was cut are the same objects; those of which something was
            are copies with the same id, artifact and metadata. The message that quotes earlier
            ones has ``additional_kwargs["lc_source"] == "laconic"``.
        """
        try:
            with self._lock:
                self._taken = self._taken if taken is None else taken
                return self._bounded(messages, query)
        except LaconicError as error:
            logger.warning("messages are used as they are: %s", error)
        except Exception:  # a compressor or an encoder can be anything
            logger.warning("messages are used as they are", exc_info=True)
        return list(messages)

    def _bounded(self, messages: Sequence[BaseMessage], query: str | None) -> list[BaseMessage]:
        written = self._followed(messages)
        free = self._like.budget - self._taken
        if sum(self._costs) <= free:
            return list(messages)
        if free <= 0:
            raise BudgetError(
                f"the system message and the tools take {self._taken} tokens, and the budget is "
                f"{self._like.budget}; raise it or shorten them"
            )
        shown = self._fed(written, free).read(query)
        return [restored(m, messages[m[_PLACE]]) if _PLACE in m else _added(m) for m in shown]

    def _forget(self) -> None:
        self._memory: TextMemory | None = None
        self._marks: list[bytes] = []
        self._costs: list[int] = []
        self._read = 0

    def _followed(self, messages: Sequence[BaseMessage]) -> list[Message]:
        """The messages as dicts, after what is known of them was brought up to date."""
        written = to_openai(messages)
        marks = [_mark(d, m) for d, m in zip(written, messages, strict=True)]
        pairs = enumerate(zip(self._marks, marks, strict=False))
        same = min(len(marks), len(self._marks))
        same = next((place for place, (old, new) in pairs if old != new), same)
        if same < self._read:
            self._forget()
            same = 0
        self._costs[same:] = [self._like.count([message]) for message in written[same:]]
        self._marks[same:] = marks[same:]
        return written

    def _fed(self, written: Sequence[Message], free: int) -> TextMemory:
        """The memory, after it has read all messages."""
        # What is taken varies a little with prompts that name the time, and what a provider has
        # cached is worth more than a few tokens.
        step = max(1, self._like.budget // 32)
        memory = self._memory
        if memory is None or not free - 2 * step <= memory.budget <= free:
            like, self._read = self._like, 0
            memory = self._memory = TextMemory(
                free if free < step else free // step * step,
                counter=like.counter,
                method=like.method,
                encoder=like.encoder,
                recall=like.recall,
            )
        new = _completed(written, self._read)
        try:
            memory.observe(new)
        except BudgetError:
            self._feed_what_fits(memory, new)
        self._read = len(written)
        return memory

    def _feed_what_fits(self, memory: TextMemory, new: Sequence[Message]) -> None:
        """Leave out turns that no view could show, unless it is the newest that does not fit."""
        *older, newest = grouped(new)
        for unit in older:
            try:
                memory.observe(unit)
            except BudgetError as error:
                logger.warning("an earlier turn is left out: %s", error)
            self._read += sum(_PLACE in message for message in unit)
        memory.observe(newest)


def _mark(written: Message, message: BaseMessage) -> bytes:
    said = json.dumps([message.id, written], default=repr)
    return blake2b(said.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _completed(written: Sequence[Message], begin: int) -> list[Message]:
    """The messages from a place on, with results for calls that a run which ended has left open."""
    completed: list[Message] = []
    open_calls: list[str] = []
    for place, message in enumerate(written):
        if message["role"] != "tool":
            if open_calls and place >= begin:
                logger.warning(
                    "tool calls have no result, and the model is told so: %s", open_calls
                )
                completed += [{**_NO_RESULT, "tool_call_id": call} for call in open_calls]
            open_calls = [call["id"] for call in message.get("tool_calls") or ()]
        elif message.get("tool_call_id") in open_calls:
            open_calls.remove(message["tool_call_id"])
        if place >= begin:
            completed.append({**message, _PLACE: place})
    return completed


def _added(message: Message) -> BaseMessage:
    """A message that was not among the originals: a quotation, or a result that never came."""
    (made,) = from_openai([message])
    made.additional_kwargs["lc_source"] = "laconic"
    return made


class Conversations:
    """Bounded views of many threads; those not used for longest are forgotten.

    Parameters
    ----------
    like
        A memory with the settings of those to be made.
    max_threads
        How many are kept.

    Raises
    ------
    InputError
        `max_threads` is no number of threads.
    """

    def __init__(self, like: TextMemory, max_threads: int) -> None:
        if isinstance(max_threads, bool) or not isinstance(max_threads, int) or max_threads < 1:
            raise InputError(f"max_threads is a number of threads, at least 1, got {max_threads!r}")
        self._like, self._max_threads = like, max_threads
        self._threads: OrderedDict[str, BoundedMessages] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, thread: str | None) -> BoundedMessages:
        """The view of a thread; one that is kept by nobody where there is no thread."""
        if thread is None:
            return BoundedMessages(self._like)
        with self._lock:
            found = self._threads.setdefault(thread, BoundedMessages(self._like))
            self._threads.move_to_end(thread)
            if len(self._threads) > self._max_threads:
                self._threads.popitem(last=False)
            return found
