from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from laconic.memory.evaluation.steps import FAMILY, RECIPE, Score, Study, study, taught
from laconic.memory.training.facts import Facts
from laconic.memory.training.lab import LabRecipe

TASK = Facts()


def test_a_study_counts_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    model = LabRecipe(layers=1, width=16, heads=2).model(TASK).eval()
    recipe = replace(RECIPE, steps=1, batch_size=4, rank=2)
    memories = {
        name: taught(model, build, TASK, recipe, examples=8, turns=2)
        for name, build in FAMILY.items()
    }
    found = study(model, memories, TASK, held_out=10, turns=[2])
    assert set(found.scores) == {"none", "full", *FAMILY}
    entry, soft = 2 * 16 * 4, 16 * 4
    assert {name: by[2].nbytes for name, by in found.scores.items()} == {
        "none": entry,
        "full": 57 * entry,
        "CCM-concat": 4 * entry,
        "CCM-merge": 8 * entry,
        "Gisting": 8 * entry,
        "Gisting-online": 4 * entry,
        "Compressive": 5 * entry,
        "AutoCompressor": 4 * soft,
        "RMT": 8 * soft,
        "ICAE": 4 * soft,
        "500xCompressor": 4 * entry,
    }
    assert all(by[2].n == 10 for by in found.scores.values())
    assert str(found).count("\n") == 12
    assert capsys.readouterr().out == ""


def test_the_gap_is_between_no_context_and_all_of_it() -> None:
    scores = {"none": 100, "full": 900, "memory": 500}
    found = Study({name: {1: Score(correct, 1000, 0)} for name, correct in scores.items()})
    assert found.recovered("memory", 1) == pytest.approx(0.5)
    assert "0.500 [0.469, 0.531] | 1000 | 0.50 |" in str(found)
    both = found.beside(found)
    assert both.scores["memory"][1] == Score(1000, 2000, 0)
    assert found.beside(None) is found
