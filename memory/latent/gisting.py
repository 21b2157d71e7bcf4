"""Gisting: a whole prompt in the key/value entries of a few tokens behind it.

Source: Mu et al., "Learning to Compress Prompts with Gist Tokens", NeurIPS 2023 (arXiv
2304.08467), section 3. The prompt is compressed once; when it grows, all of it is compressed
again. `GistingOnline` is the variant that Kim et al. 2024 (arXiv 2312.03414) compare with:
each chunk by itself, the gists of all chunks side by side.

Both adapt every token, the input's too, where compressed context memory adapts COMP tokens only.
Gisting fine-tunes the whole model in the paper; here it is a LoRA, as in that comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .base import Chunk, Example, LatentMemory
from .ccm import CCM
from .conditional_lora import ConditionalLora
from .plan import Spec
from .state import LatentState

__all__ = ["GistState", "Gisting", "GistingOnline"]


class GistingOnline(CCM):
    """The gists of all chunks, each compressed by itself.

    Parameters
    ----------
    model
        A causal language model of transformers with rotary positions.
    gist_tokens
        Entries that each chunk becomes in every layer.
    adapter
        The adapter; None for a new one, which must be trained.

    Raises
    ------
    ModelError
        The model cannot be adapted.
    InputError
        The adapter has another number of gist tokens.
    """

    adapts = "all"

    def __init__(
        self, model: Any, gist_tokens: int = 2, adapter: ConditionalLora | None = None
    ) -> None:
        super().__init__(model, Spec("concat", gist_tokens, recurrent=False), adapter)


class _Once(CCM):
    adapts = "all"


@dataclass(frozen=True)
class GistState:
    """What is left of a conversation, and what was said, for it is compressed again.

    Attributes
    ----------
    ids
        All that was read; shape ``(batch, tokens)``, None before the first chunk.
    gist
        Its gist.
    """

    ids: torch.Tensor | None = None
    gist: LatentState = field(default_factory=LatentState)

    @property
    def nbytes(self) -> int:
        """Bytes of the gist; the text comes on top."""
        return self.gist.nbytes


class Gisting(LatentMemory):
    """One gist of everything, made anew with each chunk.

    Parameters
    ----------
    model, gist_tokens, adapter
        As for `GistingOnline`.

    Raises
    ------
    ModelError
        The model cannot be adapted.
    InputError
        The adapter has another number of gist tokens.
    """

    def __init__(
        self, model: Any, gist_tokens: int = 2, adapter: ConditionalLora | None = None
    ) -> None:
        # Gist tokens stand in the text and are counted with it (their figure 2).
        spec = Spec("concat", gist_tokens, recurrent=False, positions="plain")
        self._ccm = _Once(model, spec, adapter)
        self.model = model
        self.adapter = self._ccm.adapter

    def start(self) -> GistState:
        """The state of a conversation that has not begun."""
        return GistState()

    def observe(self, state: GistState, chunk: Chunk, *, differentiable: bool = False) -> GistState:
        """Compress all that was read, with one more chunk at its end.

        Raises
        ------
        InputError
            It is longer than the model's window, or no token ids.
        """
        ids = self._ids(chunk)
        ids = ids if state.ids is None else torch.cat([state.ids, ids], 1)
        gist = self._ccm.observe(LatentState(), ids, differentiable=differentiable)
        return GistState(ids, gist)

    def read(self, state: GistState, chunk: Chunk, *, differentiable: bool = False) -> torch.Tensor:
        """Logits of an input that sees the gist; shape ``(batch, tokens, vocabulary)``.

        Raises
        ------
        InputError
            As for `observe`.
        """
        return self._ccm.read(state.gist, chunk, differentiable=differentiable)

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """The summed NLL of all learnt tokens in nats, in one forward pass (their figure 2b)."""
        return self._ccm.loss([_joined(example) for example in examples])


def _joined(example: Example) -> Example:
    """The example with its chunks as one."""
    *chunks, last = example.chunks
    whole = tuple(token for chunk in chunks for token in chunk)
    return Example((whole, last) if whole else (last,), example.learnt)
