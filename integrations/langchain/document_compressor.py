"""Retrieved documents, shortened to what the query needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from ...core import Compression
from ...core.errors import InputError
from .._settings import CompressionSettings
from ._mapping import checked, compress

__all__ = ["LaconicDocumentCompressor"]


class LaconicDocumentCompressor(CompressionSettings, BaseDocumentCompressor):
    """Shorten retrieved documents with any laconic method.

    It goes wherever LangChain takes a document compressor: into a
    ``ContextualCompressionRetriever``, into a ``DocumentCompressorPipeline`` behind a reranker,
    or into a chain by `as_runnable`. Each document that is left keeps its id, its class and its
    metadata, and says in ``metadata["compression"]`` what was done to it. In a trace it is a
    run of its own that shows tokens before and after.

    Parameters
    ----------
    **settings
        The fields of `CompressionSettings`.

    Examples
    --------
    >>> compressor = LaconicDocumentCompressor(method="lexical", target_tokens=8)
    >>> sky = Document("The sky is blue. Paris is the capital of France.", id="a")
    >>> compressor.compress_documents([sky], "What is the capital of France?")[0].page_content
    'Paris is the capital of France.'
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Shorten documents for a query.

        Parameters
        ----------
        documents
            The documents. They are not changed.
        query
            What they are wanted for; a blank one counts as none.
        callbacks
            Who is told of it.

        Returns
        -------
        list of Document
            The documents of which something is left, in the order that `order` says.

        Raises
        ------
        InputError
            `documents` holds something that is no `Document`, or `query` is no text.
        BudgetError
            What must be kept does not fit in the budget.
        QueryRequiredError
            The method needs a query and `query` is blank.
        """
        listed, name = checked(documents), type(self).__name__
        asked = {"documents": len(listed), "query": query}
        manager = CallbackManager.configure(inheritable_callbacks=callbacks)
        run = manager.on_chain_start({"name": name}, asked, name=name)
        try:
            shortened, compression = compress(self, listed, query)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_done(compression))
        return shortened

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` in a thread, so that the event loop goes on."""
        listed, name = checked(documents), type(self).__name__
        asked = {"documents": len(listed), "query": query}
        manager = AsyncCallbackManager.configure(inheritable_callbacks=callbacks)
        run = await manager.on_chain_start({"name": name}, asked, name=name)
        try:
            shortened, compression = await asyncio.to_thread(compress, self, listed, query)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(_done(compression))
        return shortened

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """Make a step of a chain that takes ``{"documents": [...], "query": "..."}``.

        Returns
        -------
        Runnable
            Gives what `compress_documents` gives; raises `InputError` for another shape.
        """

        def invoke(inputs: dict[str, Any], config: RunnableConfig) -> list[Document]:
            return self.compress_documents(*_arguments(inputs), config.get("callbacks"))

        async def ainvoke(inputs: dict[str, Any], config: RunnableConfig) -> list[Document]:
            return await self.acompress_documents(*_arguments(inputs), config.get("callbacks"))

        return RunnableLambda(invoke, ainvoke, name="compress_documents")


def _arguments(inputs: Any) -> tuple[Sequence[Document], str]:
    if not isinstance(inputs, dict) or not {"documents", "query"} <= inputs.keys():
        got = f"the keys {list(inputs)}" if isinstance(inputs, dict) else type(inputs).__name__
        raise InputError(
            f'this step takes {{"documents": [...], "query": "..."}}, got {got}; put a step '
            f"before it that makes such a dict"
        )
    return inputs["documents"], inputs["query"]


def _done(compression: Compression) -> dict[str, Any]:
    """Say in a trace what came out: counts, since the parent run shows the documents.

    Those that were dropped are named by their places in the input.
    """
    return {
        "method": compression.method,
        "tokens_before": compression.tokens_before,
        "tokens_after": compression.tokens_after,
        "counter": compression.counter,
        "documents_kept": len(compression.passages),
        "documents_dropped": [passage.index for passage in compression.dropped],
        "seconds": compression.seconds,
    }
