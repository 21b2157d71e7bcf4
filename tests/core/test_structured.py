from __future__ import annotations

import doctest
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import (
    Budget,
    Compressor,
    Passage,
    Pipeline,
    Span,
    TokenCounter,
    compress_prompt,
    compress_tagged,
    structured,
    units,
)
from laconic.core.method import Method, Request, Scores
from laconic.core.methods.lexical import Lexical
from laconic.core.testing import check_promises
from laconic.core.types import JOINER
from laconic.errors import BudgetError, InputError, UnknownMethodError

CHARACTERS = TokenCounter("characters", len)
WORDS = TokenCounter("words", lambda text: len(text.split()))
COUNTER = TokenCounter.of("approximate")
QUERY = "What is the capital of France?"
FACTS = "The sky is blue. Paris is the capital of France. Fish swim. Birds fly. Stones sink."


class Words(Method):
    """Keep the longest words."""

    name = "words"

    def segment(self, text: str) -> list[Span]:
        return units.words(text)

    def score(self, request: Request) -> Scores:
        lengths = np.array([len(text) for text in request.unit_texts()], dtype=np.float64)
        per_passage = request.per_passage(lengths)
        return Scores(per_passage, np.array([p.max(initial=0.0) for p in per_passage]))


METHODS: list[Compressor] = [Lexical(), Words(), Pipeline(Lexical(), Words())]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def protect(text: str) -> str:
    return f"<llmlingua compress=False>{text}</llmlingua>"


def rated(text: str, rate: float) -> str:
    return f"<llmlingua rate={rate}>{text}</llmlingua>"


def covered(result: Any, start: int, end: int) -> str:
    """What is left of the source's characters from `start` to `end`."""
    source = result.passages[0].passage.text if result.passages else ""
    spans = result.passages[0].spans if result.passages else ()
    return "".join(source[max(a, start) : min(b, end)] for a, b in spans)


# Tags: what they mean


@every_method
def test_what_is_protected_stays_and_the_rest_shares_the_budget(method: Compressor) -> None:
    rules = "Answer  in French,\n\tdo not\tguess: 3 < 5 & \"so\" 'on' 👩‍👩‍👧."
    text = f"{protect(rules)}\n{FACTS}\n{protect('END')}"
    for budget in (0.7, 0.8, 0.9, 50):
        result = compress_tagged(text, query=QUERY, budget=budget, method=method)
        assert result.text.startswith(rules + "\n")
        assert result.text.endswith("\nEND")
        assert result.tokens_after <= result.limit
        check_promises([Passage(f"{rules}\n{FACTS}\nEND")], result, TokenCounter.of())


@every_method
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_a_rate_is_of_the_region_alone(method: Compressor, rate: float) -> None:
    before, inside = FACTS, " ".join(f"Fact {i} is about treaty {i}." for i in range(20))
    result = compress_tagged(
        f"{before}\n\n{rated(inside, rate)}\n\nThe end.", query=QUERY, method=method, counter=WORDS
    )
    assert result.text.startswith(before + "\n\n")
    assert result.text.endswith("\n\nThe end.")
    left = WORDS.count(result.text) - WORDS.count(before) - 2
    asked = rate * WORDS.count(inside)
    assert asked - 6 <= left <= asked


def test_rated_regions_come_before_those_without_a_rate() -> None:
    text = f"{rated('Aa bb cc. Dd ee ff.', 0.5)} <llmlingua>Gg hh.</llmlingua> Ii jj. Kk ll."
    result = compress_tagged(text, query="gg ii", budget=5, method="lexical", counter=WORDS)
    assert result.text == "Aa bb cc. Gg hh."
    assert result.tokens_after == 5


def test_rates_give_way_to_the_budget() -> None:
    text = f"{protect('Keep.')} {rated(FACTS, 0.9)} {rated('Cats purr. Paris is big.', 0.9)} Tail."
    result = compress_tagged(text, query=QUERY, budget=8, method="lexical", counter=WORDS)
    assert result.text == "Keep. Paris is the capital of France. Tail."
    for budget in range(1, 30):
        result = compress_tagged(text, query=QUERY, budget=budget, method="lexical", counter=WORDS)
        assert result.tokens_after <= budget
        assert result.text.startswith("Keep.")


