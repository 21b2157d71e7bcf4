"""What is known of a result, in every wrapper, and what can be asked for.

Each test says in its first line what the reference implementations do wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import regex

from laconic.core import Budget, Passage, Pipeline, get_compressor
from laconic.core.compressor import Compressor
from laconic.core.method import Method, Request, Scores
from laconic.core.types import JOINER
from laconic.errors import BudgetError, InputError, QueryRequiredError, UnknownMethodError

Prose = Callable[..., str]

QUERY = "Who signed the treaty near the river?"
ONE_KIND = [
    ("llmlingua", "llama"),
    ("longllmlingua", "gpt2"),
    ("llmlingua2", "xlm-roberta"),
    ("selective_context", "gpt2"),
]


class TestProvenance:
    def test_every_passage_is_accounted_for(self, method: Compressor, prose: Prose) -> None:
        """17: both return one text; what it is from, and what was dropped, cannot be told."""
        passages = [
            Passage(prose(n, n), id=f"p{n}", metadata={"page": n}) for n in (80, 8, 120, 40, 60)
        ]
        result = method.compress(passages, query=QUERY, budget=0.15, order="score")
        outcomes = [*result.passages, *result.dropped]
        assert sorted(p.index for p in outcomes) == [0, 1, 2, 3, 4]
        for p in outcomes:
            assert p.passage is passages[p.index]
            assert p.score is not None
            assert p.tokens_before > p.tokens_after
            assert p.text == "".join(p.passage.text[a:b] for a, b in p.spans)
        assert result.text == JOINER.join(p.text for p in result.passages)
        assert all(not p.text and not p.tokens_after for p in result.dropped)

    def test_dropped_passages_are_listed(self, make: Any, prose: Prose) -> None:
        """17: v1 keeps only the places of what it kept, of all calls together."""
        texts = [prose(60, i) for i in range(8)]
        for name in ("llmlingua", "longllmlingua"):
            result = make(name, "llama", coarse_factor=1).compress(texts, query=QUERY, budget=60)
            assert 1 <= len(result.passages) <= 3
            assert len(result.dropped) == 8 - len(result.passages)
            worst = min(p.score for p in result.passages)
            assert all(p.score <= worst for p in result.dropped)

    def test_the_order_is_that_of_the_scores(self, method: Compressor, prose: Prose) -> None:
        """17: after v1's reorder_context nothing says which text was which."""
        texts = [prose(30, i) for i in range(6)]
        sorted_ = method.compress(texts, query=QUERY, budget=0.6, order="score").passages
        scores = [p.score for p in sorted_]
        assert scores == sorted(scores, reverse=True)
        kept = method.compress(texts, query=QUERY, budget=0.6).passages
        assert [p.index for p in kept] == sorted(p.index for p in kept)
        with pytest.raises(InputError, match="order is one of"):
            method.compress(texts, query=QUERY, budget=0.6, order="two_stage")

    def test_ratios_are_numbers(self, method: Compressor, prose: Prose) -> None:
        """25: "3.3x" and "30.6%" are text, and the savings at GPT-4's price of 2023."""
        result = method.compress(prose(100), query=QUERY, budget=0.5)
        assert result.rate == result.tokens_after / result.tokens_before
        assert isinstance(result.rate, float)
        assert all(isinstance(n, int) for n in (result.tokens_before, result.tokens_after))
        assert isinstance(result.seconds, float)


