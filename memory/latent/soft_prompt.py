"""Memories of soft prompts: hidden states of the last layer, read as embeddings of tokens.

What is carried from chunk to chunk is far smaller than key/value entries of all layers, but the
last layer of one step feeds the first layer of the next, so that steps cannot run side by side
in training.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..kv.attention import attach
from .attention import Pass
from .base import Chunk, LatentMemory
from .conditional_lora import ConditionalLora

__all__ = ["SoftPromptMemory", "SoftState"]


@dataclass(frozen=True)
class SoftState:
    """What is left of a conversation.

    Attributes
    ----------
    prompt
        Embeddings; shape ``(batch, entries, width)``, None before the first chunk.
    steps
        Chunks that were compressed.
    """

    prompt: torch.Tensor | None = None
    steps: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return 0 if self.prompt is None else self.prompt.nbytes

    def detached(self) -> SoftState:
        """The same without the graph of its gradients."""
        return SoftState(None if self.prompt is None else self.prompt.detach(), self.steps)


class SoftPromptMemory(LatentMemory):
    """A memory whose state is a soft prompt.

    Parameters
    ----------
    model
        A causal language model.
    summary_tokens
        Embeddings that stand for a chunk.
    adapter
        The adapter; None for a new one, which must be trained. It may have embeddings beyond
        those of the summary tokens.

    Raises
    ------
    ModelError
        The model cannot be adapted.
    """

    extra: ClassVar[int] = 0
    """Learned embeddings beside those of the summary tokens."""

    adapts_inputs: ClassVar[bool] = True
    """Whether the adapter acts while an input is read, and not only while chunks are."""

    def __init__(
        self, model: Any, summary_tokens: int, adapter: ConditionalLora | None = None
    ) -> None:
        attach(model)
        self.model = model
        self.summary_tokens = summary_tokens
        self.adapter = adapter or ConditionalLora(model, summary_tokens + self.extra)

    def start(self) -> SoftState:
        """The state of a conversation that has not begun."""
        return SoftState()

    def observe(self, state: SoftState, chunk: Chunk, *, differentiable: bool = False) -> SoftState:
        """Read a chunk and keep its summary.

        Raises
        ------
        InputError
            The chunk is no token ids.
        """
        ids = self._ids(chunk)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            embedded = self.compressed_with(state, self.embed(ids))
            hidden = self.model.get_decoder()(
                inputs_embeds=embedded, use_cache=False, ccm=self._everywhere(embedded)
            ).last_hidden_state
            prompt = self.updated(state, hidden[:, -self.summary_tokens :])
        return SoftState(prompt, state.steps + 1)

    def read(self, state: SoftState, chunk: Chunk, *, differentiable: bool = False) -> torch.Tensor:
        """Logits of an input behind the soft prompt; shape ``(batch, tokens, vocabulary)``.

        Raises
        ------
        InputError
            The chunk is no token ids.
        """
        embedded = self.embed(self._ids(chunk))
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            return self.decoded(self.read_with(state, embedded), embedded.shape[1])

    def decoded(self, embedded: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits of the last `keep` of embedded tokens, shape ``(batch, tokens, width)``."""
        gate = self._everywhere(embedded) if self.adapts_inputs else None
        output = self.model(inputs_embeds=embedded, use_cache=False, logits_to_keep=keep, ccm=gate)
        logits: torch.Tensor = output.logits
        return logits

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def learned(self, like: torch.Tensor, start: int = 0, end: int | None = None) -> torch.Tensor:
        """Learned embeddings for each row of a batch; those of the summary tokens by default."""
        rows = self.adapter.comp_embeddings[start : self.summary_tokens if end is None else end]
        return rows.to(like.dtype).expand(len(like), -1, -1)

    @abstractmethod
    def compressed_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """What the model reads to compress an embedded chunk; ends with the summary tokens."""

    @abstractmethod
    def read_with(self, state: SoftState, chunk: torch.Tensor) -> torch.Tensor:
        """What the model reads to answer an embedded input, at its end."""

    @abstractmethod
    def updated(self, state: SoftState, summary: torch.Tensor) -> torch.Tensor:
        """The new prompt, from the hidden states of the summary tokens."""

    def _everywhere(self, embedded: torch.Tensor) -> Pass:
        count = embedded.shape[0] * embedded.shape[1]
        return Pass(self.adapter, torch.arange(count, device=embedded.device))


def behind(state: SoftState, embedded: torch.Tensor) -> torch.Tensor:
    """Embedded tokens behind the soft prompt, if there is one."""
    if state.prompt is None:
        return embedded
    return torch.cat([state.prompt.to(embedded.dtype), embedded], 1)


def appended(state: SoftState, summary: torch.Tensor) -> torch.Tensor:
    """The soft prompt with one more summary at its end."""
    return behind(state, summary)
