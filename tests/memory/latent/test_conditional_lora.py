from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from laconic.memory.kv.attention import attach
from laconic.memory.latent.attention import Pass
from laconic.memory.latent.conditional_lora import ConditionalLora, Gate

from .conftest import FAMILIES, adapter, model


def first_layer(base: Any, ids: torch.Tensor, gate: Gate | None) -> dict[str, torch.Tensor]:
    """What the projections of the first layer give."""
    attach(base)
    found: dict[str, torch.Tensor] = {}
    parts = {n: getattr(base.model.layers[0].self_attn, f"{n}_proj") for n in "qkvo"}
    handles = [
        part.register_forward_hook(lambda _, __, output, n=n: found.update({n: output}))
        for n, part in parts.items()
    ]
    with torch.no_grad():
        base(ids, ccm=gate)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_gated_tokens_are_updated_and_no_others(name: str) -> None:
    base = model(name)
    lora = adapter(base)
    ids = torch.randint(3, 128, (2, 6), generator=torch.Generator().manual_seed(0))
    plain = first_layer(base, ids, None)
    found = first_layer(base, ids, Pass(lora, torch.tensor([2, 3, 11])))
    for part in "qkv":
        changed = (found[part] != plain[part]).any(-1)
        assert changed.nonzero().tolist() == [[0, 2], [0, 3], [1, 5]]
        hidden = base.model.layers[0].input_layernorm(base.get_input_embeddings()(ids))
        a, b = lora.tensors()[f"model.layers.0.self_attn.{part}_proj"]
        update = hidden[0, 2] @ a.T @ b.T * (16 / 4)
        torch.testing.assert_close(found[part][0, 2] - plain[part][0, 2], update, atol=1e-4, rtol=0)
    assert torch.equal(found["o"][0, :2], plain["o"][0, :2])


def test_a_new_adapter_changes_nothing() -> None:
    base = model("gemma3")
    lora = ConditionalLora(base, 3)
    ids = torch.arange(3, 9)[None]
    plain = first_layer(base, ids, None)
    assert torch.equal(first_layer(base, ids, Pass(lora, torch.tensor([1])))["v"], plain["v"])


def test_comp_tokens_begin_as_random_tokens() -> None:
    base = model("gemma3")
    table = base.get_input_embeddings()(torch.arange(128)).detach()
    starts = torch.stack([ConditionalLora(base, 3, seed=s).comp_embeddings for s in range(300)])
    # The standard error of a mean of 300 is a seventeenth of the spread.
    for k in range(3):
        off = (starts[:, 2 - k].mean(0) - table[k::3].mean(0)) / table.std(0)
        assert off.square().mean().sqrt() < 0.1
    torch.testing.assert_close(starts.std((0, 1)), table.std(0), atol=0, rtol=0.15)
    assert ConditionalLora(base, 0).comp_embeddings.shape == (0, table.shape[1])


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    base = model("llama")
    state = torch.get_rng_state()
    one, same, other = (ConditionalLora(base, 1, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    name = one.names[0]
    assert torch.equal(one.tensors()[name][0], same.tensors()[name][0])
    assert not torch.equal(one.tensors()[name][0], other.tensors()[name][0])


def test_dropout_only_while_training() -> None:
    base = model("llama")
    lora = adapter(base)
    gate, ids = Pass(lora, torch.tensor([1])), torch.arange(3, 9)[None]
    still = first_layer(base, ids, gate)["q"]
    assert torch.equal(first_layer(base, ids, gate)["q"], still)
    lora.train()
    lora.dropout = 0.5
    assert not torch.equal(first_layer(base, ids, gate)["q"], still)


def test_the_model_forgets_an_adapter_that_nobody_holds() -> None:
    base = model("llama")
    names = set(base.state_dict())
    lora = adapter(base)
    assert set(base.state_dict()) == names
    gone = weakref.ref(lora)
    del lora
    gc.collect()
    assert gone() is None
    assert not base.model.layers[0].self_attn.q_proj._forward_hooks


def test_a_failed_forward_leaves_no_gate_behind() -> None:
    base = model("llama")
    lora = adapter(base)
    ids = torch.arange(3, 9)[None]
    plain = first_layer(base, ids, None)["q"]
    with pytest.raises(IndexError):
        first_layer(base, ids, Pass(lora, torch.tensor([99])))
    assert torch.equal(first_layer(base, ids, None)["q"], plain)
    projection, ones = base.model.layers[0].self_attn.q_proj, torch.ones(1, 1, 64)
    assert torch.equal(projection(ones), torch.nn.functional.linear(ones, projection.weight))
