"""Results as a table to read, figures to keep and a plot to look at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import MissingExtraError
from .metrics import paired_p_value
from .runner import Cell

__all__ = ["Table", "save"]


_HEADER = (
    "| rate | method | answer | answer words | all evidence | evidence | p | used | over | loose "
    "| ms |"
)


@dataclass(slots=True)
class Table:
    """The cells of one data set.

    Attributes
    ----------
    title
        Name of the data set.
    n
        Number of examples.
    counter
        Name of the tokenizer that counted.
    cells
        By method, then by rate.
    """

    title: str
    n: int
    counter: str
    cells: dict[str, dict[float, Cell]] = field(default_factory=dict)

    def add(self, method: str, rate: float, cell: Cell) -> None:
        """Put one cell in its place."""
        self.cells.setdefault(method, {})[rate] = cell

    def markdown(self) -> str:
        """Write the table, with the first method tested against each of the others.

        The last columns: tokens left by tokens allowed; how many outcomes passed the limit, and
        how many left room for one more sentence; mean wall time of an example, in which passages
        that an encoder has seen before are not encoded again.
        """
        reference, *_ = self.cells
        lines = [
            (
                f"**{self.title}**: {self.n} examples, {self.counter}; retained [95 % interval]; "
                f"p: exact McNemar against {reference}"
            ),
            "",
            _HEADER,
            "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for rate in next(iter(self.cells.values())):
            for method, by_rate in self.cells.items():
                cell = by_rate[rate]
                p = paired_p_value(self.cells[reference][rate].kept, cell.kept)
                entries = [
                    f"{rate:g}",
                    method,
                    "–" if cell.answer is None else str(cell.answer),
                    "–" if cell.words is None else f"{cell.words:.1%}",
                    "–" if cell.all_evidence is None else str(cell.all_evidence),
                    "–" if cell.evidence is None else f"{cell.evidence:.1%}",
                    "–" if method == reference else f"{p:.1e}",
                    f"{cell.rate:.1%}",
                    str(cell.exceeded),
                    str(cell.loose),
                    f"{cell.seconds * 1000:.1f}",
                ]
                lines.append(f"| {' | '.join(entries)} |")
        return "\n".join(lines) + "\n"


def save(table: Table, folder: Path) -> None:
    """Write ``TITLE.md``, ``TITLE.json`` and ``TITLE.png`` into a folder.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table.title}.md").write_text(table.markdown(), encoding="utf-8")
    figures = {
        method: {str(rate): asdict(cell) for rate, cell in by_rate.items()}
        for method, by_rate in table.cells.items()
    }
    (folder / f"{table.title}.json").write_text(json.dumps(figures), encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a plot", "bench") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rates = sorted(next(iter(table.cells.values())))
    for method, by_rate in table.cells.items():
        kept = [(r, by_rate[r].answer or by_rate[r].all_evidence) for r in rates]
        points = [(r, k) for r, k in kept if k is not None]
        values = [100 * k.value for _, k in points]
        spread = (
            [100 * (k.value - k.low) for _, k in points],
            [100 * (k.high - k.value) for _, k in points],
        )
        axes.errorbar(
            [100 * r for r, _ in points], values, yerr=spread, marker="o", capsize=2, label=method
        )
    axes.set_xscale("log")
    axes.set_xticks([100 * r for r in rates], [f"{100 * r:g}" for r in rates], minor=False)
    axes.minorticks_off()
    axes.set_xlabel(f"tokens kept, % ({table.counter})")
    axes.set_ylabel("answer retained, % (95 % interval)")
    axes.set_title(f"{table.title}, n = {table.n}")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(folder / f"{table.title}.png", dpi=110)
