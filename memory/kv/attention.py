"""Who attends to what: the attention of the last few queries, and nothing else twice.

Today's attention kernels do not say what they attended to. While a `Recorder` is active, the
weights of the last queries of each forward pass are computed beside the kernel. A forward pass
that is given ``ccm=`` (see `laconic.memory.latent`) also attends to what that adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...core.errors import ModelError

__all__ = ["Recorder", "attach", "attend", "recording"]

_NAME = "laconic"

_active: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


class Recorder:
    """Attention weights of the newest queries to all entries, layer by layer.

    Those of the query heads that share a key head are averaged, so that each entry has one.

    Parameters
    ----------
    last
        How many queries are remembered; None to add up all that ever were.

    Attributes
    ----------
    weights
        For each layer of full attention, shape ``(heads, queries, entries)``; one row of sums
        where `last` is None.
    """

    def __init__(self, last: int | None) -> None:
        self.last = last
        self.weights: dict[int, torch.Tensor] = {}

    def copy(self) -> Recorder:
        """A copy that shares its tensors, which are never written to."""
        other = Recorder(self.last)
        other.weights = dict(self.weights)
        return other

    def select(self, layer: int, index: torch.Tensor) -> None:
        """Keep only the entries at `index`; shape ``(heads, kept)``."""
        held = self.weights[layer]
        self.weights[layer] = held.gather(2, index[:, None].expand(-1, held.shape[1], -1))

    def see(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> None:
        """Remember the attention of the queries of one forward pass."""
        heads, queries = key.shape[1], query.shape[2]
        new = queries if self.last is None else min(self.last, queries)
        # Query heads of a group stand side by side.
        asked = query[0, :, queries - new :].float().unflatten(0, (heads, -1))
        scores = torch.einsum("hgqd,hkd->hgqk", asked, key[0].float()) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is None:
            entries = torch.arange(key.shape[2], device=key.device)
            allowed = entries <= entries[-new:, None]
        else:
            allowed = mask[0, 0, queries - new :]
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1).mean(1)
        if self.last is None:
            weights = weights.sum(1, keepdim=True)
        held = self.weights.get(layer)
        if held is not None:
            held = torch.nn.functional.pad(held, (0, key.shape[2] - held.shape[2]))
            weights = held + weights if self.last is None else torch.cat([held, weights], 1)
        self.weights[layer] = weights if self.last is None else weights[:, -self.last :]


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Let the recorder see the forward passes of this thread."""
    token = _active.set(recorder)
    try:
        yield
    finally:
        _active.reset(token)


def attach(model: Any) -> None:
    """Let the model attend through this module; without a recorder it computes what it did."""
    if model.config._attn_implementation == _NAME:
        return
    AttentionInterface.register(_NAME, _dispatch)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)


def _dispatch(*given: Any, ccm: Any = None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    return attend(*given, **kwargs) if ccm is None else ccm.attend(*given, **kwargs)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as the model computes it, in the signature of `AttentionInterface`."""
    if s_aux is not None:
        raise ModelError(f"the learned sinks of {type(module).__name__} are not known here")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = _fitted(attention_mask, key.shape[2])
    recorder = _active.get()
    if recorder is not None and not kwargs.get("sliding_window"):
        recorder.see(module.layer_idx, query, key, mask, scale, softcap)
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scale, **kwargs)
    heads = key.shape[1]
    scores = torch.einsum("bhgqd,bhkd->bhgqk", query.unflatten(1, (heads, -1)), key) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=key.device)
        mask = mask.tril(key.shape[2] - query.shape[2])[None, None]
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1, dtype=torch.float32)
    attended = torch.einsum("bhgqk,bhkd->bqhgd", weights.to(value.dtype), value)
    return attended.flatten(2, 3), None


def _fitted(mask: torch.Tensor | None, entries: int) -> torch.Tensor | None:
    """The mask for a layer with another number of entries than the one that it was made for.

    What is cached is seen by every query, so columns at the start are cut off or added.
    """
    if mask is None or mask.shape[-1] == entries:
        return mask
    if mask.shape[-1] > entries:
        return mask[..., mask.shape[-1] - entries :]
    return torch.nn.functional.pad(mask, (entries - mask.shape[-1], 0), value=True)
