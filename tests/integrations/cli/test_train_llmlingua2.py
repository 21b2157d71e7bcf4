"""`laconic train llmlingua2` as a user types it, with a chat model that answers by rule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")
pytest.importorskip("langchain_core")

from laconic.core.evaluation.random_models import build_model
from laconic.core.methods.lexical import STOP_WORDS
from laconic.core.methods.llmlingua2 import LLMLingua2
from laconic.core.training.llmlingua2.annotate import read_labelled
from laconic.core.training.llmlingua2.collect import read_pairs
from laconic.integrations.cli import main

LICENSE = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
TEXTS = [text for text in LICENSE.split("\n\n") if len(text.split()) > 15]

SCRIPTED = '''
import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from laconic.core.methods.lexical import STOP_WORDS

asked: list[list[BaseMessage]] = []


class Scripted(BaseChatModel):
    """Strikes out stop words, and now and then is no good."""

    limit: int = 10**6
    dies: bool = False

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        if len(asked) >= self.limit:
            if self.dies:
                os._exit(9)
            raise ConnectionError("no more")
        asked.append(messages)
        text = messages[-1].text.partition("The text:\\n")[2]
        words = text.split()
        left = [word for word in words if word.lower().strip('.,;:()"') not in STOP_WORDS]
        if left and len(text) % 11 == 0:
            left = ["invented", *left, "words", "fabricated"]
        answer = AIMessage([{"type": "text", "text": " ".join(left)}])
        return ChatResult(generations=[ChatGeneration(message=answer)])


model = Scripted()
few = Scripted(limit=7)
deadly = Scripted(limit=7, dies=True)


def make() -> Scripted:
    return Scripted()


def make_nothing() -> None:
    pass
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with documents and a module with chat models."""
    (tmp_path / "scripted_chat.py").write_text(SCRIPTED, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "scripted_chat", raising=False)
    rows = [json.dumps({"body": text}) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def step(*words: str) -> int:
    return main(["train", "llmlingua2", *words])


COLLECT = ("collect", "--data", "texts.jsonl", "--field", "body", "--out", "pairs.jsonl")


def test_from_documents_to_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step(*COLLECT, "--own-model", "scripted_chat:model") == 0
    out = capsys.readouterr().out
    assert f"{len(TEXTS)} chunks to send, " in out
    assert f"{len(TEXTS)} pairs collected\nsaved in pairs.jsonl" in out
    system, user = sys.modules["scripted_chat"].asked[0]
    assert (system.type, user.type) == ("system", "human")
    assert {pair.origin for pair in read_pairs("pairs.jsonl")} == {t.strip() for t in TEXTS}

    assert step("annotate", "--data", "pairs.jsonl", "--out", "labelled.jsonl") == 0
    assert "| variation rate |" in capsys.readouterr().out
    labelled = read_labelled("labelled.jsonl")
    bad = [one for one in labelled if one.quality.variation_rate > 0]
    assert bad
    for one in labelled:
        for span, kept in zip(one.words, one.kept, strict=True):
            word = one.origin[slice(*span)].strip()
            if word.lower() in STOP_WORDS:
                assert not kept, word

    part = str(len(bad) / len(labelled))
    kept = ("filter", "--data", "labelled.jsonl", "--out", "kept.jsonl", "--variation", part)
    assert step(*kept) == 0
    assert f"{len(bad)} dropped for a variation rate from" in capsys.readouterr().out
    assert {one.quality.variation_rate for one in read_labelled("kept.jsonl")} == {0.0}

    build_model("bert", here / "bert", TEXTS, std=0.05)
    fit = ["fit", "--data", "kept.jsonl", "--out", "tuned", "--model", "bert", "--device", "cpu"]
    how = ("--epochs", "8", "--learning-rate", "0.003", "--held-out", "0.4")
    assert step(*fit, *how) == 0
    out = capsys.readouterr().out
    before, after, everything = (
        float(line.rpartition(" ")[2]) for line in out.splitlines() if "F1" in line
    )
    assert after > max(before, everything) + 0.05
    assert "saved in tuned" in out
    result = LLMLingua2("tuned", device="cpu").compress(TEXTS[0], budget=0.4)
    assert 0 < result.tokens_after <= result.limit
    assert step(*fit) == 1
    assert "holds a model already" in capsys.readouterr().err


def test_the_estimate_sends_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ("--price-in", "2.5", "--price-out", "10")
    model = ("--own-model", "scripted_chat:model", "--limit", "5")
    assert step(*COLLECT, *prices, "--estimate", *model) == 0
    out = capsys.readouterr().out
    assert "5 chunks to send, " in out
    assert "about $0.0" in out
    assert "saved" not in out
    assert "scripted_chat" not in sys.modules
    assert not (here / "pairs.jsonl").exists()


def test_a_run_that_broke_off_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step(*COLLECT, "--own-model", "scripted_chat:few", "--attempts", "1") == 1
    assert "ConnectionError: no more; 7 pairs were added" in capsys.readouterr().err
    assert step(*COLLECT, "--own-model", "scripted_chat:make") == 0
    out = capsys.readouterr().out
    assert f"{len(TEXTS) - 7} chunks to send, " in out
    assert "; 7 are there already" in out
    assert len(read_pairs("pairs.jsonl")) == len(sys.modules["scripted_chat"].asked) == len(TEXTS)


def test_a_process_that_was_killed_lost_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "llmlingua2", *COLLECT, "--own-model", "scripted_chat:deadly"]
    done = subprocess.run(
        [sys.executable, "-m", "laconic", *words, "--parallel", "1"],
        env={**os.environ, "PYTHONPATH": str(here)},
        capture_output=True,
    )
    assert done.returncode == 9, done.stderr
    assert len(read_pairs("pairs.jsonl")) == 7
    assert step(*COLLECT, "--own-model", "scripted_chat:model") == 0
    assert f"{len(TEXTS) - 7} pairs collected" in capsys.readouterr().out


