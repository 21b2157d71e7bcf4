from __future__ import annotations

import asyncio
import copy
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ValidationError

from laconic.core import TokenCounter
from laconic.core.methods.lexical import Lexical
from laconic.core.types import JOINER
from laconic.errors import BudgetError, InputError, LaconicError
from laconic.integrations.langchain import LaconicDocumentCompressor


def lexical(**fields: Any) -> LaconicDocumentCompressor:
    return LaconicDocumentCompressor(method="lexical", **fields)


def joined_tokens(documents: list[Document]) -> int:
    return TokenCounter.of(None).count(JOINER.join(d.page_content for d in documents))


def without_facts(document: Document) -> dict[str, Any]:
    return {key: value for key, value in document.metadata.items() if key != "compression"}


# What the adapter that LangChain had does wrong.


def test_constructs_without_arguments_without_network_and_without_loading_a_model() -> None:
    program = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from laconic.integrations.langchain import LaconicDocumentCompressor
LaconicDocumentCompressor()
LaconicDocumentCompressor(method="extractive").model_copy(update={"rate": 0.3})
print(sorted({"torch", "sentence_transformers"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_ids_metadata_and_scores_of_a_reranker_are_kept(documents, query) -> None:
    before = {d.id: d for d in documents}
    kept = lexical(rate=0.6).compress_documents(documents, query)
    assert len(kept) >= 2
    for document in kept:
        assert without_facts(document) == before[document.id].metadata
        assert (
            document.metadata["relevance_score"] == before[document.id].metadata["relevance_score"]
        )


def test_text_that_looks_like_a_reference_tag_is_text() -> None:
    tagged = "Paris <#ref0#> is the capital of France <#ref7#>."
    documents = [
        Document("The weather was mild. Nobody complained about it at all.", metadata={"n": 0}),
        Document(f"{tagged} Lyon <#ref1#> is a city by a river.", metadata={"n": 1}),
    ]
    (kept,) = lexical(target_tokens=19).compress_documents(documents, "capital of France")
    assert without_facts(kept) == {"n": 1}
    assert kept.page_content == tagged


def test_digits_at_the_ends_of_a_text_are_its_own() -> None:
    figures = "2023 revenue grew to 45"
    documents = [
        Document(figures, id="a", metadata={"page": 3}),
        Document("42", id="b", metadata={"page": 4}),
        Document("The weather was mild. Nobody complained about it. " * 4, id="c"),
    ]
    kept = lexical(target_tokens=20).compress_documents(documents, "revenue in 2023, or 42")
    assert len(kept[2:]) <= 1
    assert [(d.id, d.page_content, without_facts(d)) for d in kept[:2]] == [
        ("a", figures, {"page": 3}),
        ("b", "42", {"page": 4}),
    ]


def test_blank_lines_inside_a_document_survive() -> None:
    text = "Alpha rays are heavy.\n\nClouds drift slowly over hills.\n\nAlpha rays are slow."
    documents = [Document(text), Document("Bread needs time and salt. Butter helps. " * 3)]
    whole = lexical(target_tokens=25).compress_documents(documents, "alpha rays, clouds")
    assert whole[0].page_content == text
    cut = lexical(target_tokens=12).compress_documents(documents, "alpha rays")
    assert cut[0].page_content == "Alpha rays are heavy.\n\nAlpha rays are slow."


def test_no_document_is_split_or_merged(documents, query) -> None:
    several = documents[0].model_copy(
        update={"page_content": "\n\n".join([documents[0].page_content] * 3), "id": "parts"}
    )
    given_documents = [several, *documents]
    kept = lexical(rate=0.9).compress_documents(given_documents, query)
    assert [d.id for d in kept] == [d.id for d in given_documents]
    for before, after in zip(given_documents, kept, strict=True):
        spans = after.metadata["compression"]["spans"]
        assert after.page_content == "".join(before.page_content[a:b] for a, b in spans)


@pytest.mark.parametrize("target", [0, 1, 7, 20, 61, 10_000])
def test_target_tokens_is_hard(documents, query, target) -> None:
    kept = lexical(target_tokens=target).compress_documents(documents, query)
    assert joined_tokens(kept) <= target
    assert bool(kept) == (target > 0)


def test_what_fits_comes_back_as_it_was(documents, query) -> None:
    kept = lexical(rate=1.0).compress_documents(documents, query)
    assert [d.page_content for d in kept] == [d.page_content for d in documents]
    facts = kept[0].metadata["compression"]
    assert facts["tokens_before"] == facts["tokens_after"] > 0


def test_an_empty_document_is_left_out_of_a_compression(documents, query) -> None:
    kept = lexical(rate=0.5).compress_documents([Document(""), *documents], query)
    assert kept
    assert all(d.page_content for d in kept)


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_a_blank_query_is_no_query(documents, blank) -> None:
    compressor = lexical(rate=0.5)
    kept = compressor.compress_documents(documents, blank)
    expected = compressor.compress([d.page_content for d in documents], None)
    assert [d.page_content for d in kept] == [p.text for p in expected.passages]
    assert kept


def test_async_is_overridden_and_leaves_the_event_loop_free(documents, query) -> None:
    loop_is_free = threading.Event()

    class Waiting(Lexical):
        def score(self, request):
            assert loop_is_free.wait(10), "compression ran on the event loop"
            return super().score(request)

    async def run() -> list[Document]:
        asyncio.get_running_loop().call_later(0.01, loop_is_free.set)
        waiting = LaconicDocumentCompressor(compressor=Waiting(), rate=0.4)
        return await waiting.acompress_documents(documents, query)

    override = LaconicDocumentCompressor.acompress_documents
    assert override is not BaseDocumentCompressor.acompress_documents
    assert asyncio.run(run()) == lexical(rate=0.4).compress_documents(documents, query)


@pytest.mark.parametrize("method", ["lexical", "extractive"])
def test_async_gives_what_sync_gives(documents, query, method) -> None:
    compressor = LaconicDocumentCompressor(method=method, rate=0.4)
    alone = compressor.compress_documents(documents, query)
    assert alone == asyncio.run(compressor.acompress_documents(documents, query))


# Promises beyond that.


def test_the_answer_is_kept_and_the_facts_are_told(documents, query) -> None:
    kept = lexical(target_tokens=40).compress_documents(documents, query)
    assert "330 metres tall" in JOINER.join(d.page_content for d in kept)
    counter = TokenCounter.of(None)
    for document in kept:
        facts = document.metadata["compression"]
        before = next(d for d in documents if d.id == document.id)
        assert facts["method"] == "lexical"
        assert facts["counter"] == counter.name
        assert facts["tokens_before"] == counter.count(before.page_content)
        assert facts["tokens_after"] == counter.count(document.page_content)


def test_order_is_that_of_the_input_or_of_relevance(documents, query) -> None:
    documents.reverse()
    ids = [d.id for d in documents]
    by_source = lexical(rate=0.7).compress_documents(documents, query)
    assert [d.id for d in by_source] == [i for i in ids if i in {d.id for d in by_source}]
    by_score = lexical(rate=0.7, order="score").compress_documents(documents, query)
    scores = [d.metadata["compression"]["score"] for d in by_score]
    assert scores == sorted(scores, reverse=True)
    assert [d.id for d in by_score] != [d.id for d in by_source]


def test_inputs_are_not_changed_and_not_shared(documents, query) -> None:
    before = copy.deepcopy(documents)
    kept = lexical(rate=0.6).compress_documents(documents, query)
    assert documents == before
    for document in kept:
        document.metadata["mine"] = True
    assert documents == before


def test_a_second_compression_replaces_the_facts_of_the_first(documents, query) -> None:
    compressor = lexical(rate=0.7)
    once = compressor.compress_documents(documents, query)
    twice = compressor.compress_documents(once, query)
    first = {d.id: d.metadata["compression"] for d in once}
    for document in twice:
        facts = document.metadata["compression"]
        assert facts["tokens_before"] == first[document.id]["tokens_after"]
        assert "compression" not in facts


class Page(Document):
    number: int


def test_a_subclass_of_document_keeps_its_class_and_its_fields(documents, query) -> None:
    pages = [Page(page_content=d.page_content, number=i) for i, d in enumerate(documents)]
    kept = lexical(rate=0.9).compress_documents(pages, query)
    assert [type(d) for d in kept] == [Page] * len(pages)
    assert [d.number for d in kept] == list(range(len(pages)))


def test_each_document_can_have_the_budget_for_itself(documents, query) -> None:
    kept = lexical(target_tokens=12, per_document=True).compress_documents(documents, query)
    assert [d.id for d in kept] == [d.id for d in documents]
    assert all(joined_tokens([d]) <= 12 for d in kept)


def test_what_must_be_kept_is_kept_or_refused(documents, query) -> None:
    kept = lexical(target_tokens=60, keep=["wild yeast"]).compress_documents(documents, query)
    assert "wild yeast" in JOINER.join(d.page_content for d in kept)
    with pytest.raises(BudgetError, match="must be kept"):
        lexical(target_tokens=2, keep=["wild yeast"]).compress_documents(documents, query)


def test_no_documents_give_none() -> None:
    assert lexical(rate=0.5).compress_documents([], "anything") == []
    assert asyncio.run(lexical(rate=0.5).acompress_documents([], "anything")) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ([Document("a"), "b"], "documents[1] is str"),
        ([None], "documents[0] is NoneType"),
        (None, "documents is NoneType"),
        (Document("a"), "documents is Document"),
        ("text", "documents is str"),
    ],
)
def test_what_is_no_document_is_named(wrong, told) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        lexical().compress_documents(wrong, "query")
    with pytest.raises(InputError, match=re.escape(told)):
        asyncio.run(lexical().acompress_documents(wrong, "query"))


def test_a_query_that_is_no_text_is_refused(documents) -> None:
    with pytest.raises(InputError, match="query"):
        lexical().compress_documents(documents, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_llmlingua2": True},
        {"rate": 0.5, "target_tokens": 10},
        {"rate": 1.5},
        {"target_tokens": -1},
        {"method": "no such method"},
        {"order": "random"},
        {"method_options": {"no such": 1}, "method": "lexical"},
    ],
)
def test_wrong_settings_are_refused_at_once(fields) -> None:
    with pytest.raises((ValidationError, LaconicError)):
        LaconicDocumentCompressor(**fields)


