from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.errors import InputError, StateError
from laconic.memory.training.facts import Facts
from laconic.memory.training.lab import (
    STAGES,
    LabRecipe,
    LabRun,
    _conversations,
    _left_out,
    train_lab,
)

RECIPE = LabRecipe(steps=4, tokens=200, copied=4, layers=3, width=16, heads=2, save_every=2)


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_run_that_was_stopped_comes_to_the_same_model(tmp_path: Path, stop: int) -> None:
    before = torch.get_rng_state()
    whole = train_lab(tmp_path / "whole", RECIPE)
    assert torch.equal(torch.get_rng_state(), before)
    train_lab(tmp_path / "parts", RECIPE, stop_after=stop)
    assert not (tmp_path / "parts/config.json").exists()
    rest = train_lab(tmp_path / "parts", RECIPE)
    assert rest.losses == whole.losses
    one, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert one == other


def test_what_is_saved_is_a_model_with_its_tokenizer_and_log(tmp_path: Path) -> None:
    run = train_lab(tmp_path, RECIPE, bits := Facts(keys=5, values=4, words=6, slots=2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path))
    log = json.loads((tmp_path / "training.json").read_text())
    assert log["task"]["keys"] == bits.keys
    assert log["run"]["losses"] == [round(loss, 4) for loss in run.losses]
    assert not (tmp_path / "checkpoint.pt").exists()
    assert "8 steps, loss" in str(run)
    with pytest.raises(InputError, match="holds a model already"):
        train_lab(tmp_path, RECIPE)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train_lab(tmp_path, RECIPE, stop_after=2)
    with pytest.raises(StateError, match="another model"):
        train_lab(tmp_path, replace(RECIPE, steps=5))


def test_training_learns_what_is_repeated(tmp_path: Path) -> None:
    recipe = LabRecipe(steps=60, copied=0, layers=2, width=32, heads=2, learning_rate=1e-2)
    losses = train_lab(tmp_path, recipe).losses
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_a_layer_is_copied_and_either_may_be_left_out() -> None:
    model = RECIPE.model(Facts())
    ids = torch.arange(12)[None]
    seen = set()
    for step in range(RECIPE.steps + 60):
        with torch.no_grad(), _left_out(model, RECIPE, step):
            outputs = model(input_ids=ids, output_hidden_states=True)
        whole = model(input_ids=ids, output_hidden_states=True)
        changed = [
            i
            for i, (one, other) in enumerate(
                zip(outputs.hidden_states, whole.hidden_states, strict=True)
            )
            if not torch.equal(one, other)
        ]
        seen.add((step >= RECIPE.steps, min(changed, default=0)))
    # Hidden state i is what layer i is given.
    assert seen == {(False, 0), (True, 0), (True, 2), (True, 3)}


def test_conversations_grow_when_the_present_ones_are_mastered() -> None:
    assert LabRun().stage == 0
    assert LabRun([0.0] * 19, [0] * 19, [1.0] * 19).stage == 0
    assert LabRun([0.0] * 20, [0] * 20, [1.0] * 20).stage == 1
    assert LabRun([0.0] * 20, [0] * 20, [0.9] * 20).stage == 0
    mixed = [1.0, math.nan] * 20
    assert LabRun([0.0] * 40, [2] * 40, mixed).stage == 3
    last = len(STAGES) - 1
    assert LabRun([0.0] * 20, [last] * 20, [1.0] * 20).stage == last


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_every_stage_has_answers_to_learn(stage: int) -> None:
    for seed in range(6):
        generator = np.random.default_rng(seed)
        ids, weights, _ = _conversations(Facts(), generator, stage, 1000)
        assert ids.shape[1] == len(weights)
        assert (weights == 1).sum() > 0
        assert int(ids.max()) < len(Facts().vocabulary)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"width": 20, "heads": 8}, {"learning_rate": 0.0}, {"copied": 9, "layers": 2}],
)
def test_a_recipe_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        LabRecipe(**wrong)  # type: ignore[arg-type]
