from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from laconic.core import Pipeline, get_compressor
from laconic.core.evaluation.reference import reference_compressor, reference_word_probabilities
from laconic.core.method import Request
from laconic.core.methods.llmlingua2 import LLMLingua2
from laconic.core.types import Span

Models = Callable[[str], Path]

TEXT = (
    "Make LLM applications pay for fewer tokens. It stands between a retriever and a model, "
    "and keeps the sentences that the question needs. Tests run offline and mirror the tree."
)


def units(method: LLMLingua2, text: str) -> list[str]:
    return [text[a:b].strip() for a, b in method.segment(text)]


def forced(method: LLMLingua2, text: str, rate: float = 0.5) -> list[str]:
    spans = tuple(method.segment(text))
    scores = method.score(Request((text,), (spans,), ("",), None, rate=rate))
    assert scores.forced is not None
    return [text[slice(*spans[i])].strip() for i in np.flatnonzero(scores.forced[0])]


def test_a_word_has_the_probability_that_llmlingua_gives_it(models: Models) -> None:
    reference = reference_compressor(models("bert"), llmlingua2=True)
    (chunk,) = reference_word_probabilities(reference, TEXT)
    theirs = dict(chunk)
    method = LLMLingua2(models("bert"))
    spans = tuple(method.segment(TEXT))
    (ours,) = method.score(Request((TEXT,), (spans,), ("",), None)).units
    compared = 0
    for span, value in zip(spans, ours, strict=True):
        word = TEXT[slice(*span)].strip()
        if word in theirs and TEXT.split().count(word) == 1:
            assert value == pytest.approx(theirs[word], abs=1e-5)
            compared += 1
    assert compared > 15


def test_the_likeliest_words_are_kept(models: Models) -> None:
    method = LLMLingua2(models("xlm-roberta"))
    result = method.compress(TEXT, budget=0.5)
    spans = method.segment(TEXT)
    (values,) = method.score(Request((TEXT,), (tuple(spans),), ("",), None)).units
    is_kept = [any(a <= s.start < b for a, b in result.passages[0].spans) for s in spans]
    kept, dropped = values[is_kept], values[np.logical_not(is_kept)]
    # All but the last few: a small word may fill what a larger one leaves.
    assert np.quantile(kept, 0.1) > np.quantile(dropped, 0.9)


class TestCorrections:
    """Where the text differs from the reference's, and why."""

    def test_words_of_all_passages_compete_and_the_budget_is_met(self, models: Models) -> None:
        texts = [f"{TEXT} Number {i}." for i in range(6)]
        reference = reference_compressor(models("bert"), llmlingua2=True)
        theirs = reference.compress_prompt(texts, rate=0.5)
        ours = get_compressor("llmlingua2", model=models("bert")).compress(texts, budget=0.5)
        assert theirs["compressed_tokens"] < 0.4 * theirs["origin_tokens"]
        assert 0.98 * ours.limit <= ours.tokens_after <= ours.limit

    def test_unknown_characters_and_white_space_survive(self, models: Models) -> None:
        text = "The price is 😀 $3.50\n\n  (about ﷽ 5 km) x_y"
        method = LLMLingua2(models("bert"))
        assert method.compress(text, budget=1.0).text == text
        assert "".join(text[a:b] for a, b in method.segment(text)) == text

    def test_numbers_are_kept_whole(self, models: Models) -> None:
        text = f"{TEXT} It cost 12,345.67 on 2024-01-02 with x86_64 at 3pm."
        method = LLMLingua2(models("xlm-roberta"), reserve_digits=True)
        result = method.compress(text, budget=0.4)
        assert {"12,345.67", "2024-01-02", "x86_64", "3pm"} <= set(result.text.strip(".").split())


def test_units_are_words_and_the_marks_behind_them(models: Models) -> None:
    method = LLMLingua2(models("bert"))
    assert units(method, "He said: no, (really).") == [
        "He", "said", ":", "no", ",", "(really", ").",
    ]  # fmt: skip
    assert units(method, "It cost $3.50 and did not work.") == [
        "It", "cost", "$3.50", "and", "did", "not work", ".",
    ]  # fmt: skip
    assert units(method, "我喜欢猫。") == ["我", "喜", "欢", "猫。"]


def test_forced_texts_are_found_as_words_and_kept_whole(models: Models) -> None:
    method = LLMLingua2(models("bert"), force_tokens=["The answer is", "the", "?", "\n"])
    text = "Is the other one it? The answer is\nfour, the end."
    assert forced(method, text) == ["the", "?", "The answer is", "the"]
    result = method.compress(text, budget=7)
    assert result.text.startswith("the? The answer is")
    assert result.text.endswith("the")


def test_a_repeated_mark_is_given_up(models: Models) -> None:
    text = "one. two. three. four."
    some = LLMLingua2(models("bert"), force_tokens=["."], drop_consecutive=True)
    spans = tuple(some.segment(text))
    rate = 0.01  # no word is likely enough to stand between the marks
    scores = some.score(Request((text,), (spans,), ("",), None, rate=rate))
    assert scores.forced is not None
    assert len(forced(LLMLingua2(models("bert"), force_tokens=["."]), text)) == 4
    assert scores.forced[0].sum() <= 2


def test_a_mark_closes_the_word_that_is_kept_before_it(models: Models) -> None:
    method = LLMLingua2(models("bert"), force_tokens=[".", "Make", "run"])
    assert method.compress("Make it work well. Tests run here.", budget=4).text == "Make. run."


def test_a_coarse_stage_reads_the_question(models: Models) -> None:
    fine = LLMLingua2(models("xlm-roberta"))
    passages = [TEXT, "Cats sleep all day long in the sun.", "Rain fell on the old town."]
    result = Pipeline(get_compressor("lexical"), fine, headroom=1.5).compress(
        passages, query="where do cats sleep?", budget=6
    )
    assert [p.index for p in result.passages] == [1]


def test_scores_are_remembered_whatever_the_question(models: Models) -> None:
    method = LLMLingua2(models("bert"))
    method.compress(TEXT, budget=0.5, query="one")
    passes = []
    method.model.load().register_forward_hook(lambda *_: passes.append(1))
    method.compress(TEXT, budget=0.3, query="two")
    assert not passes


def test_spans_are_offsets_into_the_source(models: Models) -> None:
    result = LLMLingua2(models("xlm-roberta")).compress(TEXT, budget=0.4)
    (passage,) = result.passages
    assert all(isinstance(span, Span) for span in passage.spans)
    assert "".join(TEXT[a:b] for a, b in passage.spans) == result.text
