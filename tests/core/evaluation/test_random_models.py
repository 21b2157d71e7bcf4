"""Models of random weights are whole models: they load, read every text and stay the same."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from laconic.core.evaluation.random_models import Kind, build_model
from laconic.errors import MissingExtraError, ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("random-models")

KINDS = get_args(Kind)
CAUSAL = ("gpt2", "llama", "qwen")
TEXTS = [
    Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8"),
    "東京は日本の首都です。人口は約1400万人。\n他住在北京市。",
    "Ünïcode: naïve café, 3.50 € on 2024-01-02, 12,345.67 tons 😀👍🏽.",
] * 2
SIZE = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 1200}
HARD = "Hello, world!\n\n東京は首都。\tTabs  and 3.50 € 😀 don't  stop "


def auto_model(kind: str, folder: Path) -> Any:
    auto = (
        transformers.AutoModelForCausalLM
        if kind in CAUSAL
        else transformers.AutoModelForTokenClassification
    )
    return auto.from_pretrained(folder)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models so small wait for their threads far longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: build_model(kind, root / kind, TEXTS, **SIZE) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_and_its_scores_spread(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    model = auto_model(kind, folders[kind])
    assert (folders[kind] / "model.safetensors").is_file()
    assert len(tokenizer) <= model.config.vocab_size == 1200
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS[0][:800], return_tensors="pt")).logits[0]
    scores = logits.softmax(-1)[:, 1]
    assert scores.std() / scores.mean() > 0.02
    assert len(set(scores.tolist())) > 0.99 * len(scores)
    assert logits.shape[1] == (1200 if kind in CAUSAL else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_as_many_tokens_as_it_says(kind: str, tmp_path: Path) -> None:
    model = auto_model(kind, build_model(kind, tmp_path, TEXTS, **SIZE, positions=90))
    with torch.no_grad():
        assert model(torch.full((1, 90), 7)).logits.shape[1] == 90


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], [""], ["abc 東京"]])
def test_bytes_and_characters_are_never_left_out(
    kind: str, texts: list[str], tmp_path: Path
) -> None:
    folder = build_model(kind, tmp_path, texts, **{**SIZE, "vocabulary": 8})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert auto_model(kind, folder).config.vocab_size == max(8, len(tokenizer))
    ids = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "".join(texts).replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_cover_what_is_written(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    assert tokenizer.is_fast
    spans = tokenizer(HARD, return_offsets_mapping=True)["offset_mapping"]
    covered = {place for start, end in spans for place in range(start, end)}
    assert {place for place, char in enumerate(HARD) if not char.isspace()} <= covered
    starts = [start for start, end in spans if end]
    assert starts == sorted(starts)


@pytest.mark.parametrize("kind", [*CAUSAL, "modernbert"])
def test_any_text_comes_back(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    for text in (HARD, "\x00 ሰላም \u200d🧑‍🚀", *TEXTS):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_words_come_back(kind: str, folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    text = "Readers compress 1234 quarterly reports"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) > 5  # not each word is a piece
    assert tokenizer("ሰ")["input_ids"][-2] == tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("llama", "<s>", None),
        ("bert", "[CLS]", "[SEP]"),
        ("xlm-roberta", "<s>", "</s>"),
        ("modernbert", "[CLS]", "[SEP]"),
        ("gpt2", None, None),
        ("qwen", None, None),
    ],
)
def test_special_tokens(
    kind: str, first: str | None, last: str | None, folders: dict[str, Path]
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    bare = tokenizer("the text", add_special_tokens=False).tokens()
    assert tokenizer("the text").tokens() == [*filter(None, [first]), *bare, *filter(None, [last])]
    if kind == "gpt2":
        assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    if kind == "llama":
        assert tokenizer("a\nb")["input_ids"].count(13) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_files(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    again = build_model(kind, str(tmp_path / "again"), iter(TEXTS), **SIZE)
    other = build_model(kind, tmp_path / "other", TEXTS, **SIZE, seed=1)
    names = sorted(file.name for file in folders[kind].iterdir())
    assert names == sorted(file.name for file in again.iterdir())
    for name in names:
        written = (folders[kind] / name).read_bytes()
        assert written == (again / name).read_bytes(), name
        assert (written == (other / name).read_bytes()) is (name != "model.safetensors"), name


def test_random_generators_and_environment_stay(tmp_path: Path) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    environment = dict(os.environ)
    build_model("gpt2", tmp_path, TEXTS, **SIZE)
    assert before == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    assert environment == dict(os.environ)


def test_there_is_no_such_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gpt2, llama"):
        build_model("gpt5", tmp_path, TEXTS)  # type: ignore[arg-type]


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"laconic\[torch\]"):
        build_model("gpt2", tmp_path, TEXTS)