def test_fields_make_the_round_trip() -> None:
    compressor = lexical(
        method_options={"stemmer": "german"},
        target_tokens=30,
        per_document=True,
        min_tokens_per_document=5,
        keep=["a", "b"],
        order="score",
    )
    assert LaconicDocumentCompressor(**compressor.model_dump()) == compressor
    written = compressor.model_dump_json()
    assert LaconicDocumentCompressor.model_validate_json(written) == compressor


def test_tokens_are_counted_by_what_the_user_has(documents, query) -> None:
    def words(text: str) -> int:
        return len(text.split())

    compressor = lexical(target_tokens=20, counter=words)
    kept = compressor.compress_documents(documents, query)
    assert 15 <= words(JOINER.join(d.page_content for d in kept)) <= 20
    assert compressor.model_copy().compress_documents(documents, query) == kept
    assert compressor.model_dump()["counter"] is None
    with pytest.raises(ValidationError, match="token counter"):
        lexical(counter=5)


def test_a_copy_may_differ_in_a_field(documents, query) -> None:
    compressor = lexical(rate=0.9)
    copied = compressor.model_copy(update={"rate": 0.2})
    assert copied.compress_documents(documents, query) == lexical(rate=0.2).compress_documents(
        documents, query
    )
    assert compressor.rate == 0.9


