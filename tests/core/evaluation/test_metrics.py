"""The figures mean what they say."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import compress
from laconic.core.evaluation.metrics import (
    contains_answer,
    evidence_kept,
    paired_p_value,
    wilson_interval,
    word_recall,
)
from laconic.core.types import Span


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("It was The Beatles, in 1967.", ["beatles"], True),
        ("It was in 1967.", ["967"], False),
        ("In New York City.", ["New York"], True),
        ("New cars in York.", ["New York"], False),
        ("他住在北京市。", ["北京"], True),
        ("anything", [], False),
        ("anything", ["the"], False),
        ("a b c", ["x", "b"], True),
    ],
)
def test_an_answer_is_whole_words_side_by_side(
    text: str, answers: list[str], expected: bool
) -> None:
    assert contains_answer(text, answers) is expected


def test_words_may_stand_apart() -> None:
    assert word_recall("New cars in York.", ["New York City"]) == pytest.approx(2 / 3)
    assert word_recall("x", []) == 0


def test_evidence_counts_only_whole_spans() -> None:
    text = "Paris is in France. The sky is blue today."
    result = compress(text, query="Where is Paris?", budget=5, method="lexical")
    assert evidence_kept(result, [(0, Span(0, 19))]) == 1
    assert evidence_kept(result, [(0, Span(0, 20))]) == 1  # white space aside
    assert evidence_kept(result, [(0, Span(0, 25))]) == 0
    assert evidence_kept(result, [(0, Span(0, 19)), (0, Span(20, 42))]) == 0.5
    assert evidence_kept(result, []) == 1


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(50, 100, 0.4038, 0.5962), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1)]
)
def test_wilson_interval_matches_published_values(k: int, n: int, low: float, high: float) -> None:
    interval = wilson_interval(k, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for k, n in ((3, 17), (99, 100), (640, 1328)):
        theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
        ours = wilson_interval(k, n)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@given(st.integers(0, 500), st.integers(0, 500))
def test_an_interval_holds_its_value(k: int, more: int) -> None:
    interval = wilson_interval(k, k + more)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value <= interval.high + 1e-12


def test_the_paired_test_looks_at_disagreements_only() -> None:
    same = [True, False] * 50
    assert paired_p_value(same, same) == 1
    assert paired_p_value([True] * 10, [False] * 10) == pytest.approx(2 / 1024)
    assert paired_p_value([True] * 10 + same, [False] * 10 + same) == pytest.approx(2 / 1024)


def test_the_paired_test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in itertools.product(range(12), repeat=2):
        first, second = [True] * wins + [False] * losses, [False] * wins + [True] * losses
        expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert paired_p_value(first, second) == pytest.approx(expected)


def test_a_proportion_is_within_its_interval() -> None:
    for n in range(1, 400):
        for successes in (0, n // 3, n):
            interval = wilson_interval(successes, n)
            assert 0 <= interval.low <= interval.value <= interval.high <= 1
