"""The methods, one file each, and the registry that finds them by name.

To add one: write its file, add its line to `METHODS`.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module
from typing import Any

from ..compressor import Compressor
from ..errors import UnknownMethodError
from ..models.loading import bundled_encoder

__all__ = ["METHODS", "best_method", "get_compressor"]

METHODS = {
    "lexical": "lexical:Lexical",
    "extractive": "extractive:Extractive",
    "pruner": "pruner:Pruner",
    "tagger": "tagger:Tagger",
    "selective_context": "selective_context:SelectiveContext",
    "llmlingua": "llmlingua:LLMLingua",
    "longllmlingua": "longllmlingua:LongLLMLingua",
    "llmlingua2": "llmlingua2:LLMLingua2",
}
"""Name of each method: the module in this folder and the class in it."""


def get_compressor(name: str = "auto", **options: Any) -> Compressor:
    """Make the compressor of that name.

    Parameters
    ----------
    name
        A key of `METHODS`, or ``"auto"`` for `best_method`.
    **options
        The parameters of its class.

    Raises
    ------
    UnknownMethodError
        There is no such method, or it takes no such option.
    """
    if name == "auto":
        name = best_method()
    if name not in METHODS:
        raise UnknownMethodError(
            f"no method {name!r}; there are {', '.join(METHODS)}, and 'auto' for the best of "
            f"them that can run here"
        )
    module, _, attribute = METHODS[name].partition(":")
    method = getattr(import_module(f".{module}", __name__), attribute)
    try:
        compressor: Compressor = method(**options)
    except TypeError as error:
        raise UnknownMethodError(f"{name}: {error}") from error
    return compressor


def best_method() -> str:
    """The method that keeps most answers of those that run here without a download."""
    if importlib.util.find_spec("sentence_transformers") and bundled_encoder():
        return "pruner"
    return "lexical"
