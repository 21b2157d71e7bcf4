"""laconic in LangChain: a document compressor, its twin without a query, and embeddings.

The classes are imported when they are first used, so that this package can be imported without
LangChain.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...core.errors import MissingExtraError

if TYPE_CHECKING:
    from .baselines import EmbeddingsFilterBaseline
    from .document_compressor import LaconicDocumentCompressor
    from .document_transformer import LaconicDocumentTransformer
    from .embeddings import LaconicEmbeddings

__all__ = [
    "EmbeddingsFilterBaseline",
    "LaconicDocumentCompressor",
    "LaconicDocumentTransformer",
    "LaconicEmbeddings",
]

_HOMES = {
    "EmbeddingsFilterBaseline": "baselines",
    "LaconicDocumentCompressor": "document_compressor",
    "LaconicDocumentTransformer": "document_transformer",
    "LaconicEmbeddings": "embeddings",
}

_BROUGHT_BY_THE_EXTRA = ("langchain_core", "langchain_classic")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _BROUGHT_BY_THE_EXTRA:
            raise MissingExtraError(name, "langchain") from error
        raise


def __dir__() -> list[str]:
    return __all__
