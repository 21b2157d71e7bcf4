"""Tiny models of every family with random weights, built when a test asks for one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from laconic.core.evaluation.random_models import build_model

Family = Callable[[str], Any]

_SIZE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 16}
_WINDOW = {"sliding_window": 24}


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **options}}


_LLAMA3 = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=256)
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _HEAD),
    "llama3": ("Llama", _HEAD | _LLAMA3),
    "yarn": ("Llama", _HEAD | _YARN),
    "linear": ("Llama", _HEAD | _rope("linear", factor=4.0)),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", _HEAD),
    "mistral": ("Mistral", _HEAD | _WINDOW),
    "gemma2": ("Gemma2", _HEAD | _WINDOW | {"num_hidden_layers": 4, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3", _HEAD | _WINDOW | {"num_hidden_layers": 6, "query_pre_attn_scalar": 32}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5}),
    "glm": ("Glm", _HEAD),
    "stablelm": ("StableLm", {}),
    "gpt_neox": ("GPTNeoX", {"num_key_value_heads": None}),
    "cohere": ("Cohere", {}),
}
FAMILIES = list(_CONFIGS)


def make(name: str, **changes: Any) -> Any:
    """A model of that family in eval mode; `changes` are of its config."""
    kind, options = _CONFIGS[name]
    given = {k: v for k, v in (_SIZE | options | changes).items() if v is not None}
    config = getattr(hf, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(**given)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(hf, f"{kind}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="session")
def family() -> Family:
    """A model of that family, the same for all tests."""
    return functools.cache(make)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer of its own."""
    text = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
    made = tmp_path_factory.mktemp("models") / "llama"
    return build_model("llama", made, [text], layers=2, width=32, heads=2, vocabulary=600)


@pytest.fixture(scope="session")
def llama(folder: Path) -> tuple[Any, Any]:
    """That model and that tokenizer."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, hf.AutoTokenizer.from_pretrained(folder)
