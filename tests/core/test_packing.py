from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import assume, example, given
from hypothesis import strategies as st

from laconic.core import guards, units
from laconic.core.budget import TokenCounter
from laconic.core.packing import TOLERANCE, Scored, cut, pack
from laconic.core.types import JOINER, Span, render
from laconic.errors import BudgetError

CL100K = TokenCounter.of("cl100k_base")
LETTERS = TokenCounter("letters", len)
WORDS = TokenCounter("words", lambda text: len(text.split()))
THREE = TokenCounter("three", lambda text: 3)
THREES = TokenCounter("threes", lambda text: 3 * len(text))
BYTES = TokenCounter("bytes", lambda text: len(text.encode("utf-8", "surrogatepass")))
FRAMED = TokenCounter("framed", lambda text: 2 + len(text.split()))
counters = st.sampled_from([CL100K, CL100K, LETTERS, WORDS, THREE, THREES, BYTES, FRAMED])

SENTENCES = [
    "The sky is blue. ",
    "It cost $3.50 (about 5 km away). ",
    "You must not go there! ",
    "Paris is the capital of France.\n\n",
    "- an item\n",
    "  indented line\n",
    "我喜欢猫。",
    "真的吗？",
    "Python和Java。",
    "用5年C和R。",
    "ab和cd",
    "สวัสดีครับ ",
    "e\u0301te\u0301 👩‍👩‍👧 🇫🇷. ",
    "مرحبا بالعالم. ",
    "Supercalifragilisticexpialidocious ",
    "\ud800. ",
    "One.\r\nTwo.\r\n\r\n",
    "??? ",
    "x" * 50 + ". ",
    "\n\n",
    " ",
]
texts = st.one_of(
    st.lists(st.sampled_from(SENTENCES), max_size=8).map("".join), st.text(max_size=25)
)
CUTTERS: dict[str, Callable[[str], list[Span]]] = {
    "sentences": lambda text: units.sentences(text, guards.atoms(text)),
    "words": units.words,
}


def scored(
    text: str,
    scores: Sequence[float] | None = None,
    forced: Sequence[int] = (),
    cutter: Callable[[str], list[Span]] = CUTTERS["sentences"],
) -> Scored:
    spans = cutter(text)
    flags = np.zeros(len(spans), bool)
    flags[list(forced)] = True
    values = np.zeros(len(spans)) if scores is None else np.array(scores, float)
    assert len(values) == len(spans), [text[a:b] for a, b in spans]
    return Scored(text, spans, values, flags)


@st.composite
def passages(draw: st.DrawFn, with_forced: bool = False) -> list[Scored]:
    cutter = CUTTERS[draw(st.sampled_from(sorted(CUTTERS)))]
    made = []
    for text in draw(st.lists(texts, min_size=1, max_size=4)):
        count = len(cutter(text))
        scores = draw(
            st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.5]), min_size=count, max_size=count)
        )
        places = st.sets(st.integers(0, count - 1), max_size=2) if count else st.just(set())
        made.append(scored(text, scores, sorted(draw(places)) if with_forced else (), cutter))
    return made


def parts(given: Sequence[Scored], spans: Sequence[Sequence[Span]]) -> list[str]:
    return [render(p.text, s) for p, s in zip(given, spans, strict=True)]


def joined(given: Sequence[Scored], spans: Sequence[Sequence[Span]]) -> str:
    return JOINER.join(render(p.text, s) for p, s in zip(given, spans, strict=True) if s)


def kept_units(passage: Scored, spans: Sequence[Span]) -> list[bool]:
    """Which units are kept whole, white space at their ends aside."""
    flags = []
    for start, end in passage.units:
        inside = passage.text[start:end]
        left = start + len(inside) - len(inside.lstrip())
        right = start + len(inside.rstrip())
        flags.append(left < right and any(a <= left and right <= b for a, b in spans))
    return flags


# --- what holds for all passages, scores, limits and counters -------------------------------


@given(passages(), st.integers(0, 80), counters, st.sampled_from([0, 0, 1, 5]))
def test_the_limit_is_never_exceeded(
    given: list[Scored], limit: int, counter: TokenCounter, minimum: int
) -> None:
    text = joined(given, pack(given, limit, counter, minimum))
    assert counter.count(text) <= limit or text == ""


