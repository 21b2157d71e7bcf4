"""Each policy beside the rule of its paper, written out on small numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import InputError, UnknownMethodError
from laconic.memory.kv.policies import POLICIES, LayerView, Policy, get_policy
from laconic.memory.kv.policies.adaptive import _split
from laconic.memory.kv.policies.base import best


def view(
    entries: int = 10, heads: int = 2, queries: int = 3, seed: int = 0, **changes: Any
) -> LayerView:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand((heads, queries, entries), generator=generator)
    nll = torch.rand((heads, entries), generator=generator) * 5
    nll[:, 0] = torch.inf
    given = {
        "keys": torch.randn((heads, entries, 4), generator=generator),
        "values": torch.randn((heads, entries, 4), generator=generator),
        "attention": weights,
        "nll": nll,
        "turn": torch.zeros((heads, entries), dtype=torch.int32),
        "now": 0,
    }
    return LayerView(**{**given, **changes})


def kept(policy: Policy, layer: LayerView, keep: int) -> list[list[int]]:
    scores = policy.score(layer, keep)
    assert scores.shape == layer.keys.shape[:2]
    assert not scores.isnan().any()
    chosen: list[list[int]] = best(scores, keep).sort(-1).values.tolist()
    return chosen


@pytest.mark.parametrize("name", POLICIES)
@given(st.integers(2, 40), st.data())
def test_any_number_of_entries_is_kept(name: str, entries: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, entries - 1))
    queries = data.draw(st.integers(1, entries))
    policy = get_policy(name)
    layer = view(entries, queries=1 if policy.watches is None else queries)
    for places in kept(policy, layer, keep):
        assert len(set(places)) == keep


def test_infinipot_keeps_the_novel_and_then_the_attended() -> None:
    """Section 3: alpha C of the highest NuC, the others by CaP among the rest, in each head."""
    for seed in range(20):
        layer = view(30, queries=5, seed=seed)
        assert layer.attention is not None and layer.nll is not None
        expected = []
        for nll, attention in zip(layer.nll.numpy(), layer.attention.numpy(), strict=True):
            novel = np.argsort(-nll)[:6].tolist()
            total = attention.sum(0)
            total[novel] = -1
            expected.append(sorted([*novel, *np.argsort(-total)[:6].tolist()]))
        assert kept(get_policy("infinipot"), layer, 12) == expected


@pytest.mark.parametrize(("alpha", "part"), [(0.0, "attention"), (1.0, "nll")])
def test_infinipot_with_one_score_alone(alpha: float, part: str) -> None:
    layer = view(30)
    scores = layer.nll if part == "nll" else layer.attention.sum(1)  # type: ignore[union-attr]
    assert scores is not None
    expected = scores.argsort(-1, descending=True)[:, :9].sort(-1).values.tolist()
    assert kept(get_policy("infinipot", alpha=alpha), layer, 9) == expected


def test_infinipot_maximum_sink_recent_and_pool() -> None:
    layer = view(30, queries=4)
    assert layer.attention is not None
    for places in kept(get_policy("infinipot", sink=3, recent=2, alpha=0.5), layer, 9):
        assert {0, 1, 2, 28, 29} < set(places)
    by_maximum = get_policy("infinipot", alpha=0.0, reduce="max").score(layer, 9)
    torch.testing.assert_close(by_maximum, layer.attention.amax(1))
    pooled = get_policy("infinipot", alpha=0.0, pool=3).score(layer, 9)
    middle = layer.attention.sum(1).unfold(1, 3, 1).mean(-1)
    torch.testing.assert_close(pooled[:, 1:-1], middle)


def test_streaming_llm_keeps_the_first_and_the_newest() -> None:
    assert kept(get_policy("streaming_llm"), view(), 7) == [[0, 1, 2, 3, 7, 8, 9]] * 2
    assert kept(get_policy("streaming_llm"), view(), 3) == [[0, 1, 2]] * 2


def test_truncation_drops_the_middle() -> None:
    assert kept(get_policy("truncation"), view(), 6) == [[0, 1, 2, 7, 8, 9]] * 2


def test_h2o_keeps_heavy_hitters_and_the_newest() -> None:
    sums = torch.tensor([[[9.0, 1, 8, 1, 1, 7, 1, 1, 1, 1]]])
    assert kept(get_policy("h2o"), view(heads=1, attention=sums), 4) == [[0, 2, 8, 9]]
    assert kept(get_policy("h2o", recent=0.0), view(heads=1, attention=sums), 3) == [[0, 2, 5]]


def test_tova_keeps_the_same_in_all_heads() -> None:
    layer = view()
    assert layer.attention is not None
    mean = layer.attention[:, -1].mean(0)
    mean[-1] = torch.inf
    expected = mean.argsort(descending=True)[:5].sort().values.tolist()
    assert kept(get_policy("tova"), layer, 5) == [expected] * 2


def test_sirllm_discounts_earlier_turns() -> None:
    nll = torch.tensor([[torch.inf, 1, 1, 1, 4.0, 3.9, 1, 3.0, 1, 1]])
    turn = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    layer = view(heads=1, nll=nll, turn=turn, now=1)
    assert kept(get_policy("sirllm", sink=1, decay=1.0), layer, 3) == [[0, 4, 5]]
    assert kept(get_policy("sirllm", sink=1, decay=0.7), layer, 3) == [[0, 5, 7]]


def test_knorm_keeps_short_keys_and_keydiff_unlike_ones() -> None:
    keys = torch.tensor([[[1.0, 0], [3, 0], [2, 0], [0, 9], [4, 0.1]]])
    layer = view(5, heads=1, keys=keys)
    assert kept(get_policy("knorm"), layer, 2) == [[0, 2]]
    assert kept(get_policy("keydiff"), layer, 1) == [[3]]


@given(st.data())
def test_a_split_adds_up_and_no_part_takes_more_than_it_can(data: st.DataObject) -> None:
    rows, parts = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    sizes = st.lists(st.integers(0, 40), min_size=rows * parts, max_size=rows * parts)
    most = torch.tensor(data.draw(sizes)).view(rows, parts)
    total = data.draw(st.integers(0, int(most.sum(1).min())))
    weights = st.lists(st.floats(0, 1e3), min_size=rows * parts, max_size=rows * parts)
    needs = torch.tensor(data.draw(weights)).view(rows, parts)
    floor = data.draw(st.floats(0.01, 1.0))
    shares = _split(needs, most, total, floor)
    assert (shares.sum(1) == total).all()
    assert (shares <= most).all() and (shares >= 0).all()
    least = torch.minimum(most, torch.tensor(int(floor * total / parts)))
    assert (shares >= least - 1).all()


def test_a_split_follows_needs_above_the_floor() -> None:
    needs, most = torch.tensor([[3.0, 1.0, 0.0]]), torch.full((1, 3), 100)
    assert _split(needs, most, 60, 0.5).tolist() == [[32, 18, 10]]
    assert _split(needs, most, 60, 1.0).tolist() == [[20, 20, 20]]
    assert _split(needs, torch.tensor([[20, 100, 100]]), 60, 0.5).tolist() == [[20, 30, 10]]


def test_layers_that_look_at_more_keep_more() -> None:
    sharp, even = torch.zeros((2, 1, 20)), torch.full((2, 1, 20), 0.05)
    sharp[:, :, 3] = 1.0
    policy = get_policy("adaptive_layers", policy="snapkv")
    layers = [view(20, attention=attention) for attention in (sharp, even)]
    few, many = policy.keeps(layers, 8)
    assert (few + many, many) == (16, 13)
    assert few >= 1
    same = get_policy("adaptive_layers", policy="snapkv", floor=1.0)
    assert same.keeps(layers, 8) == [8, 8]
    scores = policy.score(layers[0], 8)
    assert torch.equal(scores, get_policy("snapkv").score(layers[0], 8))


def test_each_turn_keeps_its_share() -> None:
    """The newest turn would take all; the others get at least their floor."""
    turn = torch.tensor([[0] * 10 + [1] * 10 + [2] * 10])
    attention = torch.tensor([[[0.0] * 10 + [0.0] * 10 + [0.1] * 10]])
    layer = view(30, heads=1, attention=attention, turn=turn, now=2)
    assert kept(get_policy("streaming_llm", sink=0), layer, 9) == [list(range(21, 30))]
    wrapped = get_policy("streaming_llm", sink=0)
    policy = get_policy("adaptive_turns", policy=wrapped, floor=1 / 3)
    assert kept(policy, layer, 9) == [[9, 19, *range(23, 30)]]
    everyone = get_policy("adaptive_turns", policy=wrapped, floor=1.0)
    assert kept(everyone, layer, 9) == [[7, 8, 9, 17, 18, 19, 27, 28, 29]]


@pytest.mark.parametrize("name", ["adaptive_layers", "adaptive_turns"])
@pytest.mark.parametrize("inner", [n for n in POLICIES if not n.startswith("adaptive")])
def test_any_policy_can_be_wrapped(name: str, inner: str) -> None:
    policy = get_policy(name, policy=inner)
    wrapped = get_policy(inner)
    assert (policy.catalyst, policy.needs_nll) == (wrapped.catalyst, wrapped.needs_nll)
    assert policy.watches != 0
    assert inner in repr(policy).lower().replace("streamingllm", "streaming_llm")
    turn = torch.arange(30).expand(2, -1) // 4
    layer = view(30, queries=1 if policy.watches is None else 6, turn=turn, now=7)
    for places in kept(policy, layer, 12):
        assert len(set(places)) == 12
    assert sum(policy.keeps([layer] * 3, 12)) == 36


def test_of_equals_the_older_stays() -> None:
    assert best(torch.zeros((1, 6)), 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("infinipot", {"alpha": 1.5}),
        ("infinipot", {"alpha": float("nan")}),
        ("infinipot", {"catalyst": " "}),
        ("infinipot", {"reduce": "mean"}),
        ("h2o", {"recent": -0.1}),
        ("sirllm", {"decay": 0}),
        ("snapkv", {"watches": 0}),
        ("snapkv", {"pool": 4}),
        ("adaptive_layers", {"floor": 0.0}),
        ("adaptive_turns", {"floor": 1.1}),
        ("adaptive_layers", {"policy": 3}),
        ("adaptive_layers", {"policy": "adaptive_turns"}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        get_policy(name, **options)


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(UnknownMethodError, match="no policy 'lru'; there are infinipot"):
        get_policy("lru")
    with pytest.raises(UnknownMethodError, match=r"knorm: .*window"):
        get_policy("knorm", window=3)
