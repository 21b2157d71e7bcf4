"""Keep the words that people ask about, whatever will be asked: no download, no query.

The method is that of LLMLingua-2 (Pan et al., Findings of ACL 2024) with a small word
classifier that comes with laconic; see `laconic.core.training.tagger` for what it learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..models.tagger import TaggerModel
from .llmlingua2 import LLMLingua2

__all__ = ["Tagger"]


class Tagger(LLMLingua2):
    """Keep the words that carry what a text is asked about.

    Parameters
    ----------
    model
        A folder that `laconic train tagger` saved; None for the one that comes with laconic.
    encoder
        The encoder that it was trained for, a hub id or a folder; None for all-MiniLM-L6-v2.
    force_tokens, reserve_digits, drop_consecutive
        As `LLMLingua2` takes them.
    device
        Where to run; None for the best there is.
    """

    name = "tagger"

    def __init__(
        self,
        model: Any = None,
        *,
        encoder: Any = None,
        force_tokens: Sequence[str] = (),
        reserve_digits: bool = False,
        drop_consecutive: bool = False,
        device: str | None = None,
    ) -> None:
        super().__init__(
            model if isinstance(model, TaggerModel) else TaggerModel(model, encoder, device=device),
            force_tokens=force_tokens,
            reserve_digits=reserve_digits,
            drop_consecutive=drop_consecutive,
        )
