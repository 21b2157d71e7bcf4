"""Reading documents, and cutting them into the chunks that are compressed one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import units
from ...budget import TokenCounter
from ...errors import InputError
from ...types import Span
from .rows import read_rows, text_under

__all__ = ["Document", "cut", "read_documents"]

_JSON_LINES = (".jsonl", ".ndjson")

_Cutter = Callable[[str], Sequence[Span]]
_CUTTERS: tuple[_Cutter, ...] = (units.sentences, units.words, units.graphemes)
"""How to cut what is too long, each for what the one before leaves too long."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the name that tells it from others."""

    name: str
    text: str


def read_documents(sources: Iterable[str | Path], field: str = "text") -> list[Document]:
    """Read the documents of files and folders.

    Parameters
    ----------
    sources
        JSON lines (``.jsonl`` or ``.ndjson``, also with ``.gz``) with a document a line; a folder,
        of which every ``.txt`` is a document, those of its folders too; or any other file, which
        is one document.
    field
        The key of the text in JSON lines.

    Raises
    ------
    InputError
        A source cannot be read, or there is no document. The message names file and line.
    """
    documents: list[Document] = []
    for source in map(Path, sources):
        if Path(source.name.removesuffix(".gz")).suffix in _JSON_LINES:
            for place, row in read_rows(source):
                line = place.rpartition(":")[2]
                name = f"{source.name}:{line}"
                documents.append(Document(name, text_under(row, field, place)))
        elif source.is_dir():
            documents += [
                Document(file.relative_to(source).as_posix(), _read(file))
                for file in sorted(source.rglob("*.txt"))
            ]
        else:
            documents.append(Document(source.name, _read(source)))
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise InputError("there is no document: give JSON lines, text files or folders of them")
    return documents


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from error


def cut(text: str, counter: TokenCounter, most: int = 512) -> list[Span]:
    """Cut a text behind sentences, each chunk as long as may be.

    A sentence that is too long alone is cut behind words, a word between characters.

    Parameters
    ----------
    text
        Any text.
    counter, most
        Whose tokens count, and how many a chunk has at the most, white space around it aside.

    Returns
    -------
    list of Span
        Tiles of `text`; ``[]`` for ``""``.

    Raises
    ------
    InputError
        `most` is below 1.
    """
    if most < 1:
        raise InputError(f"a chunk has at least 1 token, got {most}")
    return _cut(text, Span(0, len(text)), counter, most, _CUTTERS)


def _cut(
    text: str, span: Span, counter: TokenCounter, most: int, cutters: Sequence[_Cutter]
) -> list[Span]:
    first, *finer = cutters
    ends = [span.start + piece.end for piece in first(text[slice(*span)])]
    chunks: list[Span] = []
    start, place = span.start, 0
    while place < len(ends):
        fitting = _last_that_fits(text, start, ends, place, counter, most)
        if fitting < place and finer:
            chunks += _cut(text, Span(start, ends[place]), counter, most, finer)
        else:  # one character is sent even if it has more tokens
            chunks.append(Span(start, ends[max(place, fitting)]))
        place = max(place, fitting) + 1
        start = ends[place - 1]
    return chunks


def _last_that_fits(
    text: str, start: int, ends: Sequence[int], place: int, counter: TokenCounter, most: int
) -> int:
    """The last end, from `place` on, up to which the text is short enough; else ``place - 1``.

    It is looked for in growing steps and then in halves, so that no more is counted than about
    twice what fits.
    """
    fits, step, grows = place - 1, 1, True
    while step:
        tried = fits + step
        if tried < len(ends) and counter.count(text[start : ends[tried]].strip()) <= most:
            fits = tried
        else:
            grows = False
        step = step * 2 if grows else step // 2
    return fits
