"""Reading questions with the passages that answer them, from JSON lines (plain or gzip).

The shape of a row is recognised by its keys:

- ``question, answers, documents``: each document a str, ``{"text", "title"?}``, or
  ``{"sentences", "supporting", "title"?}``. This is also the shape for a user's own data;
  ``{"question", "answers", "context"}`` is the same with one document.
- ``context, qas``: one text with its questions. Long texts are asked about one by one; short
  ones are a pool from which each question is given the ten that BM25 finds, its own among them.
- ``question, candidates, answers``: the sentences of a section, and the numbers of those that
  answer, as SelQA has them (Jurczyk et al., ICTAI 2016); likewise a pool of sections.
- ``meeting_transcripts, specific_query_list``: a transcript, queries, and the turns that answer.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..errors import InputError, MissingExtraError
from ..types import JOINER, Passage, Span
from .metrics import contains_answer

__all__ = ["Example", "load"]

_POOLED = 10
"""Paragraphs given to a question whose own paragraph is short."""

_LONG = 4000
"""Median characters of a context from which on it is a document of its own."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One question with the passages to compress for it.

    Attributes
    ----------
    question
        The question.
    answers
        Strings any one of which answers it; may be empty when `supporting` is not.
    passages
        What a retriever would hand over.
    supporting
        Where the evidence stands: index of a passage and a span in it.
    """

    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    supporting: tuple[tuple[int, Span], ...] = ()

    @cached_property
    def is_answerable(self) -> bool:
        """Whether an answer stands in the passages to begin with."""
        return contains_answer(JOINER.join(p.text for p in self.passages), self.answers)


def load(path: str | Path) -> list[Example]:
    """Read a file of questions.

    Parameters
    ----------
    path
        JSON lines, gzip if the name ends in ``.gz``.

    Raises
    ------
    InputError
        The file cannot be read, a line is no JSON object, or its keys are of no known shape.
    """
    rows = list(_rows(Path(path)))
    if not rows:
        raise InputError(f"{path} holds no rows")
    first = rows[0]
    try:
        if "qas" in first:
            is_long = median(len(row["context"]) for row in rows) >= _LONG
            return list(_from_articles(rows) if is_long else _from_paragraphs(rows))
        if "meeting_transcripts" in first:
            return [example for row in rows for example in _from_meeting(row)]
        if "candidates" in first:
            return list(_from_sections(rows))
        if "question" in first:
            return [_from_documents(row) for row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: a row lacks what its shape needs: {type(error).__name__}: {error}"
        ) from error
    raise InputError(
        f"{path}: rows have the keys {sorted(first)}; expected question, answers and documents "
        f"(a list of texts) or context (one text)"
    )


def _rows(path: Path) -> Iterator[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{path}, line {number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: expected a JSON object")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _from_documents(row: Row) -> Example:
    passages: list[Passage] = []
    supporting: list[tuple[int, Span]] = []
    for document in row["documents"] if "documents" in row else [row["context"]]:
        if isinstance(document, str):
            passages.append(Passage(document))
            continue
        if "sentences" in document:
            start = 0
            for place, sentence in enumerate(document["sentences"]):
                if place in document.get("supporting", ()):
                    supporting.append((len(passages), Span(start, start + len(sentence))))
                start += len(sentence)
            text = "".join(document["sentences"])
        else:
            text = document["text"]
        title = document.get("title")
        passages.append(Passage(text, metadata={"title": title} if title else {}))
    return Example(row["question"], tuple(row["answers"]), tuple(passages), tuple(supporting))


def _from_articles(rows: Sequence[Row]) -> Iterator[Example]:
    for row in rows:
        for qa in row["qas"]:
            if qa["answers"]:
                yield Example(qa["question"], tuple(qa["answers"]), (Passage(row["context"]),))


def _from_paragraphs(rows: Sequence[Row]) -> Iterator[Example]:
    pool = [Passage(row["context"], metadata=_title(row)) for row in rows]
    asked = [(i, qa) for i, row in enumerate(rows) for qa in row["qas"] if qa["answers"]]
    retrieved = _retrieved(pool, [(own, qa["question"]) for own, qa in asked])
    for (_, qa), found in zip(asked, retrieved, strict=True):
        passages = tuple(pool[i] for i in found)
        yield Example(qa["question"], tuple(qa["answers"]), passages)


def _from_sections(rows: Sequence[Row]) -> Iterator[Example]:
    texts = [" ".join(row["candidates"]) for row in rows]
    titles = [f"{row['article']}: {row['section']}" for row in rows]
    pool = list(dict.fromkeys(zip(texts, titles, strict=True)))
    place = {section: i for i, section in enumerate(pool)}
    passages = [Passage(text, metadata={"title": title}) for text, title in pool]
    owns = [place[section] for section in zip(texts, titles, strict=True)]
    asked = [(own, row["question"]) for own, row in zip(owns, rows, strict=True)]
    for row, own, found in zip(rows, owns, _retrieved(passages, asked), strict=True):
        starts = np.cumsum([0, *(len(sentence) + 1 for sentence in row["candidates"])]).tolist()
        spans = [Span(starts[i], starts[i + 1] - 1) for i in row["answers"]]
        evidence = tuple((found.index(own), span) for span in spans)
        if evidence:
            yield Example(row["question"], (), tuple(passages[i] for i in found), evidence)


def _retrieved(pool: Sequence[Passage], asked: Sequence[tuple[int, str]]) -> Iterator[list[int]]:
    """What BM25 finds for each question, the question's own passage among it."""
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("retrieving paragraphs", "bench") from error
    index = bm25s.BM25()
    index.index(bm25s.tokenize([p.text for p in pool], show_progress=False), show_progress=False)
    queries = bm25s.tokenize([question for _, question in asked], show_progress=False)
    found, _ = index.retrieve(queries, k=min(_POOLED, len(pool)), show_progress=False)
    for (own, _), retrieved in zip(asked, found.tolist(), strict=True):
        yield retrieved if own in retrieved else [*retrieved[:-1], own]


def _title(row: Row) -> dict[str, str]:
    return {"title": row["article"].replace("_", " ")} if row.get("article") else {}


def _from_meeting(row: Row) -> Iterator[Example]:
    turns = [f"{turn['speaker']}: {turn['content']}\n" for turn in row["meeting_transcripts"]]
    starts = [0]
    for turn in turns:
        starts.append(starts[-1] + len(turn))
    passage = Passage("".join(turns))
    for query in row["specific_query_list"]:
        evidence = tuple(
            (0, Span(starts[turn], starts[turn + 1]))
            for first, last in query["relevant_text_span"]
            for turn in range(int(first), min(int(last) + 1, len(turns)))
        )
        if evidence:
            yield Example(query["query"], (), (passage,), evidence)
