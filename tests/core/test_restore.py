from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from laconic import compress
from laconic.core.budget import Budget
from laconic.core.types import CompressedPassage, Compression, Passage, Span


def compression(*passages: tuple[str, list[str]]) -> Compression:
    """Passages of which the named pieces are kept."""
    outcomes = []
    for i, (text, pieces) in enumerate(passages):
        spans, start = [], 0
        for piece in pieces:
            start = text.index(piece, start)
            spans.append(Span(start, start + len(piece)))
            start += len(piece)
        outcomes.append(CompressedPassage(Passage(text), i, tuple(spans), None, 0, 0))
    return Compression(tuple(outcomes), (), "test", None, Budget.tokens(1), 1, "words", 0, 0, 0.0)


def test_dropped_words_inside_a_quotation_come_back() -> None:
    text = "The prize went to Wilhelm Conrad Röntgen in 1901."
    result = compression((text, ["prize ", "Wilhelm ", "Röntgen ", "1901."]))
    assert result.text == "prize Wilhelm Röntgen 1901."
    answer = "It was Wilhelm Röntgen, of course."
    assert result.restore(answer) == "It was Wilhelm Conrad Röntgen, of course."


def test_fragments_of_a_number_become_the_number() -> None:
    result = compression(("founded in 2009 by two", ["founded ", "2", "09 ", "two"]))
    assert result.restore("in 209") == "in 2009"


def test_the_shortest_of_several_originals_is_taken() -> None:
    result = compression(
        ("New and very big York. New big York.", ["New ", "York. ", "New ", "York."])
    )
    assert result.restore("New York") == "New big York"


def test_nothing_is_bridged_between_passages_or_over_a_long_gap() -> None:
    apart = compression(("Paris", ["Paris"]), ("Seine", ["Seine"]))
    assert apart.restore("Paris\n\nSeine") == "Paris\n\nSeine"
    far = compression((f"Paris {'lies ' * 40}Seine", ["Paris ", "Seine"]))
    assert far.restore("Paris Seine") == "Paris Seine"


def test_parts_of_words_are_no_quotation() -> None:
    result = compression(("the other big thing", ["other ", "thing"]))
    assert result.restore("her thing") == "her thing"


def test_an_empty_response_and_an_empty_text_stay_so() -> None:
    assert compression(("a b", ["a"])).restore("") == ""
    assert compression().restore("Any answer.") == "Any answer."


@given(st.text(max_size=200), st.floats(0.1, 1.0))
def test_the_whole_compressed_text_is_restored_from_source_characters(
    text: str, rate: float
) -> None:
    result = compress([text], budget=rate, method="lexical")
    restored = result.restore(result.text)
    characters = iter(text)
    assert all(character in characters for character in restored)


@given(st.text(max_size=80))
def test_what_is_not_quoted_is_unchanged(response: str) -> None:
    assert compression(("one two three", ["one ", "three"])).restore(response) == response or (
        "one" in response
    )
