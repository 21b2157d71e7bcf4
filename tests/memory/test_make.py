from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load
from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.core.evaluation.random_models import build_model
from laconic.errors import InputError, StateError, UnknownMethodError
from laconic.memory.base import ModelMemory
from laconic.memory.kv import KVMemory
from laconic.memory.latent import CCM, CCMMemory, Spec
from laconic.memory.make import make_memory

from .latent.conftest import adapter

TEXT = "The tram was late and it rained all day long. " * 12


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A small Llama and its tokenizer."""
    text = Path(__file__).parents[2].joinpath("LICENSE").read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("models") / "llama"
    build_model("llama", folder, [text], layers=2, width=32, heads=2, vocabulary=600)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ccm(pair: tuple[Any, Any]) -> CCM:
    with torch.no_grad():
        return CCM(pair[0], Spec("merge", 4), adapter(pair[0], 4))


def assert_alike(one: ModelMemory[Any], other: ModelMemory[Any]) -> None:
    """Both hold the same, and each can go on from the other."""
    first, second = (load(memory.to_bytes()) for memory in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    one.fork().load_bytes(other.to_bytes())


def test_a_policy_makes_the_same_memory_as_its_class(pair: tuple[Any, Any]) -> None:
    options: dict[str, Any] = {"keep": 24, "storage": "int8", "chunk": 32}
    made = make_memory(*pair, "streaming_llm", budget=96, **options)
    other = KVMemory(*pair, "streaming_llm", 96, **options)
    for memory in (made, other):
        memory.observe(TEXT)
    assert isinstance(made, KVMemory)
    assert_alike(made, other)


def test_an_adapter_is_a_folder_or_loaded(pair: tuple[Any, Any], ccm: CCM, tmp_path: Path) -> None:
    ccm.save_pretrained(tmp_path, pair[1])
    other = CCMMemory(ccm, pair[1], chunk=16)
    other.observe(TEXT)
    for given in (tmp_path, str(tmp_path), ccm):
        made = make_memory(*pair, "ccm", adapter=given, chunk=16)
        made.observe(TEXT)
        assert_alike(made, other)


def test_turns_that_are_concatenated_stay_within_the_budget(pair: tuple[Any, Any]) -> None:
    spec = Spec("concat", 3, sink=2, positions="slots")
    made = make_memory(*pair, "ccm", adapter=CCM(pair[0], spec), budget=16, chunk=16)
    made.observe(TEXT)
    assert made.n_tokens == made.budget == 14
    capped = CCM(pair[0], Spec("concat", 3, cap=2))
    assert make_memory(*pair, "ccm", adapter=capped, budget=16, chunk=16).budget == 6


def test_a_fork_of_an_empty_memory_is_one_of_its_own(pair: tuple[Any, Any]) -> None:
    empty = make_memory(*pair, budget=96)
    empty.fork().observe(TEXT)
    assert (empty.seen, empty.n_tokens) == (0, 0)


def test_what_does_not_go_together_is_refused(
    pair: tuple[Any, Any], ccm: CCM, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="needs an adapter"):
        make_memory(*pair, "ccm")
    with pytest.raises(InputError, match="'h2o' has no adapter"):
        make_memory(*pair, "h2o", adapter=ccm)
    with pytest.raises(StateError):
        make_memory(*pair, "ccm", adapter=tmp_path)
    with pytest.raises(UnknownMethodError):
        make_memory(*pair, "no such policy")
