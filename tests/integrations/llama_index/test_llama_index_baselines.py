"""The rival's scores against the real `SentenceEmbeddingOptimizer`, at many percentiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.postprocessor import SentenceEmbeddingOptimizer
from llama_index.core.schema import NodeWithScore, TextNode

from laconic.core.method import Method, Request
from laconic.core.models.encoder import Encoder
from laconic.errors import QueryRequiredError
from laconic.integrations.llama_index import LaconicEmbedding, SentenceEmbeddingOptimizerBaseline

MARK = "\N{SYMBOL FOR RECORD SEPARATOR}"


class Letters:
    """Few vectors, so that many sentences are equally similar."""

    def encode(self, texts: Sequence[str], **options: object) -> np.ndarray:
        return np.array([[1.0, t.count("a") % 3, t.count("e") % 2] for t in texts])


def request(method: Method, texts: Sequence[str], query: str) -> Request:
    return Request(
        tuple(texts), tuple(tuple(method.segment(t)) for t in texts), ("",) * len(texts), query
    )


def kept_by_optimizer(
    encoder: Encoder, sentences: Sequence[str], query: str, percentile: float
) -> list[int]:
    """Places of the sentences that the real optimizer keeps of a node."""
    named = {f"{place}{MARK}": text for place, text in enumerate(sentences)}

    class ByName:
        def encode(self, texts: Sequence[str], **options: object) -> np.ndarray:
            return encoder.encode([named.get(text, text) for text in texts])

    optimizer = SentenceEmbeddingOptimizer(
        embed_model=LaconicEmbedding(Encoder(ByName())),
        percentile_cutoff=percentile,
        tokenizer_fn=lambda _: list(named),
        context_before=0,
        context_after=0,
    )
    node = NodeWithScore(node=TextNode(text="".join(named)))
    [cut] = optimizer.postprocess_nodes([node], query_str=query)
    return sorted(int(name) for name in cut.text.replace(" ", "").split(MARK) if name)


def check(encoder: Encoder, texts: Sequence[str], query: str) -> int:
    """Compare at every percentile that keeps a sentence; return how many were compared."""
    baseline = SentenceEmbeddingOptimizerBaseline(encoder)
    asked = request(baseline, texts, query)
    scores = baseline.score(asked)
    compared = 0
    for text, spans, values in zip(texts, asked.units, scores.units, strict=True):
        sentences = [text[start:end].strip() for start, end in spans]
        n = len(sentences)
        for percentile in [(kept + 0.5) / n for kept in range(1, n)] + [1.0] * (n > 0):
            kept = np.flatnonzero(-values <= percentile + 1e-12).tolist()
            assert kept == kept_by_optimizer(encoder, sentences, query, percentile)
            assert len(kept) == int(n * percentile)
            compared += 1
    return compared


def test_scores_are_the_percentiles_at_which_the_real_optimizer_admits(
    nodes: list[NodeWithScore], query: str
) -> None:
    pytest.importorskip("sentence_transformers")
    texts = [" ".join(n.text for n in nodes[:3]), nodes[4].text, "One sentence only.", ""]
    assert check(Encoder.shared(), texts, query) == 9 + 3 + 1


sentences = st.lists(
    st.sampled_from(["A sea.", "No tea.", "Bread.", "Sand and sea.", "Sky.", "Eels."]), max_size=9
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(sentences, max_size=3), query=st.sampled_from(["sea?", "aa", "why"]))
def test_ties_are_broken_as_the_real_optimizer_breaks_them(texts: list[str], query: str) -> None:
    check(Encoder(Letters()), texts, query)


def test_below_one_sentence_the_real_optimizer_keeps_all() -> None:
    """Why the scores follow the percentile only from one sentence on."""
    four = ["A sea.", "No tea.", "Bread.", "Sky."]
    assert kept_by_optimizer(Encoder(Letters()), four, "sea?", 0.2) == [0, 1, 2, 3]
    assert len(kept_by_optimizer(Encoder(Letters()), four, "sea?", 0.3)) == 1


def test_it_compresses_to_a_budget_like_any_method(nodes: list[NodeWithScore], query: str) -> None:
    pytest.importorskip("sentence_transformers")
    baseline = SentenceEmbeddingOptimizerBaseline()
    result = baseline.compress([n.text for n in nodes], query=query, budget=0.4)
    assert result.method == "llamaindex-sentence-optimizer"
    assert 0 < result.tokens_after <= result.limit == int(0.4 * result.tokens_before)
    assert [p.index for p in result.passages] == list(range(8))


@pytest.mark.parametrize("query", [None, "", " \n"])
def test_it_needs_a_query(query: str | None) -> None:
    with pytest.raises(QueryRequiredError, match="lexical"):
        SentenceEmbeddingOptimizerBaseline().compress(["A sea. No tea."], query=query, budget=2)
