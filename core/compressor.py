"""What every compressor answers to, and how two of them make one."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from .budget import Budget
from .errors import InputError
from .guards import KeepPattern
from .types import Compression, Passage

__all__ = ["Compressor", "Order", "Passages", "as_passages", "as_query", "check_order"]

Order = Literal["source", "score"]
"""How the kept passages stand in the result: as they came, or the most relevant first."""

Passages = str | Passage | Iterable[str | Passage]
"""A text, a passage, or several of either."""


class Compressor(ABC):
    """Makes a list of passages shorter by leaving out what matters least.

    Compressors hold no state of a call: threads and tasks may share one. A method that scores
    units derives from `laconic.core.method.Method`, which does the rest.
    """

    name: str
    """The name in results and in the registry."""

    needs_query: ClassVar[bool] = False
    """Whether it can do nothing without a query."""

    @abstractmethod
    def compress_many(
        self,
        requests: Iterable[tuple[Passages, str | None]],
        *,
        budget: Budget | float,
        keep: Sequence[KeepPattern] = (),
        counter: Any = None,
        order: Order = "source",
    ) -> list[Compression]:
        """Compress several ``(passages, query)`` pairs, together where that is faster.

        The parameters, results and errors of each pair are those of `compress`.
        """

    def compress(
        self,
        passages: Passages,
        *,
        query: str | None = None,
        budget: Budget | float,
        keep: Sequence[KeepPattern] = (),
        counter: Any = None,
        order: Order = "source",
    ) -> Compression:
        """Compress passages to a budget.

        Parameters
        ----------
        passages
            A text, a `Passage`, or several of either. They are not changed.
        query
            What the text is wanted for. Blank counts as None.
        budget
            A `Budget`; or an int, read as tokens; or a float, read as a rate.
        keep
            What must survive wherever it occurs, with the unit around it: literal strings or
            compiled patterns.
        counter
            Whose tokens are counted; anything `TokenCounter.of` takes.
        order
            ``"source"`` leaves the passages in input order, ``"score"`` puts the most relevant
            first.

        Returns
        -------
        Compression
            What is left. Its text never counts more tokens than the budget allows. Input that
            fits the budget comes back byte for byte, unscored when `order` is ``"source"``.

        Raises
        ------
        InputError
            `passages` holds something that is not text.
        BudgetError
            `budget` is no valid budget, or what `keep` finds does not fit in it.
        QueryRequiredError
            The method needs a query and `query` is blank.
        """
        return self.compress_many(
            [(passages, query)], budget=budget, keep=keep, counter=counter, order=order
        )[0]

    async def acompress(
        self,
        passages: Passages,
        *,
        query: str | None = None,
        budget: Budget | float,
        keep: Sequence[KeepPattern] = (),
        counter: Any = None,
        order: Order = "source",
    ) -> Compression:
        """`compress` in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(
            self.compress,
            passages,
            query=query,
            budget=budget,
            keep=keep,
            counter=counter,
            order=order,
        )


def as_passages(given: Passages) -> tuple[Passage, ...]:
    """Read what a user may call passages.

    Raises
    ------
    InputError
        Something in it is not text.
    """
    if isinstance(given, (str, Passage)):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray, Mapping)):
        raise InputError(f"passages are texts or Passage objects, got {type(given).__name__}")
    passages = tuple(Passage(p) if isinstance(p, str) else p for p in given)
    for place, passage in enumerate(passages):
        text = passage.text if isinstance(passage, Passage) else passage
        if not isinstance(text, str):
            raise InputError(
                f"passage {place} is {type(text).__name__}, expected text; decode bytes and "
                f"leave out what is not text"
            )
        if not isinstance(passage.metadata, Mapping):
            raise InputError(
                f"the metadata of passage {place} is {type(passage.metadata).__name__}, "
                f"expected a dict"
            )
    return passages


def as_query(query: str | None) -> str | None:
    """Read a query; a blank one is None.

    Raises
    ------
    InputError
        It is neither a str nor None.
    """
    if query is not None and not isinstance(query, str):
        raise InputError(f"a query is a str or None, got {type(query).__name__}")
    return query if query and not query.isspace() else None


def check_order(order: str) -> None:
    """Raise `InputError` unless it is an `Order`."""
    if order not in get_args(Order):
        raise InputError(f"order is one of {', '.join(get_args(Order))}, got {order!r}")
