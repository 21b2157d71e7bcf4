"""Whether each token of a text should be kept, from an adapter of the bundled encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..units import words
from .pruner import PrunerModel, Reading
from .pruner_network import bundled
from .token_classifier import Tagged

__all__ = ["TaggerModel"]


class TaggerModel:
    """Gives each token of a text the probability that it is asked about.

    It does what a `TokenClassifier` does, with an adapter that `laconic train tagger` saved.
    One may be shared by threads.

    Parameters
    ----------
    adapter
        The folder, or a `PrunerModel` with it; None for the one that comes with laconic.
    encoder
        The encoder it was trained for; None for all-MiniLM-L6-v2.
    device
        Where to run; None for the best there is.
    """

    def __init__(
        self,
        adapter: str | Path | PrunerModel | None = None,
        encoder: Any = None,
        *,
        device: str | None = None,
    ) -> None:
        self.model = (
            adapter
            if isinstance(adapter, PrunerModel)
            else PrunerModel(adapter or bundled("tagger"), encoder, device=device)
        )

    def tag(self, texts: Sequence[str]) -> list[Tagged]:
        """Tag each text.

        Raises
        ------
        MissingExtraError, ModelError
            The model cannot be loaded, or its values are not finite.
        """
        given = [Reading("", "", text, words(text)) for text in texts]
        return [
            Tagged(tokens.offsets, 1 / (1 + np.exp(-values[2])))
            for tokens, values in self.model.read(given)
        ]