def test_without_a_budget_only_rated_regions_are_compressed() -> None:
    text = f"  Title \n\n<llmlingua>{FACTS}</llmlingua>\n{rated(FACTS, 0.4)}\n "
    result = compress_tagged(text, query=QUERY, method="lexical")
    assert result.text == f"  Title \n\n{FACTS}\nParis is the capital of France.\n "
    assert result.budget == Budget.rate(1)
    assert result.limit == result.tokens_before


@pytest.mark.parametrize("budget", [None, 1.0, 10_000])
def test_what_fits_comes_back_byte_for_byte(budget: Any) -> None:
    text = " \n<llmlingua>  One.\r\n</llmlingua>\t\ttwo <b> \x00 <llmlingua> </llmlingua> 我。\n"
    plain = re.sub("</?llmlingua>", "", text)
    result = compress_tagged(text, budget=budget, method="lexical")
    assert result.text == plain
    assert result.passages[0].passage.text == plain


@pytest.mark.parametrize(
    "tag",
    [
        "<llmlingua rate=0.5 compress=False>",
        "<llmlingua, compress=False, rate=0.5>",
        "<llmlingua,rate=.5,compress=false>",
        "<llmlingua\n rate = '0.5',\n compress = 'FALSE' >",
        '<llmlingua compress="False">',
    ],
)
def test_every_spelling_of_a_tag_is_read(tag: str) -> None:
    result = compress_tagged(f"{tag}Keep this.</llmlingua> Drop that.", budget=2, counter=WORDS)
    assert result.text == "Keep this."


@pytest.mark.parametrize("tag", ['<llmlingua rate="0.5">', "<llmlingua compress=True,rate=5e-1>"])
def test_every_spelling_of_a_rate_is_read(tag: str) -> None:
    result = compress_tagged(f"{tag}Aa bb. Cc dd.</llmlingua> Ee.", method="lexical", counter=WORDS)
    assert result.text == "Aa bb. Ee."


@pytest.mark.parametrize(
    "text",
    [
        "A < B.",
        "<b>bold</b>",
        "if x<y and y<z:",
        "<llmlinguae>",
        "<llmlingua-2>",
        "<LLMLingua>",
        "<",
    ],
)
def test_other_angle_brackets_are_text(text: str) -> None:
    for piece in (text, protect(text), rated(text, 1.0), f"<llmlingua>{text}</llmlingua>"):
        assert compress_tagged(f"a {piece} b", method="lexical").text == f"a {text} b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab <llmlingua>cd", "character 3 is never closed"),
        ("ab</llmlingua>", "character 2 closes nothing"),
        ("<llmlingua>a</llmlingua></llmlingua>", "character 24 closes nothing"),
        ("<llmlingua>a<llmlingua>b</llmlingua></llmlingua>", "character 12 stands inside"),
        ("<llmlingua rate=0>a</llmlingua>", "above 0"),
        ("<llmlingua rate=1.5>a</llmlingua>", "above 0"),
        ("<llmlingua rate=-0.5>a</llmlingua>", "above 0"),
        ("<llmlingua rate=nan>a</llmlingua>", "above 0"),
        ("<llmlingua rate=half>a</llmlingua>", "above 0"),
        ("<llmlingua compress=0>a</llmlingua>", "True or False"),
        ("<llmlingua ratio=0.5>a</llmlingua>", "'ratio'"),
        ("<llmlingua rate=.5 rate=.6>a</llmlingua>", "twice"),
        ("<llmlingua rate>a</llmlingua>", "cannot be read"),
        ("<llmlingua rate=>a</llmlingua>", "cannot be read"),
        ("<llmlingua rate='.5>a</llmlingua>", "cannot be read"),
        ("<llmlingua/>", "cannot be read"),
        ("<llmlingua rate=.5", "cannot be read"),
        ("<llmlingua>a</llmlingua", "not a closing tag"),
        ("<llmlingua>a</llmlingua rate=1>", "not a closing tag"),
    ],
)
def test_malformed_tags_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compress_tagged(text, budget=5, method="lexical")


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["text"]])
def test_what_is_not_text_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="str"):
        compress_tagged(wrong, budget=5)


def test_a_method_is_a_name_or_a_compressor() -> None:
    assert compress_tagged(FACTS, query=QUERY, budget=0.5, method="lexical").method == "lexical"
    assert compress_tagged(FACTS, query=QUERY, budget=0.5, method=Words()).method == "words"
    with pytest.raises(UnknownMethodError):
        compress_tagged(FACTS, budget=5, method="best")
    with pytest.raises(InputError, match="Compressor"):
        compress_tagged(FACTS, budget=5, method=Lexical)  # type: ignore[arg-type]


