from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch

from laconic.errors import InputError, ModelError
from laconic.memory.kv.engine import Engine
from laconic.memory.kv.policies import get_policy
from laconic.memory.latent.ccm import CCM, LatentState
from laconic.memory.latent.conditional_lora import ConditionalLora
from laconic.memory.latent.plan import Spec

from ..kv.conftest import make
from .conftest import FAMILIES, adapter, conversation, model, parallel, recurrent, specs

SPECS = specs()


@pytest.fixture(scope="module")
def bases() -> dict[str, tuple[Any, ConditionalLora]]:
    made = {name: model(name) for name in FAMILIES}
    return {name: (base, adapter(base)) for name, base in made.items()}


def _gradients(lora: ConditionalLora, logits: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    loss = (logits.log_softmax(-1) * weights).mean()
    parameters = list(lora.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_both_forms_give_the_same_logits_and_gradients(
    bases: dict[str, tuple[Any, ConditionalLora]], name: str, spec: Spec
) -> None:
    base, lora = bases[name]
    ccm, chunks = CCM(base, spec, lora, attention="dense"), conversation()
    at_once, step_by_step = parallel(ccm, chunks), recurrent(ccm, chunks)
    in_blocks = parallel(CCM(base, spec, lora, attention="blocks"), chunks)
    torch.testing.assert_close(at_once, step_by_step, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_blocks, step_by_step, atol=1e-5, rtol=1e-5)
    want = _gradients(lora, step_by_step)
    assert sum(float(g.abs().sum()) for g in want) > 0
    for logits in (at_once, in_blocks):
        for one, other in zip(_gradients(lora, logits), want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("update", ["concat", "merge", "ema"])
@pytest.mark.parametrize("sink", [0, 1])
@pytest.mark.parametrize("attention", ["dense", "blocks"])
def test_conversations_of_unequal_length_in_a_batch_are_what_they_are_alone(
    bases: dict[str, tuple[Any, ConditionalLora]], update: Any, sink: int, attention: Any
) -> None:
    base, lora = bases["llama"]
    spec = Spec(update, sink=sink, positions="slots")
    ccm = CCM(base, spec, lora, attention=attention)
    long = [chunk[0] for chunk in conversation()]
    rows = [long, long[2:4], long[4:]]
    together = ccm.parallel(rows)
    for row, found in zip(rows, together, strict=True):
        alone = ccm.parallel([row])[0]
        torch.testing.assert_close(
            found[-len(row[-1]) :], alone[-len(row[-1]) :], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_without_comp_tokens_the_model_is_what_it_was(name: str) -> None:
    base, ids = model(name), conversation(2)[1]
    with torch.no_grad():
        before = base(ids).logits
        ccm = CCM(base, Spec(), adapter(base))
        assert torch.equal(base(ids).logits, before)
        cached = base.generate(ids, max_new_tokens=4, do_sample=False)
    ccm.adapter.detach_from_model()
    assert torch.equal(base.generate(ids, max_new_tokens=4, do_sample=False), cached)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_chunks_the_input_is_read_as_the_model_reads_it(name: str) -> None:
    base, ids = model(name), conversation(2)[1]
    with torch.no_grad():
        want = base(ids).logits
        for spec in (Spec(), Spec("merge", positions="slots", sink=1)):
            ccm = CCM(base, spec, adapter(base))
            torch.testing.assert_close(parallel(ccm, [ids]), want, atol=1e-5, rtol=0)
            torch.testing.assert_close(ccm.read(LatentState(), ids), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_bytes_follow_the_formula(spec: Spec) -> None:
    base = make("llama", num_hidden_layers=1)
    ccm, state = CCM(base, spec), LatentState()
    chunk = torch.tensor([5, 6])
    sizes = []
    assert state.nbytes == ccm.state_bytes(0) == 0
    for t in range(1, 65):
        state = ccm.observe(state, chunk)
        assert state.nbytes == ccm.state_bytes(t)
        assert sum(tensor.untyped_storage().nbytes() for tensor in state.tensors) == state.nbytes
        sizes.append(state.nbytes)
    layers, heads, dim, size = 1, 2, 16, 4
    entry = layers * 2 * heads * dim * size
    if spec.update != "concat":
        assert set(sizes) == {(2 + spec.sink) * entry}
    else:
        steps = [min(t, spec.cap or t) for t in range(1, 65)]
        assert sizes == [(2 * step + spec.sink) * entry for step in steps]


def test_slots_keep_positions_bounded() -> None:
    base = make("llama", max_position_embeddings=16)
    ccm, state = CCM(base, Spec("merge", positions="slots", sink=1)), LatentState()
    chunk = conversation()[0]
    for _ in range(20):
        state = ccm.observe(state, chunk)
    ccm.read(state, chunk)
    ccm, state = CCM(base, Spec("merge"), ccm.adapter), LatentState()
    with pytest.raises(InputError, match="positions='slots'"):
        for _ in range(20):
            state = ccm.observe(state, chunk)


def test_generate_is_what_reading_again_and_again_gives(
    bases: dict[str, tuple[Any, ConditionalLora]],
) -> None:
    base, lora = bases["gemma3"]
    for positions in ("skip", "slots"):
        ccm, state = CCM(base, Spec(sink=1, positions=positions), lora), LatentState()  # type: ignore[arg-type]
        *chunks, asked = conversation()
        for chunk in chunks:
            state = ccm.observe(state, chunk)
        written = ccm.generate(state, asked, 6)
        for token in written:
            assert int(ccm.read(state, asked)[0, -1].argmax()) == token
            asked = torch.cat([asked, torch.tensor([[token]])], 1)
        assert ccm.generate(state, conversation()[-1], 6, ends=written[2:3])[-1] == written[2]


def test_threads_with_adapters_of_their_own_share_a_model() -> None:
    base = model("llama")
    made = [
        CCM(base, Spec(update), adapter(base, seed=i))
        for i, update in enumerate(("concat", "merge"))
    ]
    chunks = conversation()
    with torch.no_grad():
        want = [recurrent(ccm, chunks) for ccm in made]
    assert not torch.equal(*want)
    wrong: list[int] = []

    def talk(i: int) -> None:
        for _ in range(10):
            with torch.no_grad():
                if not torch.equal(recurrent(made[i], chunks), want[i]):
                    wrong.append(i)
                if not torch.allclose(parallel(made[i], chunks), want[i], atol=1e-5):
                    wrong.append(i)

    threads = [Thread(target=talk, args=(i,)) for i in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(name: str, reentrant: bool) -> None:
    base = model(name)
    lora = adapter(base)
    ccm, chunks = CCM(base, Spec("merge", positions="slots", sink=1), lora), conversation()
    want = _gradients(lora, parallel(ccm, chunks))
    base.activation_checkpointing_enable({"use_reentrant": reentrant})
    base.train()
    recomputed: list[int] = []
    first = base.model.layers[0].self_attn
    first.register_forward_hook(lambda *_: recomputed.append(1))
    weights = torch.linspace(-1, 1, 4 * 128).view(1, 4, 128)
    loss = (parallel(ccm, chunks).log_softmax(-1) * weights).mean()
    # Reentrant checkpoints work with backward() alone.
    loss.backward()
    assert len(recomputed) == 2
    for parameter, expected in zip(lora.parameters(), want, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_what_cannot_be_read_is_refused(bases: dict[str, tuple[Any, ConditionalLora]]) -> None:
    base, lora = bases["gemma3"]
    ccm = CCM(base, Spec(), lora)
    with pytest.raises(InputError, match="window has 64"):
        ccm.observe(LatentState(), torch.full((63,), 5))
    with pytest.raises(InputError, match="window has 64"):
        ccm.parallel([[torch.full((63,), 5), [1]]])
    with pytest.raises(InputError, match="from 0 to 127"):
        ccm.observe(LatentState(), [128])
    with pytest.raises(InputError, match="at least one"):
        ccm.observe(LatentState(), [])
    with pytest.raises(InputError, match="3 tokens"):
        CCM(base, Spec(sink=4), lora).observe(LatentState(), [1, 2, 3])
    with pytest.raises(InputError, match="set comp_tokens=2"):
        CCM(base, Spec(comp_tokens=3), lora)
    with pytest.raises(ModelError, match="no linear q_proj"):
        CCM(make("phi3"), Spec())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("spec", [Spec(), Spec("merge", positions="slots", sink=1)])
def test_flex_attention_computes_the_same(
    bases: dict[str, tuple[Any, ConditionalLora]], spec: Spec
) -> None:
    base, lora = bases["llama"]
    chunks = conversation(2)
    with torch.no_grad():
        want = parallel(CCM(base, spec, lora), chunks)
        found = parallel(CCM(base, spec, lora, attention="flex"), chunks)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("spec", [Spec(positions="slots", cap=2), Spec("merge", sink=1)])
def test_both_forms_agree_in_16_bits(name: str, spec: Spec) -> None:
    base = model(name).bfloat16()
    ccm, chunks = CCM(base, spec, adapter(base)), conversation()
    with torch.no_grad():
        at_once, by_step = parallel(ccm, chunks).float(), recurrent(ccm, chunks).float()
        state = ccm.observe(LatentState(), chunks[0])
        assert state.nbytes == ccm.state_bytes(1)
        want = parallel(CCM(base.float(), spec, ccm.adapter), chunks)
    scale = want.norm()
    assert float((at_once - want).norm() / scale) < 0.05
    assert float((by_step - want).norm() / scale) < 0.05


def test_a_kv_memory_of_the_same_model_disturbs_nothing() -> None:
    base, chunks, ids = model("llama"), conversation(), torch.arange(5, 60)

    def read_by_policy() -> torch.Tensor:
        engine = Engine(base, get_policy("snapkv"), pot=24, keep=12, chunk=8, catalyst=[])
        state = engine.start()
        engine.feed(state, ids)
        assert state.logits is not None
        return state.logits

    want = read_by_policy()
    ccm = CCM(base, Spec("merge", positions="slots"), adapter(base))
    with torch.no_grad():
        before = parallel(ccm, chunks)
        assert torch.equal(read_by_policy(), want)
        assert torch.equal(parallel(ccm, chunks), before)
        torch.testing.assert_close(recurrent(ccm, chunks), before, atol=1e-5, rtol=0)
    assert torch.equal(read_by_policy(), want)
