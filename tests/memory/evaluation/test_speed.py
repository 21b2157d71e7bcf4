from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("psutil")

from laconic.integrations.cli import main
from laconic.memory.evaluation import speed
from laconic.memory.evaluation.speed import (
    Answered,
    Overhead,
    answer,
    grow,
    overhead,
    random_llama,
    store,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llama(layers=1, width=32, heads=2)


def test_policies_are_timed_beside_a_plain_prefill(model: Any) -> None:
    size = {"pot": 64, "keep": 32, "chunk": 16, "repeats": 2}
    (row,) = overhead(model, ["infinipot"], 200, **size)
    assert (row.policy, row.tokens, len(row.plain), len(row.bounded)) == ("infinipot", 200, 2, 2)
    assert min(*row.plain, *row.bounded) > 0


def test_more_time_is_that_of_pairs() -> None:
    row = Overhead("x", 1000, plain=(1.0, 2.0, 4.0), bounded=(1.1, 1.8, 6.0))
    assert str(row) == "| x | 1,000 | 500 | 556 | +10% [-10%, +50%] |"


def test_a_cache_that_grows_is_read_on_and_on(model: Any) -> None:
    for policy in ("streaming_llm", None):
        steps = list(grow(model, policy, steps=3, step=50, pot=64, keep=32, chunk=16))
        assert [step.seen for step in steps] == [50, 100, 150]
        assert all(step.seconds > 0 < step.resident for step in steps)


def test_storages_are_compared_with_the_plain_one(model: Any) -> None:
    rotated, unrotated, int8, int4 = store(model, pot=200, keep=100, tokens=20)
    assert (rotated.error, rotated.divergence, rotated.agreement) == (0, 0, 1)
    assert unrotated.divergence < int8.divergence < int4.divergence
    assert 0 == unrotated.error < int8.error < int4.error
    assert int4.nbytes < int8.nbytes < unrotated.nbytes == rotated.nbytes


def test_answers_are_timed_with_both_caches(model: Any) -> None:
    size = {"pot": 64, "keep": 32, "chunk": 16, "question": 4, "tokens": 2, "repeats": 3}
    short, long = answer(model, "streaming_llm", (60, 600), **size)
    entry = 2 * 16 * 4
    assert (short.nbytes[1], long.nbytes[1]) == (60 * entry, 600 * entry)
    assert long.nbytes[0] < long.nbytes[1]
    for row in (short, long):
        assert len(row.first) == len(row.each) == 3
        assert min(min(pair) for pair in (*row.first, *row.each)) > 0


def test_the_ratio_of_answers_is_that_of_pairs() -> None:
    pairs = ((0.001, 0.002), (0.003, 0.002), (0.002, 0.004))
    row = Answered(1000, (10, 2000), first=pairs, each=pairs)
    ratio = "0.50 [0.50, 1.50]"
    assert str(row) == f"| 1,000 | 10 | 2,000 | 2 : 2 = {ratio} | 2.0 : 2.0 = {ratio} |"


def test_the_command_prints_all_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Any
) -> None:
    monkeypatch.setattr(speed, "random_llama", lambda **_: model)
    monkeypatch.setattr(speed.answer, "__defaults__", ((100, 200),))
    monkeypatch.setattr(speed.grow, "__kwdefaults__", {**GROW, "steps": 2, "step": 600})
    assert main(["bench", "memory", "--policies", "tova,knorm"]) == 0
    rows = re.findall(r"^\| (\S+) \|", capsys.readouterr().out, flags=re.MULTILINE)
    timed, stored = ["policy", "tova", "knorm", "tova"], ["storage", "rotated", "unrotated"]
    read = ["read", "100", "200", "read", "600", "1,200"]
    assert rows == [*timed, *stored, "int8", "int4", *read]


GROW: dict[str, Any] = dict(speed.grow.__kwdefaults__ or {})


def test_other_benchmarks_need_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed"]) == 1
    assert "bench speed needs --data FILE" in capsys.readouterr().err
