from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from laconic.integrations.cli import main
from laconic.memory.evaluation import steps
from laconic.memory.training import fit

LAB = Path(__file__).parents[3] / "lab"


def test_a_model_that_finds_too_little_is_no_model_to_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "lab", "--out", str(tmp_path), "--steps", "2"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "of the facts in its whole context" in printed.out
    assert "train it with more steps" in printed.err
    assert (tmp_path / "training.json").is_file()


@pytest.mark.parametrize("table", ["pots", "ablations", "noise"])
def test_the_tables_are_printed(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "lab", "--model", str(LAB), "--tables", table, "--limit", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert ("| alpha 1, no CaP |" if table == "ablations" else "| StreamingLLM |") in printed
    assert "nan" not in printed


@pytest.mark.parametrize("table", ["turns", "variants"])
def test_learned_memories_are_taught_once_and_saved(
    table: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, ways = {
        "turns": ("Gisting-online", "FAMILY"),
        "variants": ("CCM-concat with 2 COMP tokens", "VARIANTS"),
    }[table]
    way = getattr(steps, ways)[name]
    brief = steps.Lesson(1, 7, 7, 1, 2)
    monkeypatch.setattr(steps, ways, {name: way._replace(course=(brief,))})
    command = ["bench", "lab", "--model", str(LAB), "--tables", table, "--limit", "2"]
    command += ["--methods", name]
    assert main(command) == 1
    assert "--out FOLDER" in capsys.readouterr().err
    command += ["--out", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"| {name} | " in printed
    assert printed.startswith("1 model, 2 conversations of each length")
    assert len(list(tmp_path.glob("lab/*/ccm_config.json"))) == (table == "variants")
    monkeypatch.setattr(fit, "_step", None)
    assert main(command) == 0
    assert capsys.readouterr().out == printed


def test_adapters_that_are_kept_with_a_model_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "lab", "--model", str(LAB), "--tables", "turns", "--limit", "20"]
    assert main([*command, "--methods", "CCM-concat,CCM-merge"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    long = {row[0][2:]: float(row[5].split("%")[0]) for row in rows[3:] if len(row) > 5}
    assert set(long) == {"none", "full", "CCM-concat", "CCM-merge"}
    assert long["CCM-concat"] > 80
    assert long["CCM-merge"] > 80
    assert long["none"] < 20


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, reason in (
        ([], "needs --model FOLDER"),
        (["--model", str(tmp_path)], "make one with `laconic train lab"),
        (["--model", str(LAB), "--tables", "chairs"], "no table 'chairs'"),
        (
            ["--model", str(LAB), "--tables", "turns", "--methods", "x", "--out", str(tmp_path)],
            "no memory 'x'; there are CCM-concat",
        ),
    ):
        assert main(["bench", "lab", *options]) == 1
        assert reason in capsys.readouterr().err