# Tags: budget, keep, seams


def test_protected_text_above_the_budget_is_an_error() -> None:
    text = f"{protect('One two three four.')} Five six."
    with pytest.raises(BudgetError, match="protected takes 4 tokens and the budget allows 3"):
        compress_tagged(text, budget=3, counter=WORDS, method="lexical")


def test_what_must_be_kept_is_kept_or_refused() -> None:
    text = f"{protect('Rules.')} {FACTS} {rated(FACTS, 0.6)}"
    result = compress_tagged(text, budget=20, keep=["Stones"], counter=WORDS, method="lexical")
    assert result.text.count("Stones sink.") == 2
    with pytest.raises(BudgetError):
        compress_tagged(text, budget=2, keep=["Stones"], counter=WORDS, method="lexical")
    with pytest.raises(InputError, match="keep"):
        compress_tagged(text, keep=[5], method="lexical")  # type: ignore[list-item]


def test_what_must_be_kept_in_many_regions_is_no_error_for_joiners() -> None:
    text = " ".join(rated(f"Need {i}.", 1) + f" Need {i}. Not this." for i in range(9))
    result = compress_tagged(text, budget=200, keep=["Need"], counter=CHARACTERS, method=Lexical())
    assert result.text.count("Need") == 18


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"<llmlingua>x</llmlingua> {protect('Keep')}", "Keep"),
        (f"{protect('Keep')} <llmlingua>x</llmlingua>\n", "Keep"),
        (f"{protect('One')}<llmlingua> x y </llmlingua>{protect('two')}", "One two"),
        (f"{protect('One')}<llmlingua> x\n\ny z</llmlingua>{protect('two')}", "One\n\ntwo"),
        (f"{protect('One ')}<llmlingua>x</llmlingua>{protect('two')}", "One two"),
        (f"{protect('One')}<llmlingua>x, y.z</llmlingua>{protect('two')}", "One two"),
        (f"{protect('One')}<llmlingua>x.y</llmlingua>{protect('two')}", "One.two"),
        (f"{protect('一')}<llmlingua>x.y</llmlingua>{protect('二')}", "一二"),
        (f"{protect('One')}\n<llmlingua>x.</llmlingua>\n\n{protect('two')}", "One\n\ntwo"),
        (f"{protect('«')}<llmlingua>x</llmlingua>{protect('»')}", "«»"),
    ],
)
def test_nothing_is_glued_where_a_region_goes(text: str, left: str) -> None:
    result = compress_tagged(text, budget=len(left), counter=CHARACTERS, method="lexical")
    assert result.text == left


def test_white_space_at_the_borders_of_a_region_stays() -> None:
    text = f"{protect('Code:')}<llmlingua>\n    Aa bb. Cc dd.\n\n</llmlingua>{protect('End')}"
    result = compress_tagged(text, query="aa", budget=4, counter=WORDS, method="lexical")
    assert result.text == "Code:\n    Aa bb.\n\nEnd"


def test_the_last_token_goes_to_a_word_rather_than_to_white_space() -> None:
    result = compress_tagged("\n\nfoo bar baz\n\n", budget=1, counter=COUNTER, method="lexical")
    assert result.text == "foo"


_blank = st.sampled_from([" ", "\n", "\n\n", "  ", "\t"])
_words = st.lists(
    st.sampled_from(["Paris.", "is", "big", "it's", "5", "km,", "(no)", "déjà", "👩‍👩‍👧"]),
    min_size=1,
    max_size=6,
).map(" ".join)
_kinds = st.sampled_from(["", "<llmlingua>", "<llmlingua compress=False>", "<llmlingua rate=0.5>"])
_segments = st.lists(st.tuples(_kinds, _words, _blank, st.booleans()), min_size=1, max_size=6)


