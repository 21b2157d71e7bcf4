"""`KVMemory`: a conversation of any length in a cache that never outgrows its budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from transformers import LogitsProcessorList, TextStreamer
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ...core.errors import BudgetError, InputError
from . import files
from .cache import Storage
from .engine import Engine, State
from .policies import Policy, get_policy

__all__ = ["Content", "KVMemory"]

Content = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""What can be read: a text, token ids, or chat messages with ``role`` and ``content``."""


class KVMemory:
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
        How many of them stay when it is full: a part (float) or a number (int) of entries.
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
    ModelError
        The model has no cache that can be selected from, or positions that cannot be moved.

    Examples
    --------
    >>> memory = KVMemory(model, tokenizer, budget=1024)         # doctest: +SKIP
    >>> memory.observe(open("long.txt").read())                  # doctest: +SKIP
    >>> memory.generate("What is it about?", commit=False)       # doctest: +SKIP
    """

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
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 2:
            raise BudgetError(f"the budget is a number of entries, at least 2, got {budget!r}")
        if chunk < 1:
            raise InputError(f"chunk is at least 1, got {chunk!r}")
        kept = keep if isinstance(keep, int) else round(keep * budget)
        text = policy.catalyst
        catalyst = tokenizer.encode(text, add_special_tokens=False) if text else []
        self.tokenizer = tokenizer
        self._engine = Engine(model, policy, budget, kept, chunk, catalyst, rerotate, storage)
        self._state = self._engine.start()
        self._lock = threading.Lock()

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
    def seen(self) -> int:
        """Tokens read since the start."""
        return self._state.seen

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

    def observe(self, content: Content) -> None:
        """Read a turn.

        Parameters
        ----------
        content
            A text, token ids, or chat messages, which are written with the tokenizer's chat
            template. Its length has no limit.

        Raises
        ------
        InputError
            It is nothing of that.
        """
        with self._lock:
            state = self._state.copy()
            self._engine.feed(state, self._ids(content, state))
            state.turn += 1
            self._state = state

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
        """
        with self._lock:
            state = self._state.copy()
            asked = None if question is None else self._ids(question, state)
            if asked is not None and state.entries + len(asked) > self.budget:
                raise BudgetError(
                    f"the question takes {len(asked)} tokens, and the pot of {self.budget} holds "
                    f"{state.entries} already; shorten it"
                )
            if state.position:
                self._engine.distill(state, asked)
            self._state = state

    def generate(
        self,
        prompt: Content,
        *,
        max_new_tokens: int = 256,
        commit: bool = True,
        stream: Callable[[str], None] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Read a prompt and write what follows.

        Parameters
        ----------
        prompt
            As `observe` takes it; behind chat messages the assistant is asked to speak.
        max_new_tokens
            Tokens to write at most.
        commit
            Whether prompt and answer are remembered. If not, nothing is left of them.
        stream
            Called with each piece of the answer as soon as it is written.
        temperature, top_k, top_p
            How to sample; temperature 0 for the likeliest token.
        seed
            Of the sampling.

        Returns
        -------
        str
            The answer, without special tokens.

        Raises
        ------
        BudgetError
            The prompt does not fit into the pot. `observe` long text first, then ask.
        """
        if not commit:
            return self.fork().generate(
                prompt,
                max_new_tokens=max_new_tokens,
                stream=stream,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
        with self._lock:
            state = self._state.copy()
            ids = self._ids(prompt, state, asks=True)
            if not len(ids) and state.logits is None:
                raise InputError("there is nothing to go on from: the prompt is empty")
            if len(ids) > self._engine.room - 1:
                raise BudgetError(
                    f"the prompt takes {len(ids)} tokens and the pot has room for "
                    f"{self._engine.room - 1}; observe() what is long first, or raise the budget"
                )
            self._engine.make_room(state, len(ids) + max_new_tokens)
            self._engine.feed(state, ids)
            choose = _chooser(temperature, top_k, top_p, seed)
            written = self._write(state, choose, max_new_tokens, stream)
            state.turn += 1
            self._state = state
            return str(self.tokenizer.decode(written, skip_special_tokens=True))

    def fork(self) -> KVMemory:
        """A memory of its own that knows what this one does; what they share costs nothing."""
        other = object.__new__(type(self))
        other.tokenizer = self.tokenizer
        other._engine = self._engine
        other._state = self._state.copy()
        other._lock = threading.Lock()
        return other

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._state = self._engine.start()

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
        StateError
            The file is damaged, or is of another model, tokenizer, policy or budget. The memory
            stays as it was.
        """
        with self._lock:
            self._state = files.load(path, self._engine, self.tokenizer)

    def _write(
        self,
        state: State,
        choose: Callable[[torch.Tensor], int],
        most: int,
        stream: Callable[[str], None] | None,
    ) -> list[int]:
        streamer = TextStreamer(self.tokenizer, skip_special_tokens=True) if stream else None
        if streamer is not None:
            streamer.on_finalized_text = lambda text, **_: stream(text)  # type: ignore[method-assign, misc]
        ends = self._ends()
        written: list[int] = []
        while len(written) < most:
            assert state.logits is not None
            token = choose(state.logits)
            written.append(token)
            ids = torch.tensor([token], device=state.logits.device)
            self._engine.feed(state, ids)
            if streamer is not None:
                streamer.put(ids)
            if token in ends:
                break
        if streamer is not None:
            streamer.end()
        return written

    def _ends(self) -> set[int]:
        """The tokens that end an answer."""
        config = getattr(self._engine.model, "generation_config", None)
        given = getattr(config, "eos_token_id", None)
        given = self.tokenizer.eos_token_id if given is None else given
        return set(given) if isinstance(given, (list, tuple)) else {given}

    def _ids(self, content: Content, state: State, asks: bool = False) -> torch.Tensor:
        """The tokens of what is to be read."""
        if isinstance(content, str):
            ids = self.tokenizer.encode(content, add_special_tokens=state.seen == 0)
        elif _is_messages(content):
            ids = self._rendered([dict(message) for message in content], state, asks)
        else:
            ids = _as_ids(content)
        size = self._engine.model.get_input_embeddings().num_embeddings
        if any(not 0 <= token < size for token in ids):
            raise InputError(f"token ids are from 0 to {size - 1}, got {min(ids)} to {max(ids)}")
        return torch.tensor(ids, dtype=torch.long, device=self._engine.model.device)

    def _rendered(self, messages: list[dict[str, Any]], state: State, asks: bool) -> list[int]:
        """Chat messages as the template writes them, behind others if some were read before."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError(
                "the tokenizer has no chat template; give the text, or set tokenizer.chat_template"
            )

        def render(listed: list[dict[str, Any]], asks: bool) -> str:
            text = self.tokenizer.apply_chat_template(
                listed, tokenize=False, add_generation_prompt=asks
            )
            return str(text)

        text = render(messages, asks)
        if state.seen:
            # A template may open a conversation in a way of its own, which only comes once.
            opening = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
            before, whole = render(opening, False), render([*opening, *messages], asks)
            text = whole[len(before) :] if whole.startswith(before) else text
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def _is_messages(content: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return (
        isinstance(content, Sequence)
        and len(content) > 0
        and all(isinstance(message, Mapping) for message in content)
    )


def _as_ids(content: Any) -> list[int]:
    ids = content.tolist() if hasattr(content, "tolist") else content
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list):
        ids = ids[0]
    is_list = isinstance(ids, Sequence) and not isinstance(ids, (str, bytes))
    if is_list and any(isinstance(row, (list, tuple)) for row in ids):
        raise InputError(f"a memory reads one sequence at a time, got a batch of {len(ids)}")
    if not is_list or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise InputError(
            f"expected a text, token ids or messages with role and content, got {content!r:.80}"
        )
    return list(ids)


def _chooser(
    temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> Callable[[torch.Tensor], int]:
    """What picks the next token from its logits, shape ``(vocabulary,)``."""
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    try:
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
        if top_k is not None:
            warpers.append(TopKLogitsWarper(top_k))
        if top_p is not None:
            warpers.append(TopPLogitsWarper(top_p))
    except ValueError as error:
        raise InputError(str(error)) from error
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: torch.Tensor) -> int:
        nothing: Any = torch.zeros((1, 0), dtype=torch.long)
        scores: Any = warpers(nothing, logits[None].float())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator))

    return choose
