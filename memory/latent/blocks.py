"""Attention block by block: each block's queries meet only the entries that they see.

In the parallel form of many short chunks most of the mask is empty: with 16 chunks of 32 tokens
nine tenths of it. Blocks are taken apart and attend side by side, like rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .plan import Plan

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks:
    """Where the tokens of each block stand, and what they see.

    Attributes
    ----------
    queries
        Places of each block's tokens, padded with its first; shape ``(batch, blocks, L)``.
    keys
        Places of the entries that it sees, padded with any; shape ``(batch, blocks, K)``.
    mask
        Which key a query sees; bool, shape ``(batch * blocks, 1, L, K)``.
    home
        Where each token's query stands among the flattened ``(blocks, L)``; shape
        ``(batch, Q)``.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    home: torch.Tensor

    @classmethod
    def of(cls, plan: Plan) -> Blocks:
        """Take a plan apart."""
        tokens = plan.block.shape[1]
        ids = torch.arange(int(plan.block.max()) + 1, device=plan.block.device)[None, :, None]
        own = plan.block[:, None] == ids
        far = (plan.reads_from[:, None] <= ids) & (ids <= plan.reads_to[:, None])
        seen = far.clone()
        seen[:, :, :tokens] |= own
        queries, query_is = _first(own)
        keys, key_is = _first(seen)
        causal = keys[:, :, None] <= queries[..., None]
        mask = key_is[:, :, None] & (far.gather(2, keys)[:, :, None] | causal)
        # Rows of padding see something, or there would be nothing to average.
        mask[..., 0] |= ~query_is | ~mask.any(-1)
        # A token of padding takes the result of some other one, which nobody sees.
        home = torch.zeros_like(plan.block)
        places = torch.arange(queries[0].numel(), device=home.device).expand(len(home), -1)
        valid = query_is.flatten(1)
        row = torch.arange(len(home), device=home.device)[:, None].expand_as(places)
        home[row[valid], queries.flatten(1)[valid]] = places[valid]
        return cls(queries, keys, mask.flatten(0, 1)[:, None], home)

    @property
    def scores(self) -> int:
        """How many scores are computed for each head."""
        return self.mask.numel()

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Attention of all tokens to what they see.

        Parameters
        ----------
        query, key, value
            Shape ``(batch, heads, entries, dim)``, with the virtual entries among the latter two.
        attention
            Computes it from queries, keys, values and mask, for shape ``(rows, tokens, heads,
            dim)``.

        Returns
        -------
        tensor, shape ``(batch, tokens, heads, dim)``
        """
        batch = len(query)
        found = attention(
            _apart(query, self.queries), _apart(key, self.keys), _apart(value, self.keys), self.mask
        )
        flat = found.unflatten(0, (batch, -1)).flatten(1, 2)
        taken = flat.flatten(0, 1).index_select(0, _rows(self.home, flat.shape[1]))
        together: torch.Tensor = taken.unflatten(0, (batch, -1))
        return together


def _first(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places that are chosen, in order and padded, and which of them are no padding.

    Parameters
    ----------
    chosen
        Bool, shape ``(batch, blocks, places)``.
    """
    most = int(chosen.sum(-1).max())
    order = torch.sort((~chosen).to(torch.uint8), dim=-1, stable=True).indices[..., :most]
    return order, chosen.gather(2, order)


def _apart(entries: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Entries at places, ``(batch, blocks, n)``; shape ``(batch * blocks, heads, n, dim)``."""
    # Whole rows are copied, and their gradients added, many times faster than single numbers.
    rows = entries.transpose(1, 2).flatten(0, 1)
    taken = rows.index_select(0, _rows(places.flatten(1), entries.shape[2]))
    apart: torch.Tensor = taken.unflatten(0, (-1, places.shape[2])).transpose(1, 2)
    return apart


def _rows(places: torch.Tensor, count: int) -> torch.Tensor:
    """Places, ``(batch, n)``, among the `count` rows of each member of a flattened batch."""
    offsets = torch.arange(len(places), device=places.device)[:, None] * count
    return (places + offsets).flatten()
