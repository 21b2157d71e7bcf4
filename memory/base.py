"""What all memories have in common, and what those of a local model do."""

from __future__ import annotations

import copy
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..core.errors import InputError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from .content import Content
    from .generation import Answer, Draft

__all__ = ["Engine", "Memory", "ModelMemory", "State"]


class Memory(ABC):
    """A conversation of any length in a state whose size has a limit.

    A call that fails leaves everything as it was. A memory is used by one thread at a time,
    others wait; several memories work side by side.
    """

    @property
    @abstractmethod
    def budget(self) -> int:
        """The most that `n_tokens` can be."""

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """What is held, in tokens or in entries that take the place of one."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all that is held."""

    @abstractmethod
    def observe(self, content: Any) -> None:
        """Read a turn."""

    @abstractmethod
    def fork(self) -> Self:
        """A memory of its own that knows what this one does."""

    @abstractmethod
    def clear(self) -> None:
        """Forget everything."""

    def open(self, path: str | Path) -> None:
        """Go on from a file if it is there, and write what is new to it whenever `save` is called.

        Raises
        ------
        StateError
            As `load` does.
        """
        if Path(path).is_file():
            self.load(path)

    def close(self) -> None:  # noqa: B027
        """Let go of files that are held open; the memory cannot be used any more."""

    @abstractmethod
    def save(self, path: str | Path) -> Any:
        """Write the state to a file; what stood there before stays until the new one is whole."""

    @abstractmethod
    def load(self, path: str | Path) -> None:
        """Take the state from a file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StateError
            The file is damaged, or of another model, tokenizer or memory. The state stays as it
            was.
        """

    def to_bytes(self) -> bytes:
        """What `save` writes, for where there are no files, as in a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory"
            self.save(path)
            return path.read_bytes()

    def load_bytes(self, content: bytes) -> None:
        """Take the state from what `to_bytes` gave; raises what `load` does."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory"
            path.write_bytes(content)
            self.load(path)


class State(Protocol):
    """What a conversation has left in a model."""

    seen: int
    """Tokens read since the start."""

    answered: int
    """Last token of an answer that no turn has followed yet, else `NO_ANSWER`."""

    logits: torch.Tensor | None
    """What the model expects next; shape ``(vocabulary,)``, None before the first token."""

    def copy(self) -> Self:
        """A copy that shares its tensors: what happens to one does not happen to the other."""
        ...


S = TypeVar("S", bound=State)


class Engine(Protocol[S]):
    """A model that reads into states; it serves any number of conversations."""

    model: Any

    def start(self) -> S:
        """The state of a conversation that has not begun."""
        ...

    def feed(self, state: S, ids: torch.Tensor) -> None:
        """Read tokens, shape ``(tokens,)``."""
        ...

    def make_room(self, state: S, prompt: int, answer: int) -> None:
        """Be ready for so many tokens of a prompt, and for an answer as far as it fits.

        Raises
        ------
        BudgetError
            The prompt does not fit.
        """
        ...

    def end_turn(self, state: S) -> None:
        """What was read is a turn."""
        ...


