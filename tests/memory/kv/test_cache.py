"""Layers that hold their entries in another way say what the plain one says."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.errors import InputError
from laconic.memory.kv.cache import FullLayer, Storage, UnrotatedLayer
from laconic.memory.kv.engine import Engine
from laconic.memory.kv.policies import get_policy
from laconic.memory.kv.rope import Rotator

from .conftest import FAMILIES, Family, make
from .test_files import Llama, ids_of, make_memory, snapshot

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


class TestStorage:
    @pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
    @pytest.mark.parametrize("held", ["rotated", "unrotated", "int8", "int4"])
    @pytest.mark.parametrize("stored", [None, "unrotated", "int8", "int4"])
    def test_any_memory_reads_what_any_wrote(
        self, family: Family, llama: Llama, tmp_path: Path, name: str, held: Any, stored: Any
    ) -> None:
        pair = llama if name == "llama" else (family(name), llama[1])
        memory = make_memory(pair, "streaming_llm", storage=held)
        memory.observe([*range(9, 109)] * 2)
        report = memory.save(tmp_path / "memory", storage=stored)
        assert report.nbytes == (tmp_path / "memory").stat().st_size
        written = stored or ("rotated" if name == "mistral" else held)  # it has windows only
        assert (report.error > 0) == ("int" in written)
        for other_held in ("rotated", held):
            other = make_memory(pair, "streaming_llm", storage=other_held)
            other.load(tmp_path / "memory")
            assert (other.n_tokens, other.seen) == (memory.n_tokens, memory.seen)
            if "int4" not in (stored, held):
                prompt: dict[str, Any] = {"prompt": [60, 50, 40], "max_new_tokens": 1}
                assert other.generate(**prompt) == memory.generate(**prompt, commit=False)

    def test_what_is_stored_quantized_is_small_and_says_what_it_lost(
        self, llama: Llama, tmp_path: Path
    ) -> None:
        memory = make_memory(llama, "truncation", 2000)
        memory.observe(ids_of(llama, 1900))
        reports = [memory.save(tmp_path / "m", storage=s) for s in (None, "int8", "int4")]
        assert reports[0].error == 0 < reports[1].error < reports[2].error < 0.2
        notes = 1900 * 2 * 2 * 8
        whole, *small = [report.nbytes - notes - 6000 for report in reports]
        assert whole / small[0] > 3
        assert whole / small[1] > 4.5

    def test_another_storage_is_refused(self, llama: Llama, tmp_path: Path) -> None:
        memory = make_memory(llama)
        with pytest.raises(InputError, match="no storage 'zip'; there are rotated"):
            memory.save(tmp_path / "memory", storage="zip")  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())

    def test_an_open_answer_is_closed_after_loading_too(self, llama: Llama, tmp_path: Path) -> None:
        tokenizer = copy.deepcopy(llama[1])
        tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}</s>{% endfor %}["
        memory, other = (make_memory((llama[0], tokenizer), "truncation") for _ in range(2))
        said = [{"role": "user", "content": "What does each Contributor grant?"}]
        memory.generate(said, max_new_tokens=3)
        memory.save(tmp_path / "memory")
        other.load(tmp_path / "memory")
        for each in (memory, other):
            each.observe(said)
        assert snapshot(other) == snapshot(memory)
