"""Every memory of a local model keeps the promises of `laconic.memory.testing`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.core.evaluation.random_models import build_model
from laconic.memory.kv import POLICIES, KVMemory
from laconic.memory.kv.cache import Storage
from laconic.memory.latent.ccm import CCM
from laconic.memory.latent.memory import CCMMemory
from laconic.memory.latent.plan import Spec
from laconic.memory.testing import Make, ModelMemoryConformance

from .latent.conftest import adapter

KINDS: dict[str, Any] = {
    **{policy: ("kv", policy, None) for policy in POLICIES},
    **{f"infinipot-{storage}": ("kv", "infinipot", storage) for storage in get_args(Storage)},
    "ccm-concat": ("ccm", Spec("concat", 2, cap=4)),
    "ccm-concat-slots-sink": ("ccm", Spec("concat", 2, sink=1, cap=4, positions="slots")),
    "ccm-merge": ("ccm", Spec("merge", 4)),
    "ccm-ema-alone": ("ccm", Spec("ema", 2, recurrent=False)),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A small Llama, whose positions reach far enough for those that grow, and its tokenizer."""
    text = Path(__file__).parents[2].joinpath("LICENSE").read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("models") / "llama"
    size = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 600, "positions": 8192}
    build_model("llama", folder, [text], **size)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryMemory(ModelMemoryConformance):
    @pytest.fixture
    def make(self, kind: str, pair: tuple[Any, Any]) -> Make:
        model, tokenizer = pair
        which, *options = KINDS[kind]
        if which == "kv":
            policy, storage = options
            return lambda: KVMemory(model, tokenizer, policy, 96, keep=24, storage=storage)
        with torch.no_grad():
            ccm = CCM(model, options[0], adapter(model, options[0].comp_tokens))
        return lambda: CCMMemory(ccm, tokenizer, chunk=64)
