"""Continual context distillation: reading without end into a pot that never overflows.

Source: Kim et al., "InfiniPot: Infinite Context Processing on Memory-Constrained LLMs", EMNLP
2024, section 3 and algorithm 1. A pot of M entries is filled; when it is full, C of them are
kept, moved to the positions 0 to C - 1 (CR-RoPE), and reading goes on. Every policy runs in
this loop. Where a policy gives layers unequal shares, M and C are averages over the layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ...core.errors import BudgetError, InputError, ModelError
from ..content import NO_ANSWER
from .attention import Recorder, attach, recording
from .cache import BoundedCache, FullLayer, Storage, full_layer, new_cache
from .policies.base import LayerView, Policy, best
from .rope import Rotator

__all__ = ["Engine", "State"]


@dataclass
class State:
    """What one conversation has left in the model's cache.

    Attributes
    ----------
    cache
        The entries.
    position
        Where the next token stands: how many entries the fullest layer holds.
    seen
        Tokens read since the start.
    turn
        The turn that is being read, from 0.
    recorder
        The attention that the policy watches; None when it watches none.
    answered
        The last token of an answer that no turn has followed yet, else `NO_ANSWER`.
    logits
        What the model expects next; shape ``(vocabulary,)``, None before the first token.
    """

    cache: BoundedCache
    recorder: Recorder | None
    position: int = 0
    seen: int = 0
    turn: int = 0
    answered: int = NO_ANSWER
    logits: torch.Tensor | None = field(default=None, repr=False)

    @property
    def entries(self) -> int:
        """Entries that a layer of full attention holds, on average over the layers."""
        entries = self.cache.entries
        # A model of sliding windows alone is bounded by itself; its positions are kept small.
        return self.position if entries is None else entries

    def copy(self) -> State:
        """A copy that shares its tensors: what happens to one does not happen to the other."""
        recorder = self.recorder.copy() if self.recorder else None
        return replace(self, cache=self.cache.snapshot(), recorder=recorder)


class Engine:
    """A model with a policy; it holds nothing of any conversation and serves all of them.

    Parameters
    ----------
    model
        A causal language model of transformers with rotary positions, in eval mode.
    policy
        What is kept.
    pot
        Entries that a layer may hold, M.
    keep
        Entries that a layer holds after a distillation, C.
    chunk
        Tokens of a forward pass at most.
    catalyst
        The tokens of the policy's catalyst; none for a policy without one.
    rerotate
        Whether kept entries are moved to the start (CR-RoPE). Without it positions grow with
        what is read.
    storage
        How layers of full attention hold their entries; None for ``"unrotated"`` in 16 bits and
        ``"rotated"`` else.

    Raises
    ------
    BudgetError
        What is kept and the catalyst leave no room in the pot.
    InputError
        Keys that are not moved cannot be held as if they were.
    ModelError
        The model cannot have a bounded memory.
    """

    def __init__(
        self,
        model: Any,
        policy: Policy,
        pot: int,
        keep: int,
        chunk: int,
        catalyst: list[int],
        rerotate: bool = True,
        storage: Storage | None = None,
    ) -> None:
        _check(model)
        usual: Storage = "unrotated" if rerotate and model.dtype.itemsize < 4 else "rotated"
        self.storage: Storage = storage or usual
        if self.storage != "rotated" and not rerotate:
            raise InputError(f"storage {storage!r} needs rerotate=True, for it moves all keys")
        if keep < 1 or keep + len(catalyst) >= pot:
            raise BudgetError(
                f"a pot of {pot} entries must hold the {keep} that are kept, the "
                f"{len(catalyst)} of the catalyst and at least one more; raise the budget or "
                f"keep less"
            )
        self.model = model
        self.policy = policy
        self.pot = pot
        self.keep = keep
        self.chunk = chunk
        self.catalyst = torch.tensor(catalyst, dtype=torch.long, device=model.device)
        self.rerotate = rerotate
        self.rotator = Rotator(model, pot + int((policy.spread - 1) * keep))
        self.start()  # refuses what cannot be held before the model is touched
        attach(model)

    @property
    def room(self) -> int:
        """Entries that can be filled before a distillation: the catalyst must fit behind."""
        return self.pot - len(self.catalyst)

    def start(self) -> State:
        """The state of a conversation that has not begun."""
        watches = 0 if len(self.catalyst) else self.policy.watches
        cache = new_cache(self.model, self.storage, self.rotator.move)
        return State(cache, None if watches == 0 else Recorder(watches))

    def layer(self, number: int, storage: Storage) -> FullLayer:
        """An empty layer of full attention."""
        return full_layer(number, storage, self.model.dtype, self.rotator.move)

    def feed(self, state: State, ids: torch.Tensor) -> None:
        """Read tokens, shape ``(tokens,)``, distilling whenever the pot is full."""
        while len(ids):
            room = self.room - state.entries
            if room <= 0:
                self.distill(state)
                continue
            part, ids = ids[: min(room, self.chunk)], ids[min(room, self.chunk) :]
            is_due = len(ids) > 0 and len(part) == room
            if is_due and len(self.catalyst) and not state.cache.sliding():
                self._keep(state, self._read_asking(state, part))
            else:
                self._note(state, part, self._forward(state, part, state.recorder, self._kept))

    def make_room(self, state: State, prompt: int, answer: int) -> None:
        """Distil now rather than in the middle of a prompt or its answer, if they do not fit.

        Raises
        ------
        BudgetError
            A pot that is empty has no room for so many tokens of a prompt.
        """
        if prompt >= self.room:
            raise BudgetError(
                f"the prompt takes {prompt} tokens and the pot has room for {self.room - 1}; "
                f"observe() what is long first, or raise the budget"
            )
        if state.entries + prompt + answer > self.room and state.entries > self.keep:
            self.distill(state)

    def end_turn(self, state: State) -> None:
        """What was read is a turn."""
        state.turn += 1

    def distill(self, state: State, question: torch.Tensor | None = None) -> None:
        """Keep what the policy wants, and make room for more.

        Parameters
        ----------
        state
            It is changed.
        question
            Tokens that stand in for the catalyst (CaP-Q).
        """
        self._keep(state, self._ask(state, self.catalyst if question is None else question))

    def _keep(self, state: State, recorder: Recorder | None) -> None:
        """Keep what the policy wants, given the attention that it wants to know."""
        layers = state.cache.full()
        views = []
        for i, layer in layers:
            keys, values = layer.read()
            views.append(
                LayerView(
                    keys=keys[0],
                    values=values[0],
                    attention=recorder.weights[i] if recorder else None,
                    nll=layer.notes.get("nll"),
                    turn=layer.notes["turn"],
                    now=state.turn,
                )
            )
        counts = self._counts(views)
        end = max(counts, default=min(self.keep, state.position))
        end = end if self.rerotate else state.position
        for (i, layer), view, count in zip(layers, views, counts, strict=True):
            if count < len(view):
                index = best(self.policy.score(view, count), count).sort(-1).values
                layer.select(index)
                if state.recorder:
                    state.recorder.select(i, index)
            else:
                index = torch.arange(count, device=view.keys.device).expand(len(view.keys), -1)
            if self.rerotate:
                was = index + (state.position - len(view))
                here = torch.arange(end - count, end, device=index.device)
                layer.place(end, here - was, partial(self.rotator.move, layer=i))
        if self.rerotate:
            self._slide(state, end - state.position)
        state.position = end

    def _counts(self, views: list[LayerView]) -> list[int]:
        """How many entries each layer keeps."""
        counts = self.policy.keeps(views, self.keep)
        most = int(self.policy.spread * self.keep)
        if sum(counts) > self.keep * len(views) or not all(1 <= c <= most for c in counts):
            raise ModelError(
                f"{type(self.policy).__name__}.keeps gives {counts}: at least 1 and at most "
                f"{most} each, {self.keep} on average"
            )
        return [min(count, len(view)) for view, count in zip(views, counts, strict=True)]

    def _ask(self, state: State, question: torch.Tensor) -> Recorder | None:
        """The attention that the policy wants to know: the question's, which leaves no trace."""
        entries = {i: layer.get_seq_length() for i, layer in state.cache.full()}
        if not len(self.catalyst) or not entries:
            return state.recorder
        recorder = Recorder(len(question))
        before, state.cache = state.cache, state.cache.snapshot()
        try:
            self._forward(state, question, recorder, 1)
        finally:
            state.cache = before
        for i, held in entries.items():
            recorder.weights[i] = recorder.weights[i][:, :, :held]
        return recorder

    def _slide(self, state: State, by: int) -> None:
        """Move the layers of sliding-window attention, as they are, to where the others end."""
        for i, layer in state.cache.sliding():
            if layer.cumulative_length:
                steps = torch.full(layer.keys.shape[1:3], by, device=layer.keys.device)
                layer.keys = self.rotator.move(layer.keys, steps, i)
                layer.cumulative_length += by

    def _read_asking(self, state: State, ids: torch.Tensor) -> Recorder:
        """Read tokens and the catalyst behind them at once, and forget the catalyst.

        Layers of sliding-window attention could not: they have lost an entry for each of its.
        """
        count = len(self.catalyst)
        recorder = Recorder(count)
        logits = self._forward(state, torch.cat([ids, self.catalyst]), recorder, 0)
        for i, layer in state.cache.full():
            layer.drop(count)
            recorder.weights[i] = recorder.weights[i][:, :, :-count]
        self._note(state, ids, logits[:-count])
        return recorder

    @property
    def _kept(self) -> int:
        """The logits that are needed: those of the last token, or all (0)."""
        return 0 if self.policy.needs_nll else 1

    def _note(self, state: State, ids: torch.Tensor, logits: torch.Tensor) -> None:
        """Note what is known of tokens that were read."""
        notes = {
            "place": torch.arange(state.seen, state.seen + len(ids), device=ids.device),
            "turn": torch.full_like(ids, state.turn),
        }
        notes = {name: values.int() for name, values in notes.items()}
        if self.policy.needs_nll:
            first = (
                torch.full((1,), torch.inf, device=logits.device)
                if state.logits is None
                else cross_entropy(state.logits[None].float(), ids[:1], reduction="none")
            )
            rest = cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
            notes["nll"] = torch.cat([first, rest])
        for _, layer in state.cache.full():
            layer.note(**notes)
        state.logits = logits[-1].clone()
        state.position += len(ids)
        state.seen += len(ids)

    def _forward(
        self, state: State, ids: torch.Tensor, recorder: Recorder | None, logits: int
    ) -> torch.Tensor:
        """Logits of the last so many tokens, 0 for all; shape ``(tokens, vocabulary)``."""
        start = state.position
        positions = torch.arange(start, start + len(ids), device=ids.device)
        with torch.inference_mode(), recording(recorder):
            output = self.model(
                input_ids=ids[None],
                past_key_values=state.cache,
                position_ids=positions[None],
                use_cache=True,
                logits_to_keep=logits,
            )
        result: torch.Tensor = output.logits[0]
        return result


def _check(model: Any) -> None:
    from transformers import PreTrainedModel

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ModelError(f"a bounded memory is for a causal language model, got {name}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} has an encoder; take a decoder-only model")
    if model.training:
        raise ModelError("the model is in training mode; call its eval() first")
