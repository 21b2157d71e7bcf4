"""Lists of messages that others keep, read within a budget by text memories that follow them."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from ..core.errors import BudgetError, InputError
from .text import TextMemory
from .turns import Message, completed, grouped, waiting

__all__ = ["PLACE", "Follower", "Followers"]

logger = logging.getLogger(__name__)

PLACE = "place"
"""The key under which a message that was shown has its place in the list."""


class Follower:
    """Reads a list of messages, which mostly grows by its end, within a budget.

    A list that fits is left as it is. Otherwise a memory follows it: it reads what is new, and
    begins again where what it read before has changed. Threads may share a follower.

    Parameters
    ----------
    like
        A memory with the settings of those to be made.

    Examples
    --------
    >>> follower = Follower(TextMemory(60))
    >>> messages = [{"role": "user", "content": f"Day {day} was rainy."} for day in range(40)]
    >>> follower.read(messages[:2]) is None
    True
    >>> shown = follower.read(messages)
    >>> len(shown) < len(messages), messages[shown[-1]["place"]]["content"]
    (True, 'Day 39 was rainy.')
    """

    def __init__(self, like: TextMemory) -> None:
        self._like = like
        self._lock = threading.Lock()
        self._taken = 0
        self._forget()

    def read(
        self, messages: Sequence[Message], query: str | None = None, *, taken: int | None = None
    ) -> list[Message] | None:
        """Give messages that take no more tokens than the budget.

        Calls of tools that were left open get a result that says so. An earlier turn that does
        not fit, however compressed, is left out, and a warning is logged.

        Parameters
        ----------
        messages
            All of them, in the form of OpenAI's API. They are not changed.
        query
            What they are wanted for, as for `TextMemory.read`.
        taken
            Tokens of the budget that something else takes; None for as many as last time.

        Returns
        -------
        list of dict or None
            None if all fit as they are. Else new messages, each with its place in the list; one
            that has none was added: it quotes earlier ones, or is a result that never came.

        Raises
        ------
        BudgetError
            The newest turn does not fit, however compressed, or all of the budget is taken.
        InputError
            A message is none, a tool's result has no call or comes twice, or another message
            comes before it.
        """
        with self._lock:
            self._taken = self._taken if taken is None else taken
            self._compare(messages)
            free = self._like.budget - self._taken
            if sum(self._costs) <= free:
                return None
            if free <= 0:
                raise BudgetError(
                    f"the system message and the tools take {self._taken} tokens, and the budget "
                    f"is {self._like.budget}; raise it or shorten them"
                )
            return self._fed(messages, free).read(query)

    def _forget(self) -> None:
        self._memory: TextMemory | None = None
        self._marks: list[bytes] = []
        self._costs: list[int] = []
        self._read = 0

    def _compare(self, messages: Sequence[Message]) -> None:
        """Bring up to date what is known of the messages."""
        marks = [_mark(message) for message in messages]
        pairs = enumerate(zip(self._marks, marks, strict=False))
        same = min(len(marks), len(self._marks))
        same = next((place for place, (old, new) in pairs if old != new), same)
        if same < self._read:
            self._forget()
            same = 0
        self._costs[same:] = [self._like.count([message]) for message in messages[same:]]
        self._marks[same:] = marks[same:]

    def _fed(self, messages: Sequence[Message], free: int) -> TextMemory:
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
        placed = [{**message, PLACE: place} for place, message in enumerate(messages)]
        begun = next((unit for unit in memory.said(memory.turns) if waiting(unit)), [])
        new = list(completed(placed[self._read :], waiting(begun) if begun else ()))
        try:
            memory.observe(new)
        except BudgetError:
            self._feed_what_fits(memory, begun, new)
        self._read = len(messages)
        return memory

    def _feed_what_fits(
        self, memory: TextMemory, begun: Sequence[Message], new: Sequence[Message]
    ) -> None:
        """Leave out turns that no view could show, unless it is the newest that does not fit."""
        first, *units = grouped(new, begun)
        *older, newest = [first[len(begun) :], *units]
        for unit in older:
            try:
                memory.observe(unit)
            except BudgetError as error:
                logger.warning("an earlier turn is left out: %s", error)
            self._read += sum(PLACE in message for message in unit)
        memory.observe(newest)


def _mark(message: Message) -> bytes:
    said = json.dumps(message, default=repr)
    return blake2b(said.encode("utf-8", "backslashreplace"), digest_size=16).digest()


class Followers:
    """A follower for each of many threads; those not used for longest are forgotten.

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
        self._threads: OrderedDict[str, Follower] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, thread: str | None) -> Follower:
        """The follower of a thread; one that is kept by nobody where there is no thread."""
        if thread is None:
            return Follower(self._like)
        with self._lock:
            found = self._threads.setdefault(thread, Follower(self._like))
            self._threads.move_to_end(thread)
            if len(self._threads) > self._max_threads:
                self._threads.popitem(last=False)
            return found
