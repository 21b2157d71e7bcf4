"""`laconic train ccm` as a user types it, with a small model."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.core.evaluation.random_models import build_model
from laconic.integrations.cli import main
from laconic.memory.latent import CCM, CCMMemory

DIALOGUES = [
    {"turns": ["My cat is Tom.", "It sleeps."], "input": "Who is the cat?", "output": "Tom"},
    ["Hello.", "My dog is Rex.", "Who is the dog?", "Rex"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "llama"
    text = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
    return build_model("llama", made, [text], layers=2, width=32, heads=2, vocabulary=600)


def train(folder: Path, tmp_path: Path, rows: list[object], *options: str) -> int:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    size = ["--steps", "3", "--batch-size", "2", "--device", "cpu"]
    where = ["--model", str(folder), "--data", str(data), "--out", str(tmp_path / "adapter")]
    return main(["train", "ccm", *where, *size, *options])


def test_an_adapter_is_trained_and_remembers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, tmp_path, DIALOGUES, "--update", "merge", "--comp-tokens", "4") == 0
    out = capsys.readouterr().out
    assert "2 conversations: 3 steps, loss " in out
    assert f"saved in {tmp_path / 'adapter'}" in out
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ccm = CCM.from_pretrained(model, tmp_path / "adapter", tokenizer)
    assert (ccm.spec.update, ccm.spec.comp_tokens, ccm.spec.positions) == ("merge", 4, "slots")
    memory = CCMMemory(ccm, tokenizer, chunk=64)
    memory.observe("My cat is Tom.")
    memory.generate("Who is the cat?", max_new_tokens=4)
    assert memory.n_tokens == memory.budget == 4


@pytest.mark.parametrize("update", ["concat", "merge"])
def test_a_chat_with_an_adapter_stays_within_the_budget(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    update: str,
) -> None:
    assert train(folder, tmp_path, DIALOGUES, "--update", update, "--comp-tokens", "2") == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n" * 6))
    size = ["--budget", "8", "--max-new-tokens", "4", "--device", "cpu"]
    adapter = ["--adapter", str(tmp_path / "adapter")]
    assert main(["chat", "--model", str(folder), *adapter, *size]) == 0
    held = re.findall(r"seen, (\d+) of (\d) entries", capsys.readouterr().err)
    assert held[-1] == (("8", "8") if update == "concat" else ("2", "2"))
    assert len(held) == 6


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"turns": ["a"], "input": "b"}], [], "has no answer to learn"),
        ([["only one turn"]], [], "data.jsonl:1"),
        (DIALOGUES, ["--comp-tokens", "0"], "comp_tokens is at least 1"),
        (DIALOGUES, ["--steps", "0"], "steps is at least 1"),
        (DIALOGUES, ["--max-tokens", "5"], "raise max_tokens"),
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
