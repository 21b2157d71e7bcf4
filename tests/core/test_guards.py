from __future__ import annotations

import re

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from laconic.core.errors import InputError
from laconic.core.guards import ATOM_KINDS, KEEP_KINDS, atoms, keep_spans, must_keep
from laconic.core.types import Span


def found(text: str, *kinds: str) -> list[str]:
    return [text[start:end] for start, end in atoms(text, kinds)]


@pytest.mark.parametrize(
    "number",
    [
        "5",
        "5 km",
        "5mg",
        "3.50",
        "1,000.50",
        "1’000",
        "1\u00a0000",
        "$3.50",
        "$ 3.50",
        "€1,000",
        "£5 billion",
        "30€",
        "30 €",
        "₹500",
        "-12",
        "−12 °C",
        "+4.2%",
        "40 %",
        "100 MB",
        "10 Gbps",
        "50 GHz",
        "20 years",
        "1 day",
        "3.5 million",
        "2024-01-15",
        "15/01/2024",
        "12:30 pm",
        "5 p.m.",
        "٣٫٥",
    ],
)
def test_a_number_is_one_with_its_sign_currency_and_unit(number: str) -> None:
    text = f"It was {number} (or so)"
    assert found(text, "numbers") == [number]


def test_a_currency_belongs_to_the_number_behind_it() -> None:
    assert found("from $3.50 $4.20 to 5 €6", "numbers") == ["$3.50", "$4.20", "5", "€6"]


@pytest.mark.parametrize("text", ["A4 paper", "B2B", "x86", "no digits at all", "ver2"])
def test_digits_inside_a_word_are_no_number(text: str) -> None:
    assert found(text, "numbers") == []


@pytest.mark.parametrize(
    ("text", "atom"),
    [
        ("You do not run.", "not run"),
        ("He never goes.", "never goes"),
        ("It cannot be seen.", "cannot be seen"),
        ("They must have been there.", "must have been there"),
        ("It isn't red.", "isn't red"),
        ("It won’t stop.", "won’t stop"),
        ("Without help; alone.", "Without help"),
        ("There is no\nhope.", "no\nhope"),
        ("You MUST NOT enter.", "MUST NOT enter"),
        ("It works only if asked.", "only if"),
        ("Go unless told.", "unless told"),
        ("It could never go.", "could never go"),
    ],
)
def test_negations_and_modals_are_one_with_their_word(text: str, atom: str) -> None:
    assert found(text, "negations", "modals") == [atom]


def test_a_modal_that_is_negated_is_both() -> None:
    text = "You must not pay; she may go; he never sang."
    assert found(text, "negations") == ["must not pay", "never sang"]
    assert found(text, "modals") == ["must not pay", "may go"]


@pytest.mark.parametrize("text", ["nothing", "a notable cannon", "He said no.", "knot tied"])
def test_words_that_look_like_negations_are_none(text: str) -> None:
    assert found(text, "negations") == []


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("See https://example.com/a?b=c#d.", "https://example.com/a?b=c#d"),
        ("(http://x.y/z)", "http://x.y/z"),
        ("ftp://f.g/h, then", "ftp://f.g/h"),
        ("http://[::1]:80/x y", "http://[::1]:80/x"),
        ("mail a.b+c@d-e.co.uk.", "a.b+c@d-e.co.uk"),
        ("见https://例子.中国/路径 。", "https://例子.中国/路径"),
    ],
)
def test_urls_and_mail_addresses(text: str, url: str) -> None:
    assert found(text, "urls") == [url]


@pytest.mark.parametrize(
    "citation",
    ["[3]", "[1, 2]", "[4–6]", "[1,2,9-11]", "(Smith, 2020)", "(Smith et al., 2019; Doe, 2020)"],
)
def test_citations(citation: str) -> None:
    assert found(f"As shown {citation}.", "citations") == [citation]


@pytest.mark.parametrize("text", ["[a]", "(smith, 2020)", "(2020)", "(Smith)", "a[i]"])
def test_other_brackets_are_no_citations(text: str) -> None:
    assert found(text, "citations") == []


def test_code() -> None:
    assert found("Use `x = 1.` or\n```py\na. b\n\nc\n```\nend", "code") == [
        "`x = 1.`",
        "```py\na. b\n\nc\n```",
    ]


def test_an_open_fence_goes_to_the_end() -> None:
    assert found("a ```py\nx = 1", "code") == ["```py\nx = 1"]


def test_a_lone_backtick_is_no_code() -> None:
    assert found("a ` b\n` c", "code") == []


def test_the_default_kinds_are_those_that_hold_full_stops() -> None:
    text = "Do not pay 5 km for `a. b` at http://a.b/c [3]"
    assert [text[a:b] for a, b in atoms(text)] == ["`a. b`", "http://a.b/c", "[3]"]


def test_kinds_that_overlap_are_united() -> None:
    assert found("must not pay $5 now", *ATOM_KINDS) == ["must not pay", "$5"]
    assert found("There are not 5 km left", *ATOM_KINDS) == ["not 5 km"]


