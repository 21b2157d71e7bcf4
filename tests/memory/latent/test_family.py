"""The other memories: what each must be equal to, and that each learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from laconic.errors import InputError
from laconic.memory.latent.autocompressor import AutoCompressor
from laconic.memory.latent.base import LatentMemory
from laconic.memory.latent.compressive import Compressive
from laconic.memory.latent.conditional_lora import ConditionalLora
from laconic.memory.latent.gisting import Gisting, GistingOnline
from laconic.memory.latent.icae import ICAE
from laconic.memory.latent.rmt import RMT
from laconic.memory.latent.xcompressor import XCompressor
from laconic.memory.training.facts import Facts
from laconic.memory.training.fit import Recipe, fit

from .conftest import FAMILIES, adapter, conversation, model

MEMORIES: dict[str, Callable[[Any, ConditionalLora | None], LatentMemory]] = {
    "gisting": lambda base, lora: Gisting(base, 2, lora),
    "gisting-online": lambda base, lora: GistingOnline(base, 2, lora),
    "compressive": lambda base, lora: Compressive(base, 3, lora),
    "autocompressor": lambda base, lora: AutoCompressor(base, 2, lora),
    "rmt": lambda base, lora: RMT(base, 2, lora),
    "icae": lambda base, lora: ICAE(base, 2, lora),
    "500xcompressor": lambda base, lora: XCompressor(base, 2, lora),
}
ROWS = {"compressive": 0, "icae": 3}
EXAMPLES = Facts().examples(8, 0, turns=3, shortest=7, longest=7)


def made(name: str, base: Any) -> LatentMemory:
    """A memory with an adapter that is not zero."""
    return MEMORIES[name](base, adapter(base, ROWS.get(name, 2)))


def told(memory: LatentMemory, chunks: list[torch.Tensor]) -> Any:
    state = memory.start()
    for chunk in chunks:
        state = memory.observe(state, chunk)
    return state


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["gisting", "gisting-online", "compressive", "500xcompressor"])
def test_one_pass_gives_the_loss_of_step_by_step(name: str, family: str) -> None:
    memory = made(name, model(family))
    at_once, by_step = memory.loss(EXAMPLES), LatentMemory.loss(memory, EXAMPLES)
    torch.testing.assert_close(at_once, by_step, atol=1e-3, rtol=1e-5)
    parameters = list(memory.adapter.parameters())
    found = [torch.autograd.grad(x, parameters, allow_unused=True) for x in (at_once, by_step)]
    for one, other in zip(*found, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", MEMORIES)
def test_training_lowers_the_loss(name: str) -> None:
    memory = MEMORIES[name](model("llama"), None)
    recipe = Recipe(steps=15, batch_size=8, micro_batch=8, learning_rate=2e-2, dropout=0.0)
    losses = fit(memory, EXAMPLES, recipe).losses
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_read_depends_on_what_was_told(name: str) -> None:
    memory, (*chunks, asked) = made(name, model("qwen3")), conversation(2)
    state = told(memory, chunks)
    assert state.nbytes > 0
    read = memory.read(state, asked)
    assert read.shape == (2, 4, 128)
    assert torch.equal(memory.read(state, asked), read)
    other = told(memory, [chunks[0].flip(1), *chunks[1:]])
    assert not torch.allclose(memory.read(other, asked), read)
    one = told(memory, [chunk[:1] for chunk in chunks])
    written = memory.generate(one, asked[:1], 3)
    assert written[0] == int(read[0, -1].argmax())
    assert len(written) == 3
    assert written == LatentMemory.generate(memory, one, asked[:1], 3)
    with pytest.raises(InputError, match="one input"):
        memory.generate(state, asked, 3)


@pytest.mark.parametrize("name", MEMORIES)
def test_a_new_adapter_that_was_told_nothing_is_the_model(name: str) -> None:
    base, asked = model("gemma3"), conversation()[1]
    memory = MEMORIES[name](base, None)
    with torch.no_grad():
        want = base(asked).logits
    if name != "rmt":  # Its memory is there from the start.
        torch.testing.assert_close(memory.read(memory.start(), asked), want, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="from 0 to 127"):
        memory.observe(memory.start(), [500])


@pytest.mark.parametrize("name", ["icae", "500xcompressor"])
def test_inputs_are_read_without_the_adapter(name: str) -> None:
    base, (*chunks, asked) = model("llama"), conversation()
    memory = made(name, base)
    state = told(memory, chunks)
    text = sum(chunk.shape[1] for chunk in chunks)
    with torch.no_grad():
        if name == "icae":
            embedded = base.get_input_embeddings()(asked)
            want = base(inputs_embeds=torch.cat([state.prompt, embedded], 1)).logits[:, -4:]
            bare = memory.read(memory.start(), asked)
        else:
            cache = DynamicCache()
            for i, entries in enumerate(state.memory):
                cache.update(*entries, i)
            start = text + 2 * len(chunks)
            want = base(
                input_ids=asked,
                past_key_values=cache,
                position_ids=torch.arange(start, start + 4)[None],
            ).logits
            bare = memory.read(memory.start(), asked)
        torch.testing.assert_close(memory.read(state, asked), want, atol=1e-5, rtol=0)
        torch.testing.assert_close(bare, base(asked).logits, atol=1e-5, rtol=0)


def test_gisting_compresses_the_whole_prompt_again() -> None:
    memory, (*chunks, asked) = made("gisting", model("llama")), conversation()
    once = told(memory, [torch.cat(chunks, 1)])
    torch.testing.assert_close(
        memory.read(told(memory, chunks), asked), memory.read(once, asked), atol=1e-5, rtol=0
    )
    assert told(memory, chunks[:1]).nbytes == once.nbytes


def test_means_of_one_token_each_are_the_full_context() -> None:
    base, (*chunks, asked) = model("gemma3"), conversation(2)
    memory = Compressive(base, 1)
    with torch.no_grad():
        want = base(torch.cat([*chunks, asked], 1)).logits[:, -4:]
    torch.testing.assert_close(memory.read(told(memory, chunks), asked), want, atol=1e-5, rtol=0)
    assert told(Compressive(base, 4), chunks[:1]).memory[0][0].shape[2] == 2
    with pytest.raises(InputError, match="at least 1"):
        Compressive(base, 0)


@pytest.mark.parametrize("name", ["autocompressor", "rmt"])
def test_soft_prompts_are_what_the_model_makes_of_them(name: str) -> None:
    """With a new adapter each step is the bare model's; its last layer feeds the next step."""
    base, (*chunks, asked) = model("llama"), conversation()
    memory = MEMORIES[name](base, None)
    embed, learned = base.get_input_embeddings(), memory.adapter.comp_embeddings[None]
    prompt = learned if name == "rmt" else learned[:, :0]
    with torch.no_grad():
        for chunk in chunks:
            behind = prompt if name == "rmt" else learned
            read = torch.cat([prompt, embed(chunk), behind], 1)
            made = base.model(inputs_embeds=read).last_hidden_state[:, -2:]
            prompt = made if name == "rmt" else torch.cat([prompt, made], 1)
        want = base(inputs_embeds=torch.cat([prompt, embed(asked)], 1)).logits[:, -4:]
    state = told(memory, chunks)
    assert state.prompt.shape[1] == (2 if name == "rmt" else 2 * len(chunks))
    torch.testing.assert_close(memory.read(state, asked), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [AutoCompressor, RMT])
