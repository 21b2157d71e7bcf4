from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from laconic.memory.latent.attention import mask_and_blocks
from laconic.memory.latent.blocks import Blocks
from laconic.memory.latent.plan import Spec, collate, plan

from .conftest import specs

SPECS = specs()
LENGTHS = ([3, 2, 4, 2], [2, 5], [4], [2, 2, 2, 2, 2, 3])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_blocks_attend_to_what_the_mask_says(spec: Spec) -> None:
    laid = collate([plan(spec, row) for row in LENGTHS])
    mask = laid.mask()
    batch, _, tokens, entries = mask.shape
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, 2, tokens, 8, generator=generator)
    key, value = torch.randn(2, batch, 2, entries, 8, generator=generator)

    def attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor
    ) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, m).transpose(1, 2)

    found = Blocks.of(laid).attend(query, key, value, attention)
    want = attention(query, key, value, mask)
    real = laid.block >= 0
    torch.testing.assert_close(found[real], want[real], atol=1e-5, rtol=0)
    assert found.isfinite().all()


def test_many_chunks_are_read_in_blocks_and_long_inputs_at_once() -> None:
    many, long = plan(Spec(), [8] * 16), plan(Spec(), [2, 2, 2, 2, 60])
    assert mask_and_blocks(many, "auto")[1] is not None
    assert Blocks.of(many).scores < many.mask().numel() / 4
    assert mask_and_blocks(long, "auto")[1] is None
    assert mask_and_blocks(long, "blocks")[1] is not None
    assert mask_and_blocks(many, "dense")[1] is None
