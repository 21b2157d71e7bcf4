"""laconic: make LLM applications pay for fewer tokens.

`compress` and its relatives come from `laconic.core`; the faces for LangChain and LlamaIndex
are in `laconic.integrations.langchain` and `laconic.integrations.llama_index`. Nothing heavy is
imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .core import (
        METHODS,
        Budget,
        CompressedPassage,
        Compression,
        Compressor,
        JsonCompression,
        MessagesCompression,
        Passage,
        Pipeline,
        PromptCompression,
        Span,
        TokenCounter,
        compress,
        compress_json,
        compress_messages,
        compress_prompt,
        compress_tagged,
        get_compressor,
        must_keep,
    )

__all__ = [
    "METHODS",
    "Budget",
    "CompressedPassage",
    "Compression",
    "Compressor",
    "JsonCompression",
    "MessagesCompression",
    "Passage",
    "Pipeline",
    "PromptCompression",
    "Span",
    "TokenCounter",
    "__version__",
    "compress",
    "compress_json",
    "compress_messages",
    "compress_prompt",
    "compress_tagged",
    "get_compressor",
    "must_keep",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(".core", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
