"""Compressing the strings in JSON, so that it stays valid JSON of the same structure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .budget import Budget
from .compressor import Compressor
from .errors import InputError
from .guards import KeepPattern
from .regions import Layout, Region, compress_regions
from .types import Compression

__all__ = ["JsonCompression", "compress_json"]


@dataclass(frozen=True, slots=True, repr=False)
class JsonCompression(Compression):
    """The result of compressing JSON; `text` is valid JSON.

    Attributes
    ----------
    data
        What `text` says: the source with shorter strings.
    """

    data: Any = field(hash=False)


def compress_json(
    source: str | dict[Any, Any] | list[Any],
    *,
    query: str | None = None,
    budget: Budget | float,
    method: Compressor | str = "auto",
    counter: Any = None,
    keep: Sequence[KeepPattern] = (),
    rates: Mapping[str, float] | None = None,
) -> JsonCompression:
    r"""Compress the strings in JSON; it stays valid JSON of the same structure.

    Only the insides of string values get shorter. Keys, numbers, layout and all else are
    protected, and no escape such as ``\u00e9`` is cut. A string is emptied only where the budget
    does not reach for the best part of each.

    Parameters
    ----------
    source
        JSON text, or data that `json.dumps` can write as such.
    budget
        Of the whole JSON text; for data, of what ``json.dumps(data, ensure_ascii=False)`` writes.
    method
        A compressor, or the name of one: a key of `METHODS`, or ``"auto"``. It is told the keys
        above a string as the title of its passage.
    keep
        As for `Compressor.compress`; looked for in the characters of each string.
    rates
        Strings with a rate of their own, or with False for "leave as it is", by the keys that
        lead to them: ``"user.name"``, ``"items.0.text"``, ``"items.*.text"``. It holds for all
        strings at or below that place; where several do, that with most keys decides.

    The other parameters are those of `Compressor.compress`.

    Returns
    -------
    JsonCompression
        One passage, the JSON text, to which the spans refer; and the data.

    Raises
    ------
    InputError
        `source` is no JSON and no data that can be written as JSON, or a rate is none.
    BudgetError
        What is protected, or what `keep` finds, does not fit.

    Examples
    --------
    >>> result = compress_json(
    ...     '{"id": 7, "note": "The sky is blue. Paris is in France."}',
    ...     query="Where is Paris?",
    ...     budget=0.8,
    ...     method="lexical",
    ... )
    >>> result.text
    '{"id": 7, "note": "Paris is in France."}'
    """
    text = source if isinstance(source, str) else _dumped(source)
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"source is no valid JSON: {error}") from error
    result = compress_regions(
        _layout(text, rates or {}),
        query=query,
        budget=budget,
        method=method,
        counter=counter,
        keep=keep,
        least=1,
    )
    left = result.text
    strings = (json.loads(f'"{left[start:end]}"') for _, start, end in _strings(left))
    data = json.loads(left) if isinstance(source, str) else _with_strings(source, strings)
    parts: dict[str, Any] = {f.name: getattr(result, f.name) for f in fields(result)}
    return JsonCompression(**parts, data=data)


def _dumped(data: Any) -> str:
    if not isinstance(data, (dict, list)):
        raise InputError(f"source is JSON text, a dict or a list, got {type(data).__name__}")
    try:
        return json.dumps(data, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"source cannot be written as JSON: {error}") from error


def _with_strings(data: Any, strings: Iterator[str]) -> Any:
    """Copy data with other strings for values, in the order in which they are written."""
    if isinstance(data, str):
        return next(strings)
    if isinstance(data, dict):
        return {key: _with_strings(value, strings) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        values = [_with_strings(value, strings) for value in data]
        return values if isinstance(data, list) else tuple(values)
    return data


_Rule = tuple[re.Pattern[str], dict[str, Any]]
"""What finds the paths of some strings, and the attributes of their regions."""


def _rules(rates: Mapping[str, float]) -> list[_Rule]:
    """The rules that `rates` says, those with most keys first."""
    rules: list[_Rule] = []
    for path, rate in sorted(rates.items(), key=lambda item: -item[0].count(".")):
        is_number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        if rate is not False and not (is_number and 0 < rate <= 1):
            raise InputError(
                f"the rate of {path!r} is a number above 0 and at most 1, or False to leave it "
                f"as it is, got {rate!r}"
            )
        steps = ("[^.]*" if step == "*" else re.escape(step) for step in path.split("."))
        pattern = re.compile(r"\.".join(steps) + r"(?:\.|\Z)")
        rules.append((pattern, {"keep": True} if rate is False else {"rate": rate}))
    return rules


def _layout(source: str, rates: Mapping[str, float]) -> Layout:
    """The JSON with its strings as the characters they stand for, each string a region."""
    rules = _rules(rates)
    pieces: list[str] = []
    places: list[int] = []
    regions: list[Region] = []

    def add(piece: str, offsets: Iterable[int], **attributes: Any) -> None:
        start = len(places)
        pieces.append(piece)
        places.extend(offsets)
        if piece:
            regions.append(Region(start, len(places), **attributes))

    at = 0
    for path, start, end in _strings(source):
        characters = _characters(source, start, end)
        if characters is not None:
            joined = ".".join(path)
            attributes = next((said for pattern, said in rules if pattern.match(joined)), {})
            title = " ".join(key for key in path if not key.isdigit())
            add(source[at:start], range(at, start), keep=True)
            add(*characters, title=title, **attributes)
            at = end
    add(source[at:], range(at, len(source)), keep=True)
    return Layout("".join(pieces), regions, source, [*places, len(source)])


_SIGN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]')


def _strings(source: str) -> Iterator[tuple[list[str], int, int]]:
    """The string values in valid JSON: the keys and places that lead to each, and its offsets."""
    path: list[str] = []
    is_object: list[bool] = []
    is_key = False
    for match in _SIGN.finditer(source):
        sign = match.group()
        if sign in "{[":
            is_key = sign == "{"
            is_object.append(is_key)
            path.append("0")
        elif sign in "}]":
            is_key = False
            is_object.pop()
            path.pop()
        elif sign == ",":
            is_key = is_object[-1]
            path[-1] = path[-1] if is_key else str(int(path[-1]) + 1)
        elif sign == ":":
            is_key = False
        elif is_key:
            path[-1] = json.loads(sign)
        else:
            yield path, match.start() + 1, match.end() - 1


_CHARACTERS = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|[^\\]+")


def _characters(source: str, start: int, end: int) -> tuple[str, list[int]] | None:
    """The characters that a string stands for, and the place of each in the source.

    None where an escape is half of a surrogate pair: with what parts them gone, two halves would
    become one character.
    """
    pieces: list[str] = []
    places: list[int] = []
    for match in _CHARACTERS.finditer(source, start, end):
        piece = match.group()
        if piece[0] == "\\":
            piece = json.loads(f'"{piece}"')
            if "\ud800" <= piece <= "\udfff":
                return None
            places.append(match.start())
        else:
            places.extend(range(*match.span()))
        pieces.append(piece)
    return "".join(pieces), places
