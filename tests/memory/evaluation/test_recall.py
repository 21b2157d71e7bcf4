from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core import TokenCounter
from laconic.core.errors import InputError
from laconic.core.models.encoder import Encoder
from laconic.integrations.cli import main
from laconic.integrations.langchain.baselines import trimmed, vector_store_memory
from laconic.memory.evaluation import recall as module
from laconic.memory.evaluation.recall import (
    Conversation,
    bootstrap_interval,
    load,
    markdown,
    methods,
    recall,
)

COUNTER = TokenCounter("words", lambda text: len(text.split()))


class Hashes:
    """Embeds a text as the words that it has."""

    def encode(self, texts: list[str]) -> Any:
        rows = np.zeros((len(texts), 64))
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().replace("?", " ").replace(".", " ").split():
                row[sum(word.encode()) % 64] += 1
        return rows + 1e-6


def row(category: int = 1) -> dict[str, Any]:
    turns = [
        {"speaker": "Ann", "dia_id": "D1:1", "text": "My zeppelin is green."},
        {"speaker": "Bob", "dia_id": "D1:2", "text": "Nice, how are you?"},
    ]
    later = [
        {"speaker": "Ann", "dia_id": f"D10:{i}", "text": f"Well, it is day {i} now."}
        for i in range(1, 60)
    ]
    said = {"speaker_a": "Ann", "session_10": later, "session_1": turns, "session_1_date_time": "x"}
    qa = [
        {"question": "What colour is the zeppelin?", "evidence": ["D1:1"], "category": category},
        {"question": "Gone?", "evidence": ["D1:1; D9:9"], "category": 2},
        {"question": "Nothing?", "evidence": [], "category": 2},
    ]
    return {"conversation": said, "qa": qa}


@pytest.fixture
def conversations(tmp_path: Path) -> list[Conversation]:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(json.dumps(row()) + "\n\n" + json.dumps(row(category=5)) + "\n")
    return load(tmp_path / "rows.jsonl.gz")


def test_conversations_are_read_in_order(conversations: list[Conversation]) -> None:
    first, second = conversations
    assert [turn["role"] for turn in first.turns[:3]] == ["user", "assistant", "user"]
    assert first.turns[2]["content"] == "Well, it is day 1 now."
    assert first.questions == (("What colour is the zeppelin?", (0,)), ("Gone?", (0, -1)))
    assert second.questions == (("Gone?", (0, -1)),)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in ("{", "[]", "{}", '{"conversation": {"speaker_a": "x"}}'):
        (tmp_path / "rows").write_text(content)
        with pytest.raises(InputError, match="LoCoMo"):
            load(tmp_path / "rows")
    with pytest.raises(InputError, match="LoCoMo"):
        load(tmp_path / "nothing")


def test_recall_tells_methods_apart(conversations: list[Conversation]) -> None:
    one = [Conversation(conversations[0].turns, conversations[0].questions[:1])]
    encoder = Encoder(Hashes())
    measured = {
        **methods(encoder),
        "trim_messages": trimmed,
        "vector store": partial(vector_store_memory, encoder=encoder),
    }
    found = {r.method: r for r in recall(one, measured, budgets=[60], counter=COUNTER)}
    assert list(found) == list(measured)
    assert {name for name, r in found.items() if r.interval.value == 1} >= {
        "memory with the query, encoder",
        "memory with the query, words",
        "BM25 over turns",
    }
    assert found["recency window"].interval.value == found["trim_messages"].interval.value == 0
    assert all(0 < r.most_tokens <= 60 for r in found.values())
    table = markdown(list(found.values())).splitlines()
    assert table[0] == "| evidence recall at tokens | 60 |"
    assert table[2].startswith("| memory with the query, encoder | 100.0%")


def test_evidence_that_the_conversation_lacks_is_not_found(
    conversations: list[Conversation],
) -> None:
    for name in ("recency window", "trim_messages"):
        made = {"trim_messages": trimmed, **methods(Encoder(Hashes()))}
        (found,) = recall(conversations, {name: made[name]}, budgets=[9999], counter=COUNTER)
        assert found.interval.value == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_intervals_hold_the_mean() -> None:
    interval = bootstrap_interval([0.0, 1.0] * 100)
    assert interval.low < 0.45 < interval.value == 0.5 < 0.55 < interval.high
    assert interval == bootstrap_interval([0.0, 1.0] * 100)


def test_the_file_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LACONIC_DATA", "somewhere")
    assert module.data_path() == Path("somewhere/locomo.jsonl.gz")


def test_the_command_says_which_file_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "recall", "--data", "/no/such.jsonl.gz"]) == 1
    assert "/no/such.jsonl.gz is no file of LoCoMo conversations" in capsys.readouterr().err
