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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..method import Flags, Floats
from ..methods.pruner import features, readings
from ..models.alignment import first_units
from ..models.pruner import Judged, Piece, PrunerModel, alike, pieces
from ..models.pruner_network import FEATURES, Network
from . import adapter
from .mix import best_mix
from .questions import Labelled, Split, read

__all__ = ["Recipe", "Run", "Split", "train"]

_PRIOR = np.array([1.3, 0.7, 3.3, 3.3, 1.0, 0.4, 0.5, 0.5, -6.0])
"""The mix to begin with: similarity is weighed as `Extractive` does, on the scale of logits."""

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
    passages: int = 10
    windows: int = 6
    weighed_questions: int = 40
    remembered: int = 20_000

    def __post_init__(self) -> None:
        adapter.Schedule.__post_init__(self)
        if min(self.questions, self.weighed_questions) < 1 or self.windows < 2:
            raise InputError("questions and weighed_questions are at least 1, windows at least 2")


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
        More such files, of which nothing is held out.
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
    network = recipe.network(encoder, device)
    network.mix = _PRIOR
    school = _School(network, [found["learnt"] for found in parted], recipe, splits)
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
    adapter.save(network, out, {**asdict(recipe), **asdict(split)})
    return Run(losses, counts, tuple(network.mix.tolist()))


class _Lesson(NamedTuple):
    """A question made ready.

    Attributes
    ----------
    question
        Ids.
    windows
        Those that may be read.
    owners
        For each window the unit of each of its tokens, counted over the whole question.
    wanted
        Which units are; shape ``(units,)``, bool.
    prior
        For each unit what its score is without the reader; shape ``(units,)``.
    """

    question: Any
    windows: list[Piece]
    owners: list[Any]
    wanted: Flags
    prior: Floats


