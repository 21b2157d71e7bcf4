"""The JSON lines that one step of the recipe writes and the next one reads."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError

__all__ = ["Row", "digest", "parse", "read_rows", "text_under", "write_rows"]

Row = Mapping[str, Any]


def read_rows(file: str | Path) -> Iterator[tuple[str, Row]]:
    """Read objects, plain or gzip, each with its place: file and line.

    Raises
    ------
    InputError
        The file cannot be read, or a line is no object.
    """
    opener = gzip.open if Path(file).suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", parse(line, f"{file}:{number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"cannot read {file}: {error}") from error


def parse(line: str | bytes, place: str) -> Row:
    """One line as an object.

    Raises
    ------
    InputError
        It is none. The message begins with the place.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, got {type(row).__name__}")
    return row


def digest(*texts: str) -> str:
    """A short name for texts, the same for the same texts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def text_under(row: Row, key: str, place: str) -> str:
    """The text under a key.

    Raises
    ------
    InputError
        There is none, or it is blank.
    """
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: needs a text under {key!r}; there are {', '.join(row)}")
    return text


def write_rows(file: str | Path, rows: Iterable[Row]) -> None:
    """Write all rows or, if something goes wrong, none."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.part")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{json.dumps(row)}\n" for row in rows)
    temporary.replace(file)
