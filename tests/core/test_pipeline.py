from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import Budget, Compression, Passage, Pipeline, TokenCounter, compress
from laconic.core.methods.lexical import Lexical
from laconic.core.types import JOINER, render
from laconic.errors import BudgetError, InputError

COUNTER = TokenCounter.of(None)
QUERY = "What is the capital of France?"
FACTS = [
    "The sky is blue. It looks so because of scattering. Nobody doubts it.",
    "Paris is the capital of France. It lies on the Seine.\n\nMany people live in Paris.",
    "Fish swim. Birds fly. They do not talk. 我喜欢猫。他走了。",
    "Europe is a continent. Its stones are old. " * 4,
]
BUDGETS = [
    Budget.tokens(12),
    Budget.tokens(40),
    Budget.rate(0.3),
    Budget.rate(0.9),
    Budget.tokens(6, per_passage=True),
    Budget.rate(0.5, per_passage=True),
    Budget.tokens(40, min_per_passage=3),
]
every_budget = pytest.mark.parametrize("budget", BUDGETS, ids=str)


def pipeline(headroom: float = 3.0) -> Pipeline:
    return Pipeline(Lexical(), Lexical(context_weight=0.0), headroom=headroom)


def check(result: Compression, passages: list[str]) -> None:
    """What a result promises, whatever the budget."""
    indices = [p.index for p in result.passages] + [p.index for p in result.dropped]
    assert sorted(indices) == list(range(len(passages)))
    assert all(not p.spans and p.tokens_after == 0 for p in result.dropped)
    for p in (*result.passages, *result.dropped):
        assert p.passage.text == passages[p.index]
        assert p.text == render(passages[p.index], p.spans)
        assert all(0 <= a <= b <= len(p.passage.text) for a, b in p.spans)
        assert all(x.end <= y.start for x, y in pairwise(p.spans))
        assert p.tokens_before == COUNTER.count(p.passage.text)
        assert p.tokens_after == COUNTER.count(p.text)
    assert result.tokens_before == COUNTER.count(JOINER.join(passages))
    assert result.tokens_after == COUNTER.count(result.text)
    if result.budget.per_passage:
        for p in result.passages:
            assert p.tokens_after <= result.budget.limit(p.tokens_before)
    else:
        assert result.limit == result.budget.limit(result.tokens_before)
        assert result.tokens_after <= result.limit


@every_budget
@pytest.mark.parametrize("query", [QUERY, None])
@pytest.mark.parametrize("order", ["source", "score"])
def test_the_result_keeps_its_promises(budget: Budget, query: str | None, order: Any) -> None:
    result = pipeline().compress(FACTS, query=query, budget=budget, order=order)
    check(result, FACTS)
    assert result.budget == budget
    assert result.query == query
    assert result.text


@given(
    st.lists(
        st.lists(
            st.sampled_from(
                ["Paris is big. ", "A b c.\n\n", "我喜欢猫。", "\r\n", "x " * 9, "5 km!"]
            ),
            max_size=6,
        ).map("".join),
        max_size=4,
    ),
    st.one_of(st.integers(1, 30).map(Budget.tokens), st.sampled_from(BUDGETS)),
    st.sampled_from([1.0, 1.5, 3.0]),
)
def test_any_text_keeps_the_promises(texts: list[str], budget: Budget, headroom: float) -> None:
    check(pipeline(headroom).compress(texts, query="Paris", budget=budget), texts)


@pytest.mark.parametrize("budget", [12, 25, 0.3], ids=str)
def test_it_is_the_one_stage_after_the_other(budget: float) -> None:
    coarse, fine = Lexical(), Lexical(context_weight=0.0)
    total = COUNTER.count(JOINER.join(FACTS))
    limit = Budget.of(budget).limit(total)
    first = coarse.compress(FACTS, query=QUERY, budget=Budget.of(budget).scaled(2))
    second = fine.compress([p.text for p in first.passages], query=QUERY, budget=limit)
    both = Pipeline(coarse, fine, headroom=2).compress(FACTS, query=QUERY, budget=budget)
    assert both.text == second.text
    assert both.method == "lexical+lexical"


def test_something_is_left_if_only_the_second_stage_can_keep_a_piece() -> None:
    characters = TokenCounter("characters", len)
    long_then_short = "👩\u200d👩\u200d👧 e\u0301 t"
    result = pipeline().compress(long_then_short, query=QUERY, budget=1, counter=characters)
    assert result.text == "t"


def test_it_keeps_what_the_query_asks_for() -> None:
    result = pipeline().compress(FACTS, query=QUERY, budget=7)
    assert result.text == "Paris is the capital of France."
    assert [p.index for p in result.passages] == [1]


def test_ids_and_metadata_come_through() -> None:
    given = [Passage(text, str(i), {"rank": i}) for i, text in enumerate(FACTS)]
    result = pipeline().compress(given, query=QUERY, budget=30)
    for p in (*result.passages, *result.dropped):
        assert p.passage is given[p.index]