class _School:
    """Draws questions, and learns from them."""

    def __init__(
        self,
        network: Network,
        learnt: Sequence[list[Labelled]],
        recipe: Recipe,
        splits: Sequence[Split],
    ) -> None:
        self.network, self.learnt, self.recipe, self.splits = network, learnt, recipe, splits
        self.model = PrunerModel(network, cache_size=recipe.remembered)
        self.lessons: dict[tuple[int, int], _Lesson] = {}
        sizes = np.cbrt([len(found) for found in learnt])
        self.shares = sizes / sizes.sum()

    def owner(self) -> str:
        """What a checkpoint belongs to."""
        how = {**asdict(self.recipe), "weighed_questions": 0, "remembered": 0}
        given = [self.network.fingerprint, how, list(map(asdict, self.splits))]
        digest = hashlib.sha256(json.dumps(given).encode())
        for source in self.learnt:
            for labelled in source:
                digest.update(repr((labelled.example, labelled.wanted)).encode("utf-8", "replace"))
        return digest.hexdigest()

    def learn(self, step: int) -> float:
        """Compute the gradients of a step; its loss."""
        recipe, total = self.recipe, 0.0
        for i in range(recipe.questions):
            generator = np.random.default_rng([recipe.seed, step, i])
            file = int(generator.choice(len(self.shares), p=self.shares))
            lesson = self.lesson(file, int(generator.integers(len(self.learnt[file]))))
            loss = self.loss(lesson, self.drawn(lesson, generator)) / recipe.questions
            loss.backward()
            total += float(loss.detach())
        return total

    def lesson(self, file: int, place: int) -> _Lesson:
        """A question made ready, once."""
        key = file, place
        if key not in self.lessons:
            labelled, split = self.learnt[file][place], self.splits[file]
            # The document of another question may be one that is never to be trained on.
            others = [
                i
                for i in range(len(labelled.units))
                if i not in labelled.gold and split.part(labelled.document(i)) != "held out"
            ]
            generator = np.random.default_rng([self.recipe.seed, file, place])
            room = max(0, self.recipe.passages - len(labelled.gold))
            some = generator.permutation(others)[:room]
            self.lessons[key] = self.prepared(labelled.among(some.tolist()))
        return self.lessons[key]

    def prepared(self, labelled: Labelled) -> _Lesson:
        """Read all passages of a question by themselves."""
        import torch

        request = labelled.request
        given = readings(request)
        texts, found = pieces(self.network, given, self.recipe.max_tokens)
        question = self.network.question(labelled.question)
        with torch.inference_mode():
            (asked,) = self.model.know([question])
            known = [one for piece in found for one in self.model.know([piece.row])]
        values = [np.zeros((4, len(tokens))) for tokens in texts]
        for piece, one in zip(found, known, strict=True):
            values[piece.place][:2, piece.start : piece.stop] = alike(piece, one, asked)
        judged = [Judged.of(*each) for each in zip(given, texts, values, strict=True)]
        firsts = np.cumsum([0, *map(len, labelled.units)])
        windows, owners = [], []
        for piece in found:
            if piece.stop > piece.start:
                offsets = texts[piece.place].offsets[piece.start : piece.stop]
                units = first_units(labelled.units[piece.place], offsets)
                windows.append(piece)
                owners.append(firsts[piece.place] + units)
        scores = np.concatenate(features(request, judged))[:, : FEATURES - 2]
        prior = scores @ _PRIOR[: FEATURES - 2]
        return _Lesson(question, windows, owners, np.concatenate(labelled.wanted), prior)

    def drawn(self, lesson: _Lesson, generator: np.random.Generator) -> list[int]:
        """The windows that are read: some with evidence, and others if there are."""
        is_gold = np.array([lesson.wanted[owner].any() for owner in lesson.owners])
        gold = generator.permutation(np.flatnonzero(is_gold))[: self.recipe.windows - 1].tolist()
        others = generator.permutation(np.flatnonzero(~is_gold)).tolist()
        half = (self.recipe.windows - len(gold)) // 2
        likely = sorted(others[half:], key=lambda i: -float(lesson.prior[lesson.owners[i]].max()))
        return [*gold, *others[:half], *likely][: self.recipe.windows]

    def loss(self, lesson: _Lesson, chosen: Sequence[int]) -> Any:
        """How wrong the reader is about tokens, about windows, and about which units are best.

        The last is the cross-entropy of each wanted unit against all that are not, of all
        windows: the mean of that of the reader alone, and that of the reader with what
        similarity and shared words say, so that it learns what they do not tell.

        Returns
        -------
        tensor, a number
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as entropy

        device = self.network.device
        read = [lesson.windows[i] for i in chosen]
        with torch.inference_mode():
            (asked,) = self.model.know([lesson.question])
            known = self.model.know([piece.row for piece in read])
        logits, relevance = self.network.together([asked] * len(read), known)
        flat = torch.cat(
            [
                logits[i, piece.lead : piece.lead + piece.stop - piece.start]
                for i, piece in enumerate(read)
            ]
        )
        # A unit that two windows share is one in each.
        owner = np.concatenate([lesson.owners[i] for i in chosen])
        row = np.repeat(np.arange(len(read)), [len(lesson.owners[i]) for i in chosen])
        pairs, place = np.unique(np.stack([row, owner]), axis=1, return_inverse=True)
        row_of, goal = torch.from_numpy(pairs[0]).to(device), lesson.wanted[pairs[1]]
        unit, wanted = torch.from_numpy(place.ravel()).to(device), torch.from_numpy(goal).to(device)
        sums = torch.zeros(len(goal), device=device).index_add(0, unit, flat)
        means = sums / torch.bincount(unit, minlength=len(goal))
        weight = torch.tensor(_RARE, device=device)
        about_tokens = entropy(flat, wanted[unit].float(), pos_weight=weight)
        is_gold = torch.zeros(len(read), device=device)
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
    return best_mix(found, [np.concatenate(one.wanted) for one in chosen], _PRIOR)
