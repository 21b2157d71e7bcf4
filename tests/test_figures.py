"""Every figure of README and the guides stands in the benchmark page that it comes from.

The tables of docs/benchmarks are what commands have printed, each below its command. A table of
README or of a guide says where its figures come from by a link to such a page, or to a section of
it, in the row, in the head of the column or in the head of the table; what the row and the column
are called says which figure it is. In prose a figure must stand on a page that its paragraph links
to. When a benchmark page has changed, ``python tests/test_figures.py`` mends the tables.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
STORED = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs/benchmarks").glob("*.md"))
GUIDES = [
    "README.md",
    *sorted(
        page
        for page in (p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
        if page not in STORED and not page.startswith("docs/api/")
    ),
]

FIGURE = re.compile(r"[+-]?\d[\d,.]*(?:(?:%|x)(?: \[[^]]*\])?| \[[^]]*\])")
"""A whole cell: a percentage or a factor, with or without its interval."""

RATE = re.compile(r"([\d.]+) %")
"""A whole cell that says how much is kept."""

IN_PROSE = re.compile(
    r"(?<![\w.])(?:\d[\d,.]*%(?: \[[^]]*\])?|\d[\d,.]* %|\d[\d,.]*x\b|\d+\.\d+(?= times)"
    r"|\d+\.\d+ \[[^]]*\])"
)
SET = {
    "README.md": {"95 %", "98 %"},  # intervals, and a promise that a suite holds
    "docs/migration.md": {"2 %"},  # the same
    "docs/benchmarks.md": {"95 %", "2 %", "5 %"},  # how tables are made, and rates
    "docs/training.md": {"95 %"},
    "docs/choosing.md": {"95 %", "10 %"},
    "docs/domain-adaptation.md": {"5 %", "10 %"},  # what the recipe drops
}
"""Percentages in prose that nobody has measured."""

KEYS = {"rate", "kept", "method", "guards", "wording", "policy", "context", "turns", "tokens"}
"""Columns of stored tables that say what a row is about; the first one always does."""

NAMES = {
    "langchain-embeddings-filter": "EmbeddingsFilter",
    "llamaindex-sentence-optimizer": "SentenceOptimizer",
    "random-0": "random",
}
"""Methods with two names in stored tables."""


@dataclass
class Table:
    """A table of a page, with the lines that it takes, and the heading that it stands below."""

    start: int
    heading: str
    head: list[str]
    rows: list[list[str]]


class Stored(NamedTuple):
    """A stored figure: what its row and column are called, and whether the latter may go unsaid."""

    keys: tuple[str, ...]
    column: str
    is_default: bool
    text: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blanked(text: str) -> str:
    """A page with its blocks of code left empty, so that lines stay where they are."""
    return re.sub(
        r"^```.*?^```",
        lambda block: "\n" * block.group().count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )


def slug(heading: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def tables(text: str) -> Iterator[Table]:
    heading, lines = "", blanked(text).splitlines()
    for is_table, group in itertools.groupby(enumerate(lines), lambda line: line[1][:1] == "|"):
        numbered = list(group)
        if is_table:
            head, _, *rows = [[c.strip() for c in line[1:-1].split("|")] for _, line in numbered]
            yield Table(numbered[0][0], heading, head, rows)
        else:
            found = [line for _, line in numbered if re.match(r"#+ ", line)]
            heading = slug(found[-1].lstrip("#")) if found else heading


def plain(cell: str) -> str:
    """A cell as it reads; a percentage of tokens as a rate."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).replace("*", "").replace("`", "").strip()
    rate = RATE.fullmatch(text)
    text = f"{float(rate[1]) / 100:g}" if rate else text
    return NAMES.get(text, text)


def labels(cell: str) -> set[str]:
    """What a cell may be called by: the whole of it, its parts, and what it has in backticks."""
    parts = [cell, *re.split(r"[,:] ", cell), *re.findall(r"`[^`]+`", cell)]
    return {plain(part) for part in parts}


def stored(page: str, anchor: str) -> Iterator[Stored]:
    """The figures of a stored page, or of one of its sections."""
    for table in tables(read(page)):
        if anchor in ("", table.heading):
            head = [plain(cell) for cell in table.head]
            is_key = [i == 0 or name in KEYS for i, name in enumerate(head)]
            first = is_key.index(False) if False in is_key else None
            for row in table.rows:
                keys = tuple(plain(c) for c, key in zip(row, is_key, strict=True) if key)
                for i, cell in enumerate(row):
                    if not is_key[i]:
                        is_default = i == first and "method" in head
                        yield Stored(keys, head[i], is_default, cell)


def source(page: str, *cells: str) -> tuple[str, str] | None:
    """The stored page, and the section, that the first of some cells links to."""
    for cell in cells:
        if link := re.search(r"\]\(([^)#\s]*benchmarks/\w+\.md)#?([^)]*)\)", cell):
            path = (ROOT / page).parent.joinpath(link[1]).resolve()
            return path.relative_to(ROOT).as_posix(), link[2]
    return None


def wanted(page: str, table: Table, row: list[str], column: int) -> str:
    """The stored figure that a cell must give.

    Raises
    ------
    LookupError
        There is none, or more than one.
    """
    head = table.head[column]
    place = f"{page}: {row[0]} | {head}"
    found = source(page, head, *row, table.head[0])
    if found is None:
        raise LookupError(f"{place}: no link to the benchmark page that it comes from")
    called = labels(head).union(*(labels(c) for c in row if not FIGURE.fullmatch(c)))
    called |= labels(table.head[0])
    rows = [one for one in stored(*found) if called.issuperset(one.keys)]
    named = [one for one in rows if one.column in called] or [one for one in rows if one.is_default]
    # "pruner, int8" is also called "pruner".
    most = max((sum(map(len, one.keys)) for one in named), default=0)
    figures = {one.text for one in named if sum(map(len, one.keys)) == most}
    if len(figures) != 1:
        raise LookupError(f"{place}: {len(figures)} figures of that name in {'#'.join(found)}")
    (figure,) = figures
    return figure if "[" in row[column] else figure.split(" [")[0]


def mended(page: str, text: str) -> str:
    """A page with the figures in its tables as they are stored."""
    lines = text.splitlines(keepends=True)
    for table in tables(text):
        for number, row in enumerate(table.rows, table.start + 2):
            if any(FIGURE.fullmatch(cell) for cell in row):
                cells = [
                    wanted(page, table, row, i) if FIGURE.fullmatch(cell) else cell
                    for i, cell in enumerate(row)
                ]
                lines[number] = f"| {' | '.join(cells)} |\n"
    return "".join(lines)


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs and items of lists, and rows of tables without what are cells of figures."""
    without = re.sub(r"`[^`]*`", "", blanked(text))
    for part in re.split(r"\n(?:\s*\n|(?=\||\s*(?:[-*]|\d+\.) ))", without):
        cells = part.split("|") if part.startswith("|") else [part]
        kept = [c for c in cells if not (FIGURE.fullmatch(c.strip()) or RATE.fullmatch(c.strip()))]
        yield " ".join("|".join(kept).split())


def unknown(page: str, text: str) -> list[str]:
    """Figures in prose that stand on no stored page that their paragraph links to."""
    found = []
    for paragraph in paragraphs(text):
        sources = re.findall(r"\]\(([^)#\s]*benchmarks/\w+\.md)", paragraph)
        there = [read((ROOT / page).parent.joinpath(s).resolve().relative_to(ROOT).as_posix())
                 for s in sources]  # fmt: skip
        for figure in IN_PROSE.findall(paragraph):
            is_there = re.compile(rf"(?<![\d.,]){re.escape(figure)}")
            if figure not in SET.get(page, ()) and not any(map(is_there.search, there)):
                found.append(f"{figure} in: {paragraph[:80]}")
    return found


# Figures


@pytest.mark.parametrize("page", GUIDES)
def test_figures_in_tables_are_those_that_are_stored(page: str) -> None:
    given = read(page).splitlines()
    for line, right in zip(given, mended(page, read(page)).splitlines(), strict=True):
        assert line == right, f"{page}; python tests/test_figures.py mends it"


@pytest.mark.parametrize("page", GUIDES)
def test_no_figure_is_a_bare_number(page: str) -> None:
    for table in tables(read(page)):
        if source(page, *table.head, *itertools.chain(*table.rows)):
            for row in table.rows:
                for name, cell in zip(table.head, row, strict=True):
                    assert name in KEYS or not re.fullmatch(r"[\d.,]+", cell), f"{page}: {row}"


@pytest.mark.parametrize("page", GUIDES)
def test_figures_in_prose_stand_on_the_page_that_is_linked(page: str) -> None:
    assert unknown(page, read(page)) == []


def test_there_are_figures_to_check() -> None:
    for page, least in (("README.md", 30), ("docs/choosing.md", 40)):
        cells = [cell for table in tables(read(page)) for row in table.rows for cell in row]
        assert sum(bool(FIGURE.fullmatch(cell)) for cell in cells) >= least
    for page, percentages in SET.items():
        assert percentages <= set(IN_PROSE.findall(" ".join(paragraphs(read(page))))), page


@pytest.mark.parametrize("page", ["README.md", "docs/choosing.md"])
def test_every_figure_in_their_tables_is_checked(page: str) -> None:
    text = read(page)
    wrong = re.sub(r"(?<=\| )\d+\.\d%( \[[^]]*\])?(?= \|)", lambda f: f"9.9%{f[1] or ''}", text)
    assert text.count("%") == wrong.count("%") > wrong.count("9.9%") >= 30
    assert mended(page, wrong) == text


STORED_PAGE = """\
`laconic bench`

## squad

| rate | method | answer | all evidence |
|--:|---|--:|--:|
| 0.5 | pruner | 97.7% [95.3, 98.9] | 12.0% [9.0, 15.0] |
| 0.1 | pruner | 91.3% [87.6, 94.0] | 11.0% [8.0, 14.0] |
| 0.1 | documents | 70.7% [65.3, 75.5] | – |

## time

| method | time |
|---|--:|
| pruner | 1.55 [1.50, 1.60] |
| pruner, int8 | 1.00 [0.96, 1.01] |
"""
GUIDE = """\
It takes 1.55 times as long ([tables](benchmarks/made.md)).

| file | kept | `pruner` | whole *documents*, `documents` |
|---|--:|--:|--:|
| [squad](benchmarks/made.md#squad): ten | 50 % | 97.7% [95.3, 98.9] | – |
| [squad](benchmarks/made.md#squad) | 0.1 | 91.3% | 70.7% |
| [squad](benchmarks/made.md#squad), all evidence | 0.1 | 11.0% | – |

| method | [time](benchmarks/made.md#time) |
|---|--:|
| `pruner` | 1.55 [1.50, 1.60] |
| `pruner`, int8 | 1.00 [0.96, 1.01] |
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A guide and the stored page that it is about."""
    (tmp_path / "docs/benchmarks").mkdir(parents=True)
    (tmp_path / "docs/benchmarks/made.md").write_text(STORED_PAGE, encoding="utf-8")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    return "docs/guide.md"


def test_a_guide_that_agrees(made: str) -> None:
    assert mended(made, GUIDE) == GUIDE
    assert unknown(made, GUIDE) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("97.7% [95.3, 98.9]", "97.8% [95.3, 98.9]"),
        ("97.7% [95.3, 98.9]", "97.7% [95.3, 99.0]"),
        ("97.7% [95.3, 98.9]", "91.3% [87.6, 94.0]"),  # of another rate
        ("| 70.7% |", "| 91.3% |"),  # of another method
        ("| 11.0% |", "| 91.3% |"),  # of another measure
        ("| 1.00 [0.96, 1.01] |", "| 1.55 [1.50, 1.60] |"),
    ],
)
def test_a_figure_that_is_wrong_is_found_and_mended(before: str, after: str, made: str) -> None:
    assert GUIDE.count(before) == 1
    assert mended(made, GUIDE.replace(before, after)) == GUIDE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| `pruner` | whole", "| `prune` | whole"),
        ("| 50 % |", "| 60 % |"),
        ("[squad](benchmarks/made.md#squad): ten", "squad: ten"),
        ("made.md#squad)", "made.md#nq20)"),
        ("| 50 % | 97.7% [95.3, 98.9] | – |", "| 50 % | 97.7% [95.3, 98.9] | 90.0% |"),
    ],
)
def test_a_figure_that_is_nowhere_is_an_error(before: str, after: str, made: str) -> None:
    assert before in GUIDE
    with pytest.raises(LookupError, match=made):
        mended(made, GUIDE.replace(before, after))


@pytest.mark.parametrize(
    "after", ["1.56 times", "55%, not", "155x, not", "5 %, not", "0.9 [0, 1], not"]
)
def test_a_figure_in_prose_that_is_nowhere_is_found(after: str, made: str) -> None:
    (found,) = unknown(made, GUIDE.replace("1.55 times", after))
    assert found.startswith(after.removesuffix(", not").removesuffix(" times"))


# Commands


COMMAND = re.compile(
    r"^```(?P<kind>\w*)\n(?P<block>.*?)^```|`(?P<inline>laconic bench[^`]*)`",
    flags=re.DOTALL | re.MULTILINE,
)


def commands(text: str) -> list[list[str]]:
    """The words of each command of the package in a page, in blocks and between backticks."""
    found: list[list[str]] = []
    for match in COMMAND.finditer(text):
        if match["inline"]:
            lines = [match["inline"].replace("\n", " ")]
        else:
            is_shell = match["kind"] == "sh"
            lines = match["block"].replace("\\\n", " ").splitlines() if is_shell else []
        found += [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words[:1] == ["laconic"]]


def parsed(words: list[str]) -> argparse.Namespace:
    from laconic.integrations.cli.main import _parser

    return _parser().parse_args(words)


@pytest.mark.parametrize("page", [*GUIDES, *STORED])
def test_every_command_is_one(page: str) -> None:
    for words in commands(read(page)):
        assert parsed(words), words


def test_a_command_that_is_none_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    page = "Say `laconic bench speed --data\nx` or\n\n```sh\nlaconic demo \\\n  a  # it\n```\n"
    assert commands(page) == [["bench", "speed", "--data", "x"], ["demo", "a"]]
    with pytest.raises(SystemExit):
        parsed(["bench", "speeds", "--data", "x"])
    assert "invalid choice" in capsys.readouterr().err


def above(text: str, table: Table) -> list[argparse.Namespace]:
    """The commands above a table: in its section, or else at the top of the page."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(blanked(text).splitlines()) if line.startswith("## ")]
    section = max((i for i in starts if i < table.start), default=0)
    top = min(starts, default=len(lines))
    found = commands("\n".join(lines[section : table.start]))
    return [parsed(words) for words in found or commands("\n".join(lines[: min(top, table.start)]))]


@pytest.mark.parametrize("page", STORED)
def test_each_stored_table_stands_below_the_command_that_prints_it(page: str) -> None:
    text = read(page)
    assert list(tables(text))
    for table in tables(text):
        printing = [one for one in above(text, table) if one.command == "bench"]
        assert printing, f"{page}: no command above line {table.start + 1}"
        head = [plain(cell) for cell in table.head]
        if "method" in head and not {"rate", "kept"}.isdisjoint(head):
            columns = head.index("method"), head.index("rate" if "rate" in head else "kept")
            shown = [[plain(row[i]) for i in columns] for row in table.rows]
            there = {(method, float(rate)) for method, rate in shown}
            assert there <= measured(printing[-1]), f"{page}: {table.heading}"


def measured(command: argparse.Namespace) -> set[tuple[str, float]]:
    """Each method at each rate that a command measures."""
    rates = [float(rate) for rate in command.rates.split(",")]
    return set(itertools.product(map(plain, (command.methods or "").split(",")), rates))


if __name__ == "__main__":
    for guide in GUIDES:
        (ROOT / guide).write_text(mended(guide, read(guide)), encoding="utf-8")
