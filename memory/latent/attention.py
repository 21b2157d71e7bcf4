"""Attention that also sees virtual entries: mixes of COMP keys and values (see `plan`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from ...core.errors import ModelError
from ..kv.attention import attend
from ..kv.rope import Rotator
from .blocks import Blocks
from .conditional_lora import Gate
from .plan import Plan

__all__ = ["How", "Pass", "mask_and_blocks", "moved", "window_of"]

How = Literal["auto", "dense", "blocks", "flex"]
"""How the parallel form attends: block by block where that is less to compute, or as named."""


@dataclass
class Pass(Gate):
    """What the layers must know in one forward pass.

    Attributes
    ----------
    plan
        The plan of a parallel forward; None in the recurrent form.
    rotator
        What moves keys; None if none are moved.
    blocks
        The plan in blocks, if attention is computed block by block.
    """

    plan: Plan | None = None
    rotator: Rotator | None = None
    blocks: Blocks | None = None

    def extended(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with the virtual entries behind them.

        Parameters
        ----------
        layer
            Their layer.
        key, value
            Shape ``(batch, heads, Q, dim)``.

        Returns
        -------
        key, value
            Shape ``(batch, heads, Q + V, dim)``.
        """
        plan = self.plan
        if plan is None or not plan.mix.shape[1]:
            return key, value
        # Phases and averages need float32, whatever the rest runs in.
        with torch.autocast(key.device.type, enabled=False):
            mix = plan.mix[:, None]
            made_keys, made_values = (_taken(x, plan.comp).float() for x in (key, value))
            if plan.slots is not None:
                assert self.rotator is not None
                positions = plan.positions.gather(1, plan.comp)
                made_keys = moved(self.rotator, made_keys, -positions, layer)
            keys, values = mix @ made_keys, mix @ made_values
            if plan.slots is not None:
                assert self.rotator is not None
                keys = moved(self.rotator, keys, plan.slots, layer)
        return torch.cat([key, keys.to(key.dtype)], 2), torch.cat(
            [value, values.to(value.dtype)], 2
        )

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention of a layer to its tokens and to the virtual entries."""
        key, value = self.extended(module.layer_idx, key, value)
        if self.blocks is not None:

            def attention(
                q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
            ) -> torch.Tensor:
                return attend(module, q, k, v, mask, **kwargs)[0]

            return self.blocks.attend(query, key, value, attention), None
        if mask is None or isinstance(mask, torch.Tensor):
            return attend(module, query, key, value, mask, **kwargs)
        return _flex(module, query, key, value, mask, **kwargs)


def _taken(entries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The entries at `places`, shape ``(batch, C)``."""
    _, heads, _, dim = entries.shape
    return entries.gather(2, places[:, None, :, None].expand(-1, heads, -1, dim))


def moved(rotator: Rotator, keys: torch.Tensor, by: torch.Tensor, layer: int) -> torch.Tensor:
    """Keys of shape ``(batch, heads, entries, dim)`` moved by `by`, ``(batch, entries)``."""
    if not keys.shape[2]:
        return keys
    steps = by.repeat_interleave(keys.shape[1], 0)
    turned = rotator.move(keys.flatten(0, 1)[None], steps, layer)
    return turned.view_as(keys)


def _flex(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """FlexAttention over a BlockMask, which skips blocks that nobody sees."""
    if s_aux is not None or softcap is not None:
        raise ModelError(
            f"the attention of {type(module).__name__} has sinks or a soft cap, which "
            f"FlexAttention is not given here; take attention='dense'"
        )
    attended = _kernel(query.is_cuda)(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None


@cache
def _kernel(compiled: bool) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Eager FlexAttention holds all scores, so it is only good for checking.
    kernel: Any = flex_attention
    return torch.compile(kernel) if compiled else kernel


def mask_and_blocks(layout: Plan, how: How) -> tuple[Any, Blocks | None]:
    """The mask of a parallel forward, and the blocks that it is taken apart into, if it is."""
    if how in ("auto", "blocks"):
        blocks = Blocks.of(layout)
        dense = layout.block.numel() * layout.reads_from.shape[1]
        if how == "blocks" or blocks.scores < dense:
            # Any mask of four dimensions keeps the model from making one of its own.
            return blocks.mask, blocks
    if how != "flex":
        return layout.mask(), None
    from torch.nn.attention.flex_attention import create_block_mask

    batch, tokens = layout.block.shape
    entries = layout.reads_from.shape[1]
    device = str(layout.block.device)
    return create_block_mask(layout.mask_mod(), batch, None, tokens, entries, device=device), None


def window_of(model: Any) -> int:
    """Entries that every layer of a model can attend to."""
    try:
        config = model.config.get_text_config(decoder=True)
        longest = int(config.max_position_embeddings)
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__} is no language model with rotary positions"
        ) from error
    window = getattr(config, "sliding_window", None)
    # Mistral has no layer types and a window in all layers.
    types = getattr(config, "layer_types", None) or ["sliding_attention"]
    return min(longest, int(window)) if window and "sliding_attention" in types else longest
