"""Running and summing up."""

from __future__ import annotations

from laconic.core import Budget, Passage, get_compressor
from laconic.core.evaluation.baselines import BASELINES, Lead, RandomSentences, Truncate
from laconic.core.evaluation.datasets import Example
from laconic.core.evaluation.report import Table
from laconic.core.evaluation.runner import run, summarise
from laconic.core.types import Span

FIRST = "Rome is old. Paris is the capital of France. Fish swim in the sea all day."
EXAMPLE = Example("What is the capital of France?", ("Paris",), (Passage(FIRST), Passage("Ok.")))


def test_outcomes_say_what_survived() -> None:
    (outcome,) = run([EXAMPLE], get_compressor("lexical"), Budget.tokens(8))
    assert (outcome.answer, outcome.words, outcome.evidence) == (True, 1.0, None)
    assert outcome.tokens <= outcome.limit == 8
    assert outcome.is_tight
    (lost,) = run([EXAMPLE], Truncate(), Budget.tokens(4))
    assert (lost.answer, lost.words) == (False, 0.0)


def test_unanswerable_examples_are_left_out_of_the_share() -> None:
    unanswerable = Example("Who?", ("Nobody",), EXAMPLE.passages)
    outcomes = list(run([EXAMPLE, unanswerable], get_compressor("lexical"), Budget.tokens(8)))
    cell = summarise([outcomes])
    assert outcomes[1].answer is None
    assert cell.answer is not None
    assert cell.answer.value == 1


def test_evidence_is_summed_up_whole_and_in_part() -> None:
    spans = ((0, Span(0, 12)), (0, Span(13, 45)))
    example = Example(EXAMPLE.question, (), EXAMPLE.passages, spans)
    cell = summarise([list(run([example], get_compressor("lexical"), Budget.tokens(8)))])
    assert cell.answer is None
    assert cell.all_evidence is not None
    assert (cell.all_evidence.value, cell.evidence) == (0, 0.5)


def test_seeds_are_averaged() -> None:
    runs = [list(run([EXAMPLE] * 4, RandomSentences(s), Budget.tokens(8))) for s in range(5)]
    cell = summarise(runs)
    share = sum(bool(o.answer) for outcomes in runs for o in outcomes) / 20
    assert cell.answer is not None
    assert cell.answer.value == share
    assert len(cell.kept) == 4


def test_baselines_are_what_they_are_called() -> None:
    texts = ["A one. A two. A three.", "B one. B two. B three."]
    assert Truncate().compress(texts, budget=9).text.startswith("A one. A two.")
    assert Lead().compress(texts, budget=7).text == "A one.\n\nB one."
    assert set(BASELINES) == {"truncate", "random", "lead", "documents"}


def test_a_table_reads_as_markdown() -> None:
    table = Table("mine", 1, "cl100k_base")
    cell = summarise([list(run([EXAMPLE], get_compressor("lexical"), Budget.tokens(8)))])
    table.add("lexical", 0.5, cell)
    table.add("again", 0.5, cell)
    lines = table.markdown().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[-1].startswith("| 0.5 | again | 100.0% ")
    assert "1.0e+00" in lines[-1]
