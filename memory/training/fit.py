"""Fitting the adapter of a learned memory to the answers in conversations.

The base model is frozen. A run that is stopped goes on from its last checkpoint and, on one
machine, comes to the same adapter bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ...core.errors import InputError
from ...core.training import checkpoint
from ..files import model_fingerprint
from ..latent.base import Example, LatentMemory
from ..latent.conditional_lora import ConditionalLora

__all__ = ["Recipe", "Run", "fit"]

_CHECKPOINT = "checkpoint.pt"

_POOLED = 8
"""Steps whose examples are drawn together."""

Memory = TypeVar("Memory", bound=LatentMemory)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter is trained.

    Attributes
    ----------
    steps
        Updates.
    batch_size
        Conversations for each update.
    micro_batch
        Conversations that are in memory at once.
    learning_rate
        The highest; it falls to 0 along a cosine.
    warmup
        Part of the steps in which it rises to that.
    weight_decay, clip
        Of AdamW; the norm that gradients are cut to.
    rank, alpha, dropout
        Of the adapter.
    seed
        Of the adapter's start, the order of the conversations and the dropout.
    bf16
        Whether the forward pass runs in bfloat16; the adapter stays in float32.
    checkpointing
        Whether activations are computed a second time rather than kept, for less memory.
    save_every
        Steps after which training can go on if it is stopped.

    Raises
    ------
    InputError
        A value is out of range.
    """

    steps: int = 2000
    batch_size: int = 128
    micro_batch: int = 8
    learning_rate: float = 3e-4
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    seed: int = 0
    bf16: bool = False
    checkpointing: bool = False
    save_every: int = 200

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "micro_batch", "rank", "save_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1 and 0 <= self.dropout < 1):
            raise InputError(
                f"learning_rate is above 0, warmup and dropout from 0 to below 1; got "
                f"{self.learning_rate}, {self.warmup} and {self.dropout}"
            )

    def adapter(self, model: Any, comp_tokens: int) -> ConditionalLora:
        """A new adapter for a model.

        Raises
        ------
        ModelError
            The model cannot be adapted.
        """
        return ConditionalLora(
            model,
            comp_tokens,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            seed=self.seed,
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0, as a part of the highest."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass
class Run(Generic[Memory]):
    """What training has done.

    Attributes
    ----------
    memory
        The memory with its adapter, ready for use.
    losses
        Mean NLL of the learnt tokens in nats, for each step.
    """

    memory: Memory
    losses: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.losses:
            return "no steps"
        tail = self.losses[-20:]
        return f"{len(self.losses)} steps, loss {self.losses[0]:.3f} -> {sum(tail) / len(tail):.3f}"


def fit(
    memory: Memory,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
    stop_after: int | None = None,
) -> Run[Memory]:
    """Train the adapter of a memory, from where an earlier run was stopped.

    The model's weights and modes are as before afterwards, and so are the global random
    generators.

    Parameters
    ----------
    memory
        Its adapter is changed.
    examples
        What to learn from.
    recipe
        How.
    folder
        Where checkpoints go; None to save nothing.
    progress
        Whether to show a bar.
    stop_after
        Stop behind this step and save a checkpoint.

    Raises
    ------
    InputError
        There are no examples, or one that is longer than the model's window.
    StateError
        The checkpoint is damaged or of another run.
    """
    if not examples:
        raise InputError("there is nothing to learn from: no examples")
    adapter, run = memory.adapter, Run(memory)
    optimizer = torch.optim.AdamW(
        adapter.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    file = None if folder is None else Path(folder) / _CHECKPOINT
    owner = _owner(memory, recipe, examples)
    end = min(recipe.steps, stop_after or recipe.steps)
    with _prepared(memory.model, recipe), _seeded(memory.model, recipe.seed):
        if file and (state := checkpoint.resume(file, owner)):
            _go_on(state, run, optimizer)
        adapter.train()
        start = len(run.losses)
        with tqdm(range(start, end), initial=start, total=end, disable=not progress) as bar:
            for step in bar:
                run.losses.append(_step(memory, examples, recipe, optimizer, step))
                bar.set_postfix(loss=f"{run.losses[-1]:.3f}")
                done = step + 1
                if file and (done % recipe.save_every == 0 or done == end):
                    checkpoint.save(file, owner, _state(run, optimizer))
    adapter.eval()
    return run


def _step(
    memory: LatentMemory, examples: Sequence[Example], recipe: Recipe, optimizer: Any, step: int
) -> float:
    """One update; the mean NLL of the tokens that it learnt."""
    lengths = [sum(map(len, example.chunks)) for example in examples]
    batch = [examples[i] for i in _drawn(lengths, recipe, step)]
    learnt = sum(sum(example.learnt) for example in batch)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * recipe.rate(step)
    optimizer.zero_grad()
    total = 0.0
    for i in range(0, len(batch), recipe.micro_batch):
        device = memory.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bf16):
            loss = memory.loss(batch[i : i + recipe.micro_batch])
        (loss / learnt).backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(memory.adapter.parameters(), recipe.clip)
    optimizer.step()
    return total / learnt


def _drawn(lengths: Sequence[int], recipe: Recipe, step: int) -> list[int]:
    """The examples of a step: each is drawn once before any is drawn again.

    Those of a few steps are parted by their length, for what is shorter is padded.
    """
    pool, place = divmod(step, _POOLED)
    size = recipe.batch_size
    found: list[int] = []
    while len(found) < size * _POOLED:
        epoch, offset = divmod(pool * size * _POOLED + len(found), len(lengths))
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(lengths))
        found += order[offset : offset + size * _POOLED - len(found)].tolist()
    found.sort(key=lambda i: lengths[i])
    turn = int(np.random.default_rng([recipe.seed, pool]).permutation(_POOLED)[place])
    return found[turn * size : (turn + 1) * size]


@contextmanager
def _prepared(model: Any, recipe: Recipe) -> Iterator[None]:
    """Freeze the model, and put it into the mode that checkpointing needs, for a while."""
    trained = [p for p in model.parameters() if p.requires_grad]
    was = model.training
    verb = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        model.train(recipe.checkpointing)
        if recipe.checkpointing:
            getattr(model, f"{verb}_checkpointing_enable")({"use_reentrant": False})
        yield
    finally:
        if recipe.checkpointing:
            getattr(model, f"{verb}_checkpointing_disable")()
        model.train(was)
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _seeded(model: Any, seed: int) -> Iterator[None]:
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _owner(memory: LatentMemory, recipe: Recipe, examples: Sequence[Example]) -> str:
    """What a checkpoint belongs to."""
    spec = getattr(memory, "spec", None)
    described = [type(memory).__name__, repr(spec), asdict(recipe), model_fingerprint(memory.model)]
    digest = hashlib.sha256(json.dumps(described).encode())
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()


def _state(run: Run[Any], optimizer: Any) -> dict[str, Any]:
    """What the run needs to go on."""
    model = run.memory.model
    state = {
        "losses": run.losses,
        "adapter": run.memory.adapter.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    if model.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(model.device)
    return state


def _go_on(state: Mapping[str, Any], run: Run[Any], optimizer: Any) -> None:
    """Bring the run to where it was when that state was saved."""
    run.memory.adapter.load_state_dict(state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], run.memory.model.device)
    run.losses = list(state["losses"])