@given(st.text(st.sampled_from("not $5.€km `[](),;:/@ah\n\u0301和٣"), max_size=60))
def test_atoms_are_ascending_disjoint_and_inside(text: str) -> None:
    spans = atoms(text, ATOM_KINDS)
    borders = [0, *(place for span in spans for place in span), len(text)]
    assert borders == sorted(borders)
    assert all(start < end for start, end in spans)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("We met Ada Lovelace in New York.", ["Ada Lovelace", "New York"]),
        ("Ada Lovelace met us.", ["Ada Lovelace"]),
        ("The Beatles and I sang. In Rome it rained.", ["Beatles", "Rome"]),
        ("Is it Dr. Smith’s? J. R. R. Tolkien's?", ["Dr. Smith", "J. R. R. Tolkien"]),
        ("the U.S. Army, O'Brien, Jean-Luc", ["U.S. Army", "O'Brien", "Jean-Luc"]),
        ("iPhone, x86, B2B, Covid-19, AT&T", ["iPhone", "x86", "B2B", "Covid-19", "AT&T"]),
        ("NATO met. WHO did.", ["NATO", "WHO"]),
        ("They live in New\nYork now", ["New\nYork"]),
        ("von Łukasz, Ἀθῆναι, Москва", ["Łukasz", "Ἀθῆναι", "Москва"]),
        ("他的iPhone手机", ["iPhone"]),
        ("wie der Hund", ["Hund"]),
    ],
)
def test_names_are_told_by_their_capitals(text: str, names: list[str]) -> None:
    assert found(text, "names") == names


@pytest.mark.parametrize(
    "text",
    [
        "Dogs bark. Cats don't! Do they? “Never.”",
        "It ends.\n\nHeading\n\n- First item\n- Second item",
        "He said: I'm here and I’ve seen it.",
        "no capitals at all, 5 km, 3rd, 10GB",
        "北京没有大写字母。",
        "",
    ],
)
def test_a_capital_that_starts_a_sentence_makes_no_name(text: str) -> None:
    assert found(text, "names") == []


@pytest.mark.parametrize("piece", ["A", "a", "Aa ", "A.", "\n", " ", "- ", '" ', "A-", "\n- A"])
def test_names_are_found_behind_long_runs_of_anything(piece: str) -> None:
    assert found(piece * 50_000 + " x86", "names")[-1].endswith("x86")


# --- what the caller wants kept -------------------------------------------------------------


def test_literals_are_found_everywhere() -> None:
    assert keep_spans("ab cab", ["ab"]) == [Span(0, 2), Span(4, 6)]


@pytest.mark.parametrize("literal", ["a.b", "(x|y)*", "[z]", "$1^", "\\d+", "a b", "{2}", "?"])
def test_literals_are_no_patterns(literal: str) -> None:
    text = f"aXb 11 zz {literal} end"
    assert keep_spans(text, [literal]) == [Span(10, 10 + len(literal))]


@pytest.mark.parametrize("compiled", [re.compile(r"\d+", re.I), regex.compile(r"\p{Nd}+")])
def test_compiled_patterns_are_searched_for(compiled: re.Pattern[str]) -> None:
    assert keep_spans("a1 b22", [compiled]) == [Span(1, 2), Span(4, 6)]


def test_flags_of_a_pattern_count() -> None:
    assert keep_spans("NOTE: x", [re.compile("note", re.IGNORECASE), "note"]) == [Span(0, 4)]


def test_overlapping_matches_are_merged() -> None:
    assert keep_spans("abcdef", ["abc", "cde", re.compile("c")]) == [Span(0, 5)]


def test_matches_inside_one_another_are_merged() -> None:
    assert keep_spans("abcdef", ["abcdef", "bc"]) == [Span(0, 6)]


def test_spans_are_ascending_whatever_the_order_of_the_patterns() -> None:
    assert keep_spans("one two three", ["three", "one"]) == [Span(0, 3), Span(8, 13)]


def test_empty_matches_keep_nothing() -> None:
    assert keep_spans("abc", ["", re.compile("x*")]) == []


def test_no_pattern_keeps_nothing() -> None:
    assert keep_spans("abc", []) == []


@given(
    st.text(st.sampled_from("ab. ("), max_size=30),
    st.lists(st.text(st.sampled_from("ab. ("), max_size=3), max_size=4),
)
def test_every_literal_that_occurs_is_covered(text: str, literals: list[str]) -> None:
    spans = keep_spans(text, literals)
    borders = [place for span in spans for place in span]
    assert borders == sorted(borders)
    for literal in filter(None, literals):
        place = text.find(literal)
        if place >= 0:
            assert any(a <= place and place + len(literal) <= b for a, b in spans)


def test_kinds_are_kept_by_their_patterns() -> None:
    text = "Ada did not pay 5 km, you know, to Rome."
    assert [text[a:b] for a, b in keep_spans(text, must_keep("numbers"))] == ["5 km"]
    patterns = [*must_keep("negations", "names"), "know"]
    assert [text[a:b] for a, b in keep_spans(text, patterns)] == ["not pay", "know", "Rome"]
    assert set(KEEP_KINDS) == {*ATOM_KINDS, "names"}


@pytest.mark.parametrize("kinds", [(), ("number",), ("numbers", "Names")])
def test_kinds_that_do_not_exist_are_refused(kinds: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"numbers, .*modals"):
        must_keep(*kinds)


@given(
    st.text(st.sampled_from("Aa'’.-&1 \n\"北Łǅ\u0301"), max_size=40),
    st.sampled_from(KEEP_KINDS),
)
def test_a_kind_is_kept_where_it_is_found(text: str, kind: str) -> None:
    assert keep_spans(text, must_keep(kind)) == atoms(text, [kind])
