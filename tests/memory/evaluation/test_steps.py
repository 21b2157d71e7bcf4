from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.memory.evaluation.steps import (
    FAMILY,
    RECIPE,
    VARIANTS,
    Lesson,
    Score,
    Study,
    study,
    taught,
)
from laconic.memory.latent import CCM
from laconic.memory.training.facts import Facts
from laconic.memory.training.lab import LabRecipe

LAB = Path(__file__).parents[3] / "lab"

COURSE = (Lesson(1, 7, 7, 1, 4), Lesson(2, 13, 16, 1, 2, facts=4))


def small() -> Any:
    return LabRecipe(copied=0, layers=3, width=16, heads=2).model(Facts()).eval()


def test_a_study_counts_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    model, recipe = small(), replace(RECIPE, rank=2)
    ways = {
        name: way._replace(course=COURSE, shown=min(way.shown, 1))
        for name, way in {**FAMILY, **VARIANTS}.items()
    }
    memories = {name: taught(model, way, recipe) for name, way in ways.items()}
    found = study(model, memories, Facts(), held_out=10, turns=[2])
    entry = 3 * 2 * 16 * 4
    assert {name: by[2].nbytes // entry for name, by in found.scores.items()} == {
        "none": 1,
        "full": 57,
        "CCM-concat": 8,
        "CCM-merge": 32,
        "Gisting-online": 8,
        "Compressive": 9,
        "CCM-concat with 1 COMP token": 2,
        "CCM-concat with 2 COMP tokens": 4,
        "CCM-concat with 4 COMP tokens": 8,
        "CCM-concat with 8 COMP tokens": 16,
        "CCM-concat from means": 8,
        "CCM-concat ungated": 8,
        "CCM-concat with positions skipped": 8,
        "CCM-merge with a brief course": 32,
        "CCM-merge from answers alone": 32,
        "CCM-ema": 32,
    }
    assert all(by[2].n == 10 for by in found.scores.values())
    assert str(found).count("\n") == 1 + len(found.scores)
    assert capsys.readouterr().out == ""


def test_comp_tokens_may_begin_as_means_of_the_vocabulary() -> None:
    model = small()
    comp = VARIANTS["CCM-concat from means"].build(model, RECIPE).adapter.comp_embeddings
    table = model.get_input_embeddings().weight
    for k in range(4):
        torch.testing.assert_close(comp[3 - k], table[k::4].mean(0))


def test_lessons_follow_each_other_and_are_learnt_once(tmp_path: Path) -> None:
    way, recipe = FAMILY["CCM-concat"]._replace(course=COURSE), replace(RECIPE, rank=2)
    first = taught(small(), way, recipe, folder=tmp_path)
    assert {path.parent.name for path in tmp_path.glob("*/*")} == {
        *(f"lesson-1-start-{i}" for i in range(1, 7)),
        "lesson-2",
    }
    again = taught(small(), way, recipe, folder=tmp_path)
    untaught = way.build(small(), recipe)
    learnt, same, other = (
        torch.cat([part.flatten() for part in memory.adapter.parameters()])
        for memory in (first, again, untaught)
    )
    assert learnt.equal(same)
    assert not learnt.equal(other)


def test_the_adapters_that_are_kept_recall_nearly_all() -> None:
    model = AutoModelForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(LAB)
    memories = {
        update: CCM.from_pretrained(model, LAB / f"ccm-{update}", tokenizer)
        for update in ("concat", "merge")
    }
    found = study(model, memories, Facts(), held_out=100, turns=[16], seed=3)
    none, full, concat, merge = (by[16].accuracy for by in found.scores.values())
    assert none < 0.1 < 0.9 < min(concat, merge)
    assert max(concat, merge) <= full
    assert found.scores["concat"][16].nbytes * 7 < found.scores["full"][16].nbytes
    assert found.scores["merge"][16].nbytes * 2 == found.scores["concat"][16].nbytes


def test_scores_of_two_models_are_pooled_and_printed() -> None:
    found = Study({"memory": {4: Score(400, 500, 16), 8: Score(100, 500, 3200)}})
    both = found.beside(found)
    assert both.scores["memory"][4] == Score(800, 1000, 16)
    assert found.beside(None) is found
    assert str(both).splitlines() == [
        "| context | T = 4 | T = 8 | bytes |",
        "|---|--:|--:|--:|",
        "| memory | 80.0% [77.4, 82.4] | 20.0% [17.6, 22.6] | 3,200 |",
    ]
