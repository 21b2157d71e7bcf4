"""A bounded KV cache for a local model: what was read is kept in part, in fixed room."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...core.errors import MissingExtraError

if TYPE_CHECKING:
    from .memory import KVMemory
    from .policies import POLICIES, Policy, get_policy

__all__ = ["POLICIES", "KVMemory", "Policy", "get_policy"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(".memory" if name == "KVMemory" else ".policies", __name__)
    except ImportError as error:
        raise MissingExtraError("a KV memory", "memory") from error
    return getattr(module, name)