class ModelMemory(Memory, Generic[S]):
    """A memory of a local model, which reads into it and answers from it.

    Parameters
    ----------
    engine
        The model, and how it reads.
    tokenizer
        Its tokenizer.
    """

    def __init__(self, engine: Engine[S], tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._engine = engine
        self._state = engine.start()
        self._lock = threading.Lock()

    @property
    def model(self) -> Any:
        """The model that reads."""
        return self._engine.model

    @property
    def seen(self) -> int:
        """Tokens read since the start."""
        return self._state.seen

    def observe(
        self, content: Content, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Read a turn.

        Parameters
        ----------
        content
            A text, token ids, or chat messages, which are written with the tokenizer's chat
            template. Its length has no limit.
        tools
            JSON schemas of tools, which the chat template writes if nothing was read before.

        Raises
        ------
        InputError
            It is nothing of that.
        """
        from .content import NO_ANSWER

        with self._lock:
            state = self._state.copy()
            ids = self._ids(content, state, tools=tools)
            state.answered = NO_ANSWER
            self._engine.feed(state, ids)
            self._engine.end_turn(state)
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
            The prompt does not fit. `observe` long text first, then ask.
        InputError
            The prompt is nothing that can be read, or an option is out of its range.
        """
        with self._lock:
            state, answer, _ = self._written(
                prompt,
                max_new_tokens=max_new_tokens,
                stream=stream,
                chosen=(temperature, top_k, top_p, seed),
            )
            if commit:
                self._engine.end_turn(state)
                self._state = state
            return answer.text

    def draft(
        self,
        prompt: Content,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        stream: Callable[[str], None] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Draft:
        """Write what `generate` would, and remember nothing of it.

        Parameters
        ----------
        tools
            As `observe` takes them.
        stop
            Texts before the first of which the answer ends.

        The other parameters are those of `generate`.

        Returns
        -------
        Draft
            The answer, and what it took.

        Raises
        ------
        BudgetError, InputError
            As `generate` does.
        """
        from .generation import Draft

        with self._lock:
            _, answer, read = self._written(
                prompt,
                tools=tools,
                max_new_tokens=max_new_tokens,
                stop=stop,
                stream=stream,
                chosen=(temperature, top_k, top_p, seed),
            )
            ended = answer.stopped or answer.ended
            return Draft(answer.text, read, len(answer.tokens), "stop" if ended else "length")

    def token_ids(
        self,
        content: Content,
        *,
        asks: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The tokens that reading it now would take, as `observe` and, if it `asks`, `generate` do.

        Raises
        ------
        InputError
            As `observe` does.
        """
        with self._lock:
            ids: list[int] = self._ids(content, self._state, asks, tools).tolist()
            return ids

    def _written(
        self,
        prompt: Content,
        *,
        max_new_tokens: int,
        stream: Callable[[str], None] | None,
        chosen: tuple[float, int | None, float | None, int],
        tools: Sequence[Mapping[str, Any]] | None = None,
        stop: Sequence[str] = (),
    ) -> tuple[S, Answer, int]:
        """A state that has read the prompt and its answer, the answer, the prompt's tokens."""
        from .generation import Answer, chooser, end_tokens

        is_count = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool)
        if not is_count or max_new_tokens < 0:
            raise InputError(f"max_new_tokens is a number of tokens, got {max_new_tokens!r}")
        choose = chooser(*chosen)
        answer = Answer(self.tokenizer, stream, stop)
        state = self._state.copy()
        ids = self._ids(prompt, state, asks=True, tools=tools)
        if not len(ids) and state.logits is None:
            raise InputError("there is nothing to go on from: the prompt is empty")
        self._engine.make_room(state, len(ids), max_new_tokens)
        self._engine.feed(state, ids)
        ends = end_tokens(self._engine.model, self.tokenizer)
        while len(answer.tokens) < max_new_tokens and not (answer.ended or answer.stopped):
            assert state.logits is not None
            state.answered = choose(state.logits)
            answer.add(state.answered)
            answer.ended = state.answered in ends
            self._engine.feed(state, ids.new_tensor([state.answered]))
        answer.end()
        return state, answer, len(ids)

    def fork(self) -> Self:
        """A memory of its own that knows what this one does; what they share costs nothing."""
        other = copy.copy(self)
        other._state = self._state.copy()
        other._lock = threading.Lock()
        return other

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._state = self._engine.start()

    def _ids(
        self,
        content: Content,
        state: S,
        asks: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> torch.Tensor:
        """The tokens of what is to be read."""
        import torch

        from .content import token_ids

        model = self._engine.model
        ids = token_ids(
            content,
            self.tokenizer,
            model.get_input_embeddings().num_embeddings,
            first=state.seen == 0,
            asks=asks,
            answered=state.answered,
            tools=tools,
        )
        return torch.tensor(ids, dtype=torch.long, device=model.device)
