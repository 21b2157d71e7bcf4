"""What is looked for, what is found again, and that guards keep it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import Budget, TokenCounter, get_compressor
from laconic.core.compressor import Compressor
from laconic.core.errors import BudgetError, InputError
from laconic.core.evaluation.baselines import RandomSentences
from laconic.core.evaluation.survival import (
    KINDS,
    PlainWords,
    RandomWords,
    Share,
    Survival,
    guarded,
    negated,
    survival,
)
from laconic.core.guards import KEEP_KINDS, atoms, must_keep
from laconic.core.method import Request, Scores
from laconic.core.methods.llmlingua2 import LLMLingua2
from laconic.integrations.cli import main

WORDS = TokenCounter.of(lambda text: len(text.split()))


class Only(RandomWords):
    """Keeps the units that are one of some texts, and nothing else."""

    name = "only"

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts = texts

    def score(self, request: Request) -> Scores:
        wanted = [0.0 if text in self.texts else -np.inf for text in request.unit_texts()]
        return Scores(request.per_passage(np.array(wanted)), np.zeros(len(request.passages)))


def rows(text: str, method: Compressor, rate: float = 0.9) -> dict[str, Survival]:
    return {row.guards: row for row in survival([text], [method], [rate], counter=WORDS)}


def counts(row: Survival) -> dict[str, tuple[int, int]]:
    return {kind: (share.count, share.n) for kind, share in row.kept.items()}


# --- what is looked for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("He did not sign.", [("not", "sign")]),
        ("It isn’t allowed.", [("isn’t", "allowed")]),
        ("That was not a very good idea.", [("not", "good")]),
        ("It is no longer valid.", [("no", "valid")]),
        ("None of the men came.", [("None", "men")]),
        ("It cannot be seen without help.", [("cannot", "seen"), ("without", "help")]),
        ("Neither Rome\nnor Paris fell.", [("Neither", "Rome"), ("nor", "Paris")]),
        ("It ISN'T Ökonomie.", [("ISN'T", "Ökonomie")]),
    ],
)
def test_a_negation_is_found_with_the_word_it_negates(
    text: str, found: list[tuple[str, str]]
) -> None:
    assert [(text[slice(*a)], text[slice(*b)]) for a, b in negated(text)] == found


@pytest.mark.parametrize(
    "text",
    [
        "Not only good but cheap.",
        "He said no. Rome fell.",
        "No, he came.",
        "A notable cannon, knotted.",
        "not of the and to or with idea",
        "a not-for-profit firm",
        "",
    ],
)
def test_other_words_negate_nothing(text: str) -> None:
    assert negated(text) == []


# --- what is found again --------------------------------------------------------------------

TEXT = "In Berlin Ada Lovelace did not sign 3.5 million forms and must never pay 5 km of 5 km here."


def test_all_is_there_of_a_text_that_is_kept() -> None:
    (row, *_) = survival([TEXT], [RandomWords()], [1.0])
    assert counts(row) == {
        "numbers": (3, 3),
        "names": (1, 1),
        "negations": (2, 2),
        "modals": (1, 1),
    }
    assert (row.turned, row.refused) == (Share(0, 2), Share(0, 1))


def test_a_span_survives_whole_or_not_at_all() -> None:
    kept = Only("Ada", "Lovelace", "not", "sign", "3.5", "forms", "must", "pay", "5", "km")
    row = rows(TEXT, kept)["none"]
    assert counts(row) == {
        "numbers": (2, 3),  # "3.5" has lost its "million"
        "names": (0, 1),  # "In Berlin Ada Lovelace" is one run of capitals
        "negations": (1, 2),
        "modals": (0, 1),  # "must never" has lost its "never"
    }
    assert row.turned == Share(1, 2)


def test_a_span_counts_at_its_own_place_only() -> None:
    class FirstAndLast(RandomWords):
        def score(self, request: Request) -> Scores:
            (words,) = request.units
            values = [0.0 if i in (0, len(words) - 1) else -np.inf for i in range(len(words))]
            return Scores((np.array(values),), np.zeros(1))

    text = "5 km or rather 5 km"
    assert PlainWords(FirstAndLast()).compress(text, budget=0.9, counter=WORDS).text == "5 km"
    assert counts(rows(text, FirstAndLast())["none"])["numbers"] == (0, 2)
    assert counts(rows(text, FirstAndLast())["whole"])["numbers"] == (2, 2)


def test_a_turned_negation_is_one_whose_word_is_left_without_it() -> None:
    text = "She did not sign and he didn't pay."
    assert rows(text, Only("sign", "pay"))["none"].turned == Share(2, 2)
    assert rows(text, Only("not", "sign", "pay"))["none"].turned == Share(1, 2)
    assert rows(text, Only("not", "didn't"))["none"].turned == Share(0, 0)
    assert rows(text, Only("not sign"))["whole"].turned == Share(0, 1)


def test_a_negation_is_one_unit_with_the_word_behind_the_article() -> None:
    text = "It was not a good plan."
    assert rows(text, Only("good", "plan"))["none"].turned == Share(1, 1)
    assert rows(text, Only("plan"))["whole"].turned == Share(0, 0)
    assert rows(text, Only("good", "plan"))["kept"].turned == Share(0, 1)


def test_texts_that_guards_do_not_fit_are_counted_apart() -> None:
    texts = ["5 km 6 km 7 km", "We walked on and on for 5 km of it"]
    *_, row = survival(texts, [RandomWords()], [0.5], counter=WORDS)
    assert (row.guards, row.refused, row.kept["numbers"]) == ("kept", Share(1, 2), Share(1, 1))


def test_a_row_reads_as_markdown() -> None:
    row = rows("We walked 5 km on and on.", RandomWords())["kept"]
    assert str(row).startswith("| random-words | kept | 0.9 | 100.0% [20.7, 100.0] of 1 | – |")
    assert str(row).count("|") == 4 + len(KINDS) + 2
    assert str(Share(1, 2_000)) == "0.1% [0.0, 0.3] of 2,000"


# --- degrees of guard -----------------------------------------------------------------------


def test_words_have_three_degrees_and_sentences_two() -> None:
    assert [degree for degree, *_ in guarded(RandomWords())] == ["none", "whole", "kept"]
    assert [degree for degree, *_ in guarded(get_compressor("lexical"))] == ["none", "kept"]
    with pytest.raises(InputError, match="numbers"):
        list(guarded(RandomWords(), ["number"]))


def test_plain_words_cut_what_the_method_keeps_whole(models: Callable[[str], Path]) -> None:
    method = LLMLingua2(models("bert"))
    text = "They did not sell 3.5 million cars."
    whole, plain = (
        [text[start:end].strip() for start, end in m.segment(text)]
        for m in (method, PlainWords(method))
    )
    assert whole == ["They", "did", "not sell", "3.5 million", "cars", "."]
    assert plain == ["They", "did", "not", "sell", "3.5", "million", "cars", "."]


def test_plain_words_are_judged_by_the_method(models: Callable[[str], Path]) -> None:
    method = LLMLingua2(models("bert"))
    text = "The sky is blue and fish swim in the sea."  # nothing that must not be cut
    results = [m.compress(text, budget=0.5).passages[0] for m in (method, PlainWords(method))]
    assert results[0].spans == results[1].spans


def test_guards_keep_everything_with_a_real_network(models: Callable[[str], Path]) -> None:
    texts = [TEXT, "Naïve Zoë Müller mustn't go, and Łódź has 672,185 people who live in it now."]
    found = list(survival(texts, [LLMLingua2(models("bert"))], [0.9, 0.8], counter=WORDS))
    assert [row.guards for row in found] == ["none"] * 2 + ["whole"] * 2 + ["kept"] * 2
    for row in found[-2:]:
        assert row.refused == Share(0, 2)
        assert all(share.count == share.n > 0 for share in row.kept.values())
        assert row.turned.count == 0


_PIECES = (
    "must not pay", "Ada Lovelace", "3.5 million", "and", "so on.", "Łódź", "mustn’t be", "5 km",
    "she", "went", "北京", "iPhone", "É.", "no", "\n\n", "😀", "٣٫٥ %", "[3]", "`x = 1.`", "of it,",
)  # fmt: skip
_METHODS = (
    RandomWords(),
    PlainWords(RandomWords()),
    RandomSentences(),
    get_compressor("lexical"),
)


@given(
    pieces=st.lists(st.sampled_from(_PIECES), max_size=25),
    others=st.text(max_size=20),
    kinds=st.sets(st.sampled_from(KEEP_KINDS), min_size=1),
    method=st.sampled_from(_METHODS),
    budget=st.one_of(st.integers(0, 60).map(Budget.tokens), st.floats(0.01, 1).map(Budget.rate)),
)
def test_what_is_guarded_stands_in_the_result_whatever_the_budget(
    pieces: list[str], others: str, kinds: set[str], method: Compressor, budget: Budget
) -> None:
    text = " ".join([*pieces, others])
    wanted = atoms(text, kinds)
    try:
        result = method.compress(text, budget=budget, keep=must_keep(*kinds))
    except BudgetError:
        assert wanted
        return
    assert result.tokens_after <= result.limit
    spans = [span for p in result.passages for span in p.spans]
    for start, end in wanted:
        inside = text[start:end]
        assert inside in result.text
        assert any(a <= start and start + len(inside.rstrip()) <= b for a, b in spans)


def test_random_words_are_the_same_for_a_text_and_others_for_another() -> None:
    first, second = "a b c d e f g h i j", "k l m n o p q r s t"
    kept = [
        [p.spans for p in RandomWords(seed).compress(t, budget=0.5, counter=WORDS).passages]
        for seed, t in ((0, first), (0, first), (0, second), (1, first))
    ]
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]
    assert kept[0] != kept[3]


# --- the command ----------------------------------------------------------------------------


def test_the_command_prints_every_degree(
    tmp_path: Path, models: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    row = {"question": "Who?", "answers": [], "documents": [TEXT, "We walked on and on."]}
    file.write_text(json.dumps(row), encoding="utf-8")
    options = ["--methods", "lexical,llmlingua2,random-words", "--model", str(models("bert"))]
    command = ["bench", "survival", "--data", str(file), "--rates", ".5,.9", *options]
    assert main([*command, "--keep", "negations"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 texts, ")
    assert len({line.count("|") for line in lines[1:]}) == 1
    assert [line.split(" | ")[:3] for line in lines[3:7]] == [
        ["| lexical", "none", "0.5"],
        ["| lexical", "none", "0.9"],
        ["| lexical", "kept", "0.5"],
        ["| lexical", "kept", "0.9"],
    ]
    assert len(lines) == 3 + 2 * (2 + 3 + 3)
    assert lines[-1].split(" | ")[5] == "100.0% [34.2, 100.0] of 2"


def test_the_command_says_which_kinds_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "Who?", "answers": [], "documents": ["A b."]}', encoding="utf-8")
    assert main(["bench", "survival", "--data", str(file), "--keep", "nouns"]) == 1
    assert "modals" in capsys.readouterr().err
