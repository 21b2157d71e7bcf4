"""The compressor in LangChain's own retrievers, pipelines and chains, over a real index."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("faiss")
pytest.importorskip("langchain_community")
pytest.importorskip("sentence_transformers")

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import (
    DocumentCompressorPipeline,
    EmbeddingsFilter,
)
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from laconic.core import TokenCounter
from laconic.core.types import JOINER
from laconic.errors import InputError
from laconic.integrations.langchain import (
    LaconicDocumentCompressor,
    LaconicDocumentTransformer,
    LaconicEmbeddings,
)


@pytest.fixture
def store(documents) -> FAISS:
    return FAISS.from_documents(documents, LaconicEmbeddings())


def retriever_over(store: FAISS, compressor) -> ContextualCompressionRetriever:
    return ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=store.as_retriever(search_kwargs={"k": 4})
    )


@pytest.mark.parametrize("method", ["auto", "lexical", "extractive"])
def test_behind_a_retriever(store, documents, query, method) -> None:
    retriever = retriever_over(store, LaconicDocumentCompressor(method=method, target_tokens=50))
    kept = retriever.invoke(query)
    text = JOINER.join(d.page_content for d in kept)
    assert "330 metres tall" in text
    assert 0 < TokenCounter.of(None).count(text) <= 50
    metadata = {d.id: d.metadata for d in documents}
    for document in kept:
        assert document.metadata.items() >= metadata[document.id].items()
    assert asyncio.run(retriever.ainvoke(query)) == kept


def test_what_is_compressed_stays_whole_in_the_index(store, query) -> None:
    before = store.similarity_search(query, k=4)
    retriever_over(store, LaconicDocumentCompressor(rate=0.3)).invoke(query)
    assert store.similarity_search(query, k=4) == before
    assert all("compression" not in d.metadata for d in before)


def test_in_a_pipeline_behind_a_filter_and_a_transformer(store, documents, query) -> None:
    best = EmbeddingsFilter(embeddings=LaconicEmbeddings(), k=2)
    chain = [
        best,
        LaconicDocumentTransformer(method="lexical", rate=0.9),
        LaconicDocumentCompressor(method="lexical", target_tokens=30),
    ]
    pipeline = DocumentCompressorPipeline(transformers=chain)
    filtered = best.compress_documents(documents, query)
    kept = pipeline.compress_documents(documents, query)
    assert 0 < TokenCounter.of(None).count(JOINER.join(d.page_content for d in kept)) <= 30
    for document in kept:
        source = next(d for d in filtered if d.metadata["source"] == document.metadata["source"])
        assert document.metadata["relevance_score"] == source.metadata["relevance_score"]
        assert type(document) is type(source)
        assert document.state == source.state
    retriever = retriever_over(store, pipeline)
    assert asyncio.run(retriever.ainvoke(query)) == retriever.invoke(query)
    assert asyncio.run(pipeline.acompress_documents(documents, query)) == kept


def test_in_a_pipeline_that_filters_everything_away(documents, query) -> None:
    nothing = EmbeddingsFilter(embeddings=LaconicEmbeddings(), similarity_threshold=0.999)
    pipeline = DocumentCompressorPipeline(transformers=[nothing, LaconicDocumentCompressor()])
    assert pipeline.compress_documents(documents, query) == []


def test_in_a_chain(store, query) -> None:
    compressor = LaconicDocumentCompressor(method="lexical", target_tokens=40)
    chain = (
        {"documents": store.as_retriever(), "query": RunnablePassthrough()}
        | compressor.as_runnable()
        | RunnableLambda(lambda kept: {"context": JOINER.join(d.page_content for d in kept)})
        | ChatPromptTemplate.from_template("{context}")
    )
    prompt = chain.invoke(query)
    expected = compressor.compress_documents(store.as_retriever().invoke(query), query)
    assert prompt.to_messages()[0].content == JOINER.join(d.page_content for d in expected)
    assert asyncio.run(chain.ainvoke(query)) == prompt
    assert chain.batch([query, query]) == [prompt, prompt]


@pytest.mark.parametrize("wrong", [{"documents": [], "question": "q"}, [Document("a")], "text"])
def test_a_step_that_is_given_another_shape_says_so(wrong) -> None:
    step = LaconicDocumentCompressor(method="lexical").as_runnable()
    with pytest.raises(InputError, match=r'takes \{"documents"'):
        step.invoke(wrong)
    with pytest.raises(InputError, match=r'takes \{"documents"'):
        asyncio.run(step.ainvoke(wrong))
