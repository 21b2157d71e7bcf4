"""Teach an encoder which sentences of which passages answer a question.

What is learnt is what `laconic.core.methods.Pruner` uses: low-rank updates and heads of an
encoder, and the weights of what it says beside similarity and shared words. In each passage the
sentences that hold the answer, or that are marked as evidence, are wanted; the other passages
of the same question, which a retriever took for relevant, are what they are told from, those
the more often that similarity alone would take for the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..method import Floats
from ..methods.pruner import features, readings
from ..models.hidden_states import Ids
from ..models.pruner import Piece, PrunerModel
from ..models.pruner_network import Network
from . import adapter
from .lessons import PRIOR, Lesson, know, prepare
from .mix import best_mix
from .questions import Labelled, Split, read

__all__ = ["Recipe", "Run", "Split", "train"]

_RARE = 3.0
"""Weight of a token that is wanted, of which there are few, beside one that is not."""


@dataclass(frozen=True, slots=True)
class Recipe(adapter.Schedule):
    """How a pruner is trained.

    Attributes
    ----------
    questions
        Questions for each update; a file is drawn from by the cube root of how many it has.
    passages
        Passages of a question, drawn once, that are read.
    windows
        Windows of these that are read together with the question at a time: some of those with
        evidence, half of the others by chance, and the rest because they look alike.
    weighed_questions
        Questions of each file, at the most, that teach how to weigh.
    remembered
        Windows of which the lower layers' states are kept in memory, 0.3 MB each.
    """

    questions: int = 4
    passages: int = 20
    windows: int = 6
    weighed_questions: int = 40
    remembered: int = 20_000

    def __post_init__(self) -> None:
        adapter.Schedule.__post_init__(self)
        if min(self.questions, self.passages, self.weighed_questions) < 1 or self.windows < 2:
            raise InputError(
                "questions, passages and weighed_questions are at least 1, windows at least 2"
            )


@dataclass
class Run:
    """What training has done.

    Attributes
    ----------
    losses
        Of each step.
    counts
        How many questions each part holds.
    mix
        The weights of `laconic.core.methods.pruner.features`, and what is added.
    """

    losses: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    mix: tuple[float, ...] = ()

    def __str__(self) -> str:
        tail = self.losses[-20:]
        parts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        weights = ", ".join(f"{weight:.2f}" for weight in self.mix)
        return (
            f"questions: {parts}; {len(self.losses)} steps, loss {self.losses[0]:.3f} -> "
            f"{sum(tail) / len(tail):.3f}; weights {weights}"
        )


def train(
    files: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe | None = None,
    split: Split | None = None,
    *,
    extra: Sequence[str | Path] = (),
    encoder: Any = None,
    device: str | None = None,
    progress: bool = False,
    stop_after: int | None = None,
) -> Run:
    """Train a pruner, and save it.

    A call that was stopped goes on from its last checkpoint, which lies in `out`, when it is
    made again, and comes to the same adapter on the same machine.

    Parameters
    ----------
    files
        JSON lines as `laconic.core.evaluation.datasets` reads them.
    out
        The folder to save the adapter in, ready to be the ``model`` of `Pruner`.
    recipe, split
        How; None for the defaults.
    extra
        More such files, of which nothing is held out, but nothing is learnt either of what is
        held out of the others.
    encoder, device
        As `Network` takes them.
    progress
        Whether to show a bar.
    stop_after
        Stop behind this step and save a checkpoint only.

    Raises
    ------
    InputError
        A file cannot be read or learnt from, or `out` holds a pruner already.
    MissingExtraError, ModelError
        The encoder cannot be loaded.
    StateError
        The checkpoint is damaged or of another run.
    """
    recipe, split, out = recipe or Recipe(), split or Split(), Path(out)
    adapter.refuse_trained(out)
    splits = [split] * len(files) + [replace(split, held_out=0.0)] * len(extra)
    parted = [read(file, one) for file, one in zip([*files, *extra], splits, strict=True)]
    closed = {one.document(i) for found in parted for one in found["held out"] for i in one.gold}
    for found in parted[len(files) :]:
        for part, ones in found.items():
            found[part] = [one for one in ones if closed.isdisjoint(map(one.document, one.gold))]
    network = recipe.network(encoder, device)
    network.mix = PRIOR
    school = _School(network, [found["learnt"] for found in parted], recipe, splits, closed)
    losses = adapter.fit(
        network,
        recipe,
        school.learn,
        school.owner(),
        out,
        progress=progress,
        stop_after=stop_after,
    )
    counts = {str(name): sum(len(found[name]) for found in parted) for name in parted[0]}
    if len(losses) < recipe.steps:
        return Run(losses, counts)
    weighed = [one for found in parted for one in found["weighed"][: recipe.weighed_questions]]
    if weighed:
        network.mix = _weigh(PrunerModel(network), weighed)
    adapter.save(network, out, "pruner", {**asdict(recipe), **asdict(split)})
    return Run(losses, counts, tuple(network.mix.tolist()))


class _School:
    """Draws questions, and learns from them."""

    def __init__(
        self,
        network: Network,
        learnt: Sequence[list[Labelled]],
        recipe: Recipe,
        splits: Sequence[Split],
        closed: Set[str] = frozenset(),
    ) -> None:
        self.network, self.learnt, self.recipe = network, learnt, recipe
        self.splits, self.closed = splits, closed
        self.model = PrunerModel(network, cache_size=recipe.remembered)
        self.lessons: dict[tuple[int, int], Lesson] = {}
        sizes = np.cbrt([len(found) for found in learnt])
        self.shares = sizes / sizes.sum()

    def owner(self) -> str:
        """What a checkpoint belongs to."""
        how = {**asdict(self.recipe), "weighed_questions": 0, "remembered": 0}
        given = [self.network.fingerprint, how, list(map(asdict, self.splits))]
        digest = hashlib.sha256(json.dumps([*given, sorted(self.closed)]).encode())
        for source in self.learnt:
            for labelled in source:
                digest.update(repr((labelled.example, labelled.wanted)).encode("utf-8", "replace"))
        return digest.hexdigest()

    def learn(self, step: int) -> float:
        """Compute the gradients of a step; its loss."""
        recipe, drawn = self.recipe, []
        for i in range(recipe.questions):
            generator = np.random.default_rng([recipe.seed, step, i])
            file = int(generator.choice(len(self.shares), p=self.shares))
            lesson = self.lesson(file, int(generator.integers(len(self.learnt[file]))))
            drawn.append((lesson, self.drawn(lesson, generator)))
        said = iter(
            self.read([(one.question, one.windows[i]) for one, chosen in drawn for i in chosen])
        )
        losses = [self.loss(one, chosen, [next(said) for _ in chosen]) for one, chosen in drawn]
        total: Any = sum(losses) / recipe.questions
        total.backward()
        return float(total.detach())

    def read(self, given: Sequence[tuple[Ids, Piece]]) -> list[tuple[Any, Any]]:
        """Read windows together with their questions: the logits of the tokens, and of the
        window.
        """
        import torch

        found: dict[int, tuple[Any, Any]] = {}
        with torch.inference_mode():
            asked = self.model.know([question for question, _ in given])
            known = know(self.model, [piece for _, piece in given])
        order = sorted(range(len(given)), key=lambda i: len(given[i][1].row))
        for start in range(0, len(order), self.recipe.windows):
            batch = order[start : start + self.recipe.windows]
            logits, relevance = self.network.together(
                [asked[i] for i in batch], [known[i] for i in batch]
            )
            for row, i in enumerate(batch):
                lead, length = given[i][1].lead, given[i][1].stop - given[i][1].start
                found[i] = logits[row, lead : lead + length], relevance[row]
        return [found[i] for i in range(len(given))]

    def lesson(self, file: int, place: int) -> Lesson:
        """A question made ready, once."""
        key = file, place
        if key not in self.lessons:
            labelled, split = self.learnt[file][place], self.splits[file]
            # The document of another question may be one that is never to be trained on.
            others = [
                i
                for i in range(len(labelled.units))
                if i not in labelled.gold
                and split.part(labelled.document(i)) != "held out"
                and labelled.document(i) not in self.closed
            ]
            generator = np.random.default_rng([self.recipe.seed, file, place])
            room = max(0, self.recipe.passages - len(labelled.gold))
            some = generator.permutation(others)[:room]
            self.lessons[key] = prepare(
                self.model, labelled.among(some.tolist()), self.recipe.max_tokens
            )
        return self.lessons[key]

    def drawn(self, lesson: Lesson, generator: np.random.Generator) -> list[int]:
        """The windows that are read: some with evidence, and others if there are."""
        is_gold = np.array([lesson.wanted[owner].any() for owner in lesson.owners])
        gold = generator.permutation(np.flatnonzero(is_gold))[: self.recipe.windows - 1].tolist()
        others = generator.permutation(np.flatnonzero(~is_gold)).tolist()
        half = (self.recipe.windows - len(gold)) // 2
        likely = sorted(others[half:], key=lambda i: -float(lesson.prior[lesson.owners[i]].max()))
        return [*gold, *others[:half], *likely][: self.recipe.windows]

    def loss(self, lesson: Lesson, chosen: Sequence[int], said: Sequence[tuple[Any, Any]]) -> Any:
        """How wrong the reader is about tokens, about windows, and about which units are best.

        The last is the cross-entropy of each wanted unit against all that are not, of all
        windows: the mean of that of the reader alone, and that of the reader with what
        similarity and shared words say, so that it learns what they do not tell.

        Parameters
        ----------
        lesson, chosen
            A question, and which of its windows are read.
        said
            For each of these the logits of its tokens, and of itself.

        Returns
        -------
        tensor, a number
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as entropy

        device = self.network.device
        flat = torch.cat([logits for logits, _ in said])
        relevance = torch.stack([one for _, one in said])
        # A unit that two windows share is one in each.
        owner = np.concatenate([lesson.owners[i] for i in chosen])
        row = np.repeat(np.arange(len(chosen)), [len(lesson.owners[i]) for i in chosen])
        pairs, place = np.unique(np.stack([row, owner]), axis=1, return_inverse=True)
        row_of, goal = torch.from_numpy(pairs[0]).to(device), lesson.wanted[pairs[1]]
        unit, wanted = torch.from_numpy(place.ravel()).to(device), torch.from_numpy(goal).to(device)
        sums = torch.zeros(len(goal), device=device).index_add(0, unit, flat)
        means = sums / torch.bincount(unit, minlength=len(goal))
        goals = torch.from_numpy(np.concatenate([lesson.goals[i] for i in chosen])).to(flat)
        about_tokens = entropy(flat, goals, pos_weight=flat.new_tensor(_RARE))
        is_gold = torch.zeros(len(chosen), device=device)
        is_gold[row_of[wanted]] = 1.0
        about_windows = entropy(relevance, is_gold)
        prior = torch.from_numpy(lesson.prior[pairs[1]]).float().to(device)
        scores = means + relevance[row_of]
        about_best = (_surprise(scores, wanted) + _surprise(scores + prior, wanted)) / 2
        return about_tokens + about_windows + about_best


def _surprise(scores: Any, wanted: Any) -> Any:
    """The mean cross-entropy of each wanted unit against all that are not."""
    import torch

    best, rivals = scores[wanted], scores[~wanted]
    all_rivals = torch.logsumexp(rivals, 0) if len(rivals) else scores.new_tensor(-1e9)
    return (torch.logaddexp(best, all_rivals) - best).mean()


def _weigh(model: PrunerModel, chosen: Sequence[Labelled]) -> Floats:
    """The mix that is best for whole requests, of which the network was taught nothing."""
    found = [
        np.concatenate(features(one.request, model.judge(readings(one.request)))) for one in chosen
    ]
    return best_mix(found, [np.concatenate(one.wanted) for one in chosen], PRIOR)