class TestWrappers:
    """Section 5: what the adapters that LangChain and LlamaIndex have do wrong."""

    TEXTS = (
        "2023 revenue grew to 45",
        "42 is the answer, as in 41 others\n\nand 43",
        "Fish <#ref0#>",
    )

    def test_langchain_documents(self, method: Compressor) -> None:
        """17: digits at the ends are eaten, metadata lost, tags of the adapter left in texts."""
        pytest.importorskip("langchain_core")
        from langchain_core.documents import Document

        from laconic.integrations.langchain import LaconicDocumentCompressor

        documents = [
            Document(text, id=f"id{i}", metadata={"n": i}) for i, text in enumerate(self.TEXTS)
        ]
        adapter = LaconicDocumentCompressor(compressor=method, min_tokens_per_document=2, rate=0.7)
        kept = adapter.compress_documents(documents, QUERY)
        assert [d.id for d in kept] == ["id0", "id1", "id2"]
        for d in kept:
            source = documents[d.metadata["n"]].page_content
            spans = d.metadata["compression"]["spans"]
            assert d.page_content == "".join(source[a:b] for a, b in spans)
            assert d.metadata["compression"]["score"] is not None
        whole = LaconicDocumentCompressor(compressor=method, rate=1.0)
        assert [d.page_content for d in whole.compress_documents(documents, QUERY)] == [*self.TEXTS]
        if method.needs_query:
            with pytest.raises(QueryRequiredError, match="needs none"):
                adapter.compress_documents(documents, " ")
        else:
            assert adapter.compress_documents(documents, " ")

    def test_llama_index_nodes(self, method: Compressor) -> None:
        """17: nodes are joined into one without score and id; without a query it fails."""
        pytest.importorskip("llama_index.core")
        from llama_index.core.schema import NodeWithScore, TextNode

        from laconic.integrations.llama_index import LaconicNodePostprocessor

        nodes = [
            NodeWithScore(node=TextNode(id_=f"n{i}", text=text, metadata={"n": i}), score=0.9 - i)
            for i, text in enumerate(self.TEXTS)
        ]
        adapter = LaconicNodePostprocessor(compressor=method, min_tokens_per_document=2, rate=0.7)
        kept = adapter.postprocess_nodes(nodes, query_str=QUERY)
        assert [(n.node_id, n.score, n.metadata["n"]) for n in kept] == [
            (f"n{i}", 0.9 - i, i) for i in range(3)
        ]
        assert all(n.metadata["compression"]["method"] == method.name for n in kept)
        if not method.needs_query:
            assert adapter.postprocess_nodes(nodes)

    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    def test_an_adapter_is_made_again_from_what_is_saved(
        self, models: Any, name: str, kind: str
    ) -> None:
        """17: to_dict leaves out the model, and a model is loaded to validate the settings."""
        pytest.importorskip("llama_index.core")
        from llama_index.core.schema import NodeWithScore, TextNode

        from laconic.integrations.llama_index import LaconicNodePostprocessor

        options = {"model": str(models(kind))}
        adapter = LaconicNodePostprocessor(method=name, method_options=options, rate=0.5)
        again = LaconicNodePostprocessor.from_dict(adapter.to_dict())
        nodes = [NodeWithScore(node=TextNode(text="One small step for a man, one giant leap."))]
        first, second = (a.postprocess_nodes(nodes, query_str=QUERY) for a in (adapter, again))
        assert first[0].text == second[0].text != nodes[0].text


