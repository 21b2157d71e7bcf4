from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from laconic.core.budget import Budget
from laconic.core.types import JOINER, CompressedPassage, Compression, Passage, Span, render

SOURCE = Passage("One. Two. Three.", "a", {"page": 3})
KEPT = CompressedPassage(SOURCE, 1, (Span(0, 5), Span(10, 16)), 0.5, 6, 4)
GONE = CompressedPassage(Passage("Four."), 0, (), None, 2, 0)


def compression(*kept: CompressedPassage, **changes: Any) -> Compression:
    values: dict[str, Any] = {
        "passages": kept,
        "dropped": (GONE,),
        "method": "lexical",
        "query": None,
        "budget": Budget.tokens(4),
        "limit": 4,
        "counter": "cl100k_base",
        "tokens_before": 4000,
        "tokens_after": 1000,
        "seconds": 0.0123,
    }
    return Compression(**values | changes)


def test_a_compressed_passage_is_its_kept_characters() -> None:
    assert KEPT.text == "One. Three."
    assert GONE.text == ""


def test_a_compressed_passage_carries_id_and_metadata() -> None:
    assert KEPT.id == "a"
    assert KEPT.metadata is SOURCE.metadata


def test_the_text_of_a_compression_is_joined() -> None:
    assert compression(KEPT, KEPT).text == f"One. Three.{JOINER}One. Three."
    assert compression().text == ""


def test_the_rate_is_the_part_that_is_kept() -> None:
    assert compression(KEPT).rate == 0.25
    assert compression(tokens_before=0, tokens_after=0).rate == 1.0


def test_a_compression_prints_itself_in_one_line() -> None:
    line = str(compression(KEPT))
    assert line == (
        "lexical: 4,000 -> 1,000 tokens (25.0% kept, cl100k_base), 1 of 2 passages, 12 ms"
    )
    assert repr(compression(KEPT)) == line


@pytest.mark.parametrize("value", [SOURCE, KEPT, compression(KEPT), Budget.tokens(1)])
def test_values_are_frozen(value: Any) -> None:
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)
    with pytest.raises((AttributeError, TypeError)):
        value.something_new = 1


def test_passages_compare_by_value_and_can_be_hashed() -> None:
    assert Passage("a", "1", {"x": [1]}) == Passage("a", "1", {"x": [1]})
    assert Passage("a", "1") != Passage("a", "2")
    assert len({Passage("a", metadata={"x": [1]}), Passage("a", metadata={"x": [1]})}) == 1


def test_passages_share_no_default_metadata() -> None:
    assert Passage("a").metadata is not Passage("a").metadata


def test_render() -> None:
    assert render("abcdef", [Span(0, 1), Span(2, 4)]) == "acd"
    assert render("abcdef", []) == ""
