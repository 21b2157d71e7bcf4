"""A unit as it stands in a database, and how a database of units is checked."""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import StateError

__all__ = [
    "ARCHIVED",
    "COLUMNS",
    "FORMAT",
    "OLDER",
    "OPEN",
    "PINNED",
    "RECENT",
    "Unit",
    "flush",
    "last_of_the_user",
    "messages_of",
    "read_about",
    "verified",
]

ARCHIVED, OLDER, RECENT, OPEN, PINNED = range(5)
"""Where a unit stands: only here; in the memory's older or recent part; here and in no other
part for results are to come; or in the memory for good."""

FORMAT = "laconic-text-memory-1"

COLUMNS = (
    "id, place, tokens, weight, messages, terms, size, short, short_tokens, vector, changed, crc"
)


class Unit(NamedTuple):
    """A row: a message, or one with tool calls and their results.

    Attributes
    ----------
    id
        Its number, from 1.
    place
        Where it stands.
    tokens
        What it costs whole.
    weight
        How much its words count.
    messages
        JSON of the list of its messages.
    terms
        JSON of its words with their counts.
    size
        How many words these are.
    short, short_tokens
        The same when it is compressed, and what that costs; None and `tokens` if it is not.
    vector
        Its embedding as float16, or None.
    """

    id: int
    place: int
    tokens: int
    weight: float
    messages: str
    terms: str
    size: int
    short: str | None
    short_tokens: int
    vector: bytes | None

    def checksum(self, changed: int) -> int:
        """A checksum of all of it."""
        return zlib.crc32(repr((tuple(self), changed)).encode("utf-8", "backslashreplace"))


def messages_of(units: Sequence[Unit]) -> list[dict[str, Any]]:
    """The messages of units as they are shown; new ones."""
    return [message for unit in units for message in json.loads(unit.short or unit.messages)]


def last_of_the_user(units: Sequence[Unit]) -> int:
    """The place of the last turn of the user, or else of the last turn."""
    for place in range(len(units) - 1, -1, -1):
        if json.loads(units[place].messages)[0]["role"] == "user":
            return place
    return max(0, len(units) - 1)


def read_about(db: sqlite3.Connection, schema: str) -> dict[str, Any]:
    """Who a database is."""
    rows = dict(db.execute(f"SELECT name, value FROM {schema}.about").fetchall())  # noqa: S608
    if str(zlib.crc32(rows.get("about", "").encode())) != rows.get("crc"):
        raise StateError("the file is damaged: what it says of itself is not what was saved")
    about: dict[str, Any] = json.loads(rows["about"])
    return about


def verified(
    db: sqlite3.Connection, schema: str, belongs_to: Mapping[str, str], name: str
) -> Iterator[Unit]:
    """The units of a database, each checked.

    Raises
    ------
    StateError
        The database is damaged or belongs to something else.
    """
    about = read_about(db, schema)
    if about.get("format") != FORMAT:
        raise StateError(f"{name} has the format {about.get('format')!r}, expected {FORMAT!r}")
    for part, ours in belongs_to.items():
        if about["belongs_to"].get(part) != ours:
            raise StateError(
                f"{name} was saved with the {part} {about['belongs_to'].get(part)!r}, and this "
                f"memory has {ours!r}; load it with the one that it was saved with"
            )
    (found,) = db.execute(f"PRAGMA {schema}.integrity_check(1)").fetchone()
    if found != "ok":
        raise StateError(f"{name} is damaged: {found}")
    last = 0
    with closing(db.execute(f"SELECT {COLUMNS} FROM {schema}.units ORDER BY id")) as rows:  # noqa: S608
        for *values, changed, crc in rows:
            unit, last = Unit(*values), last + 1
            if unit.id != last or unit.checksum(changed) != crc:
                raise StateError(f"{name} is damaged: turn {last} is not what was saved")
            yield unit
    if last != about["units"]:
        raise StateError(f"{name} is damaged: it has {last} turns of {about['units']}")


def flush(folder: Path) -> None:
    """Let new names in a folder survive a power failure; Windows has no such thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
