"""What all learned memories have in common: they are told of chunks, and an input reads them.

A memory carries key/value entries or soft prompts from chunk to chunk. It is trained by the
answers that inputs get from it; how gradients reach the chunks is the method's own affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ...core.errors import InputError
from .conditional_lora import ConditionalLora

__all__ = ["Chunk", "Example", "LatentMemory", "answer_nll"]

Chunk = Sequence[int] | torch.Tensor
"""Token ids of a chunk of text."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as tokens.

    Attributes
    ----------
    chunks
        What is compressed, and at the end the input with its answer.
    learnt
        Which tokens of the last chunk are learnt, as many as it has.

    Raises
    ------
    InputError
        A chunk is empty, nothing is learnt, or the first token of the input is.
    """

    chunks: tuple[tuple[int, ...], ...]
    learnt: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.chunks or not all(self.chunks):
            raise InputError("an example has an input with its answer, and no chunk is empty")
        if len(self.learnt) != len(self.chunks[-1]) or not any(self.learnt):
            raise InputError(
                "an example learns at least one token of its last chunk, and says of each whether "
                "it does"
            )
        if self.learnt[0]:
            raise InputError(
                "the first token of the last chunk cannot be learnt: nothing asks for it; put an "
                "input before the answer"
            )


class LatentMemory(ABC):
    """A model with an adapter that compresses what it reads.

    The object holds nothing of any conversation: states are given and returned, and one object
    serves all conversations.

    Attributes
    ----------
    model
        The base model, whose weights are never touched.
    adapter
        All that is trained.
    """

    model: Any
    adapter: ConditionalLora

    @abstractmethod
    def start(self) -> Any:
        """The state of a conversation that has not begun."""

    @abstractmethod
    def observe(self, state: Any, chunk: Chunk, *, differentiable: bool = False) -> Any:
        """Read a chunk and compress it; the state that was given stays as it is."""

    @abstractmethod
    def read(self, state: Any, chunk: Chunk, *, differentiable: bool = False) -> torch.Tensor:
        """Logits of an input that sees the memory; shape ``(batch, tokens, vocabulary)``."""

    @torch.no_grad()
    def generate(
        self, state: Any, chunk: Chunk, max_new_tokens: int, ends: Sequence[int] = ()
    ) -> list[int]:
        """What most likely follows an input that sees the memory, up to one of `ends`.

        Raises
        ------
        InputError
            As for `read`, or there is more than one input.
        """
        ids = self._one(chunk)
        written: list[int] = []
        while len(written) < max_new_tokens and not (written and written[-1] in ends):
            token = self.read(state, ids)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], 1)
            written.append(int(token))
        return written

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """The summed NLL of all learnt tokens in nats: chunk after chunk, then the input."""
        total = torch.zeros((), device=self.model.device)
        for group in _of_equal_lengths(examples):
            state = self.start()
            *chunks, last = (torch.tensor(c) for c in zip(*(e.chunks for e in group), strict=True))
            for step, chunk in enumerate(chunks):
                state = self.truncated(state, step)
                state = self.observe(state, chunk, differentiable=True)
            total = total + answer_nll(self.read(state, last, differentiable=True), group)
        return total

    def truncated(self, state: Any, step: int) -> Any:
        """The state that chunk `step` starts from in training: where gradients end, if at all."""
        del step
        return state

    def _one(self, chunk: Chunk) -> torch.Tensor:
        """Checked token ids of shape ``(1, tokens)``."""
        ids = self._ids(chunk)
        if len(ids) != 1:
            raise InputError(f"one input is answered at a time, got a batch of {len(ids)}")
        return ids

    def _ids(self, chunk: Chunk) -> torch.Tensor:
        """Checked token ids of shape ``(batch, tokens)``."""
        ids = torch.as_tensor(chunk, device=self.model.device)
        if ids.is_floating_point() or ids.dim() not in (1, 2) or not ids.numel():
            raise InputError(f"expected token ids of a chunk, at least one, got {chunk!r:.80}")
        size = self.model.get_input_embeddings().num_embeddings
        if int(ids.min()) < 0 or int(ids.max()) >= size:
            raise InputError(
                f"token ids are from 0 to {size - 1}, got {int(ids.min())} to {int(ids.max())}; "
                f"COMP tokens are put behind each chunk and are not given"
            )
        return ids.long().reshape(-1, ids.shape[-1])


def answer_nll(logits: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
    """The summed NLL of learnt tokens in nats.

    Parameters
    ----------
    logits
        Of inputs that end together; shape ``(batch, tokens, vocabulary)``.
    examples
        The inputs.
    """
    labels = torch.full((len(examples), logits.shape[1] - 1), -100, dtype=torch.long)
    for row, example in zip(labels, examples, strict=True):
        last = torch.tensor(example.chunks[-1][1:])
        last[~torch.tensor(example.learnt[1:])] = -100
        row[len(row) - len(last) :] = last
    flat = labels.flatten().to(logits.device)
    learnt = flat >= 0
    return cross_entropy(
        logits[:, :-1].flatten(0, 1)[learnt].float(), flat[learnt], reduction="sum"
    )


def _of_equal_lengths(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples that can be read side by side."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(tuple(map(len, example.chunks)), []).append(example)
    return list(groups.values())