@given(passages(), st.integers(0, 80), counters)
def test_spans_are_ascending_disjoint_and_inside(
    given: list[Scored], limit: int, counter: TokenCounter
) -> None:
    for passage, spans in zip(given, pack(given, limit, counter), strict=True):
        assert all(0 <= start < end <= len(passage.text) for start, end in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))


@given(passages(), st.integers(1, 80), counters)
def test_something_is_left_if_a_character_fits(
    given: list[Scored], limit: int, counter: TokenCounter
) -> None:
    characters = [
        p.text[a:b] for p in given for a, b in units.graphemes(p.text) if p.text[a:b].strip()
    ]
    if any(counter.count(c.strip()) <= limit for c in characters):
        assert joined(given, pack(given, limit, counter)).strip()


@given(passages(), counters)
def test_nothing_is_left_of_a_budget_of_nothing(given: list[Scored], counter: TokenCounter) -> None:
    assert not any(pack(given, 0, counter))


@given(passages(), st.integers(0, 80), counters)
def test_packing_is_repeatable(given: list[Scored], limit: int, counter: TokenCounter) -> None:
    assert pack(given, limit, counter) == pack(given, limit, counter)


@given(passages(), st.integers(1, 200), st.sampled_from([CL100K, LETTERS, WORDS, BYTES]))
def test_the_budget_is_used_but_for_one_unit(
    given: list[Scored], limit: int, counter: TokenCounter
) -> None:
    spans = pack(given, limit, counter)
    costs, whole = [], 0
    for passage, kept in zip(given, spans, strict=True):
        flags = kept_units(passage, kept)
        whole += sum(flags)
        costs += [
            counter.count(passage.text[start:end])
            for (start, end), flag in zip(passage.units, flags, strict=True)
            if not flag and not passage.text[start:end].isspace()
        ]
    if whole and costs:
        unused = limit - counter.count(joined(given, spans))
        # a unit that is added may bring the joiner, and a break that parts it from the next
        assert unused <= TOLERANCE * limit or unused <= max(costs) + 2 * counter.count(JOINER)


@given(passages(with_forced=True), st.integers(0, 120), counters)
def test_forced_units_are_kept_or_the_budget_is_refused(
    given: list[Scored], limit: int, counter: TokenCounter
) -> None:
    try:
        spans = pack(given, limit, counter)
    except BudgetError:
        alone = pack(given, 10**6, TokenCounter("free", lambda text: 0))
        assert alone  # a counter under which everything fits never refuses
        only = [[Span(*u) for u, f in zip(p.units, p.forced, strict=True) if f] for p in given]
        lean = JOINER.join(
            "".join(p.text[a:b].strip() for a, b in s)
            for p, s in zip(given, only, strict=True)
            if s
        )
        assert counter.count(joined(given, only)) > limit or counter.count(lean) > limit
        return
    text = joined(given, spans)
    assert counter.count(text) <= limit or text == ""
    for passage, kept in zip(given, spans, strict=True):
        flags = kept_units(passage, kept)
        for (start, end), forced, flag in zip(passage.units, passage.forced, flags, strict=True):
            assert not forced or flag or passage.text[start:end].isspace()


@given(passages(), st.integers(1, 60), st.sampled_from([CL100K, LETTERS, WORDS]))
def test_the_minimum_gives_every_passage_its_best_unit_if_the_budget_reaches(
    given: list[Scored], limit: int, counter: TokenCounter
) -> None:
    given = [p for p in given if p.text.strip()]
    assume(given)
    best = [p.text[slice(*p.units[int(np.argmax(p.scores))])] for p in given]
    # with what it may cost to part them: the joiners, and the space before a word
    needed = sum(counter.count(" " + unit) for unit in best)
    assume(needed + counter.count(JOINER) * (len(given) - 1) <= limit)
    assert all(part.strip() for part in parts(given, pack(given, limit, counter, 1)))


