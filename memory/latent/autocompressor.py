"""AutoCompressor: summaries of all segments so far as a growing soft prompt.

Source: Chevalier et al., "Adapting Language Models to Compress Contexts", EMNLP 2023 (arXiv
2305.14788), sections 3.1 and 3.2 (summary accumulation; back-propagation through time that stops
after two compressions). The paper tunes OPT whole and Llama with a LoRA; here it is a LoRA on
all tokens, and positions are counted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .base import Chunk
from .conditional_lora import ConditionalLora
from .soft_prompt import SoftPromptMemory, SoftState, appended, behind

__all__ = ["AutoCompressor"]


class AutoCompressor(SoftPromptMemory):
    """Summaries accumulate; every segment is read behind those of all earlier ones.

    Parameters
    ----------
    model
        A causal language model of transformers.
    summary_tokens
        Embeddings that stand for a segment: 50 in the paper.
    adapter
        The adapter; None for a new one, which must be trained.
    stop_after
        Compressions through which gradients flow in training.

    Raises
    ------
    ModelError
        The model cannot be adapted.
    """

    def __init__(
        self,
        model: Any,
        summary_tokens: int = 50,
        adapter: ConditionalLora | None = None,
        *,
        stop_after: int = 2,
    ) -> None:
        super().__init__(model, summary_tokens, adapter)
        self.stop_after = stop_after

    def compressed_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """The summaries, the segment, and the summary tokens."""
        return torch.cat([behind(state, chunk), self.learned(chunk)], 1)

    def read_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """The summaries and the input."""
        return behind(state, chunk)

    def updated(self, state: SoftState, summary: torch.Tensor) -> torch.Tensor:
        """One more summary."""
        return appended(state, summary)

    def truncated(self, state: SoftState, step: int) -> SoftState:
        """Gradients end after every `stop_after` compressions (section 3.2)."""
        return state.detached() if step and step % self.stop_after == 0 else state

    def segment_loss(self, segments: Sequence[Chunk]) -> torch.Tensor:
        """The summed NLL in nats of all segments, each read behind the summaries before it.

        The training objective of the paper (section 3.2, equation 2).

        Parameters
        ----------
        segments
            Consecutive stretches of a text.

        Raises
        ------
        InputError
            A segment is no token ids.
        """
        state, total = self.start(), torch.zeros((), device=self.model.device)
        for step, segment in enumerate(segments):
            state = self.truncated(state, step)
            ids = self._ids(segment)
            logits = self.read(state, ids, differentiable=True)[:, :-1]
            total = total + cross_entropy(
                logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
            )
            if step < len(segments) - 1:
                state = self.observe(state, ids, differentiable=True)
        return total
