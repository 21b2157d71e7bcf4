from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from laconic.memory.evaluation.pots import ABLATIONS, POTS, Recalled, conversations, recall
from laconic.memory.training.facts import Facts
from laconic.memory.training.lab import LabRecipe

TASK = Facts()
MODEL = LabRecipe(copied=0, layers=2, width=16, heads=2).model(TASK).eval()
TOKENIZER = TASK.tokenizer()


@pytest.mark.parametrize("ways", [POTS, ABLATIONS], ids=["pots", "ablations"])
def test_every_way_holds_no_more_than_its_pot(ways: dict) -> None:
    drawn = conversations(TASK, 200, count=2, facts=4)
    found = list(recall(MODEL, TOKENIZER, ways, 64, drawn))
    assert [one.name for one in found] == list(ways)
    for one in found:
        assert len(one.parts) == 2
        assert all(0 <= part <= 1 for part in one.parts)
        assert one.length == 7 * 28
    sizes = {one.name: one.nbytes for one in found}
    if "full cache" in sizes:
        assert max(size for name, size in sizes.items() if ways[name].is_bounded) < (
            sizes["full cache"] / 2
        )


def test_what_a_model_knows_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always says the same is right where that is the answer."""
    drawn = conversations(TASK, 100, count=8, facts=4, seed=3)
    said = int(drawn.values[0, 0])
    with pytest.MonkeyPatch.context() as patch:
        from laconic.memory.evaluation import pots

        patch.setattr(pots.KVMemory, "generate", lambda *_, **__: f" {TASK.vocabulary[said]}")
        (one,) = recall(MODEL, TOKENIZER, {"full cache": POTS["full cache"]}, 64, drawn)
    assert one.parts == tuple((drawn.values == said).mean(1).tolist())
    assert one.parts[0] > 0


def test_conversations_are_those_of_their_seed() -> None:
    one, same, other = (conversations(TASK, 300, count=3, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.context, other.context)
    assert conversations(TASK, 30, count=1, facts=8).keys.shape == (1, 2)


def test_models_are_pooled() -> None:
    one = Recalled("x", 128, (1.0, 0.0), 10)
    both = one.beside(Recalled("x", 128, (0.5, 0.5), 10))
    assert both.parts == (0.5, 0.5, 1.0, 0.0)
    assert both.interval.value == 0.5
    assert one.beside(None) is one
