"""Questions made ready to learn from: windows, what is wanted of them, and what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import guards
from ..evaluation.metrics import contains_answer
from ..method import Flags, Floats
from ..methods.pruner import features, parts, readings
from ..models.alignment import first_units
from ..models.hidden_states import Ids, Known
from ..models.pruner import Judged, Piece, PrunerModel, alike, batches, pieces
from ..models.pruner_network import FEATURES
from .questions import Labelled

__all__ = ["PRIOR", "Lesson", "know", "prepare"]

PRIOR = np.array([1.3, 0.7, 3.3, 3.3, 1.0, 0.4, 0.5, 0.5, -6.0])
"""The mix to begin with: similarity is weighed as `Extractive` does, on the scale of logits."""

_BESIDE = 0.5
"""How much the words are wanted that stand beside an answer in its sentence."""

_BATCH = 2048
"""Tokens, padding included, that are read by themselves at a time."""


class Lesson(NamedTuple):
    """A question made ready.

    Attributes
    ----------
    question
        Ids.
    windows
        Those that may be read.
    owners
        For each window the unit of each of its tokens, counted over the whole question.
    goals
        For each window how much each of its tokens is wanted, from 0 to 1.
    wanted
        Which units are; shape ``(units,)``, bool.
    prior
        For each unit what its score is without the reader; shape ``(units,)``.
    """

    question: Ids
    windows: list[Piece]
    owners: list[NDArray[np.int64]]
    goals: list[Floats]
    wanted: Flags
    prior: Floats


def prepare(model: PrunerModel, labelled: Labelled, max_tokens: int) -> Lesson:
    """Read all passages of a question by themselves, in windows of so many tokens."""
    import torch

    network, request = model.load(), labelled.request
    given = readings(request)
    texts, found = pieces(network, given, max_tokens)
    question = network.question(labelled.question)
    with torch.inference_mode():
        (asked,) = model.know([question])
        known = know(model, found)
    values = [np.zeros((4, len(tokens))) for tokens in texts]
    for piece, one in zip(found, known, strict=True):
        values[piece.place][:2, piece.start : piece.stop] = alike(piece, one, asked)
    judged = [Judged.of(*each) for each in zip(given, texts, values, strict=True)]
    firsts = np.cumsum([0, *map(len, labelled.units)])
    windows, owners, goals = [], [], []
    for piece in found:
        if piece.stop > piece.start:
            offsets = texts[piece.place].offsets[piece.start : piece.stop]
            units = first_units(labelled.units[piece.place], offsets)
            windows.append(piece)
            owners.append(firsts[piece.place] + units)
            goals.append(_goals(labelled, piece.place, offsets))
    scores = np.concatenate(features(request, judged))[:, : FEATURES - 2]
    prior = scores @ PRIOR[: FEATURES - 2]
    return Lesson(question, windows, owners, goals, np.concatenate(labelled.wanted), prior)


def know(model: PrunerModel, read: Sequence[Piece]) -> list[Known]:
    """What the encoder says of windows by themselves."""
    order = sorted(range(len(read)), key=lambda i: len(read[i].row))
    known = [
        one
        for batch in batches([read[i] for i in order], _BATCH)
        for one in model.know([piece.row for piece in batch])
    ]
    return [known[i] for i in np.argsort(order)]


def _goals(labelled: Labelled, place: int, offsets: NDArray[np.int64]) -> Floats:
    """How much each token of a passage is wanted.

    Those of a wanted sentence are; but where a part of it holds the answer, what stands beside
    that is wanted only half as much, so that the part can be told when a whole sentence is
    too long.
    """
    spans, wanted = labelled.units[place], labelled.wanted[place]
    if labelled.is_marked or not wanted.any():
        return wanted[first_units(spans, offsets)].astype(float)
    text = labelled.example.passages[place].text
    cut, owners = parts(text, spans, guards.atoms(text))
    holds = np.array(
        [
            bool(wanted[owner]) and contains_answer(text[start:end], labelled.example.answers)
            for owner, (start, end) in zip(owners, cut, strict=True)
        ]
    )
    found = np.bincount(owners, holds, len(spans)) > 0
    goals = np.where(holds | ~found[owners], 1.0, _BESIDE) * wanted[owners]
    return goals[first_units(cut, offsets)]
