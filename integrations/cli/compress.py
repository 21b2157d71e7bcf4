"""`laconic compress`: files or standard input, made shorter."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ...core import Budget, Compression, Passage, get_compressor
from ...core.errors import InputError

__all__ = ["run"]


def run(options: argparse.Namespace) -> None:
    """Print what is left to standard output, and how much that is to standard error."""
    passages = [p for name in options.files or ["-"] for p in _read(name, options.jsonl)]
    amount = options.tokens if options.tokens is not None else options.rate
    budget = replace(Budget.of(0.5 if amount is None else amount), per_passage=options.per_document)
    result = get_compressor(options.method).compress(
        passages, query=options.query, budget=budget, keep=options.keep, counter=options.counter
    )
    _print(result, as_json=options.json)
    print(result, file=sys.stderr)


def _read(name: str, stdin_is_jsonl: bool) -> Iterator[Passage]:
    label = "standard input" if name == "-" else name
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{label} is not UTF-8 text ({error}); convert it first") from error
    if "\0" in text:
        raise InputError(f"{label} is binary, expected text")
    is_jsonl = stdin_is_jsonl if name == "-" else Path(name).suffix in (".jsonl", ".ndjson")
    if not is_jsonl:
        yield Passage(text, id=None if name == "-" else name)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _passage(line, f"{label}, line {number}")


def _passage(line: str, place: str) -> Passage:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError(f"{place}: expected an object with a key 'text' that holds a string")
    metadata = {key: value for key, value in row.items() if key not in ("text", "id")}
    identity = row.get("id")
    return Passage(row["text"], id=None if identity is None else str(identity), metadata=metadata)


def _print(result: Compression, *, as_json: bool) -> None:
    if not as_json:
        print(_printable(result.text))
        return
    for passage in result.passages:
        row = {
            "id": passage.id,
            "text": passage.text,
            "spans": passage.spans,
            "score": passage.score,
            "tokens_before": passage.tokens_before,
            "tokens_after": passage.tokens_after,
            "method": result.method,
            **passage.metadata,
        }
        print(json.dumps(row))


def _printable(text: str) -> str:
    """Text that the terminal's encoding can show."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
