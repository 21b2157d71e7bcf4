"""Whether each token of a text should be kept, from an adapter of the bundled encoder."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..units import words
from .pruner import PrunerModel, Reading
from .remembered import Remembered
from .token_classifier import Tagged

__all__ = ["TaggerModel"]


class _Reader(PrunerModel):
    """Reads texts with the adapter of a tagger."""

    kind = "tagger"


class TaggerModel:
    """Gives each token of a text the probability that it is asked about.

    It does what a `TokenClassifier` does, with an adapter that `laconic train tagger` saved.
    One may be shared by threads.

    Parameters
    ----------
    adapter
        The folder, or a `PrunerModel` of its `Network`; None for the one that comes with laconic.
    encoder
        The encoder it was trained for; None for all-MiniLM-L6-v2.
    device
        Where to run; None for the best there is.
    cache_size
        Texts remembered, the least recently used forgotten first; 0 for none.
    """

    def __init__(
        self,
        adapter: str | Path | PrunerModel | None = None,
        encoder: Any = None,
        *,
        device: str | None = None,
        cache_size: int = 10_000,
    ) -> None:
        self.model = (
            adapter
            if isinstance(adapter, PrunerModel)
            else _Reader(adapter, encoder, device=device)
        )
        self._remembered: Remembered[Tagged] = Remembered(cache_size)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings; what was remembered stays behind."""
        return functools.partial(type(self), self.model, cache_size=self._remembered.size), ()

    def tag(self, texts: Sequence[str]) -> list[Tagged]:
        """Tag each text.

        Raises
        ------
        MissingExtraError, ModelError
            The model cannot be loaded, or its values are not finite.
        """
        with self._lock:
            return self._remembered.get(texts, self._tag)

    def _tag(self, texts: Sequence[str]) -> list[Tagged]:
        given = [Reading("", "", text, words(text)) for text in texts]
        return [
            Tagged(tokens.offsets, 1 / (1 + np.exp(-values[2])))
            for tokens, values in self.model.read(given)
        ]
