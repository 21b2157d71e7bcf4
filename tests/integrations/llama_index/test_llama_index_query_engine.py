"""Real engines over a real FAISS index; the LLM answers with the prompt that it was sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from laconic.integrations.llama_index import LaconicEmbedding, LaconicNodePostprocessor

faiss = pytest.importorskip("faiss")
stores = pytest.importorskip("llama_index.vector_stores.faiss")
pytest.importorskip("sentence_transformers")


@pytest.fixture
def index(nodes: list[NodeWithScore]) -> VectorStoreIndex:
    store = stores.FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))
    return VectorStoreIndex(
        [n.node.model_copy(deep=True) for n in nodes],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=LaconicEmbedding(),
    )


@pytest.fixture
def retriever(index: VectorStoreIndex) -> BaseRetriever:
    return index.as_retriever(similarity_top_k=4)


def stored(index: VectorStoreIndex) -> dict[str, Any]:
    return {id_: node.to_dict() for id_, node in index.docstore.docs.items()}


@pytest.mark.parametrize("method", ["lexical", "extractive"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_llm_sees_the_compressed_texts_and_metadata_once(
    index: VectorStoreIndex, retriever: BaseRetriever, query: str, method: str, asynchronous: bool
) -> None:
    before = stored(index)
    postprocessor = LaconicNodePostprocessor(method=method, rate=0.6)
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[postprocessor]
    )
    answer = asyncio.run(engine.aquery(query)) if asynchronous else engine.query(query)

    expected = postprocessor.postprocess_nodes(retriever.retrieve(query), query_str=query)
    assert [n.to_dict() for n in answer.source_nodes] == [n.to_dict() for n in expected]
    assert "node-treaty" in {n.node_id for n in answer.source_nodes}
    shown = "\n\n".join(f"topic: {n.metadata['topic']}\n\n{n.text}" for n in expected)
    prompt = str(answer)
    assert shown in prompt
    assert prompt.count("topic: treaty") == prompt.count("Anna Lind signed") == 1
    for hidden in ("compression", "tokens_before", "page:"):
        assert hidden not in prompt
    plain = RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).query(query)
    assert len(prompt) < len(str(plain))
    assert stored(index) == before


def test_without_hits_the_engine_goes_on(query: str) -> None:
    empty = VectorStoreIndex([], embed_model=LaconicEmbedding())
    engine = empty.as_query_engine(
        llm=MockLLM(), node_postprocessors=[LaconicNodePostprocessor(method="lexical")]
    )
    assert engine.query(query).source_nodes == []


def test_two_postprocessors_follow_each_other(retriever: BaseRetriever, query: str) -> None:
    both = [
        LaconicNodePostprocessor(method="lexical", rate=0.7),
        LaconicNodePostprocessor(method="extractive", target_tokens=30),
    ]
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), node_postprocessors=both)
    kept = engine.query(query).source_nodes
    assert {n.metadata["compression"]["method"] for n in kept} == {"extractive"}
    assert sum(n.metadata["compression"]["tokens_after"] for n in kept) <= 30


def test_citations_still_lead_to_the_document_and_the_place_in_it(
    nodes: list[NodeWithScore], retriever: BaseRetriever, query: str
) -> None:
    engine = CitationQueryEngine(
        retriever,
        llm=MockLLM(),
        node_postprocessors=[LaconicNodePostprocessor(method="lexical", target_tokens=40)],
    )
    answer = engine.query(query)
    [source] = [n for n in answer.source_nodes if "Anna Lind" in n.text]
    assert source.text.startswith("Source ")
    assert source.metadata["topic"] == "treaty"
    assert isinstance(source.node, TextNode)
    assert source.node.ref_doc_id == "document"
    [original] = [n.text for n in nodes if n.node_id == "node-treaty"]
    kept = "".join(original[a:b] for a, b in source.metadata["compression"]["spans"])
    assert source.text.split(":\n", 1)[1].strip() == kept
    assert source.text.strip() in str(answer)
    assert "compression" not in str(answer)


def test_a_chat_engine_uses_it(retriever: BaseRetriever, query: str) -> None:
    engine = ContextChatEngine.from_defaults(
        retriever=retriever,
        llm=MockLLM(),
        memory=ChatMemoryBuffer.from_defaults(),  # the default memory leaves a database open
        node_postprocessors=[LaconicNodePostprocessor(method="lexical", target_tokens=15)],
    )
    answer = engine.chat(query)
    assert [n.node_id for n in answer.source_nodes] == ["node-treaty"]
    assert "Anna Lind signed the treaty of Oslo in 1994." in answer.response
    assert "compression" not in answer.response and "tides" not in answer.response
