"""Training of learned memories, and the small models that they are checked on."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...core.errors import MissingExtraError

if TYPE_CHECKING:
    from .ccm import train
    from .examples import Dialogue, read_dialogues, tokenize
    from .facts import Facts
    from .fit import Recipe, Run
    from .lab import LabRecipe, train_lab

__all__ = [
    "Dialogue",
    "Facts",
    "LabRecipe",
    "Recipe",
    "Run",
    "read_dialogues",
    "tokenize",
    "train",
    "train_lab",
]

_MODULES = {
    "Dialogue": "examples",
    "Facts": "facts",
    "LabRecipe": "lab",
    "Recipe": "fit",
    "Run": "fit",
    "read_dialogues": "examples",
    "tokenize": "examples",
    "train": "ccm",
    "train_lab": "lab",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_MODULES[name]}", __name__)
    except ImportError as error:
        raise MissingExtraError("training a memory", "memory") from error
    return getattr(module, name)
