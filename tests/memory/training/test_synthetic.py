from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laconic.errors import InputError
from laconic.memory.training.synthetic import FAMILY, RECIPE, RecallTask, Score, Study, study


def test_conversations_state_what_they_ask_for() -> None:
    task = RecallTask(turns=3, facts=2, keys=8, values=5)
    context, asked = task.draw(50, 3, torch.Generator().manual_seed(0))
    for stated, question in zip(context, asked, strict=True):
        facts = dict(stated[:, 1:].reshape(-1, 2).tolist())
        assert len(facts) == 6
        pairs = question[1:].view(-1, 2).tolist()
        assert dict(pairs) == facts
        assert len(pairs) == 6
        assert all(4 <= key < 12 <= value < 17 for key, value in pairs)


def test_examples_learn_the_values_and_are_the_same_for_a_seed() -> None:
    task = RecallTask(turns=2)
    made = task.examples(9, seed=1)
    assert made == task.examples(9, seed=1) != task.examples(9, seed=2)
    assert [len(example.chunks) - 1 for example in made] == [1] * 4 + [2] * 5
    for example in made:
        assert example.chunks[0][0] == 1
        learnt = [t for t, yes in zip(example.chunks[-1], example.learnt, strict=True) if yes]
        assert learnt == list(example.chunks[-1][2::2])


def test_more_facts_than_keys_are_refused() -> None:
    with pytest.raises(InputError, match="need 20 keys"):
        RecallTask(turns=10, keys=16)


def test_a_study_counts_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(RECIPE, steps=1, batch_size=4)
    found = study(
        RecallTask(turns=2), FAMILY, recipe, base_steps=2, examples=20, held_out=10, turns=[2]
    )
    assert set(found.scores) == {"none", "full", *FAMILY}
    entry, soft = 3 * 2 * 64 * 4, 64 * 4
    assert {name: by[2].nbytes for name, by in found.scores.items()} == {
        "none": entry,
        "full": 11 * entry,
        "CCM-concat": 4 * entry,
        "CCM-merge": 8 * entry,
        "Gisting": 8 * entry,
        "Gisting-online": 4 * entry,
        "Compressive": 4 * entry,
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