def test_an_instruction_of_ones_own(here: Path) -> None:
    told = {"system": "Kurz!", "user": "{text}\nSo kurz es geht."}
    (here / "told.json").write_text(json.dumps(told), encoding="utf-8")
    options = ("--instruction", "told.json", "--limit", "1", "--own-model", "scripted_chat:make")
    # It answers with nothing, for it looks for the text elsewhere.
    assert step(*COLLECT, *options, "--attempts", "1") == 1
    ((system, user),) = sys.modules["scripted_chat"].asked
    assert (system.text, user.text) == ("Kurz!", f"{TEXTS[0].strip()}\nSo kurz es geht.")


def test_a_model_by_name_is_made_by_langchain(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("langchain")
    assert step(*COLLECT, "--limit", "1", "--model", "nobody:such-model") == 1
    assert "LangChain makes no chat model of 'nobody:such-model'" in capsys.readouterr().err
    import scripted_chat  # pyright: ignore[reportMissingImports]

    named = []

    def make(name: str, **options: object) -> object:
        named.append((name, options))
        return scripted_chat.make()

    monkeypatch.setattr("langchain.chat_models.init_chat_model", make)
    model = ("--model", "openai:gpt-4o", "--temperature", "0.5")
    assert step(*COLLECT, "--limit", "2", *model) == 0
    assert named == [("openai:gpt-4o", {"temperature": 0.5})]
    assert len(read_pairs("pairs.jsonl")) == 2
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    assert step(*COLLECT, "--limit", "3", *model) == 1
    assert 'pip install "laconic[agents]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*COLLECT], "needs --model or --own-model"),
        ([*COLLECT, "--own-model", "nowhere:model"], "cannot import 'nowhere:model'"),
        ([*COLLECT, "--own-model", "scripted_chat:no"], "cannot import 'scripted_chat:no'"),
        ([*COLLECT, "--own-model", "scripted_chat"], "cannot import 'scripted_chat'"),
        ([*COLLECT, "--own-model", "scripted_chat:asked"], "is no LangChain chat model"),
        ([*COLLECT, "--own-model", "scripted_chat:make_nothing"], "is no LangChain chat model"),
        ([*COLLECT[:3], "--out", "p.jsonl", "--estimate"], "texts.jsonl:1: needs a text"),
        ([*COLLECT, "--estimate", "--instruction", "texts.jsonl"], "expected a JSON object"),
        (["annotate", "--data", "texts.jsonl", "--out", "x"], "texts.jsonl:1: needs a text under"),
        (["filter", "--data", "texts.jsonl", "--out", "x"], "texts.jsonl:1: needs a text under"),
        (["fit", "--data", "texts.jsonl", "--out", "x"], "texts.jsonl:1: needs a text under"),
        (["fit", "--data", "nothing.jsonl", "--out", "x"], "cannot read nothing.jsonl"),
    ],
)
def test_a_step_that_cannot_be_taken_says_why(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert step(*words) == 1
    assert message in capsys.readouterr().err
    assert not (here / "x").exists()
    assert not (here / "pairs.jsonl").exists()
