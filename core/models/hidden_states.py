"""Hidden states of rows of tokens, and how two sides of them match."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MATCHES", "Ids", "Known", "States", "layers", "matches", "through"]

MATCHES = 3
"""Numbers that tell a token how well the other side matches it."""

Ids = NDArray[np.int64]


class States(NamedTuple):
    """Hidden states of rows of tokens.

    Attributes
    ----------
    hidden
        Tensor of shape ``(rows, tokens, width)``.
    mask
        Which tokens are none of the padding; bool tensor of shape ``(rows, tokens)``.
    """

    hidden: Any
    mask: Any

    @classmethod
    def of(cls, rows: Sequence[Any]) -> States:
        """Rows of different lengths, of shape ``(tokens, width)`` each, padded."""
        import torch

        width = max(map(len, rows))
        hidden = torch.zeros(len(rows), width, rows[0].shape[1], device=rows[0].device)
        mask = torch.zeros(len(rows), width, dtype=torch.bool, device=rows[0].device)
        for i, row in enumerate(rows):
            hidden[i, : len(row)], mask[i, : len(row)] = row, True
        return cls(hidden, mask)


class Known(NamedTuple):
    """What the encoder says of one row of tokens by itself, in half precision.

    Attributes
    ----------
    ids
        The tokens; array of shape ``(tokens,)``.
    hidden, tokens
        The states in front of the upper layers, and the embedding of each token behind them;
        tensors of shape ``(tokens, width)``.
    text
        The embedding of the row; shape ``(width,)``.
    """

    ids: Ids
    hidden: Any
    tokens: Any
    text: Any


def matches(questions: Sequence[Known], passages: Sequence[Known]) -> tuple[Any, Any]:
    """How well each token is matched by the tokens of the other side.

    Returns
    -------
    questions, passages : tensors, shape ``(rows, tokens, 3)``
        The cosine with the other row, the best with one of its tokens, and whether it has the
        same token; special tokens match nothing.
    """
    import torch

    sides = []
    for side in (questions, passages):
        tokens = States.of([one.tokens for one in side])
        texts = torch.stack([one.text.float() for one in side])
        ids = torch.full(tokens.mask.shape, -1, device=tokens.mask.device)
        for i, one in enumerate(side):
            ids[i, 1 : len(one.ids) - 1] = torch.from_numpy(one.ids[1:-1].copy())
        sides.append((tokens.hidden, texts, ids))
    (one, one_text, one_ids), (two, two_text, two_ids) = sides
    inside = (one_ids >= 0)[:, :, None] & (two_ids >= 0)[:, None, :]
    alike = (one @ two.transpose(1, 2)) * inside
    same = ((one_ids[:, :, None] == two_ids[:, None, :]) & inside).to(alike)
    return (
        torch.stack([(one @ two_text[:, :, None])[..., 0], alike.amax(2), same.amax(2)], dim=2),
        torch.stack([(two @ one_text[:, :, None])[..., 0], alike.amax(1), same.amax(1)], dim=2),
    )


def layers(encoder: Any, chosen: Any) -> Any:
    """The encoder with only those of its layers."""
    part = copy.copy(encoder)
    part._modules = dict(encoder._modules)  # a shallow copy would share this one
    part.layer = chosen
    return part


def through(part: Any, states: States, *, bf16: bool = False) -> States:
    """Read on through layers, which compute in bfloat16 if asked to."""
    import torch

    hidden = states.hidden
    least = torch.finfo(hidden.dtype).min
    mask = torch.zeros_like(states.mask, dtype=hidden.dtype).masked_fill(~states.mask, least)
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=bf16):
        read = part(hidden, attention_mask=mask[:, None, None, :]).last_hidden_state
    return States(read.to(hidden), states.mask)