def test_a_compressor_object_takes_the_place_of_a_method(documents, query) -> None:
    class Named(Lexical):
        name = "mine"

    compressor = LaconicDocumentCompressor(compressor=Named(), rate=0.5)
    kept = compressor.compress_documents(documents, query)
    assert {d.metadata["compression"]["method"] for d in kept} == {"mine"}
    assert "compressor" not in compressor.model_dump()


@pytest.mark.parametrize("method", ["lexical", "extractive"])
def test_threads_give_the_serial_result(documents, method) -> None:
    compressor = LaconicDocumentCompressor(method=method, rate=0.4)
    queries = ["How tall is it?", "steel bridge", "", "starter and steam", "world's fair"] * 4
    serial = [compressor.compress_documents(documents, q) for q in queries]
    fresh = LaconicDocumentCompressor(method=method, rate=0.4)
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda q: fresh.compress_documents(documents, q), queries))
    assert threaded == serial


def test_many_tasks_give_the_serial_result(documents) -> None:
    compressor = lexical(rate=0.4)
    queries = ["How tall is it?", "steel bridge", "", "starter and steam"] * 4

    async def gathered() -> list[list[Document]]:
        calls = [compressor.acompress_documents(documents, q) for q in queries]
        return await asyncio.gather(*calls)

    serial = [compressor.compress_documents(documents, q) for q in queries]
    assert asyncio.run(gathered()) == serial


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
PIECES = ["the", "42", "cat.", "sat!", "<#ref1#>", "45%", "\n\n", "日本。", "no"]
any_documents = st.lists(
    st.builds(
        Document,
        st.text(max_size=200) | st.lists(st.sampled_from(PIECES)).map(" ".join),
        id=st.none() | st.text(max_size=5),
        metadata=st.dictionaries(st.text(max_size=6), values, max_size=3),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(
    any_documents,
    st.text(max_size=20),
    st.integers(0, 60),
    st.sampled_from(["source", "score"]),
)
def test_anything_at_all_keeps_ids_metadata_order_and_budget(
    documents, query, target, order
) -> None:
    for place, document in enumerate(documents):
        document.metadata["place"] = place
    before = copy.deepcopy(documents)
    kept = lexical(target_tokens=target, order=order).compress_documents(documents, query)
    assert documents == before
    assert joined_tokens(kept) <= target
    places = [document.metadata["place"] for document in kept]
    assert len(set(places)) == len(places)
    if order == "source":
        assert places == sorted(places)
    for document, place in zip(kept, places, strict=True):
        spans = document.metadata["compression"]["spans"]
        source = before[place]
        assert document.id == source.id
        assert without_facts(document) == source.metadata
        assert document.page_content == "".join(source.page_content[a:b] for a, b in spans)
