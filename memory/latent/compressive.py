"""Compressive Transformer: the keys and values of what was read, averaged over short stretches.

Source: Rae et al., "Compressive Transformers for Long-Range Sequence Modelling", ICLR 2020
(arXiv 1911.05507), section 3.1, with mean pooling as the compression function; Kim et al. 2024
(arXiv 2312.03414) compare with it. There are no COMP tokens: every `rate` tokens of a chunk leave
one entry, and an adapter on all tokens learns to make such means of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from ...core.errors import InputError
from ..kv.attention import attach
from .attention import Pass
from .base import Chunk, Example, LatentMemory, answer_nll
from .conditional_lora import ConditionalLora
from .plan import Plan, collate
from .state import Entries, LatentState

__all__ = ["Compressive"]

_NEVER = 1 << 30


class Compressive(LatentMemory):
    """Mean-pooled entries of all chunks, which later chunks and the input see.

    Positions are those of the text; keys are averaged as they are.

    Parameters
    ----------
    model
        A causal language model of transformers with rotary positions.
    rate
        Tokens that become one entry; the last entry of a chunk may stand for fewer.
    adapter
        The adapter; None for a new one, which must be trained.

    Raises
    ------
    InputError
        The rate is below 1.
    ModelError
        The model cannot be adapted.
    """

    def __init__(self, model: Any, rate: int = 4, adapter: ConditionalLora | None = None) -> None:
        if rate < 1:
            raise InputError(f"rate is at least 1, got {rate}")
        attach(model)
        self.model = model
        self.rate = rate
        self.adapter = adapter or ConditionalLora(model, 0)

    def start(self) -> LatentState:
        """The state of a conversation that has not begun."""
        return LatentState()

    def observe(
        self, state: LatentState, chunk: Chunk, *, differentiable: bool = False
    ) -> LatentState:
        """Read a chunk and keep the means of its entries.

        Raises
        ------
        InputError
            The chunk is no token ids.
        """
        ids = self._ids(chunk)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            _, cache = self._forward(state, ids)
            mix = self._mix(ids.shape[1]).to(ids.device)
            memory: list[Entries] = []
            for i, layer in enumerate(cache.layers):
                made = [
                    (mix @ x[:, :, -ids.shape[1] :].float()).to(x.dtype)
                    for x in (layer.keys, layer.values)
                ]
                held = state.memory[i] if state.memory else (made[0][:, :, :0], made[1][:, :, :0])
                keys, values = (torch.cat(x, 2) for x in zip(held, made, strict=True))
                memory.append((keys, values))
        return LatentState(tuple(memory), (), state.steps + 1, state.text + ids.shape[1])

    def read(
        self, state: LatentState, chunk: Chunk, *, differentiable: bool = False
    ) -> torch.Tensor:
        """Logits of an input that sees the means; shape ``(batch, tokens, vocabulary)``.

        Raises
        ------
        InputError
            The chunk is no token ids.
        """
        ids = self._ids(chunk)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            return self._forward(state, ids)[0]

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """The summed NLL of all learnt tokens in nats, from one forward pass."""
        return answer_nll(self.parallel([example.chunks for example in examples]), examples)

    def parallel(self, conversations: Sequence[Sequence[Chunk]]) -> torch.Tensor:
        """Read whole conversations at once.

        Returns
        -------
        tensor, shape ``(batch, tokens, vocabulary)``
            Logits of the inputs, which end together.

        Raises
        ------
        InputError
            They are no token ids.
        """
        attach(self.model)
        layouts = [self._layout([len(chunk) for chunk in chunks]) for chunks in conversations]
        layout = collate(layouts).to(self.model.device)
        given = [
            torch.as_tensor(chunk, device="cpu") for chunks in conversations for chunk in chunks
        ]
        ids = torch.zeros_like(layout.block)
        ids[layout.is_text] = self._ids(torch.cat(given))[0]
        adapted = (layout.block >= 0).flatten().nonzero()[:, 0]
        logits: torch.Tensor = self.model(
            input_ids=ids,
            attention_mask=layout.mask(),
            position_ids=layout.positions,
            use_cache=False,
            logits_to_keep=max(len(chunks[-1]) for chunks in conversations),
            ccm=Pass(self.adapter, adapted, layout),
        ).logits
        return logits

    def _forward(self, state: LatentState, ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        cache = DynamicCache()
        for i, entries in enumerate(state.memory):
            cache.update(*entries, i)
        batch, tokens = ids.shape
        past = cache.get_seq_length()
        mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=ids.device).tril(past)
        positions = torch.arange(state.text, state.text + tokens, device=ids.device)
        output = self.model(
            input_ids=ids,
            attention_mask=mask.expand(batch, 1, -1, -1),
            position_ids=positions.expand(batch, -1),
            past_key_values=cache,
            use_cache=True,
            ccm=Pass(self.adapter, torch.arange(batch * tokens, device=ids.device)),
        )
        return output.logits, cache

    def _mix(self, tokens: int) -> torch.Tensor:
        """What each token of a chunk weighs in each mean; shape ``(means, tokens)``."""
        group = torch.arange(tokens) // self.rate
        mix = (group[None] == torch.arange(int(group[-1]) + 1)[:, None]).float()
        return mix / mix.sum(1, keepdim=True)

    def _layout(self, lengths: Sequence[int]) -> Plan:
        """The parallel form: means are virtual entries, which all later blocks read."""
        text = sum(lengths[:-1])
        block = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        parts = [self._mix(length) for length in lengths[:-1]]
        mix = torch.block_diag(*parts) if parts else torch.zeros(0, 0)
        reads = [torch.full((len(part),), b + 1) for b, part in enumerate(parts)]
        never = torch.full_like(block, _NEVER)
        reads_from = torch.cat([never, *reads])
        reads_to = torch.cat([never - _NEVER - 1, *(torch.full_like(r, _NEVER) for r in reads)])
        return Plan(
            block=block[None],
            positions=torch.arange(len(block))[None],
            comp=torch.arange(text)[None],
            row=torch.full((1, text), -1),
            reads_from=reads_from[None],
            reads_to=reads_to[None],
            mix=mix[None],
            slots=None,
        )
