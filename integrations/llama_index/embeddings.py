"""laconic's encoder as an embedding model of LlamaIndex."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from ...core.models.encoder import Encoder
from ...core.models.loading import DEFAULT_ENCODER

__all__ = ["LaconicEmbedding"]


class LaconicEmbedding(BaseEmbedding):
    """Embed texts with the encoder that compression uses, so that both share one model.

    Parameters
    ----------
    encoder
        An `Encoder`; None for the process's shared one, all-MiniLM-L6-v2.
    **settings
        Fields of LlamaIndex's ``BaseEmbedding``. ``model_name`` is a label only.
    """

    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: Encoder | None = None, **settings: Any) -> None:
        if encoder is None:
            settings.setdefault("model_name", DEFAULT_ENCODER)
        super().__init__(**settings)
        self._encoder = encoder or Encoder.shared()

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized form."""
        return "LaconicEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = self._encoder.encode(texts).tolist()
        return rows

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self._aget_text_embedding(query)

    def __reduce__(self) -> tuple[Any, ...]:
        # The inherited way would quietly put the shared encoder in the place of another one.
        names = type(self).model_fields.keys() - {"callback_manager", "rate_limiter"}
        encoder = None if self._encoder is Encoder.shared() else self._encoder
        settings = {name: getattr(self, name) for name in names}
        return partial(type(self), encoder, **settings), ()