class TestOptions:
    def test_what_must_be_kept_is_charged_and_not_changed(
        self, method: Compressor, prose: Prose
    ) -> None:
        """18: the caller's force_context_ids grow, and forced documents cost nothing."""
        texts = [f"{prose(40, i)} The number is SECRET{i}." for i in range(5)]
        keep = ["SECRET1", regex.compile(r"SECRET[34]")]
        before = list(keep)
        result = method.compress(texts, query=QUERY, budget=50, keep=keep)
        assert keep == before
        assert all(secret in result.text for secret in ("SECRET1", "SECRET3", "SECRET4"))
        assert result.tokens_after <= 50
        with pytest.raises(BudgetError, match="must be kept takes"):
            method.compress(texts, query=QUERY, budget=4, keep=keep)

    def test_a_number_of_passages_is_promised(self, method: Compressor, prose: Prose) -> None:
        """18: force_context_number does nothing at all."""
        texts = [prose(40, i) for i in range(6)]
        budget = Budget.tokens(70, min_per_passage=5)
        result = method.compress(texts, query=QUERY, budget=budget)
        assert len(result.passages) == 6
        assert result.tokens_after <= 70

    def test_first_and_last_words_of_each_passage(self, method: Compressor, prose: Prose) -> None:
        """18: keep_first_sentence is of all documents together, and demotes where low is good."""
        texts = [prose(50, i) for i in range(4)]
        ends = [regex.compile(r"\A\S+"), regex.compile(r"\S+\Z")]
        result = method.compress(texts, query=QUERY, budget=0.5, keep=ends)
        assert len(result.passages) == 4
        for p, text in zip(result.passages, texts, strict=True):
            assert p.text.startswith(text.split()[0])
            assert p.text.endswith(text.split()[-1])

    @pytest.mark.parametrize("name", ["llmlingua", "longllmlingua"])
    @pytest.mark.parametrize(
        "budget",
        [Budget.rate(0.25, per_passage=True), Budget.rate(0.25, min_per_passage=12)],
        ids=["per_passage", "min_per_passage"],
    )
    def test_a_share_of_each_passage_is_its_best(
        self, make: Any, prose: Prose, name: str, budget: Budget
    ) -> None:
        """18: what v1's context filter drops cannot be promised anything."""
        texts = [prose(60, i) for i in range(6)]
        result = make(name, "llama").compress(texts, query=QUERY, budget=budget)
        assert len(result.passages) == 6
        assert [p.index for p in result.passages if len(p.spans) == 1] == []

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("llmlingua", {"segment_tokens": 0}),
            ("llmlingua", {"coarse_factor": 0.5}),
            ("llmlingua", {"coarse_factor": float("nan")}),
            ("longllmlingua", {"dynamic_ratio": 1.5}),
            ("longllmlingua", {"dynamic_ratio": float("nan")}),
            ("longllmlingua", {"segment_tokens": -1}),
            ("selective_context", {"level": "word"}),
            ("selective_context", {"nlp": "no_such_pipeline"}),
        ],
    )
    def test_an_option_out_of_range_is_refused(self, make: Any, name: str, options: Any) -> None:
        """18: rank_method="x" is TypeError: 'NoneType' object is not callable, at the first use."""
        with pytest.raises(InputError):
            make(name, "gpt2", **options)

    @pytest.mark.parametrize("name", ["llmlingua", "longllmlingua"])
    def test_a_level_that_there_is_not_is_refused_at_once(self, make: Any, name: str) -> None:
        """18: the same."""
        with pytest.raises(InputError, match="no level"):
            make(name, "gpt2", level="phrase")

    @pytest.mark.parametrize(
        "name", ["llmlingua", "longllmlingua", "llmlingua2", "selective_context"]
    )
    def test_an_unknown_option_is_refused(self, name: str) -> None:
        """18: compress_prompt takes options that the chosen method does not read."""
        with pytest.raises(UnknownMethodError, match="rank_method"):
            get_compressor(name, rank_method="longllmlingua")

    def test_questions_choose_before_what_reads_none(self, make: Any, prose: Prose) -> None:
        """19: LLMLingua-2 ignores the question, and cannot follow LongLLMLingua."""
        coarse = make("longllmlingua", "llama", level="document")
        fine = make("llmlingua2", "xlm-roberta")
        texts = [prose(50, i) for i in range(8)]
        left = set()
        for query in (prose(12, i) for i in range(20, 24)):
            result = Pipeline(coarse, fine, headroom=1.5).compress(texts, query=query, budget=0.25)
            ranked = coarse.compress(texts, query=query, budget=1.0, order="score").passages
            assert {p.index for p in result.passages} <= {p.index for p in ranked[:4]}
            assert 0.98 * result.limit - 3 <= result.tokens_after <= result.limit
            left.add(result.text)
        assert len(left) > 1
        assert fine.compress(texts, query="a", budget=0.3).text == (
            fine.compress(texts, query="b", budget=0.3).text
        )

    def test_any_judge_of_units_is_a_method(self, prose: Prose) -> None:
        """19: there is no way to score with an API's log-probabilities."""

        class Black(Method):
            name = "black"

            def score(self, request: Request) -> Scores:
                values = [len(text) for text in request.unit_texts()]
                per_passage = request.per_passage(np.array(values, np.float64))
                return Scores(per_passage, np.array([v.mean() for v in per_passage]))

        result = Black().compress([prose(60, 1), prose(60, 2)], budget=0.5)
        assert 0 < result.tokens_after <= result.limit

    def test_better_passages_keep_more_where_the_ratio_is_dynamic(
        self, make: Any, prose: Prose
    ) -> None:
        """19: v1 gives the documents it ranks last a larger part than it should."""
        texts = [prose(60, i) for i in range(6)]
        for ratio, is_dynamic in ((0.0, False), (0.4, True)):
            method = make("longllmlingua", "llama", dynamic_ratio=ratio, coarse_factor=None)
            kept = method.compress(texts, query=QUERY, budget=0.5, order="score").passages
            shares = [p.tokens_after / p.tokens_before for p in kept]
            assert (shares[0] > shares[-1] + 0.3) is is_dynamic
