from __future__ import annotations

from laconic.core import METHODS, Budget, TokenCounter, get_compressor
from laconic.core.evaluation.rates import shortfall, sweep

TEXTS = [f"Fact {i} of the treaty is that the river has {i * i} old bridges." for i in range(150)]
WORDS = TokenCounter.of(lambda text: len(text.split()))


def test_every_method_meets_the_rates() -> None:
    swept = list(sweep(TEXTS, lengths=[3, 20, 1_200], rates=[0.3]))
    assert [result.name for result in swept] == list(METHODS)
    for result in swept:
        assert (result.texts, result.exceeded, result.loose) == (3, 0, 0)
        assert 0.97 < result.least <= 1


def test_what_may_stay_unused_is_less_than_a_unit() -> None:
    method = get_compressor("lexical")
    text = "One two three four five. Six seven eight. Nine ten."
    result = method.compress(text, query="one", budget=Budget.tokens(6), counter=WORDS)
    assert result.text == "One two three four five."
    assert shortfall(method, result, WORDS) == (1, 2)


def test_of_a_unit_that_is_cut_the_next_word_is_left_out() -> None:
    method = get_compressor("lexical")
    counter = TokenCounter.of(len)
    result = method.compress("A verylongword stands here.", budget=5, counter=counter)
    assert result.text == "A"
    assert shortfall(method, result, counter) == (4, len("verylongword"))
