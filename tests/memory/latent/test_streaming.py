from __future__ import annotations

from typing import Any

import pytest
import torch

from laconic.errors import InputError
from laconic.memory.latent.ccm import CCM, LatentState
from laconic.memory.latent.plan import Spec
from laconic.memory.latent.streaming import Stream

from ..kv.conftest import make
from .conftest import FAMILIES, adapter, model

CONCAT = Spec("concat", 2, sink=1, cap=3, positions="slots")
SPECS = [CONCAT, Spec("merge", 2, positions="slots"), Spec("ema", 2, sink=2, positions="slots")]
TEXT = torch.randint(3, 128, (2, 72), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_that_fits_is_read_as_by_the_model(name: str) -> None:
    base = model(name)
    stream = Stream(CCM(base, CONCAT, adapter(base)), window=40, segment=8)
    logits, state = stream.feed(stream.start(), TEXT[:, :38])
    with torch.no_grad():
        torch.testing.assert_close(logits, base(TEXT[:, :38]).logits, atol=1e-5, rtol=0)
    assert state.latent.steps == 0


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", FAMILIES)
def test_stretches_of_any_length_are_one_text_in_bounded_room(name: str, spec: Spec) -> None:
    base = model(name)
    stream = Stream(CCM(base, spec, adapter(base)), window=32, segment=8)
    want, end = stream.feed(stream.start(), TEXT)
    most: list[int] = []
    attention = base.get_decoder().layers[0].self_attn
    hook = attention.register_forward_pre_hook(
        lambda _, __, kwargs: most.append(kwargs["attention_mask"].shape[-1]), with_kwargs=True
    )
    for length in (1, 50):
        state, found = stream.start(), []
        for part in TEXT.split(length, 1):
            logits, state = stream.feed(state, part)
            found.append(logits)
            assert stream._held(state) <= 30
        torch.testing.assert_close(torch.cat(found, 1), want, atol=1e-4, rtol=0)
        assert state.seen == 72
        assert state.nbytes == end.nbytes
    hook.remove()
    assert max(most) <= 32
    assert end.latent.steps > 4


def test_a_window_of_one_segment_is_a_chat_of_such_chunks() -> None:
    base = model("llama")
    ccm = CCM(base, CONCAT, adapter(base))
    stream, latent = Stream(ccm, window=17, segment=8), LatentState()
    first = TEXT[:, :8]
    _, state = stream.feed(stream.start(), first)
    state = stream._compressed(state)
    latent = ccm.observe(latent, first)
    for part in (TEXT[:, 8:16], TEXT[:, 16:24]):
        logits, state = stream.feed(state, part[:, :4])
        torch.testing.assert_close(logits, ccm.read(latent, part[:, :4]), atol=1e-5, rtol=0)
        _, state = stream.feed(state, part[:, 4:])
        state, latent = stream._compressed(state), ccm.observe(latent, part)
        for one, other in zip(state.latent.tensors, latent.tensors, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_positions_stay_within_the_window() -> None:
    base = make("llama", max_position_embeddings=24)
    stream = Stream(CCM(base, Spec("merge", 2, positions="slots")), window=24, segment=8)
    logits, _ = stream.feed(stream.start(), TEXT)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (Spec("merge", 2), {}),
        (Spec("merge", 2, positions="slots", recurrent=False), {}),
        (Spec("concat", 2, positions="slots"), {}),
        (CONCAT, {"window": 16, "segment": 8}),
        (CONCAT, {"window": 40, "segment": 1}),
        (CONCAT, {"window": 5000}),
    ],
)
def test_streams_that_cannot_be_are_refused(spec: Spec, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Stream(CCM(model("llama"), spec), **options)
