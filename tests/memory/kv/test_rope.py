from __future__ import annotations

import pytest
import torch

from laconic.memory.kv.cache import new_cache
from laconic.memory.kv.rope import Rotator

from .conftest import FAMILIES, Family, make


@pytest.mark.parametrize("name", FAMILIES)
def test_moving_twice_is_moving_by_the_sum_and_back_is_nothing(family: Family, name: str) -> None:
    model = family(name)
    rotator = Rotator(model, 512)
    layers = len(new_cache(model).layers)
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn((1, 2, 9, 16), generator=generator)
    a = torch.randint(-200, 200, (2, 9), generator=generator)
    b = torch.randint(-200, 200, (2, 9), generator=generator)
    for layer in {0, layers - 1}:
        there = rotator.move(rotator.move(keys, a, layer), b, layer)
        torch.testing.assert_close(there, rotator.move(keys, a + b, layer), atol=1e-4, rtol=1e-4)
        back = rotator.move(there, -a - b, layer)
        torch.testing.assert_close(back, keys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_moved_keys_are_those_of_the_model_at_that_place(family: Family, name: str) -> None:
    """A token that sees only itself has the same key but for its place, in every layer."""
    model = family(name)
    rotator = Rotator(model, 512)
    caches = [new_cache(model), new_cache(model)]
    for cache, place in zip(caches, (3, 211), strict=True):
        with torch.inference_mode():
            model(
                input_ids=torch.tensor([[42]]),
                past_key_values=cache,
                position_ids=torch.tensor([[place]]),
            )
    for i, (near, far) in enumerate(zip(caches[0].layers, caches[1].layers, strict=True)):
        moved = rotator.move(near.keys, torch.full(near.keys.shape[1:3], 208), i)
        torch.testing.assert_close(moved, far.keys, atol=2e-4, rtol=1e-4)


def test_what_does_not_move_stays_bit_for_bit() -> None:
    model = make("llama").to(torch.bfloat16)
    keys = torch.randn((1, 2, 5, 16)).to(torch.bfloat16)
    by = torch.tensor([[0, 3, 0, -2, 0]] * 2)
    moved = Rotator(model, 64).move(keys, by, 0)
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved[:, :, ::2], keys[:, :, ::2])
    assert not torch.equal(moved[:, :, 1], keys[:, :, 1])
