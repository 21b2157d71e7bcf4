from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from laconic.memory.evaluation.steps import study
from laconic.memory.latent import CCM
from laconic.memory.latent.plan import Spec
from laconic.memory.training import fit
from laconic.memory.training.entries import show
from laconic.memory.training.facts import Facts
from laconic.memory.training.fit import Recipe

LAB = Path(__file__).parents[3] / "lab"
RECIPE = Recipe(100, 12, 12, learning_rate=5e-3, rank=64, alpha=64, dropout=0.0)


def test_facts_can_be_read_from_entries_that_were_only_shown() -> None:
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    spec = Spec("merge", 32, recurrent=False, positions="slots")
    memory = CCM(model, spec, RECIPE.adapter(model, 32))
    before = study(model, {"memory": memory}, Facts(), held_out=100, turns=[1])
    show(memory, RECIPE)
    after = study(model, {"memory": memory}, Facts(), held_out=100, turns=[1])
    assert before.scores["memory"][1].accuracy < 0.1 < 0.4 < after.scores["memory"][1].accuracy

    task = Facts(slots=8)
    drawn = task.draw(np.random.default_rng(7), 20, 1, 28, 8)
    state = memory.observe(memory.start(), torch.from_numpy(drawn.context[:, 0]))
    loud = state.memory[2][1].square().sum((1, 3))
    told = torch.zeros(20, task.keys, dtype=torch.bool)
    told.scatter_(1, torch.from_numpy(drawn.keys - task.first_key), value=True)
    assert loud[~told].mean() < 0.5 * loud[told].mean()


def test_what_was_shown_is_not_shown_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    spec = Spec("merge", 32, recurrent=False, positions="slots")
    recipe = replace(RECIPE, steps=2)
    first, again = (CCM(model, spec, recipe.adapter(model, 32)) for _ in range(2))
    show(first, recipe, folder=tmp_path)
    monkeypatch.setattr(fit, "_step", None)
    show(again, recipe, folder=tmp_path)
    for one, other in zip(first.adapter.parameters(), again.adapter.parameters(), strict=True):
        assert one.equal(other)


def test_all_of_the_adapter_learns_afterwards() -> None:
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    spec = Spec("merge", 32, recurrent=False, positions="slots")
    memory = CCM(model, spec, RECIPE.adapter(model, 32))
    show(memory, replace(RECIPE, steps=1))
    changed = {name for name, (_, b) in memory.adapter.tensors().items() if b.any()}
    assert {name.split("model.layers.")[1] for name in changed} == {
        "1.self_attn.v_proj",
        "2.self_attn.k_proj",
        "2.self_attn.v_proj",
    }
    assert all(p.requires_grad for p in memory.adapter.parameters())
    task = Facts()
    table = model.get_input_embeddings().weight[task.first_key : task.first_value]
    assert memory.adapter.comp_embeddings.equal(table)
