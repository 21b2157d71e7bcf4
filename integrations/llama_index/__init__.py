"""laconic for LlamaIndex: a node postprocessor and an embedding model that share one encoder.

LlamaIndex is imported when a class is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...core.errors import MissingExtraError

if TYPE_CHECKING:
    from .baselines import SentenceEmbeddingOptimizerBaseline
    from .embeddings import LaconicEmbedding
    from .events import CompressionEndEvent, CompressionStartEvent
    from .node_postprocessor import LaconicNodePostprocessor

__all__ = [
    "CompressionEndEvent",
    "CompressionStartEvent",
    "LaconicEmbedding",
    "LaconicNodePostprocessor",
    "SentenceEmbeddingOptimizerBaseline",
]

_MODULES = {
    "CompressionEndEvent": "events",
    "CompressionStartEvent": "events",
    "LaconicEmbedding": "embeddings",
    "LaconicNodePostprocessor": "node_postprocessor",
    "SentenceEmbeddingOptimizerBaseline": "baselines",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "llama_index":
            raise MissingExtraError(name, "llama-index") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
