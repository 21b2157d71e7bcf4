"""laconic in LlamaIndex: for retrieved nodes, for agents and chat engines, and as a local LLM.

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
    from .llm import LaconicLLM
    from .memory import CompressedMemory
    from .memory_block import CompressedMemoryBlock
    from .model_memory import CCMMemory, InfiniPotMemory
    from .node_postprocessor import LaconicNodePostprocessor

__all__ = [
    "CCMMemory",
    "CompressedMemory",
    "CompressedMemoryBlock",
    "CompressionEndEvent",
    "CompressionStartEvent",
    "InfiniPotMemory",
    "LaconicEmbedding",
    "LaconicLLM",
    "LaconicNodePostprocessor",
    "SentenceEmbeddingOptimizerBaseline",
]

_MODULES = {
    "CCMMemory": "model_memory",
    "CompressedMemory": "memory",
    "CompressedMemoryBlock": "memory_block",
    "CompressionEndEvent": "events",
    "CompressionStartEvent": "events",
    "InfiniPotMemory": "model_memory",
    "LaconicEmbedding": "embeddings",
    "LaconicLLM": "llm",
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
