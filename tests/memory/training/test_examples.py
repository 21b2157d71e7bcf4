from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from laconic.core.evaluation.random_models import build_model
from laconic.errors import InputError
from laconic.memory.training.examples import Dialogue, Example, read_dialogues, tokenize


def write(path: Path, *rows: Any) -> Path:
    file = path / "turns.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_objects_and_lists_of_turns_are_read(tmp_path: Path) -> None:
    message = {"role": "user", "content": "b"}
    file = write(
        tmp_path,
        {"turns": ["a", message], "input": "q", "output": "r"},
        ["a", message, "c", "d"],
        ["q", "r"],
        {"input": "q", "output": "r"},
    )
    assert read_dialogues(file) == [
        Dialogue(("a", "b"), "q", "r"),
        Dialogue(("a", "b"), "c", "d"),
        Dialogue((), "q", "r"),
        Dialogue((), "q", "r"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": ["a"], "input": "q"}, "no answer"),
        ({"turns": ["a"], "input": "q", "output": "  "}, "no answer"),
        ({"turns": ["a"], "input": "q", "output": 3}, "no answer"),
        ({"turns": ["a"], "output": "r"}, "no input"),
        ({"turns": "a", "input": "q", "output": "r"}, "turns is a list"),
        ({"turns": [3], "input": "q", "output": "r"}, "a turn is a text"),
        ([], "no answer"),
        (["a"], "no input"),
        (3, "expected an object"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused(
    tmp_path: Path, row: Any, message: str
) -> None:
    with pytest.raises(InputError, match=f"jsonl:2: .*{message}"):
        read_dialogues(write(tmp_path, ["q", "r"], row))


def test_a_file_that_is_no_json_or_empty_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"x\.jsonl:1: no JSON"):
        read_dialogues(file)
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="no conversations"):
        read_dialogues(file)


@pytest.mark.parametrize(
    ("chunks", "learnt"),
    [((), ()), (((),), ()), (((1, 2),), (False,)), (((1, 2),), (False, False)), (((1,),), (True,))],
)
def test_examples_that_teach_nothing_are_refused(chunks: Any, learnt: Any) -> None:
    with pytest.raises(InputError):
        Example(chunks, learnt)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
    build_model("llama", folder, [text], layers=1, width=16, heads=2, vocabulary=500)
    return AutoTokenizer.from_pretrained(folder)


def test_chunks_hold_the_turns_and_the_end_is_learnt(tokenizer: Any) -> None:
    dialogue = Dialogue(("the License", "a copy"), "any work", "the terms")
    made = tokenize(dialogue, tokenizer)

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    line, end = ids("\n"), [tokenizer.eos_token_id]
    assert [list(chunk) for chunk in made.chunks] == [
        [tokenizer.bos_token_id, *ids("the License")],
        line + ids("a copy"),
        line + ids("any work") + line + ids("the terms") + end,
    ]
    count = len(ids("the terms")) + 1
    assert made.learnt == (False,) * (len(made.chunks[-1]) - count) + (True,) * count


def test_limits_cut_turns_and_leave_out_the_oldest(tokenizer: Any) -> None:
    dialogue = Dialogue(("first", "second", "third", "word " * 50), "input", "output")
    made = tokenize(dialogue, tokenizer, max_turn_tokens=8, max_tokens=30)
    assert sum(map(len, made.chunks)) <= 30
    assert len(made.chunks) < 5
    assert made.chunks[0][0] == tokenizer.bos_token_id
    assert max(map(len, made.chunks[1:-1]), default=0) <= 8 + 2
    with pytest.raises(InputError, match="raise max_tokens"):
        tokenize(dialogue, tokenizer, max_tokens=4)
    with pytest.raises(InputError, match="no tokens"):
        tokenize(Dialogue((), "input", ""), tokenizer)
