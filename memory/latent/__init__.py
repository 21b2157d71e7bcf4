"""Learned compression of a conversation for a local model: a few entries for each turn."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...core.errors import MissingExtraError

if TYPE_CHECKING:
    from .autocompressor import AutoCompressor
    from .base import LatentMemory
    from .ccm import CCM
    from .compressive import Compressive
    from .conditional_lora import ConditionalLora
    from .gisting import Gisting, GistingOnline
    from .icae import ICAE
    from .memory import CCMMemory
    from .plan import Spec
    from .rmt import RMT
    from .state import LatentState
    from .streaming import Stream
    from .xcompressor import XCompressor

__all__ = [
    "CCM",
    "ICAE",
    "RMT",
    "AutoCompressor",
    "CCMMemory",
    "Compressive",
    "ConditionalLora",
    "Gisting",
    "GistingOnline",
    "LatentMemory",
    "LatentState",
    "Spec",
    "Stream",
    "XCompressor",
]

_MODULES = {
    "CCMMemory": "memory",
    "ConditionalLora": "conditional_lora",
    "GistingOnline": "gisting",
    "LatentMemory": "base",
    "LatentState": "state",
    "Spec": "plan",
    "Stream": "streaming",
}
"""The modules that are not named as what they hold."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_MODULES.get(name, name.lower())}", __name__)
    except ImportError as error:
        raise MissingExtraError("a latent memory", "memory") from error
    return getattr(module, name)
