from __future__ import annotations

import pytest
import torch

from laconic.errors import ModelError
from laconic.memory.kv.attention import Recorder, attach, attend, recording
from laconic.memory.kv.cache import new_cache

from .conftest import FAMILIES, Family, make


def read(model: object, ids: torch.Tensor, sizes: list[int], recorder: Recorder | None) -> None:
    cache, start = new_cache(model), 0
    with torch.inference_mode(), recording(recorder):
        for size in sizes:
            part = ids[start : start + size]
            model(  # type: ignore[operator]
                input_ids=part[None],
                past_key_values=cache,
                position_ids=torch.arange(start, start + size)[None],
            )
            start += size


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_recorded_is_what_the_model_attends_to(family: Family, name: str) -> None:
    model, ids = make(name), torch.arange(10, 60)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(ids[None], output_attentions=True).attentions
    attach(model)
    for sizes in ([50], [30, 20], [46, 1, 1, 1, 1]):
        recorder, total = Recorder(7), Recorder(None)
        read(model, ids, sizes, recorder)
        read(model, ids, sizes, total)
        assert list(recorder.weights) == [i for i, _ in new_cache(model).full()]
        for i, weights in recorder.weights.items():
            by_head = attentions[i][0].float().unflatten(0, (weights.shape[0], -1)).mean(1)
            torch.testing.assert_close(weights, by_head[:, -7:], atol=1e-5, rtol=1e-4)
            sums = by_head.sum(1, keepdim=True)
            torch.testing.assert_close(total.weights[i], sums, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_attached_model_says_what_it_said(name: str) -> None:
    model, ids = make(name), torch.arange(10, 60)[None]
    with torch.inference_mode():
        before = model(ids).logits
        attach(model)
        attach(model)
        after = model(ids).logits
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_layers_may_hold_unequal_numbers_of_entries(family: Family) -> None:
    """The mask is made for the first layer; what a layer lacks or has beyond is in the past."""
    query, key = torch.randn((1, 4, 3, 16)), torch.randn((1, 2, 9, 16))
    value = torch.randn((1, 2, 9, 16))
    module = family("llama").model.layers[0].self_attn
    exact, _ = attend(module, query, key, value, torch.ones(3, 9).tril(6).bool()[None, None])
    for entries in (5, 9, 12):
        mask = torch.ones(3, entries).tril(entries - 3).bool()[None, None]
        found, _ = attend(module, query, key, value, mask)
        torch.testing.assert_close(found, exact)


def test_only_the_thread_that_records_is_recorded(family: Family) -> None:
    from threading import Thread

    model, recorder = family("llama"), Recorder(2)
    attach(model)
    with recording(recorder):
        thread = Thread(target=read, args=(model, torch.arange(10, 20), [10], None))
        thread.start()
        thread.join()
    assert recorder.weights == {}


def test_learned_sinks_are_refused(family: Family) -> None:
    query = torch.randn((1, 4, 3, 16))
    module = family("llama").model.layers[0].self_attn
    with pytest.raises(ModelError, match="learned sinks"):
        attend(module, query, query, query, None, s_aux=torch.zeros(4))
