"""`CCMMemory`: a conversation of any length in a few learned entries a turn."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...core.errors import BudgetError, InputError, StateError
from .. import files
from ..base import ModelMemory
from ..content import NO_ANSWER
from .ccm import CCM
from .state import LatentState

__all__ = ["CCMMemory"]

_COUNTERS = ("seen", "answered")


@dataclass
class _State:
    """A conversation: what is left of earlier turns, and the turn that is being read.

    Attributes
    ----------
    memory
        What earlier turns have left.
    turn
        Tokens of the current turn; shape ``(tokens,)``.
    cache
        Its keys and values, behind those of the memory; None before its first token.
    seen, answered, logits
        As `State` has them.
    """

    memory: LatentState
    turn: torch.Tensor
    cache: Any = None
    seen: int = 0
    answered: int = NO_ANSWER
    logits: torch.Tensor | None = field(default=None, repr=False)

    def copy(self) -> _State:
        """A copy that shares its tensors: what happens to one does not happen to the other."""
        assert self.cache is None  # turns have ended when anybody else looks
        return replace(self)


class _Engine:
    """Reads turns, and compresses each at its end or when it is too long.

    Parameters
    ----------
    ccm
        The model and its adapter.
    chunk
        The most tokens that are compressed at once.
    """

    def __init__(self, ccm: CCM, chunk: int) -> None:
        self.ccm = ccm
        self.model = ccm.model
        self.chunk = chunk

    def start(self) -> _State:
        """The state of a conversation that has not begun."""
        nothing = torch.zeros(0, dtype=torch.long, device=self.model.device)
        return _State(self.ccm.start(), nothing)

    def feed(self, state: _State, ids: torch.Tensor) -> None:
        """Read tokens, shape ``(tokens,)``."""
        while len(ids):
            if len(state.turn) == self.chunk:
                self._compress(state)
            room = self.chunk - len(state.turn)
            part, ids = ids[:room], ids[room:]
            logits, state.cache = self.ccm.extend(state.memory, part, state.cache, len(state.turn))
            state.logits = logits[0, -1]
            state.turn = torch.cat([state.turn, part])
            state.seen += len(part)

    def make_room(self, state: _State, prompt: int, answer: int) -> None:
        """A turn begins with nothing of its own, so that it needs no more room than it has."""
        del state, answer
        if prompt >= self.chunk:
            raise BudgetError(
                f"the prompt takes {prompt} tokens, and at most {self.chunk - 1} are read "
                f"uncompressed; observe() what is long first, or raise chunk"
            )

    def end_turn(self, state: _State) -> None:
        """Compress what was read."""
        if len(state.turn):
            self._compress(state)
        state.logits = None

    def _compress(self, state: _State) -> None:
        state.memory = self.ccm.compressed(state.memory, state.turn, state.cache)
        state.turn, state.cache = state.turn[:0], None


class CCMMemory(ModelMemory[_State]):
    """What a model has read, as the keys and values of a few COMP tokens for each turn.

    `observe` and `generate` each read a turn, which is compressed at its end; what is longer
    than `chunk` is compressed part by part. A call that fails leaves everything as it was. A
    memory is used by one thread at a time, others wait; memories of one model work side by side.

    Parameters
    ----------
    ccm
        A model with a trained adapter: `CCM.from_pretrained`.
    tokenizer
        Its tokenizer.
    chunk
        The most tokens that are compressed at once, as many as the adapter was trained for or
        fewer.

    Raises
    ------
    InputError
        The memory would grow without end: a concatenated one needs a `cap`. Or `chunk` is out of
        range.

    Examples
    --------
    >>> ccm = CCM.from_pretrained(model, "adapter")              # doctest: +SKIP
    >>> memory = CCMMemory(ccm, tokenizer)                       # doctest: +SKIP
    >>> memory.observe("My cat is called Tom.")                  # doctest: +SKIP
    >>> memory.generate("What is my cat called?")                # doctest: +SKIP
    """

    _engine: _Engine

    def __init__(self, ccm: CCM, tokenizer: Any, *, chunk: int = 256) -> None:
        spec = ccm.spec
        if spec.update == "concat" and spec.cap is None:
            raise InputError(
                "a concatenated memory grows with every turn; bound it: "
                "CCM(model, dataclasses.replace(ccm.spec, cap=64), ccm.adapter)"
            )
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < max(2, spec.sink):
            raise InputError(f"chunk is at least {max(2, spec.sink)} tokens, got {chunk!r}")
        needed = self._most(ccm) + chunk + spec.comp_tokens
        if needed > ccm.window:
            raise InputError(
                f"a chunk of {chunk} tokens with the memory takes {needed} entries, and the "
                f"model's window has {ccm.window}; take a smaller chunk or cap"
            )
        super().__init__(_Engine(ccm, chunk), tokenizer)

    @property
    def budget(self) -> int:
        """Entries that each layer may hold between turns."""
        return self._most(self._engine.ccm)

    @property
    def n_tokens(self) -> int:
        """Entries that each layer holds."""
        held = self._state.memory
        return self._engine.ccm.spec.entries(held.steps) + (
            self._engine.ccm.spec.sink if held.steps else 0
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that it holds; other memories of the model share none of them."""
        return self._state.memory.nbytes

    def save(self, path: str | Path) -> int:
        """Write the state to a file; what stood there before stays until the new one is whole.

        Returns
        -------
        int
            Its size in bytes.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        with self._lock:
            state, held = self._state, self._state.memory
            header = {
                "counters": {name: getattr(state, name) for name in _COUNTERS},
                "steps": held.steps,
                "text": held.text,
            }
            tensors = {
                f"{part}.{i}.{name}": tensor
                for part, layers in (("memory", held.memory), ("sink", held.sink))
                for i, layer in enumerate(layers)
                for name, tensor in zip(("keys", "values"), layer, strict=True)
            }
            return files.write(path, files.Content(self._belongs_to(), header, tensors))

    def load(self, path: str | Path) -> None:
        """Take the state from a file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StateError
            The file is damaged, or is of another model, tokenizer or adapter. The memory stays
            as it was.
        """
        with self._lock:
            content = files.read(path, self._belongs_to())
            state = self._engine.start()
            device = self._engine.model.device

            def layers(part: str) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
                count = sum(name.startswith(f"{part}.") for name in content.tensors) // 2
                names = [(f"{part}.{i}.keys", f"{part}.{i}.values") for i in range(count)]
                held = content.tensors
                return tuple((held[k].to(device), held[v].to(device)) for k, v in names)

            try:
                state.memory = LatentState(
                    layers("memory"),
                    layers("sink"),
                    int(content.header["steps"]),
                    int(content.header["text"]),
                )
                for name in _COUNTERS:
                    setattr(state, name, int(content.header["counters"][name]))
            except (KeyError, TypeError, ValueError) as error:
                raise StateError(f"{path} is damaged: {error!r}") from error
            self._state = state

    def _belongs_to(self) -> dict[str, str]:
        ccm = self._engine.ccm
        weights = hashlib.sha256()
        for parameter in ccm.adapter.parameters():
            weights.update(parameter.detach().cpu().float().numpy().tobytes())
        return {
            "kind": "ccm",
            "model": files.model_fingerprint(ccm.model),
            "tokenizer": files.tokenizer_fingerprint(self.tokenizer),
            "adapter": weights.hexdigest(),
            "memory": files.digest(asdict(ccm.spec)),
        }

    @staticmethod
    def _most(ccm: CCM) -> int:
        spec = ccm.spec
        return spec.sink + spec.entries(spec.cap or 1)
