"""500xCompressor: a text in the key/value entries of a few tokens, for an unchanged decoder.

Source: Li, Su and Collier, "500xCompressor: Generalized Prompt Compression for Large Language
Models", ACL 2025 (arXiv 2408.03094), section 3. The encoder is the model with a LoRA, the decoder
the model itself. It learns to regenerate texts first, then to answer from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Example
from .ccm import CCM
from .conditional_lora import ConditionalLora
from .plan import Spec

__all__ = ["XCompressor"]


class XCompressor(CCM):
    """Each chunk by itself in the entries of a few tokens; inputs are read without the adapter.

    The paper compresses one text. Here the entries of further chunks follow those of the first.

    Parameters
    ----------
    model
        A causal language model of transformers with rotary positions.
    comp_tokens
        Entries that each chunk becomes in every layer: 1 to 16 in the paper.
    adapter
        The adapter; None for a new one, which must be trained.
    rank, alpha
        Of a new one.

    Raises
    ------
    ModelError
        The model cannot be adapted.
    InputError
        The adapter has another number of COMP tokens.
    """

    adapts = "chunks"

    def __init__(
        self,
        model: Any,
        comp_tokens: int = 4,
        adapter: ConditionalLora | None = None,
        *,
        rank: int = 64,
        alpha: float = 32.0,
    ) -> None:
        adapter = adapter or ConditionalLora(model, comp_tokens, rank=rank, alpha=alpha)
        spec = Spec("concat", comp_tokens, recurrent=False, positions="plain")
        super().__init__(model, spec, adapter)

    @staticmethod
    def regeneration(text: Sequence[int], start: int) -> Example:
        """An example that asks for the text itself, as the pretraining does.

        Parameters
        ----------
        text
            Token ids.
        start
            The token that asks for it: the start of a text (their figure 2).
        """
        return Example((tuple(text), (start, *text)), (False, *(True,) * len(text)))
