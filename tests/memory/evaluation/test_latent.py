from __future__ import annotations

import pytest

pytest.importorskip("torch")

from laconic.memory.evaluation.latent import SPECS, StepTime, state_sizes, step_times


def test_states_are_as_large_as_the_formula_says() -> None:
    sizes = list(state_sizes((1, 4, 20), tokens=3))
    assert [size.name for size in sizes] == list(SPECS)
    for size in sizes:
        assert size.nbytes == size.formula
        assert str(size).endswith("| yes |")
    concat, capped, merge, ema = (size.nbytes for size in sizes)
    assert concat[20] == 20 * concat[1]
    assert capped[20] == 16 * capped[1]
    assert merge[1] == merge[4] == merge[20] == ema[20]


def test_both_forms_are_timed() -> None:
    times = list(step_times(((1, 3),), turns=2, layers=1, width=32, repeats=2))
    assert len(times) == len(SPECS)
    for row in times:
        assert len(row.parallel) == len(row.recurrent) == 2
        assert min(*row.parallel, *row.recurrent) > 0


def test_ratios_are_of_pairs() -> None:
    row = StepTime("x", parallel=(1.0, 2.0, 1.0), recurrent=(2.0, 3.0, 1.0))
    assert str(row) == "| x | 2.00 | 1.00 | 1.5x [1.0, 2.0] |"