@pytest.mark.parametrize("budget", [1.0, 10_000, Budget.rate(1.0, per_passage=True)], ids=str)
def test_what_fits_comes_back_byte_for_byte(budget: Any) -> None:
    texts = ["  One.\r\n\r\n two\t", "", "\x00\ud800", " ", "我。"]
    result = pipeline().compress(texts, query="two", budget=budget)
    assert [p.text for p in result.passages] == texts
    assert result.text == JOINER.join(texts)
    assert result.dropped == ()
    assert result.rate == 1.0


@pytest.mark.parametrize("budget", [5, 0.5, Budget.tokens(5, per_passage=True)], ids=str)
def test_no_passages_give_no_passages(budget: Any) -> None:
    result = pipeline().compress([], budget=budget)
    assert (result.passages, result.dropped, result.text) == ((), (), "")


def test_a_budget_of_nothing_drops_all() -> None:
    result = pipeline().compress(FACTS, query=QUERY, budget=0)
    assert result.passages == ()
    assert [p.index for p in result.dropped] == [0, 1, 2, 3]


@pytest.mark.parametrize("headroom", [0.99, 0, -1, float("nan")])
def test_headroom_is_at_least_one(headroom: float) -> None:
    with pytest.raises(InputError, match="headroom"):
        pipeline(headroom)


def test_the_most_relevant_comes_first_when_asked() -> None:
    result = pipeline().compress(FACTS, query=QUERY, budget=30, order="score")
    assert result.passages[0].index == 1
    scores = [p.score for p in result.passages]
    assert scores == sorted(scores, reverse=True)
    assert result.text == JOINER.join(p.text for p in result.passages)


def test_the_most_relevant_comes_first_with_a_budget_per_passage() -> None:
    texts = ["Fish swim.", "Stones sink. " * 9, "Paris is the capital of France. It is old. " * 5]
    budget = Budget.tokens(10, per_passage=True)
    direct = Lexical().compress(texts, query=QUERY, budget=budget, order="score")
    staged = pipeline().compress(texts, query=QUERY, budget=budget, order="score")
    assert direct.passages[0].index == 2
    assert staged.passages[0].index == 2


@pytest.mark.parametrize("per_passage", [False, True])
def test_an_unknown_order_is_refused(per_passage: bool) -> None:
    budget = Budget.tokens(5, per_passage=per_passage)
    with pytest.raises(InputError, match="order"):
        pipeline().compress(FACTS, budget=budget, order="best")  # type: ignore[arg-type]


@pytest.mark.parametrize("per_passage", [False, True])
def test_a_blank_query_counts_as_none(per_passage: bool) -> None:
    budget = Budget.tokens(5, per_passage=per_passage)
    assert pipeline().compress(FACTS, query=" \n", budget=budget).query is None


@pytest.mark.parametrize("per_passage", [False, True])
@pytest.mark.parametrize("passages", [[5], b"abc", [b"abc"], None, {"a": "b"}, 7])
def test_what_is_no_text_is_refused(passages: Any, per_passage: bool) -> None:
    with pytest.raises(InputError, match="passage"):
        pipeline().compress(passages, budget=Budget.tokens(5, per_passage=per_passage))


def test_what_must_be_kept_passes_both_stages() -> None:
    result = pipeline().compress(FACTS, query=QUERY, budget=20, keep=["do not talk"])
    assert "They do not talk." in result.text
    with pytest.raises(BudgetError):
        pipeline().compress(FACTS, query=QUERY, budget=2, keep=["do not talk"])


@pytest.mark.parametrize("keep", [[5], [None], [b"x"]], ids=repr)
def test_a_pattern_that_is_none_is_refused(keep: Any) -> None:
    with pytest.raises(InputError, match="keep"):
        compress(FACTS, budget=20, keep=keep, method="lexical")


def test_a_bare_string_is_one_thing_to_keep() -> None:
    result = compress("One two. Three four. Five six.", budget=5, keep="Five", method="lexical")
    assert "Five six." in result.text


def test_pipelines_can_be_nested() -> None:
    nested = Pipeline(pipeline(), Lexical())
    result = nested.compress(FACTS, query=QUERY, budget=20)
    check(result, FACTS)
    assert result.method == "lexical+lexical+lexical"


def test_requests_are_independent() -> None:
    requests = [(FACTS, QUERY), ([], None), (FACTS[:2], "sky")]
    many = pipeline().compress_many(requests, budget=15)
    alone = [pipeline().compress(p, query=q, budget=15) for p, q in requests]
    assert [r.text for r in many] == [r.text for r in alone]


def test_a_generator_of_passages_is_read_once() -> None:
    result = pipeline().compress((text for text in FACTS), query=QUERY, budget=15)
    check(result, FACTS)


def test_another_order_may_count_more_and_still_fits() -> None:
    """cl100k_base has a token for a full stop with a blank line, which the last text lacks."""
    texts = ["Something else.", "Paris is the capital of France"]
    for budget in (1.0, Budget.rate(1), 0.99):
        result = compress(
            texts,
            query=QUERY,
            budget=budget,
            order="score",
            method="lexical",
            counter="cl100k_base",
        )
        assert result.tokens_after <= result.limit
        assert result.passages[0].index == 1
