"""All units of a conversation in an SQLite database, with an index of their words.

What a turn adds to the index does not depend on the turns before it. Every unit carries a
checksum, and every change is one transaction: after a crash all but the turn in flight is there.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StateError
from .stored import COLUMNS, FORMAT, OPEN, Unit, flush, read_about, verified

__all__ = ["Archive"]

T = TypeVar("T")

_TABLES = """
CREATE TABLE {schema}.units (id INTEGER PRIMARY KEY, place INTEGER NOT NULL, tokens INTEGER
    NOT NULL, weight REAL NOT NULL, messages TEXT NOT NULL, terms TEXT NOT NULL, size INTEGER
    NOT NULL, short TEXT, short_tokens INTEGER NOT NULL, vector BLOB,
    changed INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX {schema}.held ON units (id) WHERE place > 0;
CREATE INDEX {schema}.changes ON units (changed);
CREATE TABLE {schema}.about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_INDEX = """
CREATE TABLE main.postings (term TEXT, unit INTEGER, count INTEGER, size INTEGER,
    PRIMARY KEY (term, unit)) WITHOUT ROWID;
CREATE TABLE main.holders (term TEXT PRIMARY KEY, units INTEGER) WITHOUT ROWID;
CREATE TABLE main.totals (units INTEGER, terms INTEGER);
INSERT INTO totals VALUES (0, 0);
"""
_SIZE = ("page_count", "page_size")


@dataclass(frozen=True)
class _Saved:
    """A file that was written or read last, and what it then had.

    Attributes
    ----------
    path
        The file.
    token
        That of its content.
    change
        The number of the last change.
    """

    path: Path
    token: str
    change: int


class Archive:
    """A database of units; used by one thread at a time.

    Parameters
    ----------
    path
        A file, made if there is none and gone on with else. None for a private one, which is in
        RAM while it is small and on disk beyond that, and vanishes.
    belongs_to
        What the units were counted and embedded with.

    Raises
    ------
    StateError
        The file is damaged, in use, or belongs to something else.
    """

    def __init__(self, path: Path | None, belongs_to: Mapping[str, str]) -> None:
        self.path = path
        self.belongs_to = dict(belongs_to)
        self._saved: _Saved | None = None
        self._process = os.getpid()
        try:
            if path:  # made here, for what SQLite makes may be read by others
                os.close(os.open(path, os.O_CREAT, 0o600))
            self.db = sqlite3.connect(
                path or "", isolation_level=None, check_same_thread=False, timeout=1
            )
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"{path} cannot be opened: {error}") from error
        self._close = weakref.finalize(self, self.db.close)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self.close()
            raise StateError(f"{path} is damaged, in use or no memory: {error}") from error
        except StateError:
            self.close()
            raise

    def _prepare(self) -> None:
        self.db.execute("PRAGMA cache_size = -2000")
        self.db.execute("PRAGMA trusted_schema = OFF")
        if self.path:
            self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
        else:
            self.db.execute("PRAGMA synchronous = OFF")
        with self.transaction():
            names = {name for (name,) in self.db.execute("SELECT name FROM sqlite_master")}
            if not names:
                self._create(_TABLES.format(schema="main"))
                self._set_about(0, 0)
            for _ in verified(self.db, "main", self.belongs_to, str(self.path)):
                pass
            if "postings" not in names:  # a file that was saved has no index
                self._create(_INDEX)
                self._index_all()

    def _create(self, tables: str) -> None:
        for statement in tables.split(";"):
            self.db.execute(statement)

    def close(self) -> None:
        """Let the file go."""
        self._close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done within, or nothing of it.

        Raises
        ------
        OSError
            The disk is full, or does something else that it should not.
        StateError
            The archive was closed, or belongs to the process that this one was forked from.
        """
        if os.getpid() != self._process:
            raise StateError("a memory does not survive a fork; make it where it is used")
        try:
            self.db.execute("BEGIN IMMEDIATE")
        except sqlite3.ProgrammingError as error:
            raise StateError("the memory was closed; make a new one") from error
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"{self.path or 'a private archive'}: {error}") from error
            raise

    # about: how many units there are, the number of the last change, and a token of this content.

    def _about(self, schema: str = "main") -> dict[str, Any]:
        return read_about(self.db, schema)

    def _set_about(self, units: int, change: int) -> None:
        value = json.dumps(
            {
                "format": FORMAT,
                "token": str(uuid.uuid4()),
                "units": units,
                "change": change,
                "belongs_to": self.belongs_to,
            },
            sort_keys=True,
        )
        rows = [("about", value), ("crc", str(zlib.crc32(value.encode())))]
        self.db.executemany("INSERT OR REPLACE INTO main.about VALUES (?, ?)", rows)

    def __len__(self) -> int:
        return int(self._about()["units"])

    @property
    def nbytes(self) -> int:
        """Bytes of a private database; 0 if it is a file."""
        if self.path:
            return 0
        (pages,), (size,) = (self.db.execute(f"PRAGMA {p}").fetchone() for p in _SIZE)
        return int(pages * size)

    def write(self, units: Sequence[Unit]) -> None:
        """Add units or change what is said of them, within a transaction."""
        if not units:
            return
        about = self._about()
        change = about["change"] + 1
        rows = [(*unit, change, unit.checksum(change)) for unit in units]
        marks = ", ".join("?" * len(rows[0]))
        self.db.executemany(f"INSERT OR REPLACE INTO units VALUES ({marks})", rows)  # noqa: S608
        last = max([about["units"], *(unit.id for unit in units)])
        self._set_about(last, change)

    def index(self, unit: int, terms: Mapping[str, int]) -> None:
        """Make the words of a new unit known, within a transaction."""
        if not terms:
            return
        size = sum(terms.values())
        self.db.executemany(
            "INSERT INTO postings VALUES (?, ?, ?, ?)",
            [(term, unit, count, size) for term, count in terms.items()],
        )
        self.db.executemany(
            "INSERT INTO holders VALUES (?, 1) ON CONFLICT (term) DO UPDATE SET units = units + 1",
            [(term,) for term in terms],
        )
        self.db.execute("UPDATE totals SET units = units + 1, terms = terms + ?", (size,))

    def held(self) -> list[Unit]:
        """The units that stand in the memory, in order."""
        found = self.db.execute(f"SELECT {COLUMNS} FROM units WHERE place > 0 ORDER BY id")  # noqa: S608
        return [Unit(*row[:-2]) for row in found]

    def get(self, ids: Sequence[int]) -> dict[int, Unit]:
        """Units by their numbers."""
        found = self.db.execute(
            f"SELECT {COLUMNS} FROM units WHERE id IN (SELECT value FROM json_each(?))",  # noqa: S608
            (json.dumps(list(ids)),),
        )
        return {row[0]: Unit(*row[:-2]) for row in found}

    def costs(self, ids: Sequence[int]) -> dict[int, int]:
        """What units cost whole."""
        found = self.db.execute(
            "SELECT id, tokens FROM units WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(ids)),),
        )
        return dict(found.fetchall())

    def rarity(self, terms: Sequence[str]) -> dict[str, float]:
        """The inverse document frequency of words that are known."""
        (n,) = self.db.execute("SELECT units FROM totals").fetchone()
        found = self.db.execute(
            "SELECT term, units FROM holders WHERE term IN (SELECT value FROM json_each(?))",
            (json.dumps(list(terms)),),
        )
        return {t: float(np.log1p((n - df + 0.5) / (df + 0.5))) for t, df in found}

    def bm25(self, terms: Sequence[str], k1: float = 1.2, b: float = 0.4) -> NDArray[np.float64]:
        """BM25 of every unit; shape ``(units + 1,)``, for there is no unit 0."""
        scores = np.zeros(len(self) + 1)
        n, total = self.db.execute("SELECT units, terms FROM totals").fetchone()
        mean = max(total / max(n, 1), 1.0)
        for term, idf in self.rarity(terms).items():
            rows = self.db.execute("SELECT unit, count, size FROM postings WHERE term = ?", (term,))
            units, counts, sizes = np.array(rows.fetchall(), dtype=np.float64).reshape(-1, 3).T
            saturation = k1 * (1 - b + b * sizes / mean)
            scores[units.astype(np.int64)] += idf * counts * (k1 + 1) / (counts + saturation)
        return scores

    def similarity(self, vector: NDArray[np.float32]) -> NDArray[np.float64]:
        """Cosine of every unit's embedding with a vector; shape ``(units + 1,)``."""
        scores = np.zeros(len(self) + 1)
        rows = self.db.execute("SELECT id, vector FROM units WHERE vector IS NOT NULL")
        while part := rows.fetchmany(1000):
            held = np.frombuffer(b"".join(v for _, v in part), np.float16).reshape(len(part), -1)
            scores[[i for i, _ in part]] = held.astype(np.float32) @ vector
        return scores

    def clear(self) -> None:
        """Forget everything, within a transaction."""
        self._saved = None
        for table in ("units", "postings", "holders"):
            self.db.execute(f"DELETE FROM {table}")  # noqa: S608
        self.db.execute("UPDATE totals SET units = 0, terms = 0")
        self._set_about(0, self._about()["change"] + 1)

    def copy(self) -> Archive:
        """A private archive with the same content."""
        other = Archive(None, self.belongs_to)
        self.db.backup(other.db)
        return other

    def save(self, path: Path) -> int:
        """Write all units to a file; what stands there stays until the new content is whole.

        Only what is new is written where this archive was saved last.

        Returns
        -------
        int
            The size of the file.
        """
        path = path.absolute()
        if self.path and path == self.path.absolute():
            return path.stat().st_size  # every turn is there already
        about, saved = self._about(), self._saved
        if saved is None or saved.path != path or not self._add_to(path, saved):
            self._write(path)
        self._saved = _Saved(path, about["token"], about["change"])
        return path.stat().st_size

    def _add_to(self, path: Path, saved: _Saved) -> bool:
        """Bring a file up to date; False if it is not what was saved."""
        if not path.is_file():
            return False
        try:
            with self._attached(path):
                about = read_about(self.db, "other")
                if about["token"] != saved.token:
                    return False
                with self.transaction():
                    self._copy_units("main", "other", saved.change)
                return True
        except (sqlite3.DatabaseError, StateError):
            return False

    def _write(self, path: Path) -> None:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            with self._attached(Path(temporary)), self.transaction():
                self._create(_TABLES.format(schema="other"))
                self._copy_units("main", "other", -1)
            for end in ("-journal", "-wal"):  # left by a crash, and of the file that goes
                path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
            Path(temporary).replace(path)
            flush(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def load(self, path: Path, accept: Callable[[list[Unit]], T]) -> T:
        """Take all units from a file.

        Parameters
        ----------
        path
            The file.
        accept
            Is given those in the memory; if it raises, nothing has changed. What it gives is
            given back.

        Raises
        ------
        StateError
            The file is damaged or belongs to something else. Nothing has changed.
        """
        try:
            with self._attached(path):
                about = read_about(self.db, "other")
                with self.transaction():
                    for _ in verified(self.db, "other", self.belongs_to, str(path)):
                        pass
                    self.clear()
                    self._copy_units("other", "main", -1)
                    self._index_all()
                    accepted = accept(self.held())
        except sqlite3.DatabaseError as error:
            raise StateError(f"{path} is damaged, in use or no memory: {error}") from error
        self._saved = _Saved(path.absolute(), about["token"], about["change"])
        return accepted

    def _index_all(self) -> None:
        """Build the index of words from the units."""
        self.db.execute(
            "INSERT INTO postings SELECT j.key, u.id, j.value, u.size "
            "FROM units u, json_each(u.terms) j "
            "WHERE u.place != ? ORDER BY 1, 2",
            (OPEN,),
        )
        self.db.execute("INSERT INTO holders SELECT term, count(*) FROM postings GROUP BY term")
        self.db.execute(
            "UPDATE totals SET units = (SELECT count(DISTINCT unit) FROM postings), "
            "terms = (SELECT coalesce(sum(count), 0) FROM postings)"
        )

    def _copy_units(self, source: str, target: str, change: int) -> None:
        """Copy what changed after that."""
        self.db.execute(
            f"INSERT OR REPLACE INTO {target}.units SELECT * FROM {source}.units "  # noqa: S608
            f"WHERE changed > ?",
            (change,),
        )
        self.db.execute(f"INSERT OR REPLACE INTO {target}.about SELECT * FROM {source}.about")  # noqa: S608

    @contextmanager
    def _attached(self, path: Path) -> Iterator[None]:
        self.db.execute("ATTACH DATABASE ? AS other", (str(path),))
        try:
            self.db.execute("PRAGMA other.synchronous = FULL")
            yield
        finally:
            self.db.execute("DETACH DATABASE other")
