"""What learned memories recall, by how many turns they have compressed.

Such figures compare memories on one small model. They say nothing about large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.evaluation.metrics import Interval, wilson_interval
from ..latent.autocompressor import AutoCompressor
from ..latent.base import LatentMemory
from ..latent.ccm import CCM
from ..latent.compressive import Compressive
from ..latent.gisting import Gisting, GistingOnline
from ..latent.icae import ICAE
from ..latent.plan import Spec, Update
from ..latent.rmt import RMT
from ..latent.xcompressor import XCompressor
from ..training.facts import START, TURN_LENGTH, Facts
from ..training.fit import Recipe, fit

__all__ = ["FAMILY", "MEMORIES", "RECIPE", "Score", "Study", "study", "taught"]

_BATCH = 100
"""Conversations at a time."""

RECIPE = Recipe(
    steps=1500,
    batch_size=16,
    micro_batch=16,
    learning_rate=3e-3,
    rank=16,
    alpha=32,
    dropout=0.0,
)

Build = Callable[[Any, Recipe], LatentMemory]
"""Makes a memory of a model, with an adapter of the recipe's rank."""


def _ccm(update: Update, comp_tokens: int) -> Build:
    spec = Spec(update, comp_tokens)
    return lambda model, recipe: CCM(model, spec, recipe.adapter(model, comp_tokens))


MEMORIES: Mapping[str, Build] = {"CCM-concat": _ccm("concat", 2), "CCM-merge": _ccm("merge", 8)}
"""As in the paper, a merged memory is given more COMP tokens (its table 15: 2 and 8)."""

FAMILY: Mapping[str, Build] = {
    **MEMORIES,
    "Gisting": lambda model, recipe: Gisting(model, 8, recipe.adapter(model, 8)),
    "Gisting-online": lambda model, recipe: GistingOnline(model, 2, recipe.adapter(model, 2)),
    "Compressive": lambda model, recipe: Compressive(model, 14, recipe.adapter(model, 0)),
    "AutoCompressor": lambda model, recipe: AutoCompressor(model, 2, recipe.adapter(model, 2)),
    "RMT": lambda model, recipe: RMT(model, 8, recipe.adapter(model, 8)),
    "ICAE": lambda model, recipe: ICAE(model, 2, recipe.adapter(model, 3)),
    "500xCompressor": lambda model, recipe: XCompressor(model, 2, recipe.adapter(model, 2)),
}
"""All learned memories: some 2 entries for each turn, or 8 in all."""


