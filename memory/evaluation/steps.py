"""What learned memories recall, by how many turns they have compressed.

An adapter learns on the study model of `laconic.memory.training.lab`, from conversations that grow
lesson by lesson, and is then asked about conversations that nothing was trained on. Such figures
compare memories on one small model. They say nothing about large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...core.evaluation.metrics import Interval, wilson_interval
from ..latent.base import LatentMemory
from ..latent.ccm import CCM
from ..latent.compressive import Compressive
from ..latent.gisting import GistingOnline
from ..latent.plan import Positions, Spec, Update
from ..training.entries import show
from ..training.facts import LONGEST, SHORTEST, START, TURN_LENGTH, Facts
from ..training.fit import Recipe, fit

__all__ = ["FAMILY", "RECIPE", "VARIANTS", "Lesson", "Score", "Study", "Way", "study", "taught"]

_BATCH = 100
"""Conversations at a time."""

_EXAMPLES = 8000
"""Conversations of a lesson at the most, which are read again and again."""

_STARTS, _LAST, _LEARNT = 6, 20, 0.3
"""Adapters that may begin, steps by which they are judged, and a loss in nats that is good enough.
An adapter that happens to begin badly goes on guessing among the values of a turn: ln 2 for two.
"""

RECIPE = Recipe(rank=64, alpha=64, dropout=0.0)
"""A rank of half the width of the study model."""


class Lesson(NamedTuple):
    """Conversations that an adapter learns from for a while.

    Attributes
    ----------
    turns
        At the most.
    shortest, longest
        Tokens of a turn.
    steps, batch
        Updates, and conversations of each.
    facts
        Of a turn.
    """

    turns: int
    shortest: int
    longest: int
    steps: int
    batch: int
    facts: int = 2


_COURSE = (
    Lesson(1, 7, 7, 300, 64),
    Lesson(2, 7, 9, 300, 64),
    Lesson(4, 8, LONGEST, 600, 32),
    Lesson(16, SHORTEST, LONGEST, 900, 16),
)
"""From facts alone to whole conversations: with these from the start nothing is found in a memory
for far longer.
"""

_MERGING = (
    Lesson(4, 25, 28, 200, 12, facts=8),
    Lesson(16, 7, 16, 300, 8),
    Lesson(16, SHORTEST, LONGEST, 400, 8),
)
"""Some turns from the start, and many facts in each, for what is merged has to be told apart."""

_SHOWN = Recipe(batch_size=24, micro_batch=24, learning_rate=5e-3)
"""How an adapter is shown which entries it shall make."""

Build = Callable[[Any, Recipe], LatentMemory]
"""Makes a memory of a model, with an adapter of the recipe's rank."""


class Way(NamedTuple):
    """A learned memory and how it is taught.

    Attributes
    ----------
    build
        Makes it.
    course
        What its adapter learns from, one after the other.
    learning_rate
        The highest of each lesson; lower where the adapter acts on all tokens, text too.
    shown
        Steps in which the adapter, of a `CCM`, is first shown which entries it shall make.
    """

    build: Build
    course: tuple[Lesson, ...] = _COURSE
    learning_rate: float = 5e-3
    shown: int = 0


def _ccm(spec: Spec, kind: type[CCM] = CCM) -> Build:
    return lambda model, how: kind(model, spec, how.adapter(model, spec.comp_tokens))


def _concat(comp_tokens: int = 4, positions: Positions = "slots", kind: type[CCM] = CCM) -> Way:
    return Way(_ccm(Spec("concat", comp_tokens, positions=positions), kind))


def _merge(update: Update = "merge", shown: int = 250) -> Way:
    spec = Spec(update, Facts().keys, recurrent=False, positions="slots")
    return Way(_ccm(spec), _MERGING, 2e-3, shown)


def _brief(way: Way) -> Way:
    """The same without the last lesson."""
    return way._replace(course=way.course[:-1])


def _from_means(way: Way) -> Way:
    """The same with COMP tokens that begin as means of the vocabulary, as in the official code."""

    def build(model: Any, how: Recipe) -> LatentMemory:
        memory = way.build(model, how)
        table, comp = model.get_input_embeddings().weight, memory.adapter.comp_embeddings
        for k in range(len(comp)):
            comp.data[-1 - k] = table[k :: len(comp)].mean(0)
        return memory

    return way._replace(build=build)


class _Ungated(CCM):
    """Its adapter acts on all tokens, those of the input too."""

    adapts = "all"


