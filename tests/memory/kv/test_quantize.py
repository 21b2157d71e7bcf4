from __future__ import annotations

import pytest
import torch

from laconic.memory.kv.quantize import PerChannel, PerToken, Plain, Store, relative_error

STORES = {
    "plain": Plain(),
    "channel8": PerChannel(8),
    "channel4": PerChannel(4),
    "token8": PerToken(8),
    "token4": PerToken(4),
}


def entries(count: int, seed: int = 0, dim: int = 64) -> torch.Tensor:
    """Keys with channels of unlike size, as those of a trained model are."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-1, 1, dim)
    return torch.randn((1, 2, count, dim), generator=generator) * sizes + sizes


def filled(store: Store, *sizes: int) -> tuple[Store, torch.Tensor]:
    parts = [entries(size, i) for i, size in enumerate(sizes)]
    for part in parts:
        store = store.add(part)
    return store, torch.cat(parts, 2)


@pytest.mark.parametrize("kind", STORES)
def test_all_entries_are_there_in_order(kind: str) -> None:
    store, exact = filled(STORES[kind], 10, 280, 1)
    assert len(store) == 291
    found = store.read()
    assert found.shape == exact.shape
    closeness = torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
    assert closeness > (0.99 if kind.endswith("4") else 0.9999)


@pytest.mark.parametrize("kind", STORES)
def test_what_is_selected_is_what_it_was(kind: str) -> None:
    """However often others are evicted, nothing more is lost."""
    store, _ = filled(STORES[kind], 100, 100)
    index = torch.stack([torch.arange(0, 200, 3), torch.arange(1, 200, 3)[:67]])
    before = store.read()[0].gather(1, index[..., None].expand(-1, -1, 64))
    kept = store.select(index)
    for i in range(20):
        kept = kept.add(entries(30, i)).select(torch.arange(67).expand(2, -1))
    assert torch.equal(kept.read()[0], before)
    assert len(store) == 200


@pytest.mark.parametrize("bits", [8, 4])
def test_no_value_within_the_range_is_off_by_more_than_half_a_step(bits: int) -> None:
    exact = entries(128)
    step = (exact.amax(2) - exact.amin(2)) / (2**bits - 1)
    by_channel = (PerChannel(bits).add(exact).read() - exact).abs().amax(2)
    assert (by_channel <= 0.501 * step).all()
    groups = exact.unflatten(-1, (2, 32))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    by_token = (PerToken(bits).add(exact).read() - exact).abs().unflatten(-1, (2, 32)).amax(-1)
    # Ranges are stored in 16 bits.
    assert (by_token <= 0.5 * step + groups.abs().amax(-1) * 2**-9).all()


def test_channels_of_unlike_size_lose_less_when_each_has_its_range() -> None:
    """Why keys are coded per channel (KVQuant, section 3.1)."""
    exact = entries(256)
    per_channel, per_token = PerChannel(4).add(exact), PerToken(4).add(exact)
    small = slice(0, 16)
    errors = [
        (store.read() - exact)[..., small].norm() / exact[..., small].norm()
        for store in (per_channel, per_token)
    ]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_rare_loses_no_more_than_in_steps_of_its_own(bits: int) -> None:
    """Entries far from those that came first are found by their keys all the same."""
    first, rare = entries(100), 4 * entries(5, 1)
    store = PerChannel(bits).add(first).add(rare)
    exact, found = rare.flatten(2), store.read()[:, :, 100:].flatten(2)
    assert (found - exact).norm() / exact.norm() < (0.01 if bits == 8 else 0.15)
    assert torch.equal(store.read()[:, :, :100], PerChannel(bits).add(first).read())


def test_few_entries_wait_for_a_range() -> None:
    store = PerChannel(4).add(entries(10))
    assert torch.equal(store.read(), entries(10))
    assert relative_error([store]) == 0
    later = store.add(entries(90, 1))
    assert relative_error([later]) > 0
    assert later.held is None


def test_the_error_is_that_of_all_that_was_coded() -> None:
    store, exact = filled(PerToken(4), 50, 50)
    error = float((store.read() - exact).norm() / exact.norm())
    assert relative_error([store]) == pytest.approx(error, rel=1e-4)
    assert relative_error([store, Plain().add(exact)]) == pytest.approx(error, rel=1e-4)
    assert relative_error([]) == relative_error([Plain(), PerToken(8)]) == 0


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_those_of_the_codes_and_their_ranges(bits: int) -> None:
    exact = entries(256)
    per_entry = 2 * 64 * bits // 8
    channel, token = PerChannel(bits).add(exact), PerToken(bits).add(exact)
    assert (
        sum(t.nbytes for t in channel.tensors().values())
        == 256 * (per_entry + 2 * 2) + 2 * 64 * 8 + 8
    )
    assert sum(t.nbytes for t in token.tensors().values()) == 256 * (per_entry + 2 * 2 * 4) + 8


@pytest.mark.parametrize("kind", STORES)
def test_what_it_holds_can_be_put_back(kind: str) -> None:
    store, _ = filled(STORES[kind], 100)
    again = STORES[kind].restored(store.tensors())
    assert torch.equal(again.read(), store.read())
    assert torch.equal(again.add(entries(5)).read(), store.add(entries(5)).read())


@pytest.mark.parametrize("kind", ["channel8", "channel4", "token8", "token4"])
def test_constant_huge_and_half_precision_values(kind: str) -> None:
    for exact in (
        torch.zeros((1, 2, 80, 64)),
        torch.full((1, 2, 80, 64), 7.5),
        entries(80) * 1e6,
        entries(80).to(torch.bfloat16),
    ):
        found = STORES[kind].add(exact).read()
        assert found.dtype == torch.float32
        assert found.isfinite().all()


@pytest.mark.parametrize("dim", [80, 96, 16, 6])
def test_any_even_width_is_coded(dim: int) -> None:
    exact = entries(70, dim=dim)
    for store in (PerToken(4), PerChannel(4)):
        assert store.add(exact).read().shape == exact.shape
