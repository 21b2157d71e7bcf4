from __future__ import annotations

import asyncio
import copy
import re
import threading

import pytest
from langchain_core.documents import BaseDocumentTransformer, Document

from laconic.core import TokenCounter
from laconic.core.methods.lexical import Lexical
from laconic.core.types import JOINER
from laconic.errors import InputError, QueryRequiredError
from laconic.integrations.langchain import (
    LaconicDocumentCompressor,
    LaconicDocumentTransformer,
)


@pytest.mark.parametrize("method", ["lexical", "extractive"])
def test_it_gives_what_the_compressor_gives_without_a_query(documents, method) -> None:
    before = copy.deepcopy(documents)
    transformer = LaconicDocumentTransformer(method=method, rate=0.5)
    kept = transformer.transform_documents(documents)
    compressor = LaconicDocumentCompressor(method=method, rate=0.5)
    assert kept == compressor.compress_documents(documents, "")
    assert documents == before
    assert kept


def test_ids_metadata_and_budget_hold(documents) -> None:
    kept = LaconicDocumentTransformer(method="lexical", target_tokens=40).transform_documents(
        documents
    )
    assert 0 < TokenCounter.of(None).count(JOINER.join(d.page_content for d in kept)) <= 40
    metadata = {d.id: d.metadata for d in documents}
    for document in kept:
        assert document.metadata.items() >= metadata[document.id].items()
        assert document.metadata["compression"]["method"] == "lexical"


def test_async_is_overridden_and_leaves_the_event_loop_free(documents) -> None:
    loop_is_free = threading.Event()

    class Waiting(Lexical):
        def score(self, request):
            assert loop_is_free.wait(10), "compression ran on the event loop"
            return super().score(request)

    async def run() -> list[Document]:
        asyncio.get_running_loop().call_later(0.01, loop_is_free.set)
        waiting = LaconicDocumentTransformer(compressor=Waiting(), rate=0.4)
        return await waiting.atransform_documents(documents)

    override = LaconicDocumentTransformer.atransform_documents
    assert override is not BaseDocumentTransformer.atransform_documents
    serial = LaconicDocumentTransformer(method="lexical", rate=0.4).transform_documents(documents)
    assert asyncio.run(run()) == serial


def test_no_documents_give_none() -> None:
    assert LaconicDocumentTransformer(method="lexical").transform_documents([]) == []


def test_what_is_no_document_is_named() -> None:
    with pytest.raises(InputError, match=re.escape("documents[1] is str")):
        LaconicDocumentTransformer(method="lexical").transform_documents([Document("a"), "b"])


def test_an_argument_that_would_be_overlooked_is_refused(documents) -> None:
    transformer = LaconicDocumentTransformer(method="lexical")
    with pytest.raises(InputError, match="got query too"):
        transformer.transform_documents(documents, query="How tall?")
    with pytest.raises(InputError, match="got rate too"):
        asyncio.run(transformer.atransform_documents(documents, rate=0.5))


def test_a_method_that_needs_a_query_says_so(documents) -> None:
    class Asking(Lexical):
        needs_query = True

    with pytest.raises(QueryRequiredError):
        LaconicDocumentTransformer(compressor=Asking()).transform_documents(documents)
