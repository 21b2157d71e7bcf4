"""Which entries stay when the pot is full: one file a method, and the registry by name.

To add one: write its file, add its line to `POLICIES`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ....core.errors import UnknownMethodError
from .base import LayerView, Policy

__all__ = ["POLICIES", "LayerView", "Policy", "get_policy"]

POLICIES = {
    "infinipot": "infinipot:InfiniPot",
    "streaming_llm": "streaming_llm:StreamingLLM",
    "h2o": "h2o:H2O",
    "tova": "tova:TOVA",
    "snapkv": "snapkv:SnapKV",
    "sirllm": "sirllm:SirLLM",
    "knorm": "knorm:KNorm",
    "keydiff": "keydiff:KeyDiff",
    "truncation": "truncation:Truncation",
    "adaptive_layers": "adaptive:AdaptiveLayers",
    "adaptive_turns": "adaptive:AdaptiveTurns",
}
"""Name of each policy: the module in this folder and the class in it."""


def get_policy(name: str, **options: Any) -> Policy:
    """Make the policy of that name.

    Parameters
    ----------
    name
        A key of `POLICIES`.
    **options
        The parameters of its class.

    Raises
    ------
    UnknownMethodError
        There is no such policy, or it takes no such option.
    """
    if name not in POLICIES:
        raise UnknownMethodError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    module, _, attribute = POLICIES[name].partition(":")
    try:
        policy: Policy = getattr(import_module(f".{module}", __name__), attribute)(**options)
    except TypeError as error:
        raise UnknownMethodError(f"{name}: {error}") from error
    return policy
