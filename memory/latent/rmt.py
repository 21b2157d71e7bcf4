"""Recurrent Memory Transformer: a soft prompt of fixed size that every segment rewrites.

Source: Bulatov et al., "Recurrent Memory Transformer", NeurIPS 2022 (arXiv 2207.06881), section
3.2: memory tokens stand before a segment to be read and behind it to be written; what the last
layer makes of the latter is the memory of the next segment. The paper tunes the whole model;
here it is a LoRA on all tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from .conditional_lora import ConditionalLora
from .soft_prompt import SoftPromptMemory, SoftState

__all__ = ["RMT"]


class RMT(SoftPromptMemory):
    """A memory of fixed size, replaced with each segment.

    Parameters
    ----------
    model
        A causal language model of transformers.
    memory_tokens
        Embeddings that the memory has.
    adapter
        The adapter; None for a new one, which must be trained.
    stop_after
        Segments through which gradients flow in training; None for all.

    Raises
    ------
    ModelError
        The model cannot be adapted.
    """

    def __init__(
        self,
        model: Any,
        memory_tokens: int = 10,
        adapter: ConditionalLora | None = None,
        *,
        stop_after: int | None = None,
    ) -> None:
        super().__init__(model, memory_tokens, adapter)
        self.stop_after = stop_after

    def compressed_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """The memory, the segment, and the memory again, to be written."""
        memory = self._memory(state, chunk)
        return torch.cat([memory, chunk, memory], 1)

    def read_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """The memory and the input."""
        return torch.cat([self._memory(state, chunk), chunk], 1)

    def updated(self, state: SoftState, summary: torch.Tensor) -> torch.Tensor:
        """What was written."""
        del state
        return summary

    def truncated(self, state: SoftState, step: int) -> SoftState:
        """Gradients end after every `stop_after` segments."""
        ends = self.stop_after is not None and step and step % self.stop_after == 0
        return state.detached() if ends else state

    def _memory(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """What the memory holds, before the first segment its learned start."""
        return self.learned(chunk) if state.prompt is None else state.prompt.to(chunk.dtype)
