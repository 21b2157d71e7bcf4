"""The language model that a command was given."""

from __future__ import annotations

from typing import Any

from ...core.models.loading import load_transformer

__all__ = ["load_model"]


def load_model(name: str, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """Load a causal language model, which may bring no code of its own, and its tokenizer."""
    settings = {"tokenizer": None, "device": device, "dtype": dtype, "trust_remote_code": False}
    return load_transformer(name, "CausalLM", settings)