@given(passages(), st.integers(1, 120), st.sampled_from([CL100K, LETTERS]))
def test_latin_words_are_never_glued(
    given: list[Scored], limit: int, counter: TokenCounter
) -> None:
    letter = regex.compile(r"[\p{Latin}\p{Nd}]")
    for passage, spans in zip(given, pack(given, limit, counter), strict=True):
        for left, right in pairwise(spans):
            if left.end < right.start:
                seam = passage.text[left.end - 1], passage.text[right.start]
                assert not all(map(letter.match, seam)), render(passage.text, spans)


@given(passages(), st.integers(1, 60), st.sampled_from([CL100K, LETTERS]))
def test_kept_text_never_splits_a_character(
    given: list[Scored], limit: int, counter: TokenCounter
) -> None:
    for passage, spans in zip(given, pack(given, limit, counter), strict=True):
        borders = {0, *(m.end() for m in regex.finditer(r"\X", passage.text))}
        # "\r\n" is one character of Unicode, but white space that may be left out by half
        places = [p for span in spans for p in span if passage.text[p - 1 : p + 1] != "\r\n"]
        assert borders.issuperset(places), render(passage.text, spans)


# --- which units ----------------------------------------------------------------------------

FIVE = "Aa aa aa. Bb bb bb. Cc cc cc. Dd dd dd. Ee ee ee."


def test_the_best_units_are_kept() -> None:
    passage = scored(FIVE, [1, 5, 2, 4, 3])
    assert parts([passage], pack([passage], 6, WORDS)) == ["Bb bb bb. Dd dd dd."]


@pytest.mark.parametrize("counter", [WORDS, LETTERS, BYTES, CL100K])
def test_the_best_unit_is_kept_if_it_just_fits(counter: TokenCounter) -> None:
    passage = scored("Aa aa aa. Bb bb bb. Cc cc cc.", [1, 5, 2])
    kept = parts([passage], pack([passage], counter.count("Bb bb bb."), counter))
    assert kept == ["Bb bb bb."]


def test_of_equal_units_the_first_are_kept() -> None:
    passage = scored(FIVE)
    assert parts([passage], pack([passage], 6, WORDS)) == ["Aa aa aa. Bb bb bb."]


def test_the_best_unit_is_cut_rather_than_left_out_for_a_worse_one() -> None:
    passage = scored("A very long sentence that does not fit at all. Short one.", [2, 1])
    assert parts([passage], pack([passage], 3, WORDS)) == ["A very long"]


def test_the_best_passages_win() -> None:
    given = [scored("Aa aa.", [1]), scored("Bb bb.", [3]), scored("Cc cc.", [2])]
    assert parts(given, pack(given, 4, WORDS)) == ["", "Bb bb.", "Cc cc."]


def test_the_joiner_is_counted() -> None:
    given = [scored("aaaa"), scored("bbbb")]
    assert parts(given, pack(given, 10, LETTERS)) == ["aaaa", "bbbb"]
    assert parts(given, pack(given, 9, LETTERS)) == ["aaaa", ""]


@pytest.mark.parametrize("counter", [THREE, FRAMED])
def test_a_counter_with_a_fixed_charge_keeps_what_fits(counter: TokenCounter) -> None:
    passage = scored(FIVE, [1, 5, 2, 4, 3])
    kept = parts([passage], pack([passage], 17, counter))[0]
    assert counter.count(kept) <= 17
    assert kept == FIVE


