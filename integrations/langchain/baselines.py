"""What LangChain itself has to offer, in the shape of a laconic method, to be measured against."""

from __future__ import annotations

import importlib.util

import numpy as np
from langchain_classic.retrievers.document_compressors import EmbeddingsFilter
from langchain_core.documents import Document

from ...core.errors import MissingExtraError
from ...core.method import Method, Request, Scores
from ...core.models.encoder import Encoder
from .embeddings import LaconicEmbeddings

__all__ = ["EmbeddingsFilterBaseline"]


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
