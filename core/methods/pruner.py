"""Keep the sentences that a small trained reader takes for an answer.

The reader goes through each passage together with the question and says at once what to keep of
it and whether it is relevant, as Provence does (Chirkova et al., "Provence: efficient and robust
context pruning for retrieval-augmented generation", ICLR 2025). What it says is weighed with what
`Extractive` says, which compares embeddings and ranks passages well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..method import Floats, Method, Request, Scores
from ..models.alignment import mean_by_unit, tokenize
from ..models.loading import finite, fitting_batch
from ..models.pruner_model import Network, windows
from ..types import Span
from .extractive import Extractive

__all__ = ["Judged", "Pruner", "PrunerModel", "Reading"]

_EMPTY = -10.0
"""Logit of a unit without a token: it says nothing."""


class Pruner(Method):
    """Keep the sentences that answer the question.

    A sentence's score is the logit of the probability that it is wanted: a weighted sum of the
    mean logit of its tokens, the logit of its passage, both from one pass of the encoder over
    question and passage, and its score with `Extractive`. The weights come with the model.
    Without a query the scores are those of `Extractive`.

    Parameters
    ----------
    model
        A `PrunerModel`, or the folder that `laconic train pruner` saved.
    encoder
        The encoder that the model was trained for, a hub id or a folder; None for
        all-MiniLM-L6-v2.
    threshold
        The probability, from 0 to below 1, below which a sentence is left out though the
        budget has room for it; the likeliest one stays. None to fill the budget. Text that
        fits the budget comes back whole in any case, so give a rate below 1, such as 0.99.
    device
        Where to run models that are loaded by name; None for the best there is.

    Raises
    ------
    InputError
        `threshold` is out of range.
    """

    name = "pruner"

    def __init__(
        self,
        model: Any,
        *,
        encoder: Any = None,
        threshold: float | None = None,
        device: str | None = None,
    ) -> None:
        if threshold is not None and not 0 <= threshold < 1:
            raise InputError(f"threshold is a probability from 0 to below 1, got {threshold}")
        self.threshold = threshold
        self.extractive = Extractive(encoder, device=device)
        self.model = (
            model if isinstance(model, PrunerModel) else PrunerModel(model, encoder, device=device)
        )

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score several requests in the same forward passes."""
        asked = [i for i, request in enumerate(requests) if request.query is not None]
        mix = self.model.load().mix
        results = self.extractive.score_many(requests)
        if not asked:
            return results
        features = self._features([requests[i] for i in asked], [results[i] for i in asked])
        for i, (values, relevance) in zip(asked, features, strict=True):
            scores = tuple(value @ mix[:3] + mix[3] for value in values)
            similar = self.extractive.context_weight * results[i].passages
            results[i] = Scores(self._above(scores), mix[0] * similar + mix[2] * relevance)
        return results

    def features(self, requests: Iterable[Request]) -> list[tuple[Floats, ...]]:
        """What is weighed, for requests with a query.

        Returns
        -------
        list of tuple of arrays
            For each passage of each request, of shape ``(units, 3)``: the score with
            `Extractive`, the mean logit, the logit of the passage.
        """
        given = list(requests)
        scores = self.extractive.score_many(given)
        return [values for values, _ in self._features(given, scores)]

    def _features(
        self, requests: Sequence[Request], scores: Sequence[Scores]
    ) -> list[tuple[tuple[Floats, ...], Floats]]:
        """The features of each request, and the logits of its passages."""
        judged = iter(
            self.model.judge(
                [
                    Reading(request.query or "", title, text, spans)
                    for request in requests
                    for title, text, spans in zip(
                        request.titles, request.passages, request.units, strict=True
                    )
                ]
            )
        )
        results = []
        for request, known in zip(requests, scores, strict=True):
            here = [next(judged) for _ in request.passages]
            values = tuple(
                np.column_stack([similar, one.units, np.full(len(similar), one.relevance)])
                for similar, one in zip(known.units, here, strict=True)
            )
            results.append((values, np.array([one.relevance for one in here])))
        return results

    def _above(self, scores: tuple[Floats, ...]) -> tuple[Floats, ...]:
        """The scores, -inf where they are below the threshold, but for the best."""
        if not self.threshold or not any(map(len, scores)):
            return scores
        best = max(float(values.max()) for values in scores if len(values))
        least = min(best, float(np.log(self.threshold / (1 - self.threshold))))
        return tuple(np.where(values >= least, values, -np.inf) for values in scores)


