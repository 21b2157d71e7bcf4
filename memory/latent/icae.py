"""In-context autoencoder: a frozen model reads soft prompts that its adapted self has written.

Source: Ge et al., "In-context Autoencoder for Context Compression in a Large Language Model",
ICLR 2024 (arXiv 2307.06945), sections 2.1 to 2.3. The encoder is the model with a LoRA and
memory slots behind the text; the decoder is the model itself. Pretraining restores the text
behind a special token (autoencoding) or continues it; then answers are learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .base import Chunk
from .conditional_lora import ConditionalLora
from .soft_prompt import SoftPromptMemory, SoftState, appended, behind

__all__ = ["ICAE"]


class ICAE(SoftPromptMemory):
    """Memory slots of all chunks, each compressed by itself, before a frozen decoder.

    Parameters
    ----------
    model
        A causal language model of transformers.
    slots
        Embeddings that stand for a chunk: 128 in the paper, for 512 tokens.
    adapter
        The adapter; None for a new one, which must be trained. Its last embedding is that of the
        token that asks for the text itself.
    rank, alpha
        Of a new one.

    Raises
    ------
    ModelError
        The model cannot be adapted.
    """

    extra = 1
    adapts_inputs = False

    def __init__(
        self,
        model: Any,
        slots: int = 128,
        adapter: ConditionalLora | None = None,
        *,
        rank: int = 128,
        alpha: float = 32.0,
    ) -> None:
        adapter = adapter or ConditionalLora(model, slots + self.extra, rank=rank, alpha=alpha)
        super().__init__(model, slots, adapter)

    def compressed_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """The chunk and the memory slots."""
        del state
        return torch.cat([chunk, self.learned(chunk)], 1)

    def read_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """The memory and the input."""
        return behind(state, chunk)

    def updated(self, state: SoftState, summary: torch.Tensor) -> torch.Tensor:
        """The slots of one more chunk."""
        return appended(state, summary)

    def autoencoding_loss(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """The summed NLL in nats of a text, restored from its memory (section 2.2.1).

        Raises
        ------
        InputError
            A chunk is no token ids.
        """
        given = [self._ids(chunk) for chunk in chunks]
        text = torch.cat(given, 1)
        embedded = self.embed(text)
        asks = self.learned(embedded, self.summary_tokens, self.summary_tokens + 1)
        read = behind(self._read_all(given), torch.cat([asks, embedded], 1))
        return _nll(self.decoded(read, text.shape[1] + 1)[:, :-1], text)

    def continuation_loss(self, chunks: Sequence[Chunk], rest: Chunk) -> torch.Tensor:
        """The summed NLL in nats of what follows a text, from its memory (section 2.2.2).

        Raises
        ------
        InputError
            A chunk is no token ids.
        """
        ids = self._ids(rest)
        read = behind(self._read_all([self._ids(chunk) for chunk in chunks]), self.embed(ids))
        return _nll(self.decoded(read, ids.shape[1] + 1)[:, :-1], ids)

    def _read_all(self, chunks: Sequence[torch.Tensor]) -> SoftState:
        state = self.start()
        for chunk in chunks:
            state = self.observe(state, chunk, differentiable=True)
        return state


def _nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="sum")
