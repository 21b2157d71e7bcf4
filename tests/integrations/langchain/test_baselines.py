from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("langchain_community")
pytest.importorskip("sentence_transformers")

from langchain_classic.retrievers.document_compressors import EmbeddingsFilter

from laconic.core import Passage, TokenCounter
from laconic.core.method import Request
from laconic.core.models.encoder import Encoder
from laconic.core.types import JOINER
from laconic.errors import MissingExtraError, QueryRequiredError
from laconic.integrations.langchain import EmbeddingsFilterBaseline, LaconicEmbeddings


@pytest.fixture
def ranked(documents, query) -> list[str]:
    """The texts in the order of LangChain's own filter."""
    best_first = EmbeddingsFilter(embeddings=LaconicEmbeddings(), k=4)
    return [d.page_content for d in best_first.compress_documents(documents, query)]


@pytest.fixture
def texts(documents) -> list[str]:
    return [d.page_content for d in documents]


def test_documents_rank_as_the_filter_ranks_them(texts, ranked, query) -> None:
    result = EmbeddingsFilterBaseline().compress(texts, query=query, budget=1.0, order="score")
    assert [p.text for p in result.passages] == ranked
    assert result.method == "langchain-embeddings-filter"


def test_the_best_are_whole_and_the_next_is_cut_behind_its_first_sentences(
    texts, ranked, query
) -> None:
    counter = TokenCounter.of(None)
    whole = counter.count(JOINER.join(ranked[:2]))
    for limit in range(whole + 14, counter.count(JOINER.join(ranked[:3]))):
        result = EmbeddingsFilterBaseline().compress(
            texts, query=query, budget=limit, order="score"
        )
        kept = [p.text for p in result.passages]
        assert kept[:2] == ranked[:2]
        assert ranked[2].startswith(kept[2].split(". ")[0])
        assert result.tokens_after <= limit


def test_no_sentence_falls_behind_one_of_a_document_that_ranks_lower(query) -> None:
    long = "The Eiffel Tower is tall. " * 3000
    passages = (long, "Bread rises. It is baked.")
    baseline = EmbeddingsFilterBaseline()
    units = tuple(tuple(baseline.segment(text)) for text in passages)
    assert len(units[0]) == 3000
    scores = baseline.score(Request(passages, units, ("", ""), query))
    assert scores.units[0].min() > scores.units[1].max()
    assert all((np.diff(values) < 0).all() for values in scores.units)
    assert scores.passages[0] > scores.passages[1]


def test_titles_are_seen() -> None:
    passages = [
        Passage("It is liked by many.", metadata={"title": "Sourdough bread"}),
        Passage("It is liked by many.", metadata={"title": "Eiffel Tower"}),
    ]
    for wanted, place in (("sourdough bread", 0), ("Eiffel Tower", 1)):
        result = EmbeddingsFilterBaseline().compress(
            passages, query=wanted, budget=1.0, order="score"
        )
        assert result.passages[0].index == place
    assert result.text == "It is liked by many.\n\nIt is liked by many."


def test_equal_documents_are_told_apart(query) -> None:
    result = EmbeddingsFilterBaseline().compress(
        ["The tower is tall."] * 3, query=query, budget=1.0, order="score"
    )
    assert sorted(p.index for p in result.passages) == [0, 1, 2]


def test_it_needs_a_query() -> None:
    with pytest.raises(QueryRequiredError):
        EmbeddingsFilterBaseline().compress("Some text.", query=" ", budget=1)


@pytest.mark.parametrize("order", ["source", "score"])
def test_nothing_and_next_to_nothing(query, order) -> None:
    baseline = EmbeddingsFilterBaseline()
    assert baseline.compress([], query=query, budget=3, order=order).text == ""
    result = baseline.compress(["", "The tower is tall. Yes."], query=query, budget=5, order=order)
    assert result.text == "The tower is tall."


def test_the_encoder_can_be_another() -> None:
    encoder = Encoder()
    assert EmbeddingsFilterBaseline(encoder).embeddings.encoder is encoder


def test_without_langchain_community_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "laconic\[langchain,faiss\]"'):
        EmbeddingsFilterBaseline()