@given(_segments, st.integers(0, 25), st.sampled_from(METHODS))
def test_words_are_never_glued(segments: list[Any], budget: int, method: Compressor) -> None:
    text = plain = ""
    for tag, words, blank, is_inside in segments:
        inner, outer = (words + blank, "") if is_inside else (words, blank)
        text += f"{tag}{inner}</llmlingua>{outer}" if tag else inner + outer
        plain += words + blank
    protected = sum(len(w.split()) for tag, w, _, _ in segments if "compress" in tag)
    try:
        result = compress_tagged(text, query="Paris", budget=budget, counter=WORDS, method=method)
    except BudgetError:
        assert protected > budget
        return
    assert protected <= budget
    check_promises([Passage(plain)], result, WORDS)
    source = iter(plain.split())
    assert all(word in source for word in result.text.split())


_any_text = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="ab <>&\"'\\/=.,\n\t我们她👩‍🇩🇪\u0301\ud83d", max_size=30),
)


@given(
    st.lists(st.tuples(_kinds, _any_text), max_size=5),
    st.one_of(
        st.none(), st.integers(0, 60).map(Budget.tokens), st.floats(0.01, 1).map(Budget.rate)
    ),
    st.sampled_from([CHARACTERS, COUNTER, TokenCounter.of("cl100k_base")]),
    st.sampled_from(METHODS),
)
def test_any_text_keeps_the_promises(
    segments: list[Any], budget: Budget | None, counter: TokenCounter, method: Compressor
) -> None:
    text = "".join(f"{tag}{inner}</llmlingua>" if tag else inner for tag, inner in segments)
    plain = "".join(inner for _, inner in segments)
    protected = "".join(inner for tag, inner in segments if "compress" in tag)
    try:
        result = compress_tagged(text, query="ab", budget=budget, counter=counter, method=method)
    except BudgetError:
        assert budget is not None
        assert protected
        return
    check_promises([Passage(plain)], result, counter)
    start = 0
    for tag, inner in segments:
        left = covered(result, start, start + len(inner))
        if "compress" in tag or (budget is None and "rate" not in tag):
            assert left == inner
        elif "rate" in tag and counter is CHARACTERS and inner.strip():
            # one character may stay to part two words
            assert len(left.strip()) <= max(1, len(inner.strip()) // 2) + 1
        start += len(inner)


@given(_any_text.filter(str.strip), st.integers(1, 40), st.sampled_from(METHODS[:2]))
def test_something_is_left_unless_nothing_fits(text: str, limit: int, method: Compressor) -> None:
    half = len(text) // 2
    tagged = f"{text[:half]}<llmlingua>{text[half:]}</llmlingua>"
    result = compress_tagged(tagged, budget=limit, counter=CHARACTERS, method=method)
    assert result.text or not re.search("[a-zA-Z0-9]", text)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "<llmlingua></llmlingua>", "hello"])
@pytest.mark.parametrize("budget", [None, 0, 1, 0.5])
def test_little_text_is_no_error(text: str, budget: Any) -> None:
    result = compress_tagged(text, budget=budget, method="lexical")
    assert result.tokens_after <= result.limit
    assert result.text or budget == 0 or "hello" not in text


@every_method
@pytest.mark.parametrize("words", [1, 2, 3, 8, 30, 120])
def test_protection_holds_at_any_length(method: Compressor, words: int) -> None:
    secret = " ".join(f"secret{i}" for i in range(words))
    text = f"{FACTS} {protect(secret)} {FACTS}"
    for budget in (0.3, 0.5, 0.8):
        limit = Budget.of(budget).limit(WORDS.count(f"{FACTS} {secret} {FACTS}"))
        if words <= limit:
            result = compress_tagged(text, query=QUERY, budget=budget, counter=WORDS, method=method)
            assert f" {secret} " in f" {result.text} "


def test_the_budget_is_used() -> None:
    sentences = [f"Topic {i} has fact {i} about treaty {i * i}." for i in range(40)]
    text = " ".join(
        protect(s) if i % 5 == 0 else f"<llmlingua>{s}</llmlingua>" for i, s in enumerate(sentences)
    )
    for rate in (0.9, 0.5, 0.3):
        result = compress_tagged(text, query="treaty 4", budget=rate, method="lexical")
        assert result.limit - result.tokens_after <= max(0.02 * result.limit, 14)


def test_the_same_call_gives_the_same_result() -> None:
    text = f"{protect('One.')} {rated(FACTS, 0.5)} {FACTS}"
    first, second = (compress_tagged(text, query=QUERY, budget=0.5) for _ in range(2))
    assert first.passages[0].spans == second.passages[0].spans


# Prompts


