"""Reading passages for a question with a trained `Network`: windows, batches, what is known."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import Span
from .alignment import Floats, Tokens, first_units, mean_by_unit, tokenize
from .hidden_states import Ids, Known
from .loading import finite, fitting_batch
from .pruner_network import Kind, Network, bundled
from .remembered import Remembered

__all__ = ["Judged", "Piece", "PrunerModel", "Reading", "alike", "batches", "pieces"]

_NOTHING = (0.0, 0.0, -10.0, -10.0)
"""What is said of a unit without a token."""


_JUDGED = 10_000
"""Passages with their questions of which is remembered what was said, a few hundred bytes each."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A question with a passage, below its title, that is cut into units, and these into parts."""

    question: str
    title: str
    text: str
    units: Sequence[Span]
    parts: Sequence[Span] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """What the model says of one passage.

    Attributes
    ----------
    units
        For each unit, as means over its tokens: the cosine of the token and the question, the
        cosine of the window around it and the question, the logit of being wanted, and the
        logit of the window for being relevant; shape ``(units, 4)``.
    similarity, relevance
        The best of the second and of the fourth, of any window; of no token, as in `units`.
    parts
        For each part the logit of being wanted; shape ``(parts,)``.
    """

    units: Floats
    similarity: float
    relevance: float
    parts: Floats

    @classmethod
    def of(cls, reading: Reading, tokens: Tokens, values: Floats) -> Judged:
        """From what is said of each token of a passage; shape ``(4, tokens)``."""

        def means(spans: Sequence[Span], row: int) -> Floats:
            return mean_by_unit(reading.text, spans, tokens.offsets, values[row], _NOTHING[row])

        units = [means(reading.units, row) for row in range(len(_NOTHING))]
        best = values.max(axis=1) if len(tokens) else np.array(_NOTHING)
        parts = means(reading.parts, 2)
        return cls(np.stack(units, axis=1), float(best[1]), float(best[3]), parts)


class Piece(NamedTuple):
    """A window of a passage.

    Attributes
    ----------
    place
        The number of its reading.
    start, stop
        The tokens of the passage that it holds.
    row
        Ids, title and special tokens among them.
    lead
        How many of those stand in front of the window's.
    """

    place: int
    start: int
    stop: int
    row: Ids
    lead: int


