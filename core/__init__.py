"""Makes text shorter. Knows no framework and no conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .budget import Budget, TokenCounter
from .compressor import Compressor, Order, Passages
from .guards import KeepPattern, must_keep
from .json_text import JsonCompression, compress_json
from .messages import MessagesCompression, compress_messages
from .methods import METHODS, get_compressor
from .pipeline import Pipeline
from .structured import PromptCompression, compress_prompt, compress_tagged
from .types import CompressedPassage, Compression, Passage, Span

__all__ = [
    "METHODS",
    "Budget",
    "CompressedPassage",
    "Compression",
    "Compressor",
    "JsonCompression",
    "MessagesCompression",
    "Order",
    "Passage",
    "Pipeline",
    "PromptCompression",
    "Span",
    "TokenCounter",
    "compress",
    "compress_json",
    "compress_messages",
    "compress_prompt",
    "compress_tagged",
    "get_compressor",
    "must_keep",
]


def compress(
    passages: Passages,
    *,
    query: str | None = None,
    budget: Budget | float,
    method: str = "auto",
    keep: Sequence[KeepPattern] = (),
    counter: Any = None,
    order: Order = "source",
    **options: Any,
) -> Compression:
    """Compress passages with the best method that can run here, or with the one named.

    Parameters
    ----------
    method
        A key of `METHODS`; ``"auto"`` for the best one that needs no download. The result's
        ``method`` says which it was.
    **options
        Parameters of the method's class.

    The other parameters, the result and the errors are those of `Compressor.compress`.

    Examples
    --------
    >>> result = compress(
    ...     ["The sky is blue. Paris is the capital of France. Fish swim."],
    ...     query="What is the capital of France?",
    ...     budget=8,
    ...     method="lexical",
    ... )
    >>> result.text
    'Paris is the capital of France.'
    """
    compressor = get_compressor(method, **options)
    return compressor.compress(
        passages, query=query, budget=budget, keep=keep, counter=counter, order=order
    )
