"""`CCMMemory`: the same as `CCM` by hand, turn after turn; the promises are in test_conformance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from laconic.core.evaluation.random_models import build_model
from laconic.errors import BudgetError, InputError, StateError
from laconic.memory.generation import end_tokens
from laconic.memory.latent import CCM, CCMMemory, Spec

from .conftest import FAMILIES, adapter, model, specs

SPECS = {
    name: replace(spec, cap=3) if spec.update == "concat" else spec
    for name, spec in specs().items()
    if spec.cap is None
}
TURNS = [list(range(20, 29)), list(range(40, 45)), list(range(60, 90)), list(range(31, 38))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_model("llama", folder, ["My cat is called Tom."], vocabulary=128)
    return AutoTokenizer.from_pretrained(folder)


def make(spec: Spec, tokenizer: Any, name: str = "llama", chunk: int = 16) -> CCMMemory:
    base = model(name)
    return CCMMemory(CCM(base, spec, adapter(base, spec.comp_tokens)), tokenizer, chunk=chunk)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_turns_are_compressed_one_by_one(spec: Spec, tokenizer: Any) -> None:
    memory = make(spec, tokenizer)
    ccm = memory._engine.ccm
    state = ccm.start()
    for t, turn in enumerate(TURNS, 1):
        memory.observe(turn)
        for start in range(0, len(turn), 16):
            state = ccm.observe(state, turn[start : start + 16])
        assert memory.nbytes == state.nbytes == ccm.state_bytes(state.steps)
        assert memory.n_tokens == spec.sink + spec.entries(state.steps) <= memory.budget
        prompt = [50, 51 + t, 52]
        written = ccm.generate(state, prompt, 6, list(end_tokens(ccm.model, tokenizer)))
        assert memory.generate(prompt, max_new_tokens=6, commit=False) == tokenizer.decode(
            written, skip_special_tokens=True
        )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("spec", [Spec("merge", 2), Spec("concat", 2, False, 1, 3, "slots")])
def test_an_input_in_parts_is_the_whole_input(spec: Spec, name: str, tokenizer: Any) -> None:
    ccm = make(spec, tokenizer, name)._engine.ccm
    state = ccm.observe(ccm.start(), torch.tensor(TURNS[0]))
    whole = ccm.read(state, TURNS[2])
    cache, parts, done = None, [], 0
    for part in (TURNS[2][:7], TURNS[2][7:8], TURNS[2][8:]):
        logits, cache = ccm.extend(state, part, cache, done)
        parts.append(logits)
        done += len(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    found, expected = ccm.compressed(state, TURNS[2], cache), ccm.observe(state, TURNS[2])
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_an_answer_is_a_part_of_its_turn(tokenizer: Any) -> None:
    memory = make(Spec("concat", 2, cap=9), tokenizer)
    memory.observe(TURNS[0])
    state, ccm = memory._state.memory, memory._engine.ccm
    memory.generate(TURNS[1], max_new_tokens=4)
    ends = list(end_tokens(ccm.model, tokenizer))
    turn = [*TURNS[1], *ccm.generate(state, TURNS[1], 4, ends)]
    expected = ccm.observe(state, turn)
    for one, other in zip(memory._state.memory.tensors, expected.tensors, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert memory.seen == len(TURNS[0]) + len(turn)


def test_a_memory_that_grows_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="bound it"):
        make(Spec("concat", 2), tokenizer)


@pytest.mark.parametrize("chunk", [1, 0, True, 2.5, "x", 5000])
def test_chunks_out_of_range_are_refused(chunk: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError):
        make(Spec("merge", 2), tokenizer, chunk=chunk)


def test_prompts_that_are_too_long_are_refused(tokenizer: Any) -> None:
    memory = make(Spec("merge", 2), tokenizer)
    with pytest.raises(BudgetError, match=r"observe\(\) what is long first"):
        memory.generate(list(range(20, 36)))
    with pytest.raises(InputError, match="prompt is empty"):
        memory.generate([])
    assert memory.seen == 0


def test_files_of_other_adapters_and_memories_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    memory = make(Spec("merge", 2), tokenizer)
    memory.observe(TURNS[0])
    memory.save(tmp_path / "state")
    base = model("llama")
    others = {
        "adapter": CCMMemory(CCM(base, Spec("merge", 2), adapter(base, 2, seed=4)), tokenizer),
        "memory": make(Spec("ema", 2), tokenizer),
        "model": make(Spec("merge", 2), tokenizer, "qwen3"),
    }
    for part, other in others.items():
        with pytest.raises(StateError, match=f"another {part}"):
            other.load(tmp_path / "state")
        assert other.n_tokens == 0
    make(Spec("merge", 2), tokenizer).load(tmp_path / "state")
