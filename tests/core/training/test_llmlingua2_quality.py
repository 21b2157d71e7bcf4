from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core.training.llmlingua2.annotate import Labelled, Quality
from laconic.core.training.llmlingua2.quality import quantiles, select
from laconic.core.types import Span
from laconic.errors import InputError


def text(name: str, variation: float, gap: float) -> Labelled:
    quality = Quality(variation, 0.5 + gap, 0.5)
    return Labelled(name, name, "a", (Span(0, 1),), (True,), quality)


def names(labelled: tuple[Labelled, ...]) -> list[str]:
    return [one.id for one in labelled]


def test_the_worst_are_left_out_first_by_variation_then_by_gap() -> None:
    labelled = [text(f"{i}", i / 100, ((i * 7) % 20) / 100) for i in range(20)]
    chosen = select(labelled, variation=0.1, gap=0.2)
    assert names(chosen.varied) == ["19", "18"]
    # A fifth of the 18 others: those with 19, 18, 17 and 16 hundredths.
    assert names(chosen.gaping) == ["17", "14", "11", "8"]
    assert names(chosen.kept) == [f"{i}" for i in range(18) if i not in (17, 14, 11, 8)]
    assert str(chosen) == (
        "14 of 20 texts kept; 2 dropped for a variation rate from 0.180 on; "
        "4 dropped for an alignment gap from 0.160 on"
    )


def test_the_defaults_are_the_papers() -> None:
    chosen = select([text(f"{i}", (i + 1) / 1000, (i + 1) / 1000) for i in range(200)])
    assert (len(chosen.varied), len(chosen.gaping), len(chosen.kept)) == (10, 19, 171)


def test_nothing_is_left_out_for_a_rate_of_0() -> None:
    labelled = [text(f"{i}", 0.0, 0.0) for i in range(50)]
    labelled[7] = text("7", 0.2, 0.0)
    labelled[9] = text("9", 0.0, 0.1)
    chosen = select(labelled, variation=0.5, gap=0.5)
    assert (names(chosen.varied), names(chosen.gaping)) == (["7"], ["9"])
    assert str(select(labelled[:5])) == "5 of 5 texts kept"


def test_of_equally_bad_ones_no_more_than_the_part_are_left_out() -> None:
    chosen = select([text(f"{i}", 1.0, 0.3) for i in range(40)])
    assert (names(chosen.varied), len(chosen.gaping)) == (["0", "1"], 4)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5)), max_size=30),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
)
def test_each_is_kept_or_left_out_and_none_that_is_kept_is_worse(
    rates: list[tuple[float, float]], variation: float, gap: float
) -> None:
    labelled = [text(f"{i}", *pair) for i, pair in enumerate(rates)]
    chosen = select(labelled, variation=variation, gap=gap)
    parts = [*chosen.kept, *chosen.varied, *chosen.gaping]
    assert sorted(names(tuple(parts))) == sorted(one.id for one in labelled)
    for one in chosen.varied:
        rest = [*chosen.kept, *chosen.gaping]
        assert all(other.quality.variation_rate <= one.quality.variation_rate for other in rest)
    for one in chosen.gaping:
        assert all(
            other.quality.alignment_gap <= one.quality.alignment_gap for other in chosen.kept
        )


@pytest.mark.parametrize("options", [{"variation": 1.0}, {"gap": -0.1}])
def test_parts_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="a part is from 0 to below 1"):
        select([], **options)


def test_the_table_shows_each_rate() -> None:
    lines = quantiles([text(f"{i}", i / 100, 0.1) for i in range(101)]).splitlines()
    assert lines[0] == "| 101 texts | 5% | 25% | 50% | 75% | 95% | 100% |"
    assert lines[2] == "| variation rate | 0.050 | 0.250 | 0.500 | 0.750 | 0.950 | 1.000 |"
    assert lines[3].startswith("| hitting rate | 0.600 |")
    assert lines[4].startswith("| matching rate | 0.500 |")
    assert lines[5].startswith("| alignment gap | 0.100 |")
    with pytest.raises(InputError, match="no texts to describe"):
        quantiles([])
