"""`Sessions`: many conversations, each a memory of its own, in RAM and on disk."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from ..core.errors import InputError
from .base import Memory

__all__ = ["Sessions"]

M = TypeVar("M", bound=Memory)

_SUFFIX = ".memory"
_LONGEST = 128
"""Bytes of a session id in UTF-8 at most: so that its file has a name that all systems take."""


class _Slot(Generic[M]):
    """A session that is in RAM or in use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.user: int | None = None
        self.memory: M | None = None
        self.nbytes = 0
        self.users = 0

    def let_go(self) -> None:
        """Have no memory in RAM."""
        if self.memory is not None:
            self.memory.close()
        self.memory, self.nbytes = None, 0


class Sessions(Generic[M]):
    """Conversations by the id of their session; none ever sees another.

    A session is saved whenever its use ends, so that a crash loses at most what was observed
    during that use. Those not used for longest leave RAM first and come back from their files.
    One session is used by one thread at a time, others wait; several work side by side. A
    folder belongs to one `Sessions` in one process; another finds files of text memories locked.

    Parameters
    ----------
    make
        Makes an empty memory; all that it makes are alike.
    folder
        Where the sessions' files lie; made if there is none.
    max_bytes
        Bytes that memories may hold in RAM between uses, as `Memory.nbytes` counts them.
    max_loaded
        Memories in RAM between uses at most; each may hold a few files open.
    ttl
        Seconds after its last use when a session is forgotten; None for never.
    clock
        Gives the time in seconds since 1970.

    Raises
    ------
    InputError
        A parameter is out of its range.

    Examples
    --------
    >>> sessions = Sessions(TextMemory, "memories")              # doctest: +SKIP
    >>> with sessions.use("ann") as memory:                      # doctest: +SKIP
    ...     memory.observe("My cat is called Tom.")
    """

    def __init__(
        self,
        make: Callable[[], M],
        folder: str | Path,
        *,
        max_bytes: int = 256 * 2**20,
        max_loaded: int = 128,
        ttl: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise InputError(f"max_bytes is a number of bytes, at least 0, got {max_bytes!r}")
        if isinstance(max_loaded, bool) or not isinstance(max_loaded, int) or max_loaded < 0:
            raise InputError(f"max_loaded is a number of memories, got {max_loaded!r}")
        if ttl is not None and not ttl > 0:
            raise InputError(f"ttl is a number of seconds above 0, or None, got {ttl!r}")
        self._make = make
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._max_loaded = max_loaded
        self._ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: OrderedDict[str, _Slot[M]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of all memories in RAM."""
        with self._lock:
            return sum(slot.nbytes for slot in self._slots.values())

    @contextmanager
    def use(self, session_id: str) -> Iterator[M]:
        """Use the memory of a session, which begins if there is none of that id.

        Keep no reference to it beyond the block, and do not await within it: where another
        thread uses the session, this one stands still until that has ended.

        Raises
        ------
        InputError
            The id is no text of 1 to 128 bytes, or this thread uses the session already.
        StateError
            The session's file is damaged, of another memory, or used by another process. `delete`
            makes room for a new one, and loses what the file holds.
        """
        path = self._path(session_id)
        with self._held(session_id) as slot:
            if self._is_expired(path):
                self._forget(slot, path)
            if slot.memory is None:
                memory = self._make()
                try:
                    memory.open(path)
                except BaseException:
                    memory.close()
                    raise
                slot.memory = memory
            try:
                yield slot.memory
            finally:
                # A memory is whole after a call that failed, so what came before is saved.
                try:
                    slot.memory.save(path)
                    now = self._clock()
                    os.utime(path, (now, now))
                    slot.nbytes = slot.memory.nbytes
                except BaseException:
                    slot.let_go()  # what is on disk is what counts
                    raise

    def delete(self, session_id: str) -> bool:
        """Forget one session, in RAM and on disk; waits until it is in no use.

        Returns
        -------
        bool
            Whether there was one.
        """
        path = self._path(session_id)
        with self._held(session_id) as slot:
            existed = slot.memory is not None or path.is_file()
            self._forget(slot, path)
            return existed

    def expire(self) -> list[str]:
        """Forget the sessions whose time is over; gives their ids."""
        gone = []
        for session_id in self.ids():
            with self._held(session_id) as slot:
                path = self._path(session_id)
                if self._is_expired(path):
                    self._forget(slot, path)
                    gone.append(session_id)
        return gone

    def close(self) -> None:
        """Let go of all memories, each when its use has ended; what is on disk stays."""
        with self._lock:
            loaded = list(self._slots)
        for session_id in loaded:
            with self._held(session_id) as slot:
                slot.let_go()

    def ids(self) -> list[str]:
        """The ids of all sessions that are on disk, sorted."""
        names = [path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")]
        return sorted(filter(None, map(_decoded, names)))

    def __contains__(self, session_id: str) -> bool:
        """Whether there is such a session."""
        path = self._path(session_id)
        return path.is_file() and not self._is_expired(path)

    @contextmanager
    def _held(self, session_id: str) -> Iterator[_Slot[M]]:
        """A session's slot, for this thread alone."""
        with self._lock:
            slot = self._slots.setdefault(session_id, _Slot())
            slot.users += 1
        try:
            if slot.user == threading.get_ident():
                raise InputError(
                    f"this thread uses the session {session_id!r} already; leave that use first, "
                    f"and in coroutines let each use run in a thread: asyncio.to_thread"
                )
            with slot.lock:
                slot.user = threading.get_ident()
                try:
                    yield slot
                finally:
                    slot.user = None
        finally:
            with self._lock:
                slot.users -= 1
                self._slots.move_to_end(session_id)
                self._make_room()

    def _make_room(self) -> None:
        """Let go of what is empty, and of what was not used for longest, up to the limit."""
        total = sum(slot.nbytes for slot in self._slots.values())
        loaded = sum(slot.memory is not None for slot in self._slots.values())
        for session_id, slot in list(self._slots.items()):
            is_too_much = total > self._max_bytes or loaded > self._max_loaded
            if not slot.users and (slot.memory is None or is_too_much):
                total -= slot.nbytes
                loaded -= slot.memory is not None
                slot.let_go()
                del self._slots[session_id]

    def _is_expired(self, path: Path) -> bool:
        if self._ttl is None or not path.is_file():
            return False
        return self._clock() - path.stat().st_mtime > self._ttl

    def _forget(self, slot: _Slot[M], path: Path) -> None:
        """Remove a session's memory, and what lies beside its file before the file itself."""
        slot.let_go()
        for beside in (*self._folder.glob(f"{path.name}-*"), *self._folder.glob(f".{path.name}.*")):
            beside.unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _path(self, session_id: str) -> Path:
        """The file of a session; different ids have different ones on every file system."""
        if not isinstance(session_id, str):
            raise InputError(f"a session id is a str, got {session_id!r}")
        try:
            encoded = session_id.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"a session id is valid Unicode, got {session_id!r}") from error
        if not 1 <= len(encoded) <= _LONGEST:
            raise InputError(
                f"a session id has 1 to {_LONGEST} bytes in UTF-8, got {len(encoded)}; use a hash "
                f"of what is longer"
            )
        # Base 32 has one case only, for file systems that do not tell them apart.
        name = base64.b32encode(encoded).decode().rstrip("=").lower()
        return self._folder / f"{name}{_SUFFIX}"


def _decoded(name: str) -> str | None:
    """The id that a file is named after; None for a file of something else."""
    try:
        return base64.b32decode(name.upper() + "=" * (-len(name) % 8)).decode()
    except ValueError:
        return None
