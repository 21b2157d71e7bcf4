"""Rows of each known shape become examples; others are refused by name."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from laconic.core.errors import InputError
from laconic.core.evaluation.datasets import load
from laconic.core.evaluation.metrics import contains_answer


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    file = folder / name
    text = "\n".join(map(json.dumps, rows))
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_documents_with_titles(tmp_path: Path, name: str) -> None:
    row = {"question": "q", "answers": ["b"], "documents": ["a", {"title": "T", "text": "b"}]}
    (example,) = load(write(tmp_path, [row], name))
    assert [p.text for p in example.passages] == ["a", "b"]
    assert example.passages[1].metadata == {"title": "T"}


def test_supporting_sentences_become_spans(tmp_path: Path) -> None:
    document = {"title": "T", "sentences": ["One.", " Two.", " Three."], "supporting": [1]}
    row = {"question": "q", "answers": ["Two"], "documents": [document]}
    (example,) = load(write(tmp_path, [row]))
    ((passage, span),) = example.supporting
    assert example.passages[passage].text[span.start : span.end] == " Two."


def test_a_single_context(tmp_path: Path) -> None:
    row = {"question": "q", "answers": ["x"], "context": "x y"}
    assert load(write(tmp_path, [row]))[0].passages[0].text == "x y"


def test_long_articles_are_asked_about_alone(tmp_path: Path) -> None:
    qas = [{"question": "q", "answers": ["x"]}, {"question": "none", "answers": []}]
    (example,) = load(write(tmp_path, [{"context": "x " * 3000, "qas": qas}]))
    assert len(example.passages) == 1


def test_short_paragraphs_are_retrieved_with_their_own_among_them(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    rows = [
        {
            "article": f"Article_{i}",
            "context": f"Number {i} is about topic{i}.",
            "qas": [{"question": f"topic{i}?", "answers": [f"topic{i}"]}],
        }
        for i in range(15)
    ]
    examples = load(write(tmp_path, rows))
    assert [len(e.passages) for e in examples] == [10] * 15
    for example in examples:
        assert contains_answer(" ".join(p.text for p in example.passages), example.answers)
    assert examples[0].passages[0].metadata["title"].startswith("Article ")


def test_meetings_name_the_turns_that_answer(tmp_path: Path) -> None:
    row = {
        "meeting_transcripts": [{"speaker": s, "content": c} for s, c in ("ab", "cd", "ef")],
        "specific_query_list": [{"query": "q", "answer": "", "relevant_text_span": [["1", "2"]]}],
    }
    (example,) = load(write(tmp_path, [row]))
    text = example.passages[0].text
    assert [text[s.start : s.end] for _, s in example.supporting] == ["c: d\n", "e: f\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ("{", "line 1: not JSON"),
        ("[1]", "object"),
        ('{"foo": 1}', "foo"),
        ('{"question": "q", "answers": ["a"]}', "lacks"),
        ('{"question": "q", "answers": ["a"], "documents": [{"x": 1}]}', "lacks"),
    ],
)
def test_unknown_shapes_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load(file)


@pytest.mark.parametrize("name", ["none.jsonl", "none.jsonl.gz"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / name)


DATA = Path(os.environ.get("LACONIC_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.mark.skipif(not DATA.is_dir(), reason="set LACONIC_DATA to a folder with the data sets")
@pytest.mark.parametrize("name", ["nq20", "squad", "multihop", "covidqa", "qmsum", "xquad.zh"])
def test_real_rows_hold_their_answers(name: str) -> None:
    file = DATA / f"{name}.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not there")
    examples = load(file)[:50]
    for example in examples:
        text = " ".join(p.text for p in example.passages)
        assert example.supporting or contains_answer(text, example.answers)


def test_sections_are_a_pool_in_which_sentences_answer(tmp_path: Path) -> None:
    rows = [
        {
            "article": f"Pet {i}",
            "section": "Name",
            "question": f"Who is cat number {i}?",
            "candidates": [f"It rained for {i} days.", f"Cat number {i} is Tom."],
            "answers": [1],
        }
        for i in range(14)
    ]
    file = tmp_path / "sections.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = load(file)
    assert len(found) == 14
    for i, example in enumerate(found):
        assert len({passage.text for passage in example.passages}) == 10
        ((place, (start, end)),) = example.supporting
        passage = example.passages[place]
        assert passage.text[start:end] == f"Cat number {i} is Tom."
        assert passage.metadata == {"title": f"Pet {i}: Name"}
