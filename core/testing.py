"""The promises that every compressor keeps, as tests that anyone can run over their own.

Derive from `CompressorConformance`, override the fixture `compressor`, and let pytest collect
the class::

    class TestMine(CompressorConformance):
        @pytest.fixture
        def compressor(self):
            return MyCompressor()

Needs pytest and hypothesis.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .budget import Budget, TokenCounter
from .compressor import Compressor, Order
from .errors import BudgetError, InputError
from .types import JOINER, Compression, Passage
from .units import graphemes

__all__ = ["CompressorConformance", "check_promises"]

_SENTENCES = (
    "The treaty was signed in 1848 by 12 states.",
    "It does not apply to fishing, see https://example.org/a?b=c (Smith, 2020).",
    "Revenue grew by 3.5 % to $12,345.67 in Q3.",
    "Dr. Lee didn't agree; she left early!",
    "她去了北京。他没有去。",
    "ذهبت إلى المدرسة؟ نعم.",
    "สวัสดีครับ ผมชื่อสมชาย",
    "👩‍👩‍👧 e\u0301te\u0301 🇩🇪",
    "```python\nx = 1. if y else 2.\n```",
    "- an item\n- another item\n\n# A heading",
)

_texts = st.one_of(
    st.lists(st.sampled_from(_SENTENCES), max_size=6).map(" ".join),
    st.lists(st.sampled_from(_SENTENCES), max_size=6).map("\n".join),
    st.text(max_size=120),
)
_budgets = st.one_of(
    st.integers(0, 60).map(Budget.tokens),
    st.floats(0.01, 1).map(Budget.rate),
    st.integers(0, 30).map(lambda n: Budget.tokens(n, per_passage=True)),
    st.floats(0.01, 1).map(lambda r: Budget.rate(r, per_passage=True)),
    st.floats(0.01, 1).map(lambda r: Budget.rate(r, min_per_passage=8)),
)
_counters = (TokenCounter.approximate(), TokenCounter("characters", len))


def check_promises(
    passages: list[Passage], result: Compression, counter: TokenCounter, order: Order = "source"
) -> None:
    """Assert what holds of every result, whatever was asked for."""
    assert result.counter == counter.name
    outcomes = [*result.passages, *result.dropped]
    assert sorted(p.index for p in outcomes) == list(range(len(passages)))
    for p in outcomes:
        source = passages[p.index]
        assert p.passage == source
        assert (p.id, p.metadata) == (source.id, source.metadata)
        assert p.text == "".join(source.text[a:b] for a, b in p.spans)
        ends = [0, *(place for span in p.spans for place in span), len(source.text)]
        assert ends == sorted(ends)
        assert p.tokens_before == counter.count(source.text)
        assert p.tokens_after == counter.count(p.text)
        assert p.score is None or np.isfinite(p.score)
    assert all(p.spans for p in result.passages)
    assert not any(p.spans for p in result.dropped)
    assert result.text == JOINER.join(p.text for p in result.passages)
    before = counter.count(JOINER.join(p.text for p in passages))
    assert result.tokens_before == before or (order == "score" and result.tokens_before > before)
    assert result.tokens_after == counter.count(result.text)
    if result.budget.per_passage:
        for p in result.passages:
            assert p.tokens_after <= result.budget.limit(p.tokens_before)
    else:
        assert result.tokens_after <= result.limit == result.budget.limit(result.tokens_before)
    assert "\n" not in str(result)


_EXPECTED = (
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.differing_executors,  # every compressor has a subclass of its own
)


class CompressorConformance:
    """Tests that every compressor passes; override `compressor`."""

    query = "Who signed the treaty in 1848?"
    """A query for the tests; set None for a compressor that must not have one."""

    @pytest.fixture
    def compressor(self) -> Compressor:
        """Return the compressor under test."""
        raise NotImplementedError("override the fixture `compressor`")

    @settings(suppress_health_check=_EXPECTED)
    @given(
        texts=st.lists(_texts, max_size=4),
        budget=_budgets,
        counter=st.sampled_from(_counters),
        order=st.sampled_from(["source", "score"]),
    )
    def test_promises_hold_for_any_text_and_budget(
        self, compressor: Compressor, texts: list[str], budget: Budget, counter: Any, order: Any
    ) -> None:
        """Spans, identity of passages, counts, the cap; nothing lost, nothing changed."""
        passages = [Passage(text, id=f"p{i}", metadata={"n": [i]}) for i, text in enumerate(texts)]
        before = copy.deepcopy(passages)
        result = compressor.compress(
            passages, query=self.query, budget=budget, counter=counter, order=order
        )
        assert passages == before
        check_promises(passages, result, counter, order)
        if order == "source":
            places = [p.index for p in result.passages]
            assert places == sorted(places)

    @settings(suppress_health_check=_EXPECTED)
    @given(texts=st.lists(_texts, max_size=4), per_passage=st.booleans())
    def test_rate_one_gives_the_input_back(
        self, compressor: Compressor, texts: list[str], per_passage: bool
    ) -> None:
        """Byte for byte, empty passages included."""
        budget = Budget.rate(1, per_passage=per_passage)
        result = compressor.compress(texts, query=self.query, budget=budget)
        assert [p.text for p in result.passages] == texts
        assert not result.dropped

    @settings(suppress_health_check=_EXPECTED)
    @given(text=_texts.filter(str.strip), limit=st.integers(1, 30))
    def test_something_is_left_unless_nothing_fits(
        self, compressor: Compressor, text: str, limit: int
    ) -> None:
        """With one token a character, at least a one-character piece fits if there is one."""
        counter = TokenCounter("characters", len)
        result = compressor.compress(text, query=self.query, budget=limit, counter=counter)
        pieces = [text[start:end] for start, end in graphemes(text)]
        is_possible = any(re.fullmatch(r"[a-zA-Z0-9]", piece) for piece in pieces)
        assert result.text or not is_possible

    @pytest.mark.parametrize("rate", [0.9, 0.5, 0.25, 0.1])
    def test_the_asked_rate_is_reached(self, compressor: Compressor, rate: float) -> None:
        """Within 2 % of the limit, or one unit."""
        passages = [
            Passage(" ".join(f"Topic {i} has fact {j} about treaty {i * j}." for j in range(12)))
            for i in range(6)
        ]
        result = compressor.compress(passages, query=self.query, budget=rate)
        unit = TokenCounter.of().count(" Topic 5 has fact 11 about treaty 55.") + 1
        assert result.limit - result.tokens_after <= max(0.02 * result.limit, unit)

    @pytest.mark.parametrize("nothing", [[], "", [""], [" "], ["", "\n"]])
    def test_empty_input_is_no_error(self, compressor: Compressor, nothing: Any) -> None:
        """It comes back as it is, or empty."""
        for budget in (0, 1, 0.5):
            result = compressor.compress(nothing, query=self.query, budget=budget)
            assert not result.text.strip()

    def test_budget_zero_keeps_nothing(self, compressor: Compressor) -> None:
        """And lists what was dropped."""
        result = compressor.compress(["One two.", "Three."], query=self.query, budget=0)
        assert (result.text, len(result.dropped)) == ("", 2)

    def test_one_word_is_never_emptied(self, compressor: Compressor) -> None:
        """A rate leaves at least a token, whatever it is of."""
        for rate in (0.01, 0.5, 0.99):
            assert compressor.compress("hello", query=self.query, budget=rate).text == "hello"

    def test_a_giant_word_is_cut(self, compressor: Compressor) -> None:
        """White space or not, there is something to keep."""
        result = compressor.compress("x1" * 50_000, query=self.query, budget=10)
        assert result.text
        assert result.tokens_after <= 10

    def test_a_hundred_thousand_tokens(self, compressor: Compressor) -> None:
        """Size is no reason to fail."""
        block = "".join(f"Fact {i:02} is about treaty number {i:02}.\n" for i in range(30))
        text = block * 400  # repeated, so that what remembers texts is fast
        result = compressor.compress(text, query=self.query, budget=500)
        assert result.tokens_before > 100_000
        assert 450 <= result.tokens_after <= 500

    def test_lone_surrogates_survive(self, compressor: Compressor) -> None:
        """Text that no encoding takes comes back, or a part of it does."""
        text = "Broken \ud83d emoji. Another \udc00 sentence about the treaty."
        result = compressor.compress(text, query=self.query, budget=0.6)
        assert result.text
        assert compressor.compress(text, query=self.query, budget=1.0).text == text

    def test_special_tokens_are_text(self, compressor: Compressor) -> None:
        """What looks like a control token of some model is not one."""
        text = "A <|endoftext|> b <s> c [CLS] d <unk> e [SEP] f."
        assert compressor.compress(text, query=self.query, budget=1.0).text == text
        assert compressor.compress(text, query=self.query, budget=0.7).text

    def test_what_must_be_kept_is_kept(self, compressor: Compressor) -> None:
        """Whatever its score, or a clear error when it cannot be."""
        passages = ["Alpha one. Beta two. Gamma three.", "Delta four. SECRET-42 five. Zeta six."]
        result = compressor.compress(
            passages, query=self.query, budget=12, keep=["SECRET-42", re.compile(r"Gam+a")]
        )
        assert "SECRET-42" in result.text
        assert "Gamma" in result.text
        with pytest.raises(BudgetError, match="tokens"):
            compressor.compress(passages, query=self.query, budget=1, keep=["SECRET-42"])

    @pytest.mark.parametrize("wrong", [None, 5, b"bytes", [b"bytes"], ["ok", None], [1], {"a": 1}])
    def test_what_is_not_text_is_refused(self, compressor: Compressor, wrong: Any) -> None:
        """With an error that says so."""
        with pytest.raises(InputError):
            compressor.compress(wrong, query=self.query, budget=5)

    @pytest.mark.parametrize("budget", [0.0, 1.5, -0.5, -1, float("nan"), float("inf"), "5", True])
    def test_a_budget_that_is_none_is_refused(self, compressor: Compressor, budget: Any) -> None:
        """With an error that says so."""
        with pytest.raises(BudgetError):
            compressor.compress("Some text.", query=self.query, budget=budget)

    def test_nothing_outside_the_call_is_touched(self, compressor: Compressor) -> None:
        """Neither random state nor environment."""
        random.seed(3)
        np.random.seed(3)
        states = random.getstate(), str(np.random.get_state())
        environment = dict(os.environ)
        compressor.compress(list(_SENTENCES), query=self.query, budget=0.3)
        assert (random.getstate(), str(np.random.get_state())) == states
        assert dict(os.environ) == environment

    def test_same_call_same_result_in_threads_and_tasks(self, compressor: Compressor) -> None:
        """Serial, threaded, asynchronous and batched calls agree."""
        requests = [(list(_SENTENCES[i:]), self.query) for i in range(6)]

        def compress(request: Any) -> Any:
            return _parts(compressor.compress(request[0], query=request[1], budget=0.4))

        async def gather() -> list[Any]:
            calls = (compressor.acompress(p, query=q, budget=0.4) for p, q in requests)
            return [_parts(result) for result in await asyncio.gather(*calls)]

        serial = [compress(request) for request in requests]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(compress, requests)) == serial
        assert asyncio.run(gather()) == serial
        assert [_parts(r) for r in compressor.compress_many(requests, budget=0.4)] == serial


def _parts(result: Compression) -> list[Any]:
    return [(p.index, p.spans) for p in result.passages]
