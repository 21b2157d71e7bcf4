"""`TextMemory`: a conversation of any length in a list of messages, for any model."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.budget import TokenCounter
from ..core.compressor import Compressor, as_query
from ..core.errors import BudgetError, InputError
from ..core.methods import get_compressor
from ..core.models.encoder import Encoder
from .archive import Archive
from .base import Memory
from .quotation import quoted
from .relevance import embedded, relevance, terms
from .salience import ranked, weight
from .shortening import check_fits, cut
from .stored import ARCHIVED, OLDER, OPEN, PINNED, RECENT, Unit, last_of_the_user, messages_of
from .turns import (
    SYSTEM_ROLES,
    Costs,
    Message,
    as_messages,
    grouped,
    is_open,
    searchable,
    texts,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TextMemory"]


class TextMemory(Memory):
    """What was said, in messages that never take more tokens than the budget.

    Turns come in whole, behind those that are there, so that what `read` gives mostly begins
    with what it gave before and a provider's prompt cache goes on hitting. When their part of
    the budget is full, all but the most recent turns become older ones: long ones are compressed,
    once, and of all older ones those stay that tell most for their tokens, up to the low-water
    mark. All turns remain in an archive. For a query, `read` quotes those that it needs in one
    message, behind what does not change and before the last turn of the user.

    Messages of the system are never left out. A message with tool calls and their results are
    one unit, shown when the last result has come. Blocks that are no text are not changed. A
    call that fails leaves everything as it was. Threads may share a memory; each call waits for
    the one before.

    Parameters
    ----------
    budget
        The most tokens that `read` gives, those for roles and names included.
    counter
        Whose tokens are counted; anything `TokenCounter.of` takes.
    method
        Compresses what is long: a compressor that needs no query, or the name of one.
    encoder
        Finds turns by their meaning too: an `Encoder`, or what makes one. None to find them by
        their words alone.
    archive
        A file for all that was said, which is gone on with if it is there; RAM then holds only
        what `read` gives. None for a private archive, which vanishes with the memory.
    turn_tokens
        Tokens of an older message at most.
    recent
        The part of the budget in which the most recent turns stay whole when it is full.
    low_water
        The part of the budget that is taken after it was full. Lower is less often rewritten.
    recall
        The part of the budget that is kept for what a query needs. With 0 nothing is quoted.
    image_tokens
        What an image is counted as.

    Raises
    ------
    BudgetError
        The budget is no number of tokens.
    InputError
        Another parameter is out of its range, or the method needs a query.
    StateError
        The archive is damaged, in use, or was written with another tokenizer.

    Examples
    --------
    >>> memory = TextMemory(budget=60, method="lexical")
    >>> memory.observe("My cat is called Tom.")
    >>> for day in range(20):
    ...     memory.observe(f"On day {day} it rained and the streets were wet.")
    >>> any("Tom" in message["content"] for message in memory.read("What is the cat called?"))
    True
    """

    def __init__(
        self,
        budget: int = 2048,
        *,
        counter: Any = None,
        method: Compressor | str = "lexical",
        encoder: Any = None,
        archive: str | Path | None = None,
        turn_tokens: int = 96,
        recent: float = 0.05,
        low_water: float = 0.9,
        recall: float = 0.6,
        image_tokens: int = 1600,
    ) -> None:
        counts = {"budget": budget, "turn_tokens": turn_tokens, "image_tokens": image_tokens}
        for name, n in counts.items():
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                error = BudgetError if name == "budget" else InputError
                raise error(f"{name} is a number of tokens, at least 1, got {n!r}")
        for name, part in (("recent", recent), ("low_water", low_water), ("recall", recall)):
            if not isinstance(part, (int, float)) or not 0 <= part <= 1:
                raise InputError(f"{name} is a part of the budget, from 0 to 1, got {part!r}")
        self.method = get_compressor(method) if isinstance(method, str) else method
        if not isinstance(self.method, Compressor) or self.method.needs_query:
            raise InputError(f"method is a Compressor that needs no query, got {method!r}")
        is_encoder = encoder is None or isinstance(encoder, Encoder)
        self.encoder: Encoder | None = encoder if is_encoder else Encoder(encoder)
        self.counter = TokenCounter.of(counter)
        self.turn_tokens, self.recent, self.low_water = turn_tokens, recent, low_water
        self.recall = recall
        self._budget = budget
        self._costs = Costs(self.counter, image_tokens)
        self._lock = threading.RLock()
        self._belongs_to = {"counter": self.counter.name, "encoder": "yes" if encoder else "no"}
        self._archive = Archive(None, self._belongs_to)
        self._view: list[Unit] = []
        if archive is not None:
            self.open(archive)

    @property
    def budget(self) -> int:
        """The most tokens that `read` gives."""
        return self._budget

    @property
    def n_tokens(self) -> int:
        """Tokens of what `read` gives without a query."""
        return _tokens(self._view)

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of messages as the budget counts them."""
        return self._costs.of(messages)

    @property
    def nbytes(self) -> int:
        """Bytes of what it holds in RAM, all of the archive included if that is private."""
        with self._lock:
            held = (len(u.messages) + len(u.terms) + len(u.short or "") for u in self._view)
            return sum(held) + self._archive.nbytes

    @property
    def turns(self) -> int:
        """How many units were observed: messages, or tool calls with their results."""
        with self._lock:
            return len(self._archive)

    def observe(self, content: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Read a turn.

        Parameters
        ----------
        content
            Messages in the form of OpenAI's API, one of them, or a text, which is the user's.
            Messages that say nothing are passed over.

        Raises
        ------
        BudgetError
            The newest turn and the messages of the system do not fit, however compressed.
        InputError
            It is nothing of these, a tool's result has no call or comes twice, or another
            message comes before it.
        """
        messages = as_messages(content)
        with self._lock:
            view = self._view
            begun = json.loads(view[-1].messages) if view and view[-1].place == OPEN else []
            units = grouped(messages, begun)
            with self._archive.transaction():
                for unit in units:
                    view = self._settled(self._with(view, unit))
            self._view = view

    def read(self, query: str | None = None, *, room: int | None = None) -> list[Message]:
        """Give the messages to send to a model, in the order in which they came.

        Parameters
        ----------
        query
            What they are wanted for. Turns that it needs and that are not there are then quoted,
            with their numbers, in one more message of the user, unless `recall` is 0. None for no
            such message.
        room
            Tokens that there is room for now, if these are fewer than the budget.

        Returns
        -------
        list of dict
            New messages, which the caller may change.

        Raises
        ------
        BudgetError
            What does not depend on the query takes more than the room.
        """
        query = as_query(query)
        with self._lock:
            shown = [unit for unit in self._view if unit.place != OPEN]
            held, room = _tokens(shown), self.budget if room is None else min(room, self.budget)
            if held > room:
                raise BudgetError(f"{held} tokens are held, and there is room for {room}")
            recalled = []
            if query is not None and self.recall:
                known = {unit.id for unit in self._view if unit.short is None}
                scores = relevance(self._archive, query, self.encoder, known)
                room -= held
                recalled = quoted(query, scores, self._archive, room, self._costs, self.method)
        place = last_of_the_user(shown) if recalled else len(shown)
        return [*messages_of(shown[:place]), *recalled, *messages_of(shown[place:])]

    def open(self, path: str | Path) -> None:
        """Go on with a file as the archive, which holds every turn as soon as it is observed.

        Raises
        ------
        BudgetError
            The newest turn does not fit the budget of this memory.
        InputError
            This memory was told something already.
        StateError
            The file is damaged, in use, or was written with another tokenizer.
        """
        with self._lock:
            if len(self._archive):
                raise InputError("a memory that was told something opens no file; use a new one")
            before, self._archive = self._archive, Archive(Path(path), self._belongs_to)
            try:
                with self._archive.transaction():
                    self._view = self._settled(self._archive.held())
            except BaseException:
                self._archive.close()
                self._archive = before
                raise
            before.close()

    def said(self, start: int = 1) -> list[list[Message]]:
        """All that was observed, from the unit of that number on: lists of messages, one a unit."""
        with self._lock:
            units = self._archive.get(range(start, len(self._archive) + 1))
        return [json.loads(units[number].messages) for number in sorted(units)]

    def save(self, path: str | Path) -> int:
        """Write all that was said to a file; what stood there before stays until that is whole.

        Where it was saved before, only what is new is written.

        Returns
        -------
        int
            The size of the file in bytes.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        with self._lock:
            return self._archive.save(Path(path))

    def load(self, path: str | Path) -> None:
        """Take all that was said from a file.

        Raises
        ------
        BudgetError
            The newest turn does not fit the budget of this memory. For others see `Memory`.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        with self._lock:
            self._view = self._archive.load(Path(path), self._settled)

    def fork(self) -> Self:
        """A memory of its own, with a private archive, that knows what this one does."""
        with self._lock:
            other = copy.copy(self)
            other._archive = self._archive.copy()
        other._lock = threading.RLock()
        return other

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            with self._archive.transaction():
                self._archive.clear()
            self._view = []

    def close(self) -> None:  # noqa: D102
        with self._lock:
            self._archive.close()

    # what comes in

    def _with(self, view: Sequence[Unit], messages: list[Message]) -> list[Unit]:
        """The view with a unit behind it, or with more of its last one."""
        view = list(view)
        number = view.pop().id if view and view[-1].place == OPEN else len(self._archive) + 1
        content = json.dumps(messages)
        if is_open(messages):
            free = self.budget - _tokens(u for u in view if u.place == PINNED)
            check_fits(messages, free, self._costs)
            unit = Unit(number, OPEN, 0, 0.0, content, "{}", 0, None, 0, None)
        else:
            text, cost = searchable(messages), self._costs.of(messages)
            found = terms(text)
            place = PINNED if messages[0]["role"] in SYSTEM_ROLES else RECENT
            vector = embedded(text, self.encoder, self._archive) if self.encoder else None
            unit = Unit(
                number,
                place,
                cost,
                weight("\n".join(texts(messages))),
                content,
                json.dumps(found, ensure_ascii=False),
                sum(found.values()),
                None,
                cost,
                None if vector is None else vector.astype(np.float16).tobytes(),
            )
            self._archive.index(number, found)
        self._archive.write([unit])
        return [*view, unit]

    def _settled(self, view: list[Unit]) -> list[Unit]:
        """The view brought into the budget; what has changed is written."""
        free = self.budget - _tokens(u for u in view if u.place == PINNED)
        told = [unit for unit in view if unit.place in (OLDER, RECENT)]
        if free < 0:
            raise BudgetError(
                f"the messages of the system take {self.budget - free} tokens, and the budget is "
                f"{self.budget}; raise it or shorten them"
            )
        room = free - int(self.recall * free)
        if not told or _tokens(told) <= room:
            return view
        new = self._condensed(told, max(room, min(told[-1].tokens, free)))
        self._archive.write([new[u.id] for u in view if new.get(u.id, u) != u])
        settled = [new.get(unit.id, unit) for unit in view]
        return [unit for unit in settled if unit.place != ARCHIVED]

    def _condensed(self, told: Sequence[Unit], room: int) -> dict[int, Unit]:
        """Units that are too many, with the newest as they were and what is left of the others."""
        *others, last = told
        if last.short_tokens > room:
            last = cut(last, room, self._costs, self.method, must=True)
        new = {last.id: last}
        own, left = int(self.recent * room) - last.short_tokens, room - last.short_tokens
        asked = others[last_of_the_user(others)] if others else last
        older = []
        for unit in reversed(others):
            is_recent = unit.place == RECENT and unit.short_tokens <= own
            if unit is asked and unit.short_tokens > left:
                unit = self._aged(unit, left)
            # What tools are called for must not be forgotten over their results.
            if unit.short_tokens <= left and (is_recent or unit.id == asked.id):
                new[unit.id] = unit
                left -= unit.short_tokens
                own -= unit.short_tokens if is_recent else 0
            else:
                own = -1  # recent turns are those behind the first that is not
                older.append(unit if unit.place == OLDER else self._aged(unit))
        left = int(self.low_water * room) - _tokens(new.values())
        for unit in ranked(older, self._archive):
            stays = unit.short_tokens <= left
            left -= unit.short_tokens if stays else 0
            new[unit.id] = unit if stays else unit._replace(place=ARCHIVED)
        return new

    def _aged(self, unit: Unit, room: int | None = None) -> Unit:
        """A recent unit as an older one."""
        limit = self.turn_tokens * len(json.loads(unit.messages))
        limit = limit if room is None else min(limit, room)
        return cut(unit._replace(place=OLDER), limit, self._costs, self.method)


def _tokens(units: Any) -> int:
    return sum(unit.short_tokens for unit in units)