def test_gradients_end_where_they_shall(kind: Any) -> None:
    base = model("llama")
    lora = adapter(base)
    losses = [kind(base, 2, lora, stop_after=n).loss(EXAMPLES) for n in (1, 3)]
    torch.testing.assert_close(*losses)
    one, other = (torch.autograd.grad(loss, lora.comp_embeddings)[0] for loss in losses)
    assert not torch.allclose(one, other, rtol=1e-3)


def test_texts_can_be_learnt_before_answers() -> None:
    base, (*chunks, rest) = model("llama"), conversation()
    example = XCompressor.regeneration([5, 6, 7], start=1)
    assert example.chunks == ((5, 6, 7), (1, 5, 6, 7))
    memory, icae, auto = (
        MEMORIES[name](base, None) for name in ("500xcompressor", "icae", "autocompressor")
    )
    assert isinstance(icae, ICAE)
    assert isinstance(auto, AutoCompressor)
    losses: list[tuple[LatentMemory, Callable[[], torch.Tensor]]] = [
        (memory, lambda: memory.loss([example])),
        (icae, lambda: icae.autoencoding_loss(chunks)),
        (icae, lambda: icae.continuation_loss(chunks, rest)),
        (auto, lambda: auto.segment_loss([*chunks, rest])),
    ]
    for learner, loss in losses:
        optimizer = torch.optim.Adam(learner.adapter.parameters(), 1e-2)
        found = []
        for _ in range(8):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            found.append(float(value.detach()))
        assert found[-1] < 0.95 * found[0]


def test_a_seeded_run_of_the_family_comes_out_the_same() -> None:
    recipe = Recipe(steps=3, batch_size=4, micro_batch=2, learning_rate=1e-2)
    losses = [fit(MEMORIES["rmt"](model("llama"), None), EXAMPLES, recipe).losses for _ in "ab"]
    assert losses[0] == losses[1]
    other = fit(MEMORIES["rmt"](model("llama"), None), EXAMPLES, replace(recipe, seed=1)).losses
    assert other != losses[0]
