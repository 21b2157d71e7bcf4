"""Sentence embeddings, each text encoded once."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..budget import without_surrogates
from ..errors import ModelError
from .loading import load_sentence_transformer
from .remembered import Remembered

__all__ = ["Encoder"]


class Encoder:
    """Turns texts into unit vectors with a sentence-transformers model.

    Vectors do not depend on the query, so they are remembered by the hash of their text: a
    passage that is retrieved again costs nothing. The model is loaded at the first use. One
    encoder may be shared by threads.

    Parameters
    ----------
    model
        A hub id, a folder, an object with ``encode(list of str) -> array``, or None for
        all-MiniLM-L6-v2.
    device
        Where to run a model that is loaded by name; None for the best there is.
    batch_size
        Texts per forward pass; they are sorted by length first.
    cache_size
        Vectors remembered, the least recently used forgotten first; 0 for none.
    trust_remote_code
        Whether code that comes with the model may run.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        device: str | None = None,
        batch_size: int = 32,
        cache_size: int = 50_000,
        trust_remote_code: bool = False,
    ) -> None:
        if not (model is None or isinstance(model, (str, Path)) or hasattr(model, "encode")):
            raise ModelError(
                f"an encoder is a hub id, a folder or an object with encode(), got {model!r}"
            )
        self._source = model
        self._model: Any = None if model is None or isinstance(model, (str, Path)) else model
        self._device = device
        self._batch_size = batch_size
        self._trust_remote_code = trust_remote_code
        self._remembered: Remembered[NDArray[np.float32]] = Remembered(cache_size)
        # Fast tokenizers are not safe to call from two threads at once.
        self._lock = threading.Lock()

    @classmethod
    @functools.cache
    def shared(cls) -> Encoder:
        """Return the process's one encoder with the default model."""
        return cls()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings; what was loaded and remembered stays behind."""
        if self is Encoder.shared():
            return Encoder.shared, ()
        return _encoder, (
            self._source,
            self._device,
            self._batch_size,
            self._remembered.size,
            self._trust_remote_code,
        )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Returns
        -------
        array, shape ``(len(texts), dimension)``
            Rows of length 1, so that a dot product is a cosine similarity.
        """
        with self._lock:
            rows = self._remembered.get(texts, self._forward)
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)

    def load(self) -> Any:
        """Load the model now rather than at the first use, and return it."""
        if self._model is None:
            self._model = load_sentence_transformer(
                self._source, device=self._device, trust_remote_code=self._trust_remote_code
            )
        return self._model

    def _forward(self, texts: list[str]) -> NDArray[np.float32]:
        model = self.load()
        options = {"batch_size": self._batch_size, "show_progress_bar": False}
        known = inspect.signature(model.encode).parameters
        result = model.encode(
            [without_surrogates(text) for text in texts],
            **{name: value for name, value in options.items() if name in known},
        )
        try:
            vectors: NDArray[np.float32] = np.array(result, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ModelError(f"the encoder returned no array of numbers: {error}") from error
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ModelError(
                f"the encoder returned an array of shape {vectors.shape} for {len(texts)} texts, "
                f"expected a row of finite numbers for each"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
        return vectors


def _encoder(
    model: Any, device: str | None, batch_size: int, cache_size: int, trust_remote_code: bool
) -> Encoder:
    return Encoder(
        model,
        device=device,
        batch_size=batch_size,
        cache_size=cache_size,
        trust_remote_code=trust_remote_code,
    )
