from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from laconic.memory.evaluation import soak as module
from laconic.memory.evaluation.soak import soak
from laconic.memory.sessions import Sessions
from laconic.memory.text import TextMemory


def test_killed_conversations_lose_nothing_that_was_said(tmp_path: Path) -> None:
    options = {"sessions": 4, "threads": 3, "turns": 100, "budget": 200, "seconds": 1.0}
    laps = list(soak(tmp_path, **options))  # type: ignore[arg-type]
    assert sum(lap.turns for lap in laps) == 400
    assert len(laps) > 1
    assert all(lap.lost == 0 and lap.extra <= 3 for lap in laps)
    with Sessions(partial(TextMemory, 200), tmp_path / "sessions").use("s0") as memory:
        assert memory.turns == 100
        memory.observe("canary-s3-1 strayed.")
        with pytest.raises(RuntimeError, match="what was said in s3"):
            module._check(memory, "s0", "canary-s3-1")


def test_a_broken_promise_ends_it(tmp_path: Path) -> None:
    with Sessions(partial(TextMemory, 200), tmp_path / "sessions").use("s0") as memory:
        memory.observe("canary-s1-1 strayed.")
    with pytest.raises(RuntimeError, match="a promise was broken"):
        list(soak(tmp_path, sessions=2, threads=1, turns=5, budget=200, seconds=60.0))
