from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import Budget, Passage, Span, TokenCounter, compress_json, json_text, units
from laconic.core.method import Method, Request, Scores
from laconic.core.methods.lexical import Lexical
from laconic.core.testing import check_promises
from laconic.errors import BudgetError, InputError

CHARACTERS = TokenCounter("characters", len)
COUNTERS = [CHARACTERS, TokenCounter.of("approximate"), TokenCounter.of("cl100k_base")]
FACTS = "The sky is blue. Paris is the capital of France. Fish swim."
QUERY = "What is the capital of France?"


class Letters(Method):
    """Keep the highest characters: the smallest units there are."""

    name = "letters"

    def segment(self, text: str) -> list[Span]:
        return units.graphemes(text)

    def score(self, request: Request) -> Scores:
        codes = np.array([float(ord(text[:1] or " ")) for text in request.unit_texts()])
        per_passage = request.per_passage(codes)
        return Scores(per_passage, np.array([p.max(initial=0.0) for p in per_passage]))


METHODS = [Lexical(), Letters()]


def is_subsequence(short: str, long: str) -> bool:
    characters = iter(long)
    return all(character in characters for character in short)


def check_same_but_for_strings(left: Any, source: Any) -> None:
    assert type(left) is type(source)
    if isinstance(source, str):
        assert is_subsequence(left, source)
    elif isinstance(source, dict):
        assert list(left) == list(source)
        for key in source:
            check_same_but_for_strings(left[key], source[key])
    elif isinstance(source, (list, tuple)):
        assert len(left) == len(source)
        for one, other in zip(left, source, strict=True):
            check_same_but_for_strings(one, other)
    else:
        assert left == source


def strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from strings(value)


_string = st.one_of(
    st.text(max_size=30),
    # every escape, both halves of a surrogate pair, and what looks like an escape
    st.text(alphabet='ab <>,:"\\/nu{}[]\n\t\x00é我👩\u0301\ud83d\ude00', max_size=20),
    st.sampled_from(["A < B", "x, y,, z", "\\", "\\n", '"', "\\u00e9", FACTS, "", " ", "a  "]),
)
_data = st.recursive(
    st.one_of(_string, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
_dumps = st.tuples(st.booleans(), st.sampled_from([None, 2]), st.sampled_from([None, (",", ":")]))
_budgets = st.one_of(
    st.integers(0, 200).map(Budget.tokens), st.floats(0.05, 1, allow_nan=False).map(Budget.rate)
)


@given(_data, _dumps, _budgets, st.sampled_from(COUNTERS), st.sampled_from(METHODS))
def test_valid_json_comes_out_as_valid_json(
    data: Any, dumps: Any, budget: Budget, counter: TokenCounter, method: Method
) -> None:
    is_ascii, indent, separators = dumps
    source = json.dumps(data, ensure_ascii=is_ascii, indent=indent, separators=separators)
    data = json.loads(source)  # in which two escaped halves of a surrogate pair are one character
    try:
        result = compress_json(source, query="a", budget=budget, counter=counter, method=method)
    except BudgetError as error:
        assert "protected" in str(error)
        return
    check_promises([Passage(source)], result, counter)
    assert result.data == json.loads(result.text)
    check_same_but_for_strings(result.data, data)
    assert is_subsequence(result.text, source)


@given(st.dictionaries(st.text(max_size=6), _data, max_size=4), _budgets)
def test_data_comes_out_as_data(data: dict[str, Any], budget: Budget) -> None:
    before = json.dumps(data)
    try:
        result = compress_json(data, budget=budget, counter=CHARACTERS, method="lexical")
    except BudgetError:
        return
    assert json.dumps(data) == before
    check_same_but_for_strings(result.data, data)
    assert result.data == json.loads(result.text)


@given(_data, st.sampled_from(COUNTERS))
def test_what_fits_comes_back_byte_for_byte(data: Any, counter: TokenCounter) -> None:
    source = json.dumps(data, indent=1)
    result = compress_json(source, budget=1.0, counter=counter, method="lexical")
    assert result.text == source
    assert result.data == json.loads(source)


def test_every_escape_is_whole_or_gone() -> None:
    source = r'{"a": "\u00e9\u00E9 \ud83d\ude00\n\"\\ \\n \/ \u0000"}'
    for limit in range(9, len(source)):
        result = compress_json(source, budget=limit, counter=CHARACTERS, method=Letters())
        assert is_subsequence(result.data["a"], json.loads(source)["a"])
        assert 0 <= limit - result.tokens_after <= 12


def test_halves_of_a_surrogate_pair_never_meet() -> None:
    source = r'["\ud83d \ude00", "\ud83d\ud83d\ude00 a b c d"]'
    result = compress_json(source, budget=47, counter=CHARACTERS, method=Letters())
    assert result.text == source
    with pytest.raises(BudgetError):
        compress_json(source, budget=30, counter=CHARACTERS, method=Letters())


def test_the_budget_is_that_of_the_json_text() -> None:
    data = [{"id": i, "text": f"Fact {i}: treaty “é” {i * i} is old. It is 好."} for i in range(40)]
    for is_ascii in (True, False):
        source = json.dumps(data, ensure_ascii=is_ascii)
        for method in METHODS:
            result = compress_json(source, query="treaty 4", budget=0.8, method=method)
            assert result.tokens_after == TokenCounter.of().count(result.text) <= result.limit
            assert result.limit - result.tokens_after <= max(0.02 * result.limit, 25)


def test_a_string_is_emptied_only_where_the_budget_forces_it() -> None:
    data = {"kind": "city", "ok": True, "note": FACTS, "none": None, "more": "Stones sink. " * 9}
    result = compress_json(data, query=QUERY, budget=36, method="lexical")
    assert list(strings(result.data)) == ["city", "Paris is the capital of France.", "Stones sink."]
    assert list(strings(compress_json(data, budget=25, method="lexical").data)).count("") == 2


def test_keys_tell_what_a_string_is_about() -> None:
    data = {"height": "It is 330 m.", "capital": "It is Paris.", "river": "It is the Seine."}
    result = compress_json(data, query="the capital", budget=18, method="lexical")
    assert result.data == {"height": "", "capital": "It is Paris.", "river": ""}


# What the reference implementation gets wrong


@pytest.mark.parametrize(
    "value",
    [
        "A < B",
        "x, y,, z",
        'she said "no", twice',
        ["a", 'b "c"', ["d,, e"]],
        {"deep": {"er": ["x, ,y", {}]}},
        None,
        True,
        "",
        [],
        {},
        "{not: json}",
        "👩‍👩‍👧 你好",
        1e-7,
    ],
)
def test_a_protected_value_comes_back_as_it_is(value: Any) -> None:
    data = {"note": FACTS, "value": value}
    result = compress_json(
        data,
        query=QUERY,
        budget=1.0,
        rates={"value": False, "note": 0.55},
        method="lexical",
    )
    assert result.data == {"note": "Paris is the capital of France.", "value": value}
    assert compress_json(data, budget=1.0, method="lexical").data == data


# Rates


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("a", ["Cats.", "Cats. Dogs.", "Cats. Dogs.", "Cats. Dogs."]),
        ("b", ["Cats. Dogs.", "Cats.", "Cats.", "Cats. Dogs."]),
        ("b.0.c", ["Cats. Dogs.", "Cats.", "Cats. Dogs.", "Cats. Dogs."]),
        ("b.*.c", ["Cats. Dogs.", "Cats.", "Cats.", "Cats. Dogs."]),
        ("*", ["Cats.", "Cats.", "Cats.", "Cats."]),
        ("d.e", ["Cats. Dogs.", "Cats. Dogs.", "Cats. Dogs.", "Cats."]),
        ("b.0.x", ["Cats. Dogs."] * 4),
        ("b.c", ["Cats. Dogs."] * 4),
        ("", ["Cats. Dogs."] * 4),
    ],
)
def test_a_path_says_which_strings_have_a_rate(path: str, left: list[str]) -> None:
    text = "Cats. Dogs."
    data = {"a": text, "b": [{"c": text}, {"c": text}], "d.e": text}
    result = compress_json(data, query="cats", budget=1.0, rates={path: 0.6}, method="lexical")
    assert list(strings(result.data)) == left


