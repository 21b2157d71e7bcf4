from __future__ import annotations

import pytest
import torch

from laconic.errors import InputError
from laconic.memory.latent.plan import Plan, Spec, collate, plan

from .conftest import specs

SPECS = specs()
LENGTHS = ([3, 2, 4, 2], [2, 5], [4], [2, 2, 2, 2, 2, 3])


def seen(laid: Plan, token: int) -> list[int]:
    return [int(i) for i in laid.mask()[0, 0, token].nonzero()[:, 0]]


def test_tokens_see_their_block_and_the_comp_tokens_before_it() -> None:
    laid = plan(Spec(comp_tokens=1), [2, 2, 1])
    # c c COMP c c COMP i
    assert laid.block.tolist() == [[0, 0, 0, 1, 1, 1, 2]]
    assert laid.positions.tolist() == [[0, 1, 2, 2, 3, 4, 4]]
    assert laid.comp.tolist() == [[2, 5]]
    assert seen(laid, 2) == [0, 1, 2]
    assert seen(laid, 5) == [2, 3, 4, 5]
    assert seen(laid, 6) == [2, 5, 6]
    assert laid.is_text[0].tolist() == [True, True, False, True, True, False, True]


def test_chunks_that_stand_alone_are_seen_by_the_input_only() -> None:
    laid = plan(Spec(comp_tokens=1, recurrent=False, sink=1), [2, 2, 1])
    assert seen(laid, 5) == [0, 3, 4, 5]
    assert seen(laid, 6) == [0, 2, 5, 6]


def test_the_oldest_chunk_leaves_a_full_memory() -> None:
    laid = plan(Spec(comp_tokens=1, cap=1), [1, 1, 1])
    assert seen(laid, 4) == [3, 4]


def test_a_merged_memory_is_one_mix_for_each_block() -> None:
    laid = plan(Spec("merge", 1), [1, 1, 1, 1])
    tokens = laid.block.shape[1]
    torch.testing.assert_close(
        laid.mix[0], torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])
    )
    assert seen(laid, 6) == [6, tokens + 2]
    ema = plan(Spec("ema", 1, decay=0.25), [1, 1, 1, 1])
    torch.testing.assert_close(ema.mix[0, 2], torch.tensor([0.5625, 0.1875, 0.25]))


def test_slots_stand_behind_the_sink_and_text_behind_them() -> None:
    laid = plan(Spec(comp_tokens=2, sink=1, cap=1, positions="slots"), [3, 2, 2])
    assert laid.slots is not None
    assert laid.slots.tolist() == [[1, 2, 1, 2]]
    assert laid.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 6, 3, 4]]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_the_memory_that_is_seen_has_the_size_that_is_promised(spec: Spec) -> None:
    laid = collate([plan(spec, row) for row in LENGTHS])
    mask = laid.mask()
    for i, row in enumerate(LENGTHS):
        t = len(row) - 1
        assert int(mask[i, 0, -1].sum()) == row[-1] + (spec.sink if t else 0) + spec.entries(t)
        assert int(laid.positions[i, -1]) == spec.start(t, sum(row[:-1]), True) + row[-1] - 1
    assert int(laid.is_text.sum()) == sum(map(sum, LENGTHS))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_flex_attention_is_told_the_same(spec: Spec) -> None:
    from torch.nn.attention.flex_attention import create_mask

    laid = collate([plan(spec, row) for row in LENGTHS])
    mask = laid.mask()
    found = create_mask(laid.mask_mod(), len(mask), None, *mask.shape[2:], device="cpu")
    assert torch.equal(found, mask)


@pytest.mark.parametrize(
    "wrong",
    [
        {"update": "sum"},
        {"positions": "absolute"},
        {"comp_tokens": 0},
        {"sink": -1},
        {"cap": 0},
        {"update": "merge", "cap": 2},
        {"decay": 0.0},
    ],
)
def test_a_memory_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Spec(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [[], [3, 0, 2], [1, 4]])
def test_a_conversation_without_tokens_or_room_for_the_sink_is_refused(lengths: list[int]) -> None:
    with pytest.raises(InputError):
        plan(Spec(sink=2), lengths)