@dataclass(frozen=True, slots=True)
class Score:
    """How often the first value that was asked for was the likeliest one.

    Attributes
    ----------
    correct, n
        Conversations in which it was, and all. Only one question of each is counted, for those
        of one conversation are not independent.
    nbytes
        Bytes of what the input saw of one conversation: key/value entries, or a soft prompt.
    """

    correct: int
    n: int
    nbytes: int

    def beside(self, other: Score) -> Score:
        """The conversations of both."""
        return Score(self.correct + other.correct, self.n + other.n, self.nbytes)

    @property
    def accuracy(self) -> float:
        """The part that was right."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """Its 95 % interval (Wilson)."""
        return wilson_interval(self.correct, self.n)


@dataclass
class Study:
    """Scores by method, then by the number of turns."""

    scores: dict[str, dict[int, Score]] = field(default_factory=dict)

    def beside(self, other: Study | None) -> Study:
        """The conversations of both, which differ in the model."""
        if other is None:
            return self
        scores = {
            method: {t: score.beside(other.scores[method][t]) for t, score in by_turns.items()}
            for method, by_turns in self.scores.items()
        }
        return Study(scores)

    def recovered(self, method: str, turns: int) -> float:
        """The part of the gap between no context and the full one that a memory closes; NaN
        where there is none.
        """
        none, full, own = (self.scores[m][turns].accuracy for m in ("none", "full", method))
        return (own - none) / (full - none) if full > none else math.nan

    def __str__(self) -> str:
        lines = [
            "| context | turns | bytes | accuracy [95 % interval] | n | gap recovered |",
            "|---|---|---|---|---|---|",
        ]
        for method, by_turns in self.scores.items():
            for turns, score in by_turns.items():
                low, high = score.interval.low, score.interval.high
                lines.append(
                    f"| {method} | {turns} | {score.nbytes} | {score.accuracy:.3f} "
                    f"[{low:.3f}, {high:.3f}] | {score.n} | {self.recovered(method, turns):.2f} |"
                )
        return "\n".join(lines)


def study(
    model: Any,
    memories: Mapping[str, LatentMemory],
    task: Facts,
    *,
    held_out: int = 1000,
    turns: Sequence[int] = (1, 2, 4, 8, 16),
    seed: int = 0,
) -> Study:
    """Compare memories with no context and the full one.

    Parameters
    ----------
    model
        The study model.
    memories
        With trained adapters, by name.
    task
        What conversations are made of; all turns are full of facts.
    held_out
        Conversations of each length; drawn from other seeds than those that anything was trained
        on.
    turns
        Lengths.
    seed
        Of the conversations.
    """
    found = Study()
    for t in turns:
        generator = np.random.default_rng([seed, t, 2**20])
        drawn = task.draw(generator, held_out, t, TURN_LENGTH, min(t * task.slots, task.keys))
        context, asked = map(torch.from_numpy, (drawn.context, drawn.asked(generator, 1)[0]))
        parts = list(zip(context.split(_BATCH), asked.split(_BATCH), strict=True))
        ways: dict[str, Callable[..., Score]] = {
            "none": partial(_bare_score, model, False),
            "full": partial(_bare_score, model, True),
            **{name: partial(_score, memory) for name, memory in memories.items()},
        }
        for name, score in ways.items():
            scores = [score(*part) for part in parts]
            correct, n = sum(one.correct for one in scores), sum(one.n for one in scores)
            found.scores.setdefault(name, {})[t] = Score(correct, n, scores[0].nbytes)
    return found


def taught(
    model: Any,
    build: Build,
    task: Facts,
    recipe: Recipe = RECIPE,
    *,
    examples: int = 20_000,
    turns: int = 16,
    folder: str | Path | None = None,
    progress: bool = False,
) -> LatentMemory:
    """A memory with an adapter that has learnt from conversations of up to so many turns.

    Parameters
    ----------
    model
        The study model.
    build
        A value of `FAMILY`.
    task, recipe
        What conversations are made of; how the adapter is trained.
    examples, turns
        Conversations to learn from; the most turns of one.
    folder
        Where checkpoints go; None to save nothing.
    progress
        Whether to show a bar.
    """
    learnt = task.examples(examples, recipe.seed + 1, turns)
    return fit(build(model, recipe), learnt, recipe, folder=folder, progress=progress).memory


@torch.no_grad()
def _score(memory: LatentMemory, context: torch.Tensor, asked: torch.Tensor) -> Score:
    """Answers to the first question, from a memory that was told turn by turn."""
    state = memory.start()
    for i, chunk in enumerate(context.unbind(1)):
        start = torch.full((len(chunk), 0 if i else 1), START)
        state = memory.observe(state, torch.cat([start, chunk], 1))
    logits = memory.read(state, asked[:, :2])
    return _counted(logits, asked, state.nbytes // len(asked))


@torch.no_grad()
def _bare_score(model: Any, full: bool, context: torch.Tensor, asked: torch.Tensor) -> Score:
    """Answers of the model, with all context or none."""
    start = torch.full((len(asked), 1), START)
    read = torch.cat([start, *([context.flatten(1)] if full else []), asked[:, :2]], 1)
    config = model.config
    entry = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    nbytes = (read.shape[1] - 2) * entry * model.dtype.itemsize
    return _counted(model(input_ids=read).logits, asked, nbytes)


def _counted(logits: torch.Tensor, asked: torch.Tensor, nbytes: int) -> Score:
    correct = int((logits[:, -1].argmax(-1) == asked[:, 2]).sum())
    return Score(correct, len(asked), nbytes)