def test_a_merging_counter_is_corrected_for() -> None:
    """Units cost 10 each alone and 1 each together: the sum says 2 fit, the count 20."""
    merging = TokenCounter("merging", lambda text: len(text) // 10 + 9 * (0 < len(text) < 12))
    passage = scored("Abcdefgh. " * 40)
    kept = parts([passage], pack([passage], 20, merging))[0]
    assert 18 <= merging.count(kept) <= 20


def test_a_large_budget_is_used_to_the_last_two_percent() -> None:
    rng = np.random.default_rng(0)
    nouns = ["cat", "tokenizer", "3.14", "Zürich", "don't", "re-entry", "naïveté", "(x)"]
    sentence = [
        " ".join(["The", *rng.choice(nouns, rng.integers(3, 12)), "is."]) for _ in range(400)
    ]
    passage = scored(" ".join(sentence), rng.random(400))
    total = CL100K.count(passage.text)
    for rate in (0.1, 0.3, 0.5, 0.9):
        limit = int(rate * total)
        used = CL100K.count(parts([passage], pack([passage], limit, CL100K))[0])
        assert limit * (1 - TOLERANCE) <= used <= limit


def test_the_minimum_is_given_before_the_rest() -> None:
    given = [scored(FIVE, [9, 9, 9, 9, 9]), scored("Low one here.", [0]), scored("Other low.", [0])]
    assert parts(given, pack(given, 9, WORDS, 1)) == ["Aa aa aa.", "Low one here.", "Other low."]
    assert parts(given, pack(given, 9, WORDS))[1:] == ["", ""]


def test_a_large_minimum_still_gives_every_passage_its_best_unit() -> None:
    given = [scored(FIVE, [9, 9, 9, 9, 9]), scored("Low one here.", [0])]
    assert parts(given, pack(given, 12, WORDS, 12))[1] == "Low one here."


def test_forced_units_outrank_the_best() -> None:
    passage = scored(FIVE, [9, 5, 0, 4, 3], forced=[2])
    assert parts([passage], pack([passage], 3, WORDS)) == ["Cc cc cc."]
    assert parts([passage], pack([passage], 6, WORDS)) == ["Aa aa aa. Cc cc cc."]


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_forced_units_that_do_not_fit_are_refused(limit: int) -> None:
    passage = scored(FIVE, [9, 5, 0, 4, 3], forced=[2])
    with pytest.raises(BudgetError, match="3 tokens"):
        pack([passage], limit, WORDS)


def test_of_nothing_nothing_is_kept() -> None:
    assert pack([], 5, WORDS) == []
    assert pack([scored("")], 5, WORDS) == [[]]


# --- what parts the kept units --------------------------------------------------------------


def keep(text: str, wanted: Sequence[int], cutter: str = "sentences") -> str:
    """What is left when exactly these units are kept."""
    passage = scored(text, cutter=CUTTERS[cutter])
    scores = np.full(len(passage.units), -1.0)
    scores[list(wanted)] = 1.0
    flags = scores > 0
    tight = Scored(text, passage.units, scores, flags)
    for limit in range(1, len(text) + 1):
        with contextlib.suppress(BudgetError):
            return parts([tight], pack([tight], limit, LETTERS))[0]
    raise AssertionError("no limit was enough")


@pytest.mark.parametrize(
    ("text", "wanted", "left"),
    [
        ("One. Two. Three.", [0, 2], "One. Three."),
        ("One. Two. Three.", [0, 1], "One. Two."),
        ("One.\n\nTwo.\n\nThree.", [0, 2], "One.\n\nThree."),
        ("One. Two.\n\nThree.", [0, 2], "One.\n\nThree."),
        ("One.\nTwo. Three.", [0, 2], "One.\nThree."),
        ("One. Two.\n\nThree. Four.", [0, 3], "One.\n\nFour."),
        ("One. Two.\n  Three.", [0, 2], "One.\n  Three."),
        ("我喜欢猫。他走了！真的吗？", [0, 2], "我喜欢猫。真的吗？"),
        ("One. Two.  ", [0], "One."),
    ],
)
def test_what_parts_kept_sentences(text: str, wanted: list[int], left: str) -> None:
    assert keep(text, wanted) == left


@pytest.mark.parametrize(
    ("text", "wanted", "left"),
    [
        ("one two three", [0, 2], "one three"),
        ("日本語", [0, 2], "日語"),
        ("Python和Java", [0, 2], "Python和Java"),
        ("Python和Java", [1, 2], "和Java"),
        ("用Python和日", [1, 3], "Python日"),
        ("2020年5月", [0, 2], "2020年5"),
    ],
)
def test_what_parts_kept_words(text: str, wanted: list[int], left: str) -> None:
    assert keep(text, wanted, "words") == left


# --- cut ------------------------------------------------------------------------------------


def best_cut(text: str, limit: int, counter: TokenCounter = LETTERS) -> str | None:
    span = cut(text, Span(0, len(text)), limit, counter)
    return None if span is None else text[span.start : span.end]


@pytest.mark.parametrize(
    ("text", "limit", "left"),
    [
        ("The cat sat", 8, "The cat"),
        ("The cat sat", 7, "The cat"),
        ("The cat sat", 6, "The"),
        ("The cat sat", 2, "Th"),
        ("It is 5 km away", 8, "It is"),
        ("It is 5 km away", 10, "It is 5 km"),
        ("It is $ 5 away", 7, "It is"),
        ("We do not run", 9, "We do"),
        ("We do not run", 13, "We do not run"),
        ("not run", 5, "not"),
        ("5 km", 2, "5"),
        ("e\u0301te\u0301", 4, "e\u0301t"),
        ("日本語", 2, "日本"),
        ("👩‍👩‍👧👩‍👩‍👧", 9, "👩‍👩‍👧"),
        ("🇫🇷🇩🇪", 3, "🇫🇷"),
        ("👩‍👩‍👧a", 2, "a"),
        ("👩‍👩‍👧", 2, None),
        ("e\u0301", 1, None),
        ("  a b", 3, "a b"),
        ("word", 0, None),
    ],
)
def test_cut(text: str, limit: int, left: str | None) -> None:
    assert best_cut(text, limit) == left


def test_half_width_kana_stay_whole() -> None:
    assert best_cut("ﾊﾟｿｺﾝ", 2) == "ﾊﾟ"
    assert best_cut("ﾊﾟ", 1) is None


@pytest.mark.parametrize("counter", [CL100K, LETTERS])
def test_white_space_in_front_does_not_cost_the_word(counter: TokenCounter) -> None:
    limit = counter.count("Hello")
    left = best_cut("\n\n\tHello there", limit, counter)
    assert left is not None
    assert left.strip() == "Hello"


def test_cut_keeps_inside_its_unit() -> None:
    text = "One two. Three four five."
    assert cut(text, Span(9, 25), 10, LETTERS) == Span(9, 19)


def test_a_giant_word_is_cut() -> None:
    assert best_cut("x" * 5000, 100) == "x" * 100
    passage = scored("x" * 5000)
    assert parts([passage], pack([passage], 100, LETTERS)) == ["x" * 100]


@given(texts, st.integers(0, 40), counters)
@example("0\u200d", 1, LETTERS)
def test_what_is_cut_fits(text: str, limit: int, counter: TokenCounter) -> None:
    assume(text)
    left = best_cut(text, limit, counter)
    assert left is None or (left and counter.count(left) <= limit)


@given(texts, st.integers(1, 40))
def test_cut_never_splits_a_character(text: str, limit: int) -> None:
    left = best_cut(text, limit)
    if left:
        place = text.index(left)
        borders = {0, *(m.end() for m in regex.finditer(r"\X", text))}
        assert place + len(left) in borders or text[place + len(left) :].isspace()


@given(
    st.lists(
        st.sampled_from(
            ["It", "costs", "$3.50", "5 km", "do not go", "mustn't stop", "is", "40 %"]
        ),
        min_size=1,
        max_size=8,
    ).map(" and ".join),
    st.integers(1, 60),
)
def test_cut_leaves_number_and_unit_or_not_and_verb_together(text: str, limit: int) -> None:
    left = best_cut(text, limit)
    assert left
    atoms = guards.atoms(text, guards.ATOM_KINDS)
    first = next((a for a in atoms if a.start == 0), None)
    if first and first.end > limit:
        return  # not even the first thing fits
    assert not any(a.start < len(left) < a.end for a in atoms)


def test_a_sentence_that_overlapping_chunks_repeat_is_kept_once() -> None:
    shared = "The shared sentence stands in both of the chunks. "
    given = [scored(f"{shared}First chunk only here.", [9, 1]), scored(f"{shared}Second.", [8, 2])]
    kept = parts(given, pack(given, 15, WORDS))
    assert kept == [f"{shared}First chunk only here.", "Second."]


def test_repeats_are_kept_when_there_is_room() -> None:
    given = [scored("A sentence that says the same in both. Aa.", [1, 3]) for _ in range(3)]
    kept = pack(given, 19, WORDS)
    assert parts(given, kept)[0] == given[0].text
    assert parts(given, kept)[1].startswith("A sentence")


def test_what_a_cut_unit_leaves_is_filled_with_units_that_fit() -> None:
    text = "one two three four not five. Six. Seven."
    (kept,) = pack([scored(text, [9, 1, 2])], 5, WORDS)
    assert render(text, kept) == "one two three four Seven."
