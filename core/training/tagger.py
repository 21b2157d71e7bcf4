"""Teach an encoder which words of a text people ask about.

LLMLingua-2 (Pan et al., Findings of ACL 2024) learns which words to keep from what a large
model keeps. Where there is none, questions tell as well: a word is wanted if it is part of the
answer to one of the questions about its passage, or if it stands in a sentence that answers one
and the question shares it. What is learnt is an adapter of a `Network` that reads a passage with
an empty question; `laconic.core.models.tagger.Tagger` uses it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation.metrics import contains_answer
from ..guards import keep_spans, literals, overlaps
from ..method import Flags
from ..methods.lexical import STOP_WORDS, split_words, stem_all
from ..models.alignment import first_units
from ..models.pruner import PrunerModel, Reading, pieces
from ..models.pruner_network import Network
from ..types import Span
from ..units import words
from . import adapter
from .questions import Labelled, Split, read

__all__ = ["Recipe", "Run", "Split", "Text", "texts", "train"]


@dataclass(frozen=True, slots=True)
class Recipe(adapter.Schedule):
    """How a tagger is trained.

    Attributes
    ----------
    windows
        Windows for each update.
    least_questions
        Passages with fewer questions are left out: much that is wanted of them was not asked.
    """

    steps: int = 400
    windows: int = 16
    least_questions: int = 3

    def __post_init__(self) -> None:
        adapter.Schedule.__post_init__(self)
        if min(self.windows, self.least_questions) < 1:
            raise InputError("windows and least_questions are at least 1")


@dataclass(frozen=True, slots=True)
class Text:
    """A passage, cut into words of which some are wanted.

    Attributes
    ----------
    title, text
        The passage.
    units
        Its words.
    wanted
        Which of them are; shape ``(units,)``, bool.
    """

    title: str
    text: str
    units: tuple[Span, ...]
    wanted: Flags


@dataclass
class Run:
    """What training has done.

    Attributes
    ----------
    losses
        Of each step.
    learnt
        Passages that were learnt from.
    share
        The part of their words that is wanted.
    """

    losses: list[float]
    learnt: int
    share: float

    def __str__(self) -> str:
        tail = self.losses[-20:]
        return (
            f"{self.learnt} passages, {self.share:.0%} of their words wanted; "
            f"{len(self.losses)} steps, loss {self.losses[0]:.3f} -> {sum(tail) / len(tail):.3f}"
        )


def texts(questions: Sequence[Labelled], least: int = 3) -> list[Text]:
    """The passages that at least so many questions are about, and what is wanted of them.

    Those of which nothing is, since their questions come without answers, are left out.
    """
    about: dict[tuple[str, str], list[Labelled]] = defaultdict(list)
    for one in questions:
        place = one.gold[0]
        about[one.titles[place], one.example.passages[place].text].append(one)
    found = [
        _text(title, text, asked) for (title, text), asked in about.items() if len(asked) >= least
    ]
    return [text for text in found if text.wanted.any()]


def _text(title: str, text: str, asked: Sequence[Labelled]) -> Text:
    units = tuple(words(text))
    wanted = np.zeros(len(units), bool)
    forms = [split_words(text[start:end]) for start, end in units]
    known = stem_all("english", forms)
    for one in asked:
        place = one.gold[0]
        sentences = [
            span
            for span, flag in zip(one.units[place], one.wanted[place], strict=True)
            if flag and contains_answer(text[slice(*span)], one.example.answers)
        ]
        inside = overlaps(units, sentences)
        wanted |= inside & overlaps(units, keep_spans(text, literals(one.example.answers)))
        telling = [word for word in split_words(one.question) if word not in STOP_WORDS]
        stems = set(stem_all("english", [telling]).values())
        shared = [any(known[word] in stems for word in form) for form in forms]
        wanted |= inside & np.array(shared, bool)
    return Text(title, text, units, wanted)


def train(
    files: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe | None = None,
    split: Split | None = None,
    *,
    encoder: Any = None,
    device: str | None = None,
    progress: bool = False,
    stop_after: int | None = None,
) -> Run:
    """Train a tagger, and save it; the parameters and errors are those of the pruner's `train`.

    Raises
    ------
    InputError
        A file cannot be read, no passage of it has questions enough, or `out` holds an adapter
        already.
    """
    recipe, split, out = recipe or Recipe(), split or Split(weighed=0.0), Path(out)
    adapter.refuse_trained(out)
    learnt = [
        text
        for file in files
        for text in texts(read(file, split)["learnt"], recipe.least_questions)
    ]
    if not learnt:
        raise InputError(
            f"no passage has {recipe.least_questions} questions with answers or more; give files "
            f"with several about a passage, or a smaller least_questions"
        )
    network = recipe.network(encoder, device)
    school = _School(network, learnt, recipe)
    losses = adapter.fit(
        network,
        recipe,
        school.learn,
        school.owner(),
        out,
        progress=progress,
        stop_after=stop_after,
    )
    if len(losses) == recipe.steps:
        adapter.save(network, out, "tagger", {**asdict(recipe), **asdict(split)})
    share = float(np.concatenate([text.wanted for text in learnt]).mean())
    return Run(losses, len(learnt), share)


class _School:
    """Draws windows, and learns from them."""

    def __init__(self, network: Network, learnt: Sequence[Text], recipe: Recipe) -> None:
        self.network, self.learnt, self.recipe = network, learnt, recipe
        self.model = PrunerModel(network, cache_size=10_000)
        given = [Reading("", text.title, text.text, text.units) for text in learnt]
        tokens, found = pieces(network, given, recipe.max_tokens)
        self.rows, self.flags = [], []
        for piece in found:
            offsets = tokens[piece.place].offsets[piece.start : piece.stop]
            flags = learnt[piece.place].wanted[first_units(learnt[piece.place].units, offsets)]
            if flags.any():  # of the rest of a long text nobody may have asked
                self.rows.append(piece)
                self.flags.append(flags)

    def owner(self) -> str:
        """What a checkpoint belongs to."""
        given = ["tagger", self.network.fingerprint, asdict(self.recipe)]
        digest = hashlib.sha256(json.dumps(given).encode())
        for text in self.learnt:
            digest.update(repr((text.title, text.text, text.wanted.tolist())).encode())
        return digest.hexdigest()

    def learn(self, step: int) -> float:
        """Compute the gradients of a step; its loss."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as entropy

        generator = np.random.default_rng([self.recipe.seed, step])
        size = min(self.recipe.windows, len(self.rows))
        chosen = generator.choice(len(self.rows), size, replace=False).tolist()
        with torch.inference_mode():
            (nothing,) = self.model.know([self.network.question("")])
            known = self.model.know([self.rows[i].row for i in chosen])
        logits, _ = self.network.together([nothing] * size, known)
        leads = [self.rows[i].lead for i in chosen]
        said = torch.cat(
            [
                logits[row, lead : lead + len(self.flags[i])]
                for row, (lead, i) in enumerate(zip(leads, chosen, strict=True))
            ]
        )
        goal = torch.from_numpy(np.concatenate([self.flags[i] for i in chosen]))
        loss = entropy(said, goal.to(said))
        loss.backward()
        return float(loss.detach())
