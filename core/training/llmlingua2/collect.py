"""Asking a large language model for shorter texts, and writing down each answer as it comes.

Source: Pan et al., "LLMLingua-2", Findings of ACL 2024, section 3.1.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...errors import InputError, ModelError
from .requests import INSTRUCTION, Chunk, Instruction
from .rows import digest, parse, read_rows, text_under

__all__ = ["Collected", "Model", "Pair", "collect", "read_pairs", "still_to_ask"]

Model = Callable[[str, str], str]
"""What answers: from the system's message and the user's to a text. Threads call it at once."""

_GIVE_UP = 8
"""Chunks in a row of which none is answered, after which no other is sent."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A chunk and what the model made of it; the document's name may be any text."""

    id: str
    document: str
    origin: str
    compressed: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What came of asking.

    Attributes
    ----------
    written
        Pairs that were added to the file.
    failed
        Of each chunk that got no answer its document and why.
    """

    written: int
    failed: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        if not self.failed:
            return f"{self.written:,} pairs collected"
        document, reason = self.failed[0]
        return (
            f"{self.written:,} pairs collected, {len(self.failed):,} chunks without an answer, "
            f"which the same command asks for again (the first, of {document}: {reason})"
        )


def still_to_ask(chunks: Sequence[Chunk], out: str | Path) -> list[Chunk]:
    """The chunks that a file of pairs does not have yet.

    Raises
    ------
    InputError
        The file holds something else than pairs.
    """
    held = _held(Path(out))[0]
    return [one for one in chunks if one.id not in held]


def collect(
    chunks: Sequence[Chunk],
    model: Model,
    out: str | Path,
    *,
    instruction: Instruction = INSTRUCTION,
    parallel: int = 4,
    attempts: int = 3,
    pause: float = 1.0,
    progress: bool = False,
) -> Collected:
    """Ask for each chunk that `out` does not have yet, and add the answers to it one by one.

    A call that was stopped goes on where it was when it is made again; answers that were under
    way are waited for and written.

    Parameters
    ----------
    chunks
        What to ask for, made with the same `instruction`.
    model
        What answers.
    out
        The file of pairs: JSON lines with ``id``, ``document``, ``origin`` and ``compressed``.
    instruction
        What the model is told.
    parallel
        Requests under way at once.
    attempts
        Requests for a chunk until it is left out.
    pause
        Seconds in front of the second request for a chunk, doubled for each other one.
    progress
        Whether to show a bar.

    Raises
    ------
    InputError
        `parallel` or `attempts` is below 1, or `out` holds something else.
    ModelError
        No request is answered, or none is any more.
    """
    if min(parallel, attempts) < 1:
        raise InputError(f"parallel and attempts are at least 1, got {parallel} and {attempts}")
    from tqdm import tqdm

    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    missing = still_to_ask(chunks, out)
    with _open_behind(out) as stream, ThreadPoolExecutor(parallel) as pool:
        asked = _Asked(model, instruction, stream, attempts, pause)
        futures = [pool.submit(asked.ask, one) for one in missing]
        try:
            done = as_completed(futures)
            for future in tqdm(done, total=len(futures), unit="chunk", disable=not progress):
                future.result()
        except BaseException:
            asked.stop.set()
            raise
    if asked.stop.is_set() or (chunks and len(asked.failed) == len(chunks)):
        raise ModelError(
            f"the model answers no more: {len(asked.failed)} chunks failed, the last with "
            f"{asked.failed[-1][1]}; {asked.written} pairs were added to {out}, and the same "
            f"command goes on from there"
        )
    return Collected(asked.written, tuple(asked.failed))


class _Asked:
    """What was asked so far. Its threads write themselves, so that no answer can be lost."""

    def __init__(
        self,
        model: Model,
        instruction: Instruction,
        stream: BinaryIO,
        attempts: int,
        pause: float,
    ) -> None:
        self.stop = threading.Event()
        self.written = 0
        self.failed: list[tuple[str, str]] = []
        self._model, self._instruction, self._stream = model, instruction, stream
        self._pauses = [0.0, *(pause * 2**i for i in range(attempts - 1))]
        self._lock = threading.Lock()
        self._in_a_row = 0

    def ask(self, one: Chunk) -> None:
        reason = ""
        for pause in self._pauses:
            if self.stop.wait(pause) if pause else self.stop.is_set():
                return
            try:
                said = self._model(*self._instruction.about(one.text))
            except Exception as error:  # noqa: BLE001 - each provider raises errors of its own
                reason = f"{type(error).__name__}: {error}"
                continue
            if said.strip():
                self._write(one, said.strip())
                return
            reason = "an empty answer"
        with self._lock:
            self.failed.append((one.document, reason))
            self._in_a_row += 1
            if self._in_a_row >= _GIVE_UP:
                self.stop.set()

    def _write(self, one: Chunk, said: str) -> None:
        row = {"id": one.id, "document": one.document, "origin": one.text, "compressed": said}
        with self._lock:
            self._stream.write(f"{json.dumps(row)}\n".encode())
            self._stream.flush()
            self.written += 1
            self._in_a_row = 0


def _open_behind(out: Path) -> BinaryIO:
    """Open a file of pairs to add to it, without a last line that is only half there."""
    end = _held(out)[1]
    stream = out.open("ab")
    stream.truncate(end)
    if end and out.read_bytes()[-1:] != b"\n":
        stream.write(b"\n")
    return stream


def _held(out: Path) -> tuple[set[str], int]:
    """The ids in a file of pairs, and the number of bytes that are whole lines."""
    ids: set[str] = set()
    end = 0
    for number, line in enumerate(out.read_bytes().splitlines(True) if out.exists() else [], 1):
        place = f"{out}:{number}"
        try:
            if line.strip():
                ids.add(text_under(parse(line, place), "id", place))
        except InputError:
            if line.endswith(b"\n"):
                raise
            break  # a run was stopped while it wrote this
        end += len(line)
    return ids, end


def read_pairs(file: str | Path) -> list[Pair]:
    """Read what `collect` wrote, or other JSON lines with ``origin`` and ``compressed``.

    Without a ``document`` each pair is a document of its own.

    Raises
    ------
    InputError
        The file cannot be read, or a line is no such object. The message names the line.
    """
    return list(_pairs(file))


def _pairs(file: str | Path) -> Iterator[Pair]:
    for place, row in read_rows(file):
        origin, compressed = (text_under(row, key, place) for key in ("origin", "compressed"))
        name = str(row.get("id") or digest(origin))
        yield Pair(name, str(row.get("document") or name), origin, compressed)
