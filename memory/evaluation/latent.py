"""What learned memories cost: bytes of their states, and time of a training step.

What they recall is measured by `laconic.memory.evaluation.steps`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

import torch

from ..latent.base import Example, LatentMemory
from ..latent.ccm import CCM
from ..latent.conditional_lora import ConditionalLora
from ..latent.plan import Spec
from .speed import random_llama

__all__ = ["StateSize", "StepTime", "state_sizes", "step_times"]

SPECS = {
    "concat": Spec("concat", 2),
    "concat, cap 16": Spec("concat", 2, cap=16),
    "merge": Spec("merge", 8),
    "ema": Spec("ema", 8),
}
"""What is measured: 2 COMP tokens a turn for concat, 8 for averages, as in the paper."""


@dataclass(frozen=True, slots=True)
class StateSize:
    """Bytes of a state after so many turns.

    Attributes
    ----------
    name
        The memory.
    nbytes
        By the number of turns.
    formula
        What `CCM.state_bytes` says.
    full
        Bytes of a full cache of the same turns.
    """

    name: str
    nbytes: dict[int, int]
    formula: dict[int, int]
    full: dict[int, int]

    def __str__(self) -> str:
        cells = [f"{self.nbytes[t]:,}" for t in self.nbytes]
        is_equal = "yes" if self.nbytes == self.formula else "no"
        return f"| {self.name} | {' | '.join(cells)} | {is_equal} |"


def state_sizes(
    turns: Sequence[int] = (1, 2, 4, 8, 16, 32, 64), tokens: int = 24
) -> Iterator[StateSize]:
    """Measure states of a small model after each of so many turns of `tokens` tokens."""
    model = random_llama(layers=2, width=64, heads=4)
    config = model.config
    entry = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4
    generator = torch.Generator().manual_seed(0)
    for name, spec in SPECS.items():
        ccm = CCM(model, spec, ConditionalLora(model, spec.comp_tokens))
        state, found = ccm.start(), {}
        for t in range(1, max(turns) + 1):
            state = ccm.observe(state, torch.randint(3, 8192, (tokens,), generator=generator))
            if t in turns:
                found[t] = state.nbytes
        formula = {t: ccm.state_bytes(t) for t in turns}
        yield StateSize(name, found, formula, {t: t * tokens * entry for t in turns})
        ccm.adapter.detach_from_model()


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of training steps on the same conversations in two forms.

    Attributes
    ----------
    name
        The memory.
    parallel, recurrent
        Seconds of each step.
    """

    name: str
    parallel: tuple[float, ...]
    recurrent: tuple[float, ...]

    def __str__(self) -> str:
        ratios = sorted(r / p for r, p in zip(self.recurrent, self.parallel, strict=True))
        return (
            f"| {self.name} | {median(self.recurrent):.2f} | {median(self.parallel):.2f} "
            f"| {median(ratios):.1f}x [{ratios[0]:.1f}, {ratios[-1]:.1f}] |"
        )


def step_times(
    shapes: Sequence[tuple[int, int]] = ((1, 16), (4, 16), (8, 32)),
    *,
    turns: int = 16,
    layers: int = 4,
    width: int = 128,
    repeats: int = 5,
) -> Iterator[StepTime]:
    """Time forward and backward passes in the parallel and in the recurrent form, in turn.

    Parameters
    ----------
    shapes
        Conversations of a step, and tokens of a turn.
    turns
        Of a conversation.
    layers, width
        Of the model.
    repeats
        Pairs of steps that are timed, behind one that is not.
    """
    model = random_llama(layers=layers, width=width, heads=4).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for (name, spec), (batch, tokens) in product(SPECS.items(), shapes):
        drawn = torch.randint(3, 8192, (batch, turns + 1, tokens), generator=generator).tolist()
        learnt = (False,) + (True,) * (tokens - 1)
        examples = [Example(tuple(map(tuple, rows)), learnt) for rows in drawn]
        ccm = CCM(model, spec, ConditionalLora(model, spec.comp_tokens))
        parallel: list[float] = []
        recurrent: list[float] = []
        for _ in range(repeats + 1):
            # The base class reads chunk after chunk.
            for form, measured in ((CCM.loss, parallel), (LatentMemory.loss, recurrent)):
                started = time.perf_counter()
                form(ccm, examples).backward()
                measured.append(time.perf_counter() - started)
                ccm.adapter.zero_grad()
        title = f"{name}, {batch} x {tokens} tokens"
        yield StepTime(title, tuple(parallel[1:]), tuple(recurrent[1:]))
        ccm.adapter.detach_from_model()
