from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from laconic.errors import InputError, StateError
from laconic.memory.latent import CCM, LatentState, Spec
from laconic.memory.latent.base import LatentMemory
from laconic.memory.training.ccm import Recipe, train
from laconic.memory.training.examples import Example
from laconic.memory.training.facts import Facts

from ..latent.conftest import adapter, model

RECIPE = Recipe(steps=6, batch_size=6, micro_batch=4, learning_rate=1e-2, save_every=2)

EXAMPLES = Facts().examples(10, 0, turns=3, shortest=7, longest=7)
SPEC = Spec("merge", 2, positions="slots")


def values(ccm: CCM) -> list[torch.Tensor]:
    return [p.detach().clone() for p in ccm.adapter.parameters()]


def test_the_loss_is_that_of_the_answers_alone() -> None:
    base = model("llama")
    ccm = CCM(base, Spec(), adapter(base))
    total, expected = ccm.loss(EXAMPLES), 0.0
    for example in EXAMPLES:
        state = LatentState()
        *context, last = (torch.tensor(chunk) for chunk in example.chunks)
        for chunk in context:
            state = ccm.observe(state, chunk)
        logits = ccm.read(state, last)[0]
        for i, learnt in enumerate(example.learnt):
            if learnt:
                expected += float(cross_entropy(logits[i - 1], last[i]))
    torch.testing.assert_close(LatentMemory.loss(ccm, EXAMPLES), total, atol=1e-3, rtol=1e-5)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss_and_leaves_the_model_alone() -> None:
    base = model("qwen3")
    parameter = base.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    before = {name: p.clone() for name, p in base.named_parameters()}
    random = torch.get_rng_state()
    run = train(base, SPEC, EXAMPLES, replace(RECIPE, steps=12))
    assert sum(run.losses[-3:]) < sum(run.losses[:3]) * 0.9
    assert "12 steps" in str(run)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    assert parameter.requires_grad
    assert not base.training
    assert all(p.grad is None for p in base.parameters())
    assert not run.memory.adapter.training


def test_the_seed_decides() -> None:
    base = model("llama")
    one, same, other = (
        values(train(base, SPEC, EXAMPLES, replace(RECIPE, seed=seed)).memory) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_that_was_stopped_comes_to_the_same_adapter(tmp_path: Path, stop: int) -> None:
    base = model("llama")
    whole = train(base, SPEC, EXAMPLES, RECIPE)
    train(base, SPEC, EXAMPLES, RECIPE, folder=tmp_path, stop_after=stop)
    rest = train(base, SPEC, EXAMPLES, RECIPE, folder=tmp_path)
    assert rest.losses == whole.losses
    assert all(
        torch.equal(a, b) for a, b in zip(values(rest.memory), values(whole.memory), strict=True)
    )
    again = train(base, SPEC, EXAMPLES, RECIPE, folder=tmp_path)
    assert again.losses == whole.losses
    loaded = CCM.from_pretrained(base, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(values(loaded), values(whole.memory), strict=True))


def test_checkpoints_of_another_run_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    base = model("llama")
    train(base, SPEC, EXAMPLES, RECIPE, folder=tmp_path, stop_after=1)
    others: list[Any] = [
        (Spec("concat", 2), EXAMPLES, RECIPE),
        (SPEC, EXAMPLES[1:], RECIPE),
        (SPEC, EXAMPLES, replace(RECIPE, learning_rate=1e-3)),
    ]
    for spec, examples, recipe in others:
        with pytest.raises(StateError, match="another model, recipe or data"):
            train(base, spec, examples, recipe, folder=tmp_path)
    for name in ("llama", "qwen3"):
        other = model(name)
        other.get_input_embeddings().weight[0, 0] += 1
        with pytest.raises(StateError, match="another model, recipe or data"):
            train(other, SPEC, EXAMPLES, RECIPE, folder=tmp_path)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(StateError, match="damaged"):
        train(base, SPEC, EXAMPLES, RECIPE, folder=tmp_path)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_checkpointing_and_micro_batches_change_nothing_but_memory(name: str) -> None:
    base = model(name)
    recipe = replace(RECIPE, steps=2, dropout=0.0)
    want = train(base, SPEC, EXAMPLES, recipe)
    for other in (replace(recipe, checkpointing=True), replace(recipe, micro_batch=2)):
        run = train(base, SPEC, EXAMPLES, other)
        assert run.losses == pytest.approx(want.losses, rel=1e-4)
        assert not base.is_activation_checkpointing


def test_bf16_computes_nearly_the_same() -> None:
    base = model("llama")
    want = train(base, SPEC, EXAMPLES, RECIPE)
    run = train(base, SPEC, EXAMPLES, replace(RECIPE, bf16=True))
    assert run.losses != want.losses
    assert run.losses[0] == pytest.approx(want.losses[0], rel=0.05)
    assert all(p.dtype == torch.float32 for p in run.memory.adapter.parameters())


def test_every_example_is_drawn_once_in_an_epoch_beside_others_of_its_length() -> None:
    from laconic.memory.training.fit import _POOLED, _drawn

    lengths, recipe = list(range(10)), replace(RECIPE, batch_size=5)
    steps = [_drawn(lengths, recipe, step) for step in range(2 * _POOLED)]
    assert all(len(step) == 5 for step in steps)
    assert sorted(i for step in steps for i in step) == sorted(lengths * _POOLED)
    spread = np.mean([max(step) - min(step) for step in steps])
    assert spread < 3
    assert len(_drawn(lengths[:3], replace(RECIPE, batch_size=8), 1)) == 8


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=100, warmup=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"dropout": -0.1}, {"micro_batch": 0}],
)
def test_recipes_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Recipe(**wrong)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(InputError, match="no examples"):
        train(model("llama"), SPEC, [])
    long = Example(((5,) * 70, (5, 6)), (False, True))
    with pytest.raises(InputError, match="window has 64"):
        train(model("gemma3"), SPEC, [long], RECIPE)
