"""What callbacks see of a compression."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from laconic.core import TokenCounter
from laconic.core.types import JOINER
from laconic.errors import BudgetError
from laconic.integrations.langchain import LaconicDocumentCompressor

NAME = "LaconicDocumentCompressor"


class Shelf(BaseRetriever):
    """Retrieves all there is."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.documents


def call(kind: str, runnable: Any, given: Any, config: Any) -> Any:
    if kind == "sync":
        return runnable.invoke(given, config)
    return asyncio.run(runnable.ainvoke(given, config))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_one_child_run_of_the_retriever_shows_the_counts(documents, query, runs, kind) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=LaconicDocumentCompressor(method="lexical", target_tokens=25),
        base_retriever=Shelf(documents=documents),
    )
    kept = call(kind, retriever, query, {"callbacks": [runs], "tags": ["mine"]})
    (root,) = runs.traced_runs
    assert [run.name for run in root.child_runs] == ["Shelf", NAME]
    run = root.child_runs[1]
    assert run.parent_run_id == root.id
    assert run.error is None
    assert run.child_runs == []
    assert run.inputs == {"documents": 4, "query": query}
    counter = TokenCounter.of(None)
    outputs = dict(run.outputs)
    assert outputs.pop("seconds") > 0
    assert outputs == {
        "method": "lexical",
        "tokens_before": counter.count(JOINER.join(d.page_content for d in documents)),
        "tokens_after": counter.count(JOINER.join(d.page_content for d in kept)),
        "counter": counter.name,
        "documents_kept": len(kept),
        "documents_dropped": [i for i, d in enumerate(documents) if d.id not in _ids(kept)],
    }
    assert outputs["documents_dropped"], "the test should see something dropped"
    json.dumps([run.inputs, run.outputs])


def _ids(documents: list[Document]) -> set[str | None]:
    return {d.id for d in documents}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_callbacks_of_a_step_reach_the_compression(documents, query, runs, kind) -> None:
    step = LaconicDocumentCompressor(method="lexical", rate=0.5).as_runnable()
    given = {"documents": documents, "query": query}
    call(kind, step, given, {"callbacks": [runs], "tags": ["mine"], "run_name": "shorten"})
    (root,) = runs.traced_runs
    assert root.name == "shorten"
    (run,) = root.child_runs
    assert (run.name, run.outputs["method"]) == (NAME, "lexical")
    assert "mine" in run.tags


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_ends_the_run(documents, query, runs, kind) -> None:
    compressor = LaconicDocumentCompressor(method="lexical", target_tokens=1, keep=["330 metres"])
    with pytest.raises(BudgetError):
        if kind == "sync":
            compressor.compress_documents(documents, query, callbacks=[runs])
        else:
            asyncio.run(compressor.acompress_documents(documents, query, callbacks=[runs]))
    (run,) = runs.traced_runs
    assert "BudgetError" in run.error


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, UUID]] = []


class Sync(Events, BaseCallbackHandler):
    def on_chain_start(self, serialized, inputs, *, run_id, name=None, **kwargs) -> None:
        self.seen.append((f"start {name}", run_id))

    def on_chain_end(self, outputs, *, run_id, **kwargs) -> None:
        self.seen.append((f"end {outputs['method']}", run_id))


class Async(Events, AsyncCallbackHandler):
    async def on_chain_start(self, serialized, inputs, *, run_id, name=None, **kwargs) -> None:
        await asyncio.sleep(0)
        self.seen.append((f"start {name}", run_id))

    async def on_chain_end(self, outputs, *, run_id, **kwargs) -> None:
        await asyncio.sleep(0)
        self.seen.append((f"end {outputs['method']}", run_id))


@pytest.mark.parametrize("handler", [Sync, Async])
def test_handlers_of_both_kinds_are_told_once_by_async(documents, query, handler) -> None:
    handler = handler()
    compressor = LaconicDocumentCompressor(method="lexical", rate=0.5)
    asyncio.run(compressor.acompress_documents(documents, query, callbacks=[handler]))
    assert [event for event, _ in handler.seen] == [f"start {NAME}", "end lexical"]
    assert len({run_id for _, run_id in handler.seen}) == 1


def test_handlers_are_told_once_by_sync(documents, query) -> None:
    handler = Sync()
    compressor = LaconicDocumentCompressor(method="lexical", rate=0.5)
    compressor.compress_documents(documents, query, callbacks=[handler])
    assert [event for event, _ in handler.seen] == [f"start {NAME}", "end lexical"]
    assert len({run_id for _, run_id in handler.seen}) == 1


def test_a_cancelled_compression_is_an_error_in_the_trace(documents, query, runs) -> None:
    from laconic.core.methods.lexical import Lexical

    async def run() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        class Announcing(Lexical):
            def score(self, request):
                loop.call_soon_threadsafe(started.set)
                return super().score(request)

        compressor = LaconicDocumentCompressor(compressor=Announcing(), rate=0.5)
        calls = compressor.acompress_documents(documents, query, callbacks=[runs])
        task = asyncio.create_task(calls)
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    (run_seen,) = runs.traced_runs
    assert "CancelledError" in run_seen.error