def test_the_documents_get_what_is_left() -> None:
    result = compress_prompt(
        "Answer in one word.", ["Cats purr. " * 5, FACTS], QUERY, budget=20, method="lexical"
    )
    assert result.text == JOINER.join(
        ["Answer in one word.", "Paris is the capital of France.", QUERY]
    )
    assert (result.instruction, result.question) == ("Answer in one word.", QUERY)
    assert [p.index for p in result.documents.passages] == [1]
    assert result.documents.query == QUERY
    assert result.tokens_after == TokenCounter.of().count(result.text) <= result.limit == 20
    assert "-> " in str(result)
    assert "\n" not in str(result)


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.8])
def test_the_rate_of_the_documents_is_that_of_the_paper(rate: float) -> None:
    instruction = " ".join(f"Obey rule {i}." for i in range(20))
    documents = " ".join(f"Fact {i} is about treaty {i}." for i in range(100))
    result = compress_prompt(
        instruction,
        documents,
        "Which treaty? Say which one it is.",
        budget=rate,
        instruction_rate=0.85,
        question_rate=0.9,
        counter=WORDS,
        method=Words(),
    )
    total, for_instruction, for_question = 60 + 600 + 7, 51, 6
    expected = rate * total - (for_instruction + for_question)
    assert WORDS.count(result.instruction) == for_instruction
    assert WORDS.count(result.question) == for_question
    assert result.documents.tokens_after == pytest.approx(expected, abs=0.02 * rate * total)
    assert result.tokens_after <= result.limit


@pytest.mark.parametrize("question", ["", "Why?\n\nAnd how?", "  "])
@pytest.mark.parametrize("instruction", ["", "Do it.\n\nNow."])
def test_instruction_and_question_stay_verbatim(instruction: str, question: str) -> None:
    for budget in (20, 0.6):
        result = compress_prompt(instruction, [FACTS], question, budget=budget, method="lexical")
        assert result.instruction == instruction
        assert result.question == question
        assert result.text == JOINER.join(
            filter(None, [instruction, result.documents.text, question])
        )


@pytest.mark.parametrize("documents", [[], "", [""], FACTS, [FACTS, "", "  x "]])
@pytest.mark.parametrize("budget", [1.0, 10_000])
def test_a_prompt_that_fits_comes_back(documents: Any, budget: Any) -> None:
    result = compress_prompt("Say.", documents, "What?", budget=budget, method="lexical")
    texts = [documents] if isinstance(documents, str) else documents
    assert result.text == JOINER.join(filter(None, ["Say.", JOINER.join(texts), "What?"]))
    assert result.tokens_after == result.tokens_before
    assert result.rate == 1.0


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(BudgetError, match="instruction and question alone take"):
        compress_prompt("One two three.", [FACTS], "Four five?", budget=4, method="lexical")
    with pytest.raises(BudgetError, match="per_passage"):
        compress_prompt("", FACTS, "", budget=Budget.tokens(5, per_passage=True))
    with pytest.raises(BudgetError, match="rate"):
        compress_prompt("a", FACTS, "", budget=0.5, instruction_rate=0.0)
    with pytest.raises(InputError, match="instruction"):
        compress_prompt(None, FACTS, "", budget=0.5)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="kept"):
        compress_prompt("One.", FACTS, "Two?", budget=3, keep=["Stones"], counter=WORDS)


@given(
    st.lists(_any_text, max_size=4),
    _any_text,
    _any_text,
    st.one_of(st.integers(0, 80).map(Budget.tokens), st.floats(0.01, 1).map(Budget.rate)),
    st.sampled_from([CHARACTERS, COUNTER, TokenCounter.of("cl100k_base")]),
    st.sampled_from(METHODS),
    st.sampled_from([1.0, 0.5]),
)
def test_any_prompt_is_within_its_budget(
    documents: list[str],
    instruction: str,
    question: str,
    budget: Budget,
    counter: TokenCounter,
    method: Compressor,
    rate: float,
) -> None:
    try:
        result = compress_prompt(
            instruction,
            documents,
            question,
            budget=budget,
            counter=counter,
            method=method,
            instruction_rate=rate,
        )
    except BudgetError:
        assert instruction or question
        return
    assert result.question == question
    assert result.tokens_after == counter.count(result.text) <= result.limit
    assert result.limit == budget.limit(result.tokens_before)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(structured).failed == 0
