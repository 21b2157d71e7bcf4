"""What LangChain itself has to offer, in the shape of ours, to be measured against."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import cast

import numpy as np
from langchain_classic.memory import VectorStoreRetrieverMemory
from langchain_classic.retrievers.document_compressors import EmbeddingsFilter
from langchain_core.documents import Document
from langchain_core.messages import (
    BaseMessage,
    convert_to_messages,
    convert_to_openai_messages,
    trim_messages,
)
from langchain_core.vectorstores import InMemoryVectorStore

from ...core.errors import MissingExtraError
from ...core.method import Method, Request, Scores
from ...core.models.encoder import Encoder
from ...memory.evaluation.recall import Reader
from ...memory.turns import Costs, Message
from .embeddings import LaconicEmbeddings

__all__ = ["EmbeddingsFilterBaseline", "trimmed", "vector_store_memory"]


class EmbeddingsFilterBaseline(Method):
    """Keep whole documents, the most similar to the query first.

    LangChain's ``EmbeddingsFilter`` ranks the documents. It knows no budget, so the document at
    which the budget ends is cut behind a sentence: the rival uses all the tokens that the
    others may use.

    Parameters
    ----------
    encoder
        The encoder; None for the one that laconic's methods share.

    Raises
    ------
    MissingExtraError
        langchain-community, which the filter computes with, is not installed.
    """

    name = "langchain-embeddings-filter"
    needs_query = True

    def __init__(self, encoder: Encoder | None = None) -> None:
        if importlib.util.find_spec("langchain_community") is None:
            raise MissingExtraError(type(self).__name__, "langchain,faiss")
        self.embeddings = LaconicEmbeddings(encoder)

    def score(self, request: Request) -> Scores:
        """Score by the rank of the document, and within it by the place of the sentence."""
        if not request.passages:
            return Scores((), np.zeros(0))
        documents = [
            Document(f"{title}\n{text}" if title else text, metadata={"place": place})
            for place, (title, text) in enumerate(
                zip(request.titles, request.passages, strict=True)
            )
        ]
        ranked = EmbeddingsFilter(embeddings=self.embeddings, k=len(documents)).compress_documents(
            documents, request.query or ""
        )
        passages = np.zeros(len(documents))
        passages[[d.metadata["place"] for d in ranked]] = -np.arange(len(ranked))
        # Less than 1 is taken off, so that no sentence falls behind one of the next document.
        units = tuple(
            score - np.arange(len(spans)) / max(1, len(spans))
            for score, spans in zip(passages, request.units, strict=True)
        )
        return Scores(units, passages)


def trimmed(turns: Sequence[Message], budget: int, costs: Costs) -> Reader:
    """What ``trim_messages`` leaves of the turns."""

    def count(messages: list[BaseMessage]) -> int:
        return costs.of(_as_dicts(messages))

    left = trim_messages(
        convert_to_messages(turns),
        max_tokens=budget,
        token_counter=count,
    )
    shown = _as_dicts(left)
    return lambda _: shown


def vector_store_memory(
    turns: Sequence[Message], budget: int, costs: Costs, *, encoder: Encoder | None = None
) -> Reader:
    """What ``VectorStoreRetrieverMemory`` finds, the most similar exchanges first.

    It knows no budget: exchanges are taken until the next one does not fit.
    """
    store = InMemoryVectorStore(LaconicEmbeddings(encoder))
    memory = VectorStoreRetrieverMemory(
        retriever=store.as_retriever(search_kwargs={"k": len(turns)}),
        input_key="question",
        return_docs=True,
    )
    for place in range(0, len(turns), 2):
        said, *answered = ({turn["name"]: turn["content"]} for turn in turns[place : place + 2])
        memory.save_context(said, answered[0] if answered else {})

    def read(question: str) -> list[Message]:
        shown: list[Message] = []
        found = memory.load_memory_variables({"question": question})
        for document in cast("list[Document]", found[memory.memory_key]):
            message = {"role": "user", "content": document.page_content}
            if costs.of([*shown, message]) > budget:
                break
            shown.append(message)
        return shown

    return read


def _as_dicts(messages: Sequence[BaseMessage]) -> list[Message]:
    converted = convert_to_openai_messages(messages)
    return converted if isinstance(converted, list) else [converted]
