"""Leaving out the texts whose compressed version or labels are worst.

Source: Pan et al., "LLMLingua-2", Findings of ACL 2024, section 3.3. The rates are those of
`Quality`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .annotate import Labelled

__all__ = ["Selection", "quantiles", "select"]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_RATES = ("variation_rate", "hitting_rate", "matching_rate", "alignment_gap")


@dataclass(frozen=True, slots=True)
class Selection:
    """What is left, in the order in which it was given, and what is not.

    Attributes
    ----------
    kept
        What is left.
    varied, gaping
        What was left out for its variation rate, and for its alignment gap, the worst first.
    """

    kept: tuple[Labelled, ...]
    varied: tuple[Labelled, ...]
    gaping: tuple[Labelled, ...]

    def __str__(self) -> str:
        total = len(self.kept) + len(self.varied) + len(self.gaping)
        line = f"{len(self.kept):,} of {total:,} texts kept"
        if self.varied:
            least = self.varied[-1].quality.variation_rate
            line += f"; {len(self.varied):,} dropped for a variation rate from {least:.3f} on"
        if self.gaping:
            least = self.gaping[-1].quality.alignment_gap
            line += f"; {len(self.gaping):,} dropped for an alignment gap from {least:.3f} on"
        return line


def select(labelled: Sequence[Labelled], *, variation: float = 0.05, gap: float = 0.1) -> Selection:
    """Leave out the worst by their variation rate, and of the others by their alignment gap.

    Parameters
    ----------
    labelled
        What `annotate` made.
    variation, gap
        The parts to leave out, by default the paper's. A text with a rate of 0 is never left out
        for it, and of equally bad ones those are whose id comes first.

    Raises
    ------
    InputError
        A part is below 0, or 1 or more.
    """
    if not (0 <= variation < 1 and 0 <= gap < 1):
        raise InputError(f"a part is from 0 to below 1, got {variation} and {gap}")
    varied, rest = _parted(labelled, "variation_rate", variation)
    gaping, kept = _parted(rest, "alignment_gap", gap)
    return Selection(tuple(kept), tuple(varied), tuple(gaping))


def _parted(
    labelled: Sequence[Labelled], rate: str, part: float
) -> tuple[list[Labelled], list[Labelled]]:
    """The texts with the highest rates, the highest first, and the others as they stood."""
    rates = [getattr(one.quality, rate) for one in labelled]
    order = sorted(range(len(rates)), key=lambda i: (-rates[i], labelled[i].id))
    worst = [i for i in order[: round(part * len(rates))] if rates[i] > 0]
    left = set(range(len(rates))).difference(worst)
    return [labelled[i] for i in worst], [labelled[i] for i in sorted(left)]


def quantiles(labelled: Sequence[Labelled]) -> str:
    """A Markdown table of how the rates are distributed.

    Raises
    ------
    InputError
        There are no texts.
    """
    if not labelled:
        raise InputError("there are no texts to describe")
    lines = [
        f"| {len(labelled):,} texts | {' | '.join(f'{q:.0%}' for q in _QUANTILES)} |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in _RATES:
        values = np.quantile([getattr(one.quality, name) for one in labelled], _QUANTILES)
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(f'{v:.3f}' for v in values)} |")
    return "\n".join(lines)
