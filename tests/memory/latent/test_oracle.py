"""Agreement with the official code, whose logits on a random Llama of three layers are stored.

`oracles/ccm_official.safetensors` holds weights, an adapter, five chunks for two conversations,
and the logits of the last chunk for each kind of attention, with and without a sink.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from laconic.memory.latent.ccm import CCM
from laconic.memory.latent.conditional_lora import ConditionalLora
from laconic.memory.latent.plan import Spec

from .conftest import parallel, recurrent

_FILE = Path(__file__).parent / "oracles" / "ccm_official.safetensors"


@pytest.fixture(scope="module")
def oracle() -> dict[str, torch.Tensor]:
    with safe_open(_FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def base(oracle: dict[str, torch.Tensor]) -> Any:
    made = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            rms_norm_eps=1e-6,
            max_position_embeddings=512,
        )
    )
    made.load_state_dict({k.removeprefix("w."): v for k, v in oracle.items() if k[:2] == "w."})
    return made.eval()


@pytest.fixture(scope="module")
def lora(base: Any, oracle: dict[str, torch.Tensor]) -> ConditionalLora:
    made = ConditionalLora(base, 2, rank=4, alpha=16).eval()
    with torch.no_grad():
        made.comp_embeddings.copy_(oracle["comp_embed"])
        for name, (a, b) in made.tensors().items():
            a.copy_(oracle[f"lora.{name}.lora_A"])
            b.copy_(oracle[f"lora.{name}.lora_B"])
    return made


@pytest.mark.parametrize("form", [parallel, recurrent])
@pytest.mark.parametrize("sink", [0, 1])
@pytest.mark.parametrize("recurs", [True, False])
@pytest.mark.parametrize("update", ["concat", "merge"])
def test_the_logits_are_the_official_ones(
    base: Any,
    lora: ConditionalLora,
    oracle: dict[str, torch.Tensor],
    update: Any,
    recurs: bool,
    sink: int,
    form: Any,
) -> None:
    ccm = CCM(base, Spec(update, 2, recurs, sink), lora)
    with torch.no_grad():
        found = form(ccm, [oracle[f"chunk.{i}"] for i in range(5)])
    name = f"logits.{update}{'_recur' if recurs else ''}{'.sink' if sink else ''}"
    torch.testing.assert_close(found, oracle[name], atol=1e-5, rtol=0)
