"""The compressor's encoder as LangChain embeddings."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from ...core.errors import ModelError
from ...core.models.encoder import Encoder

__all__ = ["LaconicEmbeddings"]


class LaconicEmbeddings(Embeddings):
    """Embed with a laconic encoder, so that a vector store and a compressor share one model.

    They share its cache too: a text that is as it was indexed costs the compressor nothing.

    Parameters
    ----------
    encoder
        The encoder; None for the one that laconic's methods share.

    Raises
    ------
    ModelError
        `encoder` is no `Encoder`.
    """

    def __init__(self, encoder: Encoder | None = None) -> None:
        # A model's name has a method encode() as well, that of str, and would fail only later.
        if not (encoder is None or isinstance(encoder, Encoder)):
            raise ModelError(
                f"encoder is an Encoder or None, got {encoder!r}; pass Encoder({encoder!r})"
            )
        self.encoder = encoder or Encoder.shared()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts to be searched: for each a vector of length 1."""
        vectors: list[list[float]] = self.encoder.encode(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed the text to search for: a vector of length 1."""
        return self.embed_documents([text])[0]
