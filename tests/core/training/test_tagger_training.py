from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from laconic.core import Passage
from laconic.core.evaluation.datasets import Example
from laconic.core.methods.tagger import Tagger
from laconic.core.models.pruner_network import FILE
from laconic.core.models.tagger import TaggerModel
from laconic.core.training.questions import Split, label
from laconic.core.training.tagger import Recipe, texts, train
from laconic.core.types import Span
from laconic.errors import InputError

Models = Callable[[str], Path]

RECIPE = Recipe(steps=6, windows=4, joint=1, rank=4, save_every=4, least_questions=2)
SPLIT = Split(held_out=0.1, weighed=0.0)

LICENSE = "The license of {} is free. A copy of the work {} is here."


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages of which a number is asked for."""
    rows = [
        {
            "article": f"document {i}",
            "context": LICENSE.format(i, 1000 + i),
            "qas": [
                {"question": f"What license is free in document {i}?", "answers": [str(i)]},
                {"question": f"Which copy does document {i} have?", "answers": [str(1000 + i)]},
            ],
        }
        for i in range(20)
    ]
    file = tmp_path_factory.mktemp("asked") / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_answers_and_what_a_question_shares_with_their_sentence_are_wanted() -> None:
    passage = Passage("Tom the cat was born in May 1990. Rex is a cat too. It barks.")
    asked = [
        Example("When was the cat born?", ("May 1990",), (passage,)),
        Example("What barks?", ("Rex",), (passage,)),
    ]
    labelled = [one for one in map(label, asked) if one]
    (text,) = texts(labelled, least=2)
    wanted = [
        text.text[a:b].strip() for (a, b), flag in zip(text.units, text.wanted, strict=True) if flag
    ]
    assert wanted == ["cat", "born", "May", "1990.", "Rex"]
    assert texts(labelled, least=3) == []
    unanswered = Example("When?", (), (passage,), ((0, Span(0, 33)),))
    marked = label(unanswered)
    assert marked is not None
    assert texts([marked, marked], least=2) == []


def test_the_same_seed_gives_the_same_adapter_stopped_or_not(
    models: Models, asked: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
    run = train([asked], tmp_path / "one", RECIPE, SPLIT, **options)
    train([asked], tmp_path / "two", RECIPE, SPLIT, stop_after=4, **options)
    assert not (tmp_path / "two" / FILE).exists()
    train([asked], tmp_path / "two", RECIPE, SPLIT, **options)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    assert len(run.losses) == 6
    assert "of their words wanted; 6 steps" in str(run)
    with pytest.raises(InputError, match="holds an adapter already"):
        train([asked], tmp_path / "one", RECIPE, SPLIT, **options)


def test_what_is_learnt_is_kept(models: Models, asked: Path, tmp_path: Path) -> None:
    recipe = Recipe(steps=60, windows=8, learning_rate=1e-2, joint=1, rank=8, least_questions=2)
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
    run = train([asked], tmp_path, recipe, SPLIT, **options)
    assert np.mean(run.losses[-5:]) < 0.6 * np.mean(run.losses[:5])
    (tagged,) = TaggerModel(tmp_path, **options).tag([LICENSE.format(77, 1077)])
    text = LICENSE.format(77, 1077)
    said = {text[a:b]: p for (a, b), p in zip(tagged.offsets, tagged.probabilities, strict=True)}
    assert min(said["license"], said["copy"]) > max(said["The"], said["here"]) + 0.2
    kept = Tagger(tmp_path, **options).compress(text, budget=0.4)
    assert kept.method == "tagger"
    assert "license" in kept.text
    assert "here" not in kept.text


def test_a_tagger_is_one_text_at_a_time_or_many(
    models: Models, asked: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
    train([asked], tmp_path, RECIPE, SPLIT, **options)
    model = TaggerModel(tmp_path, **options)
    given = ["The license is free.", "", "A copy of the work. " * 60]
    for text, many in zip(given, model.tag(given), strict=True):
        (one,) = model.tag([text])
        assert many.offsets.tolist() == one.offsets.tolist()
        assert many.probabilities == pytest.approx(one.probabilities, abs=1e-3)
        assert all(0 < p < 1 for p in many.probabilities)


def test_passages_with_too_few_questions_are_refused(asked: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no passage has 3 questions with answers"):
        train([asked], tmp_path, Recipe(), SPLIT)


@pytest.mark.parametrize("change", [{"windows": 0}, {"least_questions": 0}])
def test_a_recipe_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="are at least 1"):
        Recipe(**change)
