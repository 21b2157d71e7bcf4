from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core.methods.llmlingua import LLMLingua
from laconic.core.models.causal_lm import CausalLM
from laconic.core.training import distribution_alignment
from laconic.core.training.distribution_alignment import Pair, align, read_pairs
from laconic.errors import InputError, MissingExtraError, ModelError
from laconic.integrations.cli.main import main

pytest.importorskip("peft")
# peft calls what transformers will rename.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

Models = Callable[[str], Path]

WORDS = "license work notice copyright patent source object form entity legal right grant".split()
PAIRS = [
    Pair(f"Say {a} and {b}.", f"The answer to your question is {a} and {b}. I hope that it helps!")
    for a in WORDS
    for b in WORDS[:6]
]


def nll(model: Path, prompt: str, output: str) -> float:
    lm = CausalLM(model)
    given, told = lm.tokenize([prompt + "\n\n", output])
    return float(lm.nll([told], [given])[0].mean())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_outputs_that_it_never_saw_become_expected(
    models: Models, tmp_path: Path, kind: str
) -> None:
    result = align(models(kind), PAIRS, tmp_path / "tuned", epochs=6, learning_rate=5e-3)
    assert (len(result.after), result.trained) == (4, 68)
    gains = np.subtract(result.before, result.after)
    assert gains.min() > 1.0
    pair = PAIRS[7]
    tuned = nll(tmp_path / "tuned", pair.prompt, pair.output)
    assert tuned < nll(models(kind), pair.prompt, pair.output) - 1.0
    assert not list((tmp_path / "tuned").glob("checkpoint*"))
    method = LLMLingua(tmp_path / "tuned")
    assert method.compress(PAIRS[0].output, budget=0.5).tokens_after > 0


def test_the_model_that_it_starts_from_stays_as_it_is(models: Models, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in models("gpt2").iterdir()}
    align(models("gpt2"), PAIRS[:8], tmp_path / "tuned", epochs=1)
    assert {file: file.read_bytes() for file in models("gpt2").iterdir()} == before


def test_only_outputs_are_learnt(models: Models) -> None:
    tokenizer = CausalLM(models("gpt2"))._get().tokenizer
    ((prompt, output),) = distribution_alignment._read(tokenizer, PAIRS[:1], 100)
    row = [0, *prompt.ids.tolist(), *output.ids.tolist()]
    batch = distribution_alignment._collate([(row, 1 + len(prompt)), (row[:5], 2)])
    labels = batch["labels"].tolist()
    assert labels[0] == [-100] * (1 + len(prompt)) + output.ids.tolist()
    assert labels[1] == [-100] * 2 + row[2:5] + [-100] * (len(row) - 5)
    assert batch["attention_mask"].sum(1).tolist() == [len(row), 5]


@pytest.mark.parametrize(
    ("prompt", "output", "lengths"),
    [(4, 4, (4, 4)), (30, 4, (16, 4)), (4, 30, (4, 16)), (30, 30, (10, 10)), (14, 30, (10, 10))],
)
def test_long_pairs_are_read_in_part(
    models: Models, prompt: int, output: int, lengths: tuple[int, int]
) -> None:
    tokenizer = CausalLM(models("llama"))._get().tokenizer
    pair = Pair("a " * prompt, "b " * output)
    whole = distribution_alignment._read(tokenizer, [pair], 10_000)[0]
    scale = len(whole[1]) // output
    ((read, learnt),) = distribution_alignment._read(tokenizer, [pair], 20 * scale)
    assert len(read) + len(learnt) <= 20 * scale
    assert learnt.ids.tolist() == whole[1].ids[: len(learnt)].tolist()
    assert read.ids.tolist() == whole[0].ids[len(whole[0]) - len(read) :].tolist()
    assert (len(read) / scale, len(learnt) / scale) == pytest.approx(lengths, abs=4)


def test_a_stopped_run_goes_on(models: Models, tmp_path: Path, monkeypatch: Any) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(
        transformers,
        "TrainingArguments",
        lambda **options: arguments(**{**options, "save_steps": 2}),
    )
    arguments = transformers.training_args.TrainingArguments
    steps: list[int] = []

    class Trainer(transformers.trainer.Trainer):
        def training_step(self, *call: Any, **options: Any) -> Any:
            steps.append(self.state.global_step)
            if len(steps) == 6:
                raise KeyboardInterrupt
            return super().training_step(*call, **options)

    monkeypatch.setattr(transformers, "Trainer", Trainer)
    with pytest.raises(KeyboardInterrupt):
        align(models("gpt2"), PAIRS, tmp_path / "tuned", epochs=1)
    assert not (tmp_path / "tuned" / "config.json").exists()
    align(models("gpt2"), PAIRS, tmp_path / "tuned", epochs=1)
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8]


def write(file: Path, *rows: Any) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_pairs_are_read_from_any_keys(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
    ]
    assert read_pairs(write(tmp_path / "alpaca.jsonl", *rows)) == [
        Pair("Add.\n\n1 and 2", "3"),
        Pair("Hi", "Hello"),
    ]
    other = write(tmp_path / "other.jsonl", {"question": "Why?", "reply": "So."})
    assert read_pairs(other, ["question"], "reply") == [Pair("Why?", "So.")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "expected an object, got list"),
        ({"instruction": "a"}, "under output; there are instruction"),
        ({"output": "a", "text": "b"}, "there are output, text"),
        ({"instruction": " ", "output": "a"}, "one of instruction, input"),
        ({"instruction": ["a"], "output": "a"}, "must be text"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(tmp_path: Path, row: Any, said: str) -> None:
    file = write(tmp_path / "x.jsonl", {"instruction": "a", "output": "b"}, row)
    with pytest.raises(InputError, match=rf"x.jsonl:2: .*{said}"):
        read_pairs(file)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n{'a'}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"x.jsonl:2: no JSON"):
        read_pairs(tmp_path / "x.jsonl")


def test_bad_input_is_refused_before_anything_is_read(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="at least 2 pairs, got 1"):
        align(models("gpt2"), PAIRS[:1], tmp_path / "out")
    with pytest.raises(InputError, match="holds a model already"):
        align(models("gpt2"), PAIRS, models("llama"))
    with pytest.raises(ModelError, match="hub id that can be reached or a folder"):
        align("no/such-model", PAIRS, tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"laconic\[training\]"):
        align(models("gpt2"), PAIRS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_was_gained(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": pair.prompt, "reply": pair.output} for pair in PAIRS]
    data = write(tmp_path / "data.jsonl", *rows)
    words = ["train", "align", "--model", str(models("gpt2")), "--data", str(data)]
    words += ["--prompt", "question", "--output", "reply", "--out", str(tmp_path / "tuned")]
    assert main([*words, "--learning-rate", "0.005"]) == 0
    said = capsys.readouterr().out
    assert "4 held-out pairs" in said
    assert "after 68 pairs, gain" in said
    assert main(words) == 1
    assert "holds a model already" in capsys.readouterr().err
