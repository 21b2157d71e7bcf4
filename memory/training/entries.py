"""Showing an adapter of compressed context memory which entries it shall make.

Entries of several chunks can only be averaged if they are about the same thing: what COMP token k
leaves must have the same key whatever the chunk said, and a value of nothing where it said nothing.
Answers alone did not teach that (``docs/benchmarks/lab.md``, variants). Here COMP token k is to
stand for the k-th key of the task. It begins as the embedding of that key, so that the model looks
the key up by itself, and keys and values of the next layer are fitted to what the value's own token
leaves there in a conversation. What is learnt behind that is learnt from answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..latent.attention import moved
from ..latent.base import Example
from ..latent.ccm import CCM
from .facts import SET, START, TURN_LENGTH, Facts
from .fit import Recipe, fit
from .lab import COPY, LOOKS_UP

__all__ = ["show"]

_FACTS = 8
"""Of a turn."""

_LEARNT = (f"{LOOKS_UP}.self_attn.v_proj", f"{COPY}.self_attn.k_proj", f"{COPY}.self_attn.v_proj")
"""What is fitted. Were the other projections free too, the quickest way to be less wrong would be
to look nothing up.
"""


def show(
    memory: CCM, recipe: Recipe, *, folder: str | Path | None = None, progress: bool = False
) -> None:
    """Let COMP tokens begin as keys of the task, and fit their entries.

    Parameters
    ----------
    memory
        On the study model, with ``positions="slots"`` and as many COMP tokens as the task of
        `Facts` has keys. Its adapter is changed.
    recipe
        Steps, conversations of each, the learning rate and the seed.
    folder, progress
        As for `fit`.
    """
    task = Facts(slots=_FACTS)
    table = memory.model.get_input_embeddings().weight
    keys = slice(task.first_key, task.first_key + task.keys)
    memory.adapter.comp_embeddings.data.copy_(table[keys].float())
    shown = _Shown(memory, task)
    examples = task.examples(
        recipe.steps * recipe.batch_size,
        recipe.seed,
        1,
        shortest=TURN_LENGTH,
        longest=TURN_LENGTH,
    )
    with _only(memory, _LEARNT):
        fit(shown, examples, recipe, folder=folder, progress=progress)


class _Shown(CCM):
    """The same memory, whose loss is how far its entries are from those that are wanted."""

    def __init__(self, memory: CCM, task: Facts) -> None:
        super().__init__(memory.model, memory.spec, memory.adapter)
        self.task = task
        self.keys, self.values = _wanted(memory, task)

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """Squared distances of keys, of values that were said and of those that were not, each as
        a part of what there is to tell apart; summed over examples.
        """
        ids = torch.tensor([example.chunks[0] for example in examples])
        said = torch.full((len(ids), self.task.keys), -1)
        row, place = (ids == SET).nonzero(as_tuple=True)
        said[row, ids[row, place + 1] - self.task.first_key] = (
            ids[row, place + 2] - self.task.first_value
        )
        state = self.observe(self.start(), ids, differentiable=True)
        keys, values = (x.transpose(1, 2).flatten(2) for x in state.memory[COPY])
        # In the layer that looks up nothing is known yet, and nothing is to be found.
        silent = state.memory[LOOKS_UP][1].transpose(1, 2).flatten(2)
        wanted = self.values[said].masked_fill((said < 0)[..., None], 0.0)
        off = (values - wanted).square().sum(-1)
        apart = self.values.square().sum(-1).mean()
        error = (keys - self.keys).square().sum(-1).mean() / (
            self.keys - self.keys.mean(0)
        ).square().sum(-1).mean() + (
            off[said >= 0].mean() + off[said < 0].mean() + silent.square().sum(-1).mean()
        ) / apart
        return error * len(examples)


@torch.no_grad()
def _wanted(memory: CCM, task: Facts) -> tuple[torch.Tensor, torch.Tensor]:
    """By key and by value, what tokens of values leave behind the layer that looks up, on average.

    Keys before their rotation, values from their mean; both of shape ``(how many, width)``.
    """
    assert memory.rotator is not None
    drawn = Facts().draw(np.random.default_rng(0), 256, 8, TURN_LENGTH, 16)
    context = torch.from_numpy(drawn.context).flatten(1)
    ids = torch.cat([torch.full((len(context), 1), START), context], 1)
    layer = memory.model(input_ids=ids, use_cache=True).past_key_values.layers[COPY]
    back = -torch.arange(ids.shape[1]).expand(len(ids), -1)
    keys = moved(memory.rotator, layer.keys.float(), back, COPY)
    row, place = (ids == SET).nonzero(as_tuple=True)
    left = [x.transpose(1, 2).flatten(2)[row, place + 2] for x in (keys, layer.values.float())]
    by_key = _means(left[0], ids[row, place + 1] - task.first_key, task.keys)
    by_value = _means(left[1], ids[row, place + 2] - task.first_value, task.values)
    return by_key, by_value - by_value.mean(0)


def _means(rows: torch.Tensor, of: torch.Tensor, count: int) -> torch.Tensor:
    """The mean of the rows of each of so many groups."""
    sums = torch.zeros(count, rows.shape[1]).index_add(0, of, rows)
    return sums / torch.bincount(of, minlength=count)[:, None]


@contextmanager
def _only(memory: CCM, names: Sequence[str]) -> Iterator[None]:
    """Let only these projections learn for a while."""
    adapter = memory.adapter
    learning = [
        p for name, pair in adapter.tensors().items() if name.endswith(tuple(names)) for p in pair
    ]
    adapter.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        adapter.requires_grad_(True)
