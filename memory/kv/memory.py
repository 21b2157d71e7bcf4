"""`KVMemory`: a conversation of any length in a cache that never outgrows its budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ...core.errors import BudgetError, InputError
from ..base import ModelMemory
from ..content import Content, encoded
from . import files
from .cache import Storage
from .engine import Engine, State
from .policies import Policy, get_policy

__all__ = ["KVMemory"]


class KVMemory(ModelMemory[State]):
    """What a model has read, in a KV cache of at most so many entries a layer.

    Reading costs the same at any length: when the pot is full, the policy keeps a part of it and
    reading goes on. Each call reads one turn. A call that fails leaves everything as it was. A
    memory is used by one thread at a time, others wait; memories of one model work side by side.

    Parameters
    ----------
    model
        A causal language model of transformers with rotary positions, in eval mode. Its
        attention implementation is set to one that computes the same as ``"sdpa"``.
    tokenizer
        Its tokenizer.
    policy
        A `Policy`, or a key of `POLICIES`.
    budget
        Entries that a layer of full attention may hold, M; on average over the layers, where
        the policy gives them unequal shares. Layers of sliding-window attention hold their
        window.
    keep
        How many of them stay when it is full, C: a part (float) or a number (int) of entries.
    chunk
        Tokens of a forward pass at most; more is faster and takes more memory meanwhile.
    rerotate
        Whether kept entries move to the first positions, so that no position exceeds the
        budget. False only to measure what that is worth.
    storage
        How layers of full attention hold their entries: ``"rotated"`` as the model gives them;
        ``"unrotated"``, with keys rotated each time that they are read, so that those of 16 bits
        do not lose a little whenever they move; ``"int8"`` or ``"int4"``, unrotated and
        quantized, which takes less room and more time. None for ``"unrotated"`` with models of
        16 bits and ``"rotated"`` else.

    Raises
    ------
    BudgetError
        The budget is too small for what is kept and the policy's catalyst.
    InputError
        Another parameter is out of its range.
    ModelError
        The model has no cache that can be selected from, or positions that cannot be moved.
    UnknownMethodError
        There is no such policy.

    Examples
    --------
    >>> memory = KVMemory(model, tokenizer, budget=1024)         # doctest: +SKIP
    >>> memory.observe(open("long.txt").read())                  # doctest: +SKIP
    >>> memory.generate("What is it about?", commit=False)       # doctest: +SKIP
    """

    _engine: Engine

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        policy: Policy | str = "infinipot",
        budget: int = 1024,
        *,
        keep: float = 0.5,
        chunk: int = 512,
        rerotate: bool = True,
        storage: Storage | None = None,
    ) -> None:
        if isinstance(policy, str):
            policy = get_policy(policy)
        if not isinstance(policy, Policy):
            raise InputError(f"policy is a Policy or the name of one, got {policy!r}")
        if not _is_count(budget) or budget < 2:
            raise BudgetError(f"the budget is a number of entries, at least 2, got {budget!r}")
        if not _is_count(chunk) or chunk < 1:
            raise InputError(f"chunk is a number of tokens, at least 1, got {chunk!r}")
        if not _is_count(keep) and not (isinstance(keep, float) and math.isfinite(keep)):
            raise BudgetError(f"keep is a part (float) or a number (int) of entries, got {keep!r}")
        kept = keep if isinstance(keep, int) else round(keep * budget)
        text = policy.catalyst
        catalyst = encoded(text, tokenizer) if text else []
        engine = Engine(model, policy, budget, kept, chunk, catalyst, rerotate, storage)
        super().__init__(engine, tokenizer)

    @property
    def policy(self) -> Policy:
        """What is kept."""
        return self._engine.policy

    @property
    def budget(self) -> int:
        """Entries that a layer of full attention may hold, on average over the layers."""
        return self._engine.pot

    @property
    def n_tokens(self) -> int:
        """Entries that a layer of full attention holds, on average over the layers."""
        return self._state.entries

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that it holds; other memories of the model share none of them."""
        return sum(t.nbytes for t in files.tensors(self._state).values())

    @property
    def error(self) -> float:
        """Relative error of what is held that quantization has made; 0 without it."""
        return self._state.cache.error

    def places(self, layer: int) -> torch.Tensor:
        """Which of all tokens that were read a layer of full attention still holds.

        Returns
        -------
        tensor, shape ``(heads, entries)``
            Ascending in each head; the first token that was ever read is 0.
        """
        notes = dict(self._state.cache.full())[layer].notes
        return notes["place"].clone() if notes else torch.zeros((0, 0), dtype=torch.int32)

    def distill(self, question: Content | None = None) -> None:
        """Keep what the policy wants now, rather than when the pot is full.

        Parameters
        ----------
        question
            What will be asked, which then takes the place of the policy's catalyst (CaP-Q).

        Raises
        ------
        BudgetError
            The question does not fit into the pot beside what is there.
        InputError
            It is nothing that can be read.
        """
        with self._lock:
            state = self._state.copy()
            asked = None if question is None else self._ids(question, state)
            if asked is not None and not len(asked):
                raise InputError("the question is empty; give None for the policy's catalyst")
            if asked is not None and state.entries + len(asked) > self.budget:
                raise BudgetError(
                    f"the question takes {len(asked)} tokens, and the pot of {self.budget} holds "
                    f"{state.entries} already; shorten it"
                )
            if state.position:
                self._engine.distill(state, asked)
            self._state = state

    def save(self, path: str | Path, storage: Storage | None = None) -> files.Saved:
        """Write the state to a file; what stood there before stays until the new one is whole.

        Parameters
        ----------
        path
            The file.
        storage
            ``"int8"`` or ``"int4"`` to quantize what is written, layers of sliding-window
            attention too; None to write it as it is held. Any memory reads any of them.

        Returns
        -------
        Saved
            How many bytes, and how much was lost.

        Raises
        ------
        InputError
            There is no such storage.
        OSError
            The file cannot be written.
        """
        with self._lock:
            return files.save(path, self._state, self._engine, self.tokenizer, storage)

    def load(self, path: str | Path) -> None:
        """Take the state from a file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StateError
            The file is damaged, or is of another model, tokenizer, policy or budget. The memory
            stays as it was.
        """
        with self._lock:
            self._state = files.load(path, self._engine, self.tokenizer)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