class PrunerModel:
    """Judges the units of passages for a question with a trained `Network`.

    A passage is read in one pass; a long one in windows that end with a unit. Windows of all
    passages are sorted by length and padded only to the longest of their batch. The model is
    loaded at the first use. One may be shared by threads.

    Parameters
    ----------
    adapter
        The folder that `laconic train pruner` saved, or a `Network`; None for the one that
        comes with laconic.
    encoder
        The encoder it was trained for; None for all-MiniLM-L6-v2.
    window
        Tokens of a pass, title included; None for as many as in training: it says much less
        of passages that are longer than those that it learnt from.
    device
        Where to run; None for the best there is.
    int8
        Whether to quantize the linear layers (dynamically, on a CPU): faster, a little less
        exact.
    bf16
        Whether layers compute in bfloat16: faster where the device does, a little less exact.
    batch_tokens
        Tokens per forward pass, padding included; None for what suits the device.
    cache_size
        Windows of which is remembered what does not depend on the question, two thirds of the
        work, at 1.5 kB a token; the least recently used are forgotten first. 0 for none.
    """

    kind: ClassVar[Kind] = "pruner"
    """What its adapter was trained for."""

    def __init__(
        self,
        adapter: str | Path | Network | None = None,
        encoder: Any = None,
        *,
        window: int | None = None,
        device: str | None = None,
        int8: bool = False,
        bf16: bool = False,
        batch_tokens: int | None = None,
        cache_size: int = 0,
    ) -> None:
        if window is not None and window < 64:
            raise InputError(f"a window is at least 64 tokens, got {window}")
        if int8 and bf16:
            raise InputError("layers compute in int8 or in bf16, not in both")
        self._adapter, self._encoder = adapter, encoder
        self._settings: dict[str, Any] = {
            "window": window,
            "device": device,
            "int8": int8,
            "bf16": bf16,
            "batch_tokens": batch_tokens,
            "cache_size": cache_size,
        }
        self._network = adapter if isinstance(adapter, Network) else None
        self._remembered: Remembered[Known] = Remembered(cache_size)
        self._judged: Remembered[Judged] = Remembered(_JUDGED)
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings; what was loaded and remembered stays behind."""
        return functools.partial(type(self), self._adapter, self._encoder, **self._settings), ()

    def load(self) -> Network:
        """Load the network now rather than at the first use, and return it."""
        if self._network is None:
            folder = self._adapter or bundled(self.kind)
            assert not isinstance(folder, Network)
            network = Network.load(
                folder, self._encoder, kind=self.kind, device=self._settings["device"]
            )
            if self._settings["int8"]:
                network.quantize()
            network.bf16 = self._settings["bf16"]
            self._network = network
        return self._network

    def judge(self, readings: Sequence[Reading]) -> list[Judged]:
        """Judge each passage for its question.

        Raises
        ------
        MissingExtraError, ModelError
            The model cannot be loaded, or its values are not finite.
        """
        # What is compressed again, to another budget say, costs nothing.
        keys = [repr(reading) for reading in readings]
        by_key = dict(zip(keys, readings, strict=True))
        with self._lock:
            return self._judged.get(keys, lambda new: self._judge([by_key[key] for key in new]))

    def _judge(self, readings: Sequence[Reading]) -> list[Judged]:
        said = zip(readings, self.read(readings), strict=True)
        return [Judged.of(reading, *each) for reading, each in said]

    def read(self, readings: Sequence[Reading]) -> list[tuple[Tokens, Floats]]:
        """What is said of each token of each passage: its tokens, and an array of shape
        ``(4, tokens)`` in the order of `Judged.units`.

        Raises
        ------
        MissingExtraError, ModelError
            The model cannot be loaded, or its values are not finite.
        """
        import torch

        with self._lock, torch.inference_mode():
            return self._read(readings)

    def _read(self, readings: Sequence[Reading]) -> list[tuple[Tokens, Floats]]:
        network = self.load()
        texts, found = pieces(network, readings, self._settings["window"] or network.window)
        questions = list(dict.fromkeys(reading.question for reading in readings))
        asked = dict(zip(questions, self.know(map(network.question, questions)), strict=True))
        values = [np.zeros((4, len(tokens))) for tokens in texts]
        size = self._settings["batch_tokens"] or fitting_batch(network.device)
        for batch in batches(sorted(found, key=lambda piece: len(piece.row)), size):
            known = self.know(piece.row for piece in batch)
            of = [asked[readings[piece.place].question] for piece in batch]
            logits, relevance = network.together(of, known)
            for i, (piece, one, question) in enumerate(zip(batch, known, of, strict=True)):
                inside = slice(piece.lead, piece.lead + piece.stop - piece.start)
                here = values[piece.place][:, piece.start : piece.stop]
                here[:2] = finite(alike(piece, one, question))
                here[2] = finite(logits[i, inside].cpu().numpy())
                here[3] = float(relevance[i])
        return list(zip(texts, values, strict=True))

    def know(self, rows: Iterable[Ids]) -> list[Known]:
        """What the encoder says of rows of tokens by themselves."""
        return self._remembered.get([row.tobytes() for row in rows], self._know)

    def _know(self, keys: list[bytes]) -> list[Known]:
        """Read those that are not remembered."""
        network = self.load()
        rows = [np.frombuffer(key, np.int64) for key in keys]
        states = network.lower(rows)
        tokens, texts = network.alone(states)
        return [
            Known(row, hidden[: len(row)].half(), token[: len(row)].half(), text.half())
            for row, hidden, token, text in zip(rows, states.hidden, tokens, texts, strict=True)
        ]


def alike(piece: Piece, known: Known, question: Known) -> Floats:
    """The cosine with the question of each token of a window, and of the window; shape
    ``(2, tokens)``.
    """
    target = question.text.float()
    tokens = known.tokens[piece.lead : piece.lead + piece.stop - piece.start].float() @ target
    found: Floats = np.zeros((2, piece.stop - piece.start))
    found[0], found[1] = tokens.cpu().numpy(), float(known.text.float() @ target)
    return found


def pieces(
    network: Network, readings: Sequence[Reading], window: int
) -> tuple[list[Tokens], list[Piece]]:
    """The tokens of each passage, and the windows of all of them."""
    texts = tokenize(network.tokenizer, [reading.text for reading in readings])
    titles = {title: network.title(title) for title in {reading.title for reading in readings}}
    found = []
    for place, (reading, tokens) in enumerate(zip(readings, texts, strict=True)):
        title = titles[reading.title]
        for start, stop in _windows(reading.units, tokens, window - len(title) - 2):
            row = network.passage(title, tokens.ids[start:stop])
            found.append(Piece(place, start, stop, row, 1 + len(title)))
    return texts, found


def batches(pieces: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    """Group pieces that are sorted by length, so that none has more padded tokens than `most`."""
    batch: list[Piece] = []
    for piece in pieces:
        if batch and (len(batch) + 1) * len(piece.row) > most:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _windows(units: Sequence[Span], tokens: Tokens, room: int) -> list[tuple[int, int]]:
    """Cut tokens into runs of about the same length that fit, behind a unit where that can be.

    No tokens are one empty run.
    """
    count = len(tokens)
    owners = first_units(units, tokens.offsets) if count else np.zeros(0, np.int64)
    borders = np.flatnonzero(np.diff(owners)) + 1
    found, start = [], 0
    while count - start > room:
        goal = start + (count - start) / -(-(count - start) // room)
        fitting = borders[(borders > start) & (borders <= start + room)]
        nearest = fitting[np.argmin(np.abs(fitting - goal))] if len(fitting) else start + room
        found.append((start, int(nearest)))
        start = int(nearest)
    return [*found, (start, count)]
