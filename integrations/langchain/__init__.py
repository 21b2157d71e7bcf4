"""laconic in LangChain: for retrievers, for chains and chat histories, and for agents.

The classes are imported when they are first used, so that this package can be imported without
LangChain.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...core.errors import MissingExtraError

if TYPE_CHECKING:
    from .adapters import CompressToolUsesEdit, as_summarizer, compress_messages_node
    from .baselines import EmbeddingsFilterBaseline
    from .chat_history import CompressedChatMessageHistory
    from .chat_memory import CompressedChatMemory
    from .chat_model import ChatLaconic
    from .context_middleware import ContextCompressionMiddleware
    from .document_compressor import LaconicDocumentCompressor
    from .document_transformer import LaconicDocumentTransformer
    from .embeddings import LaconicEmbeddings
    from .memory_middleware import CompressedMemoryMiddleware
    from .model_memory import CCMChatMemory, InfiniPotChatMemory
    from .tool_output_middleware import ToolOutputCompressionMiddleware

__all__ = [
    "CCMChatMemory",
    "ChatLaconic",
    "CompressToolUsesEdit",
    "CompressedChatMemory",
    "CompressedChatMessageHistory",
    "CompressedMemoryMiddleware",
    "ContextCompressionMiddleware",
    "EmbeddingsFilterBaseline",
    "InfiniPotChatMemory",
    "LaconicDocumentCompressor",
    "LaconicDocumentTransformer",
    "LaconicEmbeddings",
    "ToolOutputCompressionMiddleware",
    "as_summarizer",
    "compress_messages_node",
]

_HOMES = {
    "CCMChatMemory": "model_memory",
    "ChatLaconic": "chat_model",
    "CompressToolUsesEdit": "adapters",
    "CompressedChatMemory": "chat_memory",
    "CompressedChatMessageHistory": "chat_history",
    "CompressedMemoryMiddleware": "memory_middleware",
    "ContextCompressionMiddleware": "context_middleware",
    "EmbeddingsFilterBaseline": "baselines",
    "InfiniPotChatMemory": "model_memory",
    "LaconicDocumentCompressor": "document_compressor",
    "LaconicDocumentTransformer": "document_transformer",
    "LaconicEmbeddings": "embeddings",
    "ToolOutputCompressionMiddleware": "tool_output_middleware",
    "as_summarizer": "adapters",
    "compress_messages_node": "adapters",
}

_EXTRAS = {
    "langchain": "agents",
    "langchain_classic": "langchain",
    "langchain_core": "langchain",
    "langgraph": "agents",
}
"""The extra that brings a package."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _EXTRAS:
            raise MissingExtraError(name, _EXTRAS[missing]) from error
        raise


def __dir__() -> list[str]:
    return __all__