def test_of_several_paths_that_with_most_keys_decides() -> None:
    data = {"a": {"b": FACTS, "c": FACTS}, "d": FACTS}
    result = compress_json(
        data, query=QUERY, budget=1.0, rates={"a.b": False, "*": 0.55}, method="lexical"
    )
    fact = "Paris is the capital of France."
    assert result.data == {"a": {"b": FACTS, "c": fact}, "d": fact}


@pytest.mark.parametrize("rate", [0, True, 1.5, -1, float("nan"), "0.5", None])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    with pytest.raises(InputError, match="'a'"):
        compress_json({"a": "b"}, budget=5, rates={"a": rate}, method="lexical")


# Input


@pytest.mark.parametrize("source", ["", "{", '{"a": }', "{'a': 1}", '"a', '["a" "b"]', "[" * 99999])
def test_what_is_no_json_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="no valid JSON: "):
        compress_json(source, budget=5, method="lexical")


@pytest.mark.parametrize("source", [None, 5, b"{}", {"a": {1, 2}}, [object()], ("a",)])
def test_what_cannot_be_written_as_json_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="JSON"):
        compress_json(source, budget=5, method="lexical")


def test_data_that_holds_itself_is_refused() -> None:
    data: list[Any] = []
    data.append(data)
    with pytest.raises(InputError, match="Circular"):
        compress_json(data, budget=5, method="lexical")


def test_keys_and_tuples_of_data_stay() -> None:
    data: dict[Any, Any] = {1: "Cats. Dogs.", "1": ("Cats. Dogs.", [2.5])}
    result = compress_json(data, budget=0.9, counter=CHARACTERS, method="lexical")
    check_same_but_for_strings(result.data, data)
    assert result.text != json.dumps(data)


def test_keys_may_come_twice() -> None:
    source = '{"a": "Cats. Dogs.", "a": "Cats. Dogs.", "b": "Cats. Dogs."}'
    result = compress_json(source, query="cats", budget=45, counter=CHARACTERS, method="lexical")
    assert result.text == '{"a": "Cats.", "a": "Cats.", "b": "Cats."}'


def test_protected_json_above_the_budget_is_an_error() -> None:
    with pytest.raises(BudgetError, match="protected"):
        compress_json({"a": FACTS, "b": 123456}, budget=5, counter=CHARACTERS, method="lexical")


def test_what_must_be_kept_is_kept() -> None:
    data = {"a": FACTS, "b": "Cats purr. Stones sink."}
    result = compress_json(data, query=QUERY, budget=25, keep=["Fish", "Stones"], method="lexical")
    assert "Fish swim." in result.data["a"]
    assert "Stones sink." in result.data["b"]


def test_many_strings_take_seconds_rather_than_minutes() -> None:
    data = [{"id": i, "text": f"Fact {i} is about treaty {i}. It is old."} for i in range(3000)]
    result = compress_json(data, query="treaty 7", budget=0.7, method="lexical")
    assert result.tokens_after <= result.limit
    assert result.limit - result.tokens_after <= 0.02 * result.limit


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(json_text).failed == 0