FAMILY: Mapping[str, Way] = {
    "CCM-concat": _concat(),
    "CCM-merge": _merge(),
    "Gisting-online": Way(
        lambda model, how: GistingOnline(model, 4, how.adapter(model, 4)), learning_rate=2e-3
    ),
    "Compressive": Way(
        lambda model, how: Compressive(model, 7, how.adapter(model, 0)), learning_rate=1e-3
    ),
}
"""Memories that grow by some 4 entries for each turn of 28 tokens, and one that stays as it is."""

VARIANTS: Mapping[str, Way] = {
    "CCM-concat with 1 COMP token": _brief(_concat(1)),
    "CCM-concat with 2 COMP tokens": _brief(_concat(2)),
    "CCM-concat with 4 COMP tokens": _brief(_concat(4)),
    "CCM-concat with 8 COMP tokens": _brief(_concat(8)),
    "CCM-concat from means": _brief(_from_means(_concat())),
    "CCM-concat ungated": _brief(_concat(kind=_Ungated)._replace(learning_rate=2e-3)),
    "CCM-concat with positions skipped": _brief(_concat(positions="skip")),
    "CCM-merge with a brief course": _brief(_merge()),
    "CCM-merge from answers alone": _brief(_merge(shown=0)),
    "CCM-ema": _brief(_merge("ema")),
}
"""Compressed context memory with one thing changed, all of it taught without the last lesson."""


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

    def __str__(self) -> str:
        turns = list(next(iter(self.scores.values()), {}))
        lines = [
            f"| context | {' | '.join(f'T = {t}' for t in turns)} | bytes |",
            f"|---|{'--:|' * (len(turns) + 1)}",
        ]
        for method, by_turns in self.scores.items():
            cells = " | ".join(str(score.interval) for score in by_turns.values())
            lines.append(f"| {method} | {cells} | {by_turns[turns[-1]].nbytes:,} |")
        return "\n".join(lines)


def study(
    model: Any,
    memories: Mapping[str, LatentMemory],
    task: Facts,
    *,
    held_out: int = 1000,
    turns: Sequence[int] = (1, 2, 4, 8, 16, 32),
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
    way: Way,
    recipe: Recipe = RECIPE,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> LatentMemory:
    """A memory whose adapter has learnt from conversations.

    Some adapters begin with the first lesson, until one has learnt it; the best goes on.

    Parameters
    ----------
    model
        The study model.
    way
        The memory.
    recipe
        How the adapter is trained, but for what lessons say; each start has a seed of its own.
    folder
        Where checkpoints go, from which a call that was stopped goes on; None to save nothing.
    progress
        Whether to show bars.
    """
    place = None if folder is None else Path(folder)
    recipe = replace(recipe, learning_rate=way.learning_rate)
    first, *others = way.course
    memory, how = _begun(model, way, first, recipe, place, progress)
    for i, lesson in enumerate(others, 2):
        _learn(memory, lesson, how, place and place / f"lesson-{i}", progress)
    return memory


def _begun(
    model: Any, way: Way, lesson: Lesson, recipe: Recipe, folder: Path | None, progress: bool
) -> tuple[LatentMemory, Recipe]:
    """The memory that learnt the first lesson best, of some that begin at random."""
    tried: list[tuple[float, LatentMemory, Recipe]] = []
    while len(tried) < _STARTS and not any(loss < _LEARNT for loss, _, _ in tried):
        how = replace(recipe, seed=recipe.seed * _STARTS + len(tried))
        memory = way.build(model, how)
        place = folder and folder / f"lesson-1-start-{len(tried) + 1}"
        if way.shown:
            assert isinstance(memory, CCM)
            shown = replace(_SHOWN, steps=way.shown, seed=how.seed)
            show(memory, shown, folder=place and place / "shown", progress=progress)
        losses = _learn(memory, lesson, how, place, progress)
        tried.append((float(np.mean(losses[-_LAST:])), memory, how))
    tried.sort(key=lambda one: one[0])
    for _, memory, _ in tried[1:]:
        memory.adapter.detach_from_model()
    return tried[0][1:]


def _learn(
    memory: LatentMemory, lesson: Lesson, recipe: Recipe, folder: Path | None, progress: bool
) -> list[float]:
    """Teach a memory one lesson; the loss of each step."""
    drawn = Facts(slots=lesson.facts).examples(
        min(_EXAMPLES, lesson.steps * lesson.batch),
        recipe.seed,
        lesson.turns,
        shortest=lesson.shortest,
        longest=lesson.longest,
    )
    how = replace(recipe, steps=lesson.steps, batch_size=lesson.batch, micro_batch=lesson.batch)
    return fit(memory, drawn, how, folder=folder, progress=progress).losses


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
