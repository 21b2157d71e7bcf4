"""Layers that hold their entries in another way say what the plain one says."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from laconic.errors import InputError
from laconic.memory.kv.cache import FullLayer, Storage, UnrotatedLayer
from laconic.memory.kv.engine import Engine
from laconic.memory.kv.policies import get_policy
from laconic.memory.kv.rope import Rotator

from .conftest import FAMILIES, Family, make

TOLERANCE: dict[Storage, float] = {"unrotated": 1e-4, "int8": 0.05, "int4": 0.6}


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, 128, (count,), generator=generator)


def engine(model: Any, storage: Storage | None, policy: str = "streaming_llm") -> Engine:
    return Engine(model, get_policy(policy), 128, 80, 17, [], storage=storage)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_unrotated_keys_are_read_as_the_rotated_ones(family: Family, name: str) -> None:
    model = family(name)
    states = []
    for storage in ("rotated", "unrotated"):
        reader = engine(model, storage)
        state = reader.start()
        for i in range(8):
            reader.feed(state, tokens(40, i))
        states.append(state)
    rotated, unrotated = states
    assert rotated.logits is not None and unrotated.logits is not None
    assert relative(unrotated.logits, rotated.logits) < 1e-4
    for (_, one), (_, other) in zip(rotated.cache.full(), unrotated.cache.full(), strict=True):
        assert torch.equal(one.notes["place"], other.notes["place"])
        for exact, found in zip(one.read(), other.read(), strict=True):
            torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "glm"])
@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_quantized_entries_are_near(family: Family, name: str, storage: Storage) -> None:
    model, ids = family(name), tokens(120)
    exact, coded = (engine(model, s) for s in ("rotated", storage))
    states = [reader.start() for reader in (exact, coded)]
    for reader, state in zip((exact, coded), states, strict=True):
        reader.feed(state, ids)
    for (_, one), (_, other) in zip(states[0].cache.full(), states[1].cache.full(), strict=True):
        held = sum(t.nbytes for n, t in one.tensors().items() if not n.startswith("notes"))
        less = sum(t.nbytes for n, t in other.tensors().items() if not n.startswith("notes"))
        assert less < held / (3 if storage == "int8" else 4)
    last = states[1].logits, states[0].logits
    assert last[0] is not None and last[1] is not None
    assert 0 < states[1].cache.error < (0.015 if storage == "int8" else 0.15)
    assert 0 < relative(*last) < TOLERANCE[storage]
    assert states[0].cache.error == 0


def test_keys_of_16_bits_do_not_lose_more_each_time_they_move() -> None:
    """Each is rounded once, not once a move."""
    model = make("llama").to(torch.bfloat16)
    move = partial(Rotator(model, 512).move, layer=0)
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn((1, 2, 200, 16), generator=generator)
    places = torch.arange(200).expand(2, -1)
    start = move(exact, places).to(torch.bfloat16)
    rotated, unrotated = FullLayer(), UnrotatedLayer(move, torch.bfloat16)
    notes = {"place": torch.arange(200)}
    for layer in (rotated, unrotated):
        layer.update(start, start)
        layer.note(**notes)
    for i in range(1, 100):
        # The oldest entry goes, and all others move by one.
        index = torch.arange(1, 201 - i).expand(2, -1)
        for layer in (rotated, unrotated):
            layer.select(index)
            layer.place(200 - i, torch.full_like(index, -1), move)
    truth = move(exact[:, :, 99:], places[:, :101])
    drift = [relative(layer.read()[0].float(), truth) for layer in (rotated, unrotated)]
    assert drift[0] > 0.01
    assert drift[1] < 0.005


def test_models_of_16_bits_hold_unrotated_keys_unless_told_otherwise() -> None:
    half, single = make("llama").to(torch.bfloat16), make("llama")
    assert engine(half, None).storage == "unrotated"
    assert engine(half, "rotated").storage == "rotated"
    assert engine(single, None).storage == "rotated"


def test_other_storages_are_refused(family: Family) -> None:
    model, policy = family("llama"), get_policy("tova")
    with pytest.raises(InputError, match="no storage 'int2'; there are rotated, unrotated"):
        Engine(model, policy, 64, 32, 16, [], storage="int2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs rerotate=True"):
        Engine(model, policy, 64, 32, 16, [], rerotate=False, storage="int8")


@pytest.mark.parametrize("storage", ["rotated", "unrotated", "int8", "int4"])
def test_generate_goes_on_from_any_storage(family: Family, storage: Storage) -> None:
    model = family("llama")
    reader = engine(model, storage)
    state = reader.start()
    reader.feed(state, tokens(300))
    greedy, by_hand = state.copy(), []
    for _ in range(6):
        assert greedy.logits is not None
        by_hand.append(int(greedy.logits.argmax()))
        reader.feed(greedy, torch.tensor(by_hand[-1:]))
    start = state.position
    written = model.generate(
        torch.tensor([by_hand[:1]]),
        past_key_values=state.cache,
        attention_mask=torch.ones((1, start + 1), dtype=torch.long),
        position_ids=torch.tensor([[start]]),
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
    )
    assert written[0].tolist() == by_hand