@dataclass(frozen=True, slots=True)
class Reading:
    """A question with a passage, below its title, that is cut into units."""

    question: str
    title: str
    text: str
    units: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the model says of one passage.

    Attributes
    ----------
    units
        For each unit the mean logit of its tokens; shape ``(units,)``.
    relevance
        Logit of the passage; of a long one, that of its best window.
    """

    units: Floats
    relevance: float


class PrunerModel:
    """Judges the units of passages for a question with a trained `Network`.

    A passage is read in one pass; a long one in windows that end with a unit. Windows of all
    passages are sorted by length and padded only to the longest of their batch. The model is
    loaded at the first use. One may be shared by threads.

    Parameters
    ----------
    adapter
        The folder that `laconic train pruner` saved.
    encoder
        The encoder it was trained for; None for all-MiniLM-L6-v2.
    window
        Tokens of a pass, question and title included; None for as many as in training: it
        says much less of passages that are longer than those that it learnt from.
    device
        Where to run; None for the best there is.
    batch_tokens
        Tokens per forward pass, padding included; None for what suits the device.
    """

    def __init__(
        self,
        adapter: str | Path,
        encoder: Any = None,
        *,
        window: int | None = None,
        device: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        if window is not None and window < 128:
            raise InputError(f"a window is at least 128 tokens, got {window}")
        self._settings = (adapter, encoder, window, device, batch_tokens)
        self._network: Network | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, network: Network) -> PrunerModel:
        """Judge with a network that is loaded already."""
        model = cls("")
        model._network = network
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings; what was loaded stays behind."""
        return _model, self._settings

    def load(self) -> Network:
        """Load the network now rather than at the first use, and return it."""
        if self._network is None:
            adapter, encoder, _, device, _ = self._settings
            self._network = Network.load(adapter, encoder, device=device)
        return self._network

    def judge(self, readings: Sequence[Reading]) -> list[Judged]:
        """Judge each passage for its question.

        Raises
        ------
        MissingExtraError, ModelError
            The model cannot be loaded, or its values are not finite.
        """
        with self._lock:
            return self._judge(readings)

    def _judge(self, readings: Sequence[Reading]) -> list[Judged]:
        import torch

        network = self.load()
        texts = tokenize(network.tokenizer, [reading.text for reading in readings])
        frames = [network.frame(reading.question, reading.title) for reading in readings]
        window = self._settings[2] or network.window
        pieces = [
            (i, start, frame, tokens.ids[start:stop])
            for i, (reading, frame, tokens) in enumerate(zip(readings, frames, texts, strict=True))
            for start, stop in windows(reading.units, tokens, window - len(frame))
        ]
        pieces.sort(key=lambda piece: len(piece[2]) + len(piece[3]))
        logits = [np.zeros(len(tokens)) for tokens in texts]
        relevance = np.full(len(readings), -np.inf)
        size = self._settings[4] or fitting_batch(network.device)
        for batch in _batches(pieces, size):
            with torch.inference_mode():
                rows, scores = network.forward([(frame, ids) for _, _, frame, ids in batch])
            found = finite(scores.double().cpu().numpy())
            for (i, start, _, ids), row, value in zip(batch, rows, found, strict=True):
                logits[i][start : start + len(ids)] = finite(row.double().cpu().numpy())
                relevance[i] = max(relevance[i], value)
        return [
            Judged(mean_by_unit(r.text, r.units, tokens.offsets, values, _EMPTY), float(score))
            for r, tokens, values, score in zip(readings, texts, logits, relevance, strict=True)
        ]


def _batches(pieces: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """Group pieces that are sorted by length, so that none has more padded tokens than `most`."""
    batch: list[Any] = []
    for piece in pieces:
        if batch and (len(batch) + 1) * (len(piece[2]) + len(piece[3])) > most:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _model(
    adapter: Any, encoder: Any, window: int | None, device: str | None, batch_tokens: int | None
) -> PrunerModel:
    return PrunerModel(adapter, encoder, window=window, device=device, batch_tokens=batch_tokens)
