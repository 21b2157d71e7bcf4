from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

import torch

from laconic.core import Passage
from laconic.core.evaluation.datasets import Example, load
from laconic.core.methods.pruner import Pruner
from laconic.core.models.pruner_network import FILE, Network
from laconic.core.training import lessons, pruner
from laconic.core.training.mix import best_mix
from laconic.core.training.pruner import Recipe, train
from laconic.core.training.questions import Split, held_out, label, read
from laconic.core.types import Span
from laconic.errors import InputError, StateError

Models = Callable[[str], Path]

NAMES = "license work notice copyright patent source object form entity legal right grant".split()
RECIPE = Recipe(steps=8, questions=2, windows=3, joint=1, rank=4, save_every=3, seed=1)
SPLIT = Split(held_out=0.2, weighed=0.2)


def row(i: int) -> dict[str, Any]:
    """A question that the sentence with its number answers, in one of four documents."""
    name = NAMES[i % len(NAMES)]
    documents = [
        {
            "title": f"{NAMES[(i + k) % len(NAMES)]} {i + 100 * k}",
            "text": f"The tests run offline. The {NAMES[(i + k) % len(NAMES)]} is the "
            f"{'answer' if k == 0 else 'other'}{i}. Install the extra.",
        }
        for k in range(4)
    ]
    return {"question": f"Where is the {name}?", "answers": [f"answer{i}"], "documents": documents}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row(i)) for i in range(40)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(models: Models, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruner") / "trained"
    train([data], out, RECIPE, SPLIT, encoder=str(models("bert")), device="cpu")
    return out


def test_a_sentence_that_holds_the_answer_is_wanted() -> None:
    passages = (Passage("It rains. Tom is a cat."), Passage("Rex is a dog. It barks."))
    labelled = label(Example("Who is the cat?", ("Tom",), passages))
    assert labelled is not None
    assert [flags.tolist() for flags in labelled.wanted] == [[False, True], [False, False]]
    assert labelled.gold == [0]


def test_a_sentence_that_is_marked_as_evidence_is_wanted() -> None:
    passages = (Passage("It rains. Tom is a cat."), Passage("Rex is a dog. It barks."))
    evidence = ((0, Span(0, 9)), (1, Span(14, 23)))
    labelled = label(Example("?", ("Tom",), passages, evidence))
    assert labelled is not None
    assert [flags.tolist() for flags in labelled.wanted] == [[True, False], [False, True]]


@pytest.mark.parametrize("texts", [["Tom is here.", "Tom is there."], ["Nobody.", "No one."]])
def test_what_cannot_be_told_is_not_learnt(texts: list[str]) -> None:
    assert label(Example("Who?", ("Tom",), tuple(map(Passage, texts)))) is None


def test_parts_are_shares_of_all_documents() -> None:
    parts = [Split().part(f"document {i}") for i in range(2000)]
    assert 0.46 < parts.count("held out") / 2000 < 0.54
    assert 0.04 < parts.count("weighed") / 2000 < 0.10


def school(models: Models, data: Path, split: Split) -> tuple[pruner._School, list[Any]]:
    network = Network(str(models("bert")), joint=1, rank=4, device="cpu")
    learnt = read(data, split)["learnt"]
    return pruner._School(network, [learnt], RECIPE, [split]), learnt


def test_documents_that_are_held_out_are_not_read(models: Models, data: Path) -> None:
    assert sum(map(len, read(data, SPLIT).values())) == 40
    made, learnt = school(models, data, SPLIT)
    for place, labelled in enumerate(learnt):
        kept = [i for i in (1, 2, 3) if SPLIT.part(labelled.document(i)) != "held out"]
        assert {piece.place for piece in made.lesson(0, place).windows} == {*range(1 + len(kept))}
        among = labelled.among(kept)
        assert among.titles == tuple(labelled.titles[i] for i in (0, *kept))
        assert among.gold == [0]


def test_what_is_held_out_can_be_measured_on(data: Path) -> None:
    found = held_out(load(data), SPLIT)
    assert found == [one.example for one in read(data, SPLIT)["held out"]]
    assert found


def test_windows_with_evidence_are_read_beside_likely_others(models: Models, data: Path) -> None:
    made, learnt = school(models, data, Split(0.0, 0.1))
    firsts, most = [], []
    for place in range(len(learnt)):
        lesson = made.lesson(0, place)
        chosen = made.drawn(lesson, np.random.default_rng(place))
        assert len(chosen) == len(set(chosen)) == RECIPE.windows
        assert lesson.windows[chosen[0]].place == 0
        best = [lesson.prior[owner].max() for owner in lesson.owners]
        firsts.append(best[chosen[1]])
        most.append(np.mean(best[1:]))
    assert np.mean(firsts) > np.mean(most)


def test_the_same_seed_gives_the_same_adapter(
    models: Models, data: Path, trained: Path, tmp_path: Path
) -> None:
    train([data], tmp_path / "again", RECIPE, SPLIT, encoder=str(models("bert")), device="cpu")
    assert (tmp_path / "again" / FILE).read_bytes() == (trained / FILE).read_bytes()


def test_a_stopped_run_comes_to_the_same_adapter(
    models: Models, data: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
    assert len(train([data], out, RECIPE, SPLIT, stop_after=4, **options).losses) == 4
    assert not (out / FILE).exists()
    run = train([data], out, RECIPE, SPLIT, **options)
    assert len(run.losses) == RECIPE.steps
    assert (out / FILE).read_bytes() == (trained / FILE).read_bytes()
    assert [file.name for file in out.iterdir()] == [FILE]


def test_what_was_learnt_is_what_is_used(models: Models, trained: Path) -> None:
    network = Network.load(trained, str(models("bert")), device="cpu")
    assert network.window == RECIPE.max_tokens
    assert max(float(tensor.abs().max()) for tensor in network.tensors.values()) > 0
    method = Pruner(trained, encoder=str(models("bert")), device="cpu")
    text = row(3)["documents"][0]["text"]
    assert method.compress(text, query="Where is the copyright?", budget=0.6).tokens_after > 0


def test_the_loss_falls(models: Models, data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=40, learning_rate=5e-3)
    run = train([data], tmp_path / "p", recipe, encoder=str(models("bert")), device="cpu")
    assert np.mean(run.losses[-5:]) < np.mean(run.losses[:5]) - 0.3
    assert "40 steps, loss" in str(run)


def test_bfloat16_comes_to_nearly_the_same(models: Models, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
    exact = train([data], tmp_path / "a", RECIPE, SPLIT, stop_after=6, **options)
    recipe = replace(RECIPE, bf16=True)
    near = train([data], tmp_path / "b", recipe, SPLIT, stop_after=6, **options)
    assert near.losses != exact.losses
    assert near.losses == pytest.approx(exact.losses, rel=0.02)
    state = torch.load(tmp_path / "b" / "checkpoint.pt", weights_only=True)["state"]
    assert {tensor.dtype for tensor in state["tensors"].values()} == {torch.float32}
    train([data], tmp_path / "b", recipe, SPLIT, **options)
    train([data], tmp_path / "c", recipe, SPLIT, **options)
    assert (tmp_path / "b" / FILE).read_bytes() == (tmp_path / "c" / FILE).read_bytes()


def test_what_is_held_out_is_not_learnt_from_another_file(
    models: Models, data: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu", "stop_after": 1}
    run = train([data], tmp_path / "a", RECIPE, SPLIT, **options)
    both = train([data], tmp_path / "b", RECIPE, SPLIT, extra=[data], **options)
    used = [one.counts["learnt"] + one.counts["weighed"] for one in (run, both)]
    assert used[1] == 2 * used[0]
    assert both.counts["held out"] == run.counts["held out"] > 0


def test_what_stands_beside_an_answer_is_wanted_half_as_much() -> None:
    text = (
        "The council met in the old school on Monday, since the hall was closed for repairs, "
        "and set aside 40,000 euros for the bridge. It rained."
    )
    offsets = np.array([[m.start(), m.end()] for m in re.finditer(r"\w+", text)])
    found = label(Example("How much?", ("40,000 euros",), (Passage(text), Passage("Nobody."))))
    assert found is not None
    goals = lessons._goals(found, 0, offsets)
    words = [text[a:b] for a, b in offsets]
    said = dict(zip(words, goals.tolist(), strict=True))
    assert (said["euros"], said["council"], said["school"]) == (1.0, 0.5, 0.5)
    assert (said["It"], said["rained"]) == (0.0, 0.0)
    marked = label(Example("How much?", ("40,000 euros",), (Passage(text),), ((0, Span(0, 9)),)))
    assert marked is not None
    assert set(lessons._goals(marked, 0, offsets)[:-2]) == {1.0}


def test_another_run_is_not_gone_on_with(models: Models, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu", "stop_after": 1}
    train([data], tmp_path, RECIPE, **options)
    with pytest.raises(StateError, match="another model, recipe or data"):
        train([data], tmp_path, replace(RECIPE, seed=2), **options)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(StateError, match="is damaged"):
        train([data], tmp_path, RECIPE, **options)


def test_a_pruner_is_not_written_over(data: Path, trained: Path) -> None:
    with pytest.raises(InputError, match="holds an adapter already"):
        train([data], trained, RECIPE)


def test_rows_without_answers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "a?", "answers": [], "documents": ["b", "c"]}', encoding="utf-8")
    with pytest.raises(InputError, match="no question to learn from"):
        train([file], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps is at least 1"),
        ({"windows": 1}, "windows at least 2"),
        ({"passages": 0}, "passages and weighed_questions are at least 1"),
        ({"max_tokens": 5}, "max_tokens is at least 64"),
        ({"learning_rate": 0.0}, "learning_rate is above 0"),
    ],
)
def test_a_recipe_out_of_range_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Recipe(**change)


@pytest.mark.parametrize("shares", [(0.95, 0.07), (-0.1, 0.07), (0.5, -0.1)])
def test_parts_out_of_range_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="leave some to learn from"):
        Split(*shares)


def test_the_mix_is_that_which_tells_best() -> None:
    generator = np.random.default_rng(0)
    given = [generator.normal(size=(50, 3)) for _ in range(20)]
    wanted = [values @ [0.0, 2.0, 1.0] > 2.5 for values in given]
    mix = best_mix(given, wanted, np.ones(4))
    assert abs(mix[0]) < 0.2 * mix[1]
    assert mix[1] / mix[2] == pytest.approx(2, rel=0.2)
    assert mix[3] < 0
