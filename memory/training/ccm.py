"""Training an adapter of compressed context memory.

Source: Kim et al., "Compressed Context Memory for Online Language Model Interaction", ICLR 2024
(arXiv 2312.03414), section 3.2 and appendix; the defaults are those of the official code for
MetaICL, LaMP and DailyDialog. Only the conditional LoRA and the COMP embeddings learn, from the
tokens of the answers, with all steps of a conversation in one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..latent.base import Example
from ..latent.ccm import CCM
from ..latent.plan import Spec
from .fit import Recipe, Run, fit

__all__ = ["Recipe", "Run", "train"]


def train(
    model: Any,
    spec: Spec,
    examples: Sequence[Example],
    recipe: Recipe | None = None,
    *,
    folder: str | Path | None = None,
    tokenizer: Any = None,
    progress: bool = False,
    stop_after: int | None = None,
) -> Run[CCM]:
    """Train an adapter and save it.

    A run that was stopped goes on from its last checkpoint, which lies in `folder`, when it is
    made again; on one machine it comes to the same adapter as one that was not, bit by bit. The
    model's weights and modes are as before afterwards, and so are the global random generators.

    Parameters
    ----------
    model
        A causal language model; what is compressed is for it alone.
    spec
        The memory.
    examples
        What to learn from.
    recipe
        How; None for that of the paper.
    folder
        Where the adapter and the checkpoints go; None to save nothing.
    tokenizer
        Of the model, for the adapter to know it again.
    progress
        Whether to show a bar.
    stop_after
        Stop behind this step and save a checkpoint.

    Raises
    ------
    InputError
        There are no examples, or one that is longer than the model's window.
    StateError
        The checkpoint is damaged or of another run.
    ModelError
        The model cannot be adapted.
    """
    recipe = recipe or Recipe()
    run = fit(
        CCM(model, spec, recipe.adapter(model, spec.comp_tokens)),
        examples,
        recipe,
        folder=folder,
        progress=progress,
        stop_after=stop_after,
    )
    if folder is not None:
        run.memory.save_pretrained(folder, tokenizer)
    return run
