from __future__ import annotations

import gc
import textwrap
import time
from collections.abc import Callable, Sequence

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import guards
from laconic.core.types import Span
from laconic.core.units import (
    MAX_SENTENCE,
    MAX_UNSPACED_SENTENCE,
    graphemes,
    paragraphs,
    sentences,
    words,
)

SNIPPETS = [
    "Dr. Smith paid $3.50.",
    "It did not run. ",
    "e.g. ",
    "- item\n",
    "# Head\n\n",
    "| a | b |\n",
    "```\nx = 1. \n\ny\n```\n",
    "https://a.b/c?d=e. ",
    "我喜欢猫。",
    "他说：“好！”",
    "ｶﾞ",
    "か\u3099",
    "สวัสดีครับ ",
    "مرحبا. ",
    "\u202eabc\u202c",
    "नमस्ते। ",
    "e\u0301",
    "👩‍👩‍👧‍👦",
    "🇫🇷🇩🇪",
    "👍🏽",
    "\ud800",
    "\udfff",
    "\r\n",
    "\n\n",
    " \n \n",
    "\u2028",
    "\u2029",
    "\x00",
    "\x1c",
    "\x85",
    "\u00a0",
    "\u200b",
    "\u200d",
    "\u3000",
    "\ufeff",
    " ",
    "...",
    "?!",
    "(",
    ")",
    "`",
    "word",
    "a" * 70,
    "w " * 400,
]
ANY_TEXT = st.one_of(
    st.text(st.characters(), max_size=60),
    st.lists(st.sampled_from(SNIPPETS), max_size=14).map("".join),
    st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=4)), max_size=12).map("".join),
)

CUTTERS: dict[str, Callable[[str], list[Span]]] = {
    "sentences": sentences,
    "sentences around atoms": lambda text: sentences(text, guards.atoms(text)),
    "words": words,
    "words around atoms": lambda text: words(text, guards.atoms(text, guards.ATOM_KINDS)),
    "paragraphs": paragraphs,
    "graphemes": graphemes,
}
every_cutter = pytest.mark.parametrize("cutter", CUTTERS.values(), ids=CUTTERS.keys())


def texts(text: str, spans: Sequence[Span]) -> list[str]:
    return [text[start:end] for start, end in spans]


def cut(text: str) -> list[str]:
    return texts(text, sentences(text, guards.atoms(text)))


def stripped(text: str) -> list[str]:
    return [unit.strip() for unit in cut(text)]


# --- every cutter, any text -----------------------------------------------------------------


@every_cutter
@given(text=ANY_TEXT)
def test_units_tile_the_text(cutter: Callable[[str], list[Span]], text: str) -> None:
    spans = cutter(text)
    assert [s.start for s in spans] == ([0, *(s.end for s in spans[:-1])] if spans else [])
    assert (spans[-1].end if spans else 0) == len(text)
    assert all(start < end for start, end in spans)


@every_cutter
@given(text=ANY_TEXT)
def test_no_unit_is_white_space_alone(cutter: Callable[[str], list[Span]], text: str) -> None:
    spans = cutter(text)
    if text.isspace():
        assert spans == [Span(0, len(text))]
    else:
        assert not any(unit.isspace() for unit in texts(text, spans))


@pytest.mark.parametrize("cutter", [sentences, words])
@given(text=ANY_TEXT)
def test_atoms_are_never_cut(
    cutter: Callable[[str, Sequence[Span]], list[Span]], text: str
) -> None:
    atoms = guards.atoms(text, guards.ATOM_KINDS)
    for _, end in cutter(text, atoms):
        assert not any(atom.start < end < atom.end for atom in atoms)


@given(text=ANY_TEXT, data=st.data())
def test_foreign_atoms_are_never_cut(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    atoms = [Span(a, b) for a, b in zip(places[::2], places[1::2], strict=False)]
    for _, end in (*sentences(text, atoms), *words(text, atoms)):
        assert not any(atom.start < end < atom.end for atom in atoms)


@given(text=ANY_TEXT)
def test_paragraphs_end_at_line_breaks(text: str) -> None:
    assert all(p.endswith("\n") for p in texts(text, paragraphs(text)[:-1]))


@given(text=ANY_TEXT)
def test_graphemes_are_those_of_unicode(text: str) -> None:
    borders = {m.end() for m in regex.finditer(r"\X", text)}
    assert {end for _, end in graphemes(text)} <= borders


@every_cutter
def test_of_nothing_there_is_nothing(cutter: Callable[[str], list[Span]]) -> None:
    assert cutter("") == []


# --- sentences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Dr. Smith met Mrs. Jones.",
        "Fruit, e.g. Apples and i.e. Pears.",
        "We met J. R. R. Tolkien there.",
        "The U.S. Army won.",
        "It costs 3.14 dollars.",
        "Version 2.0.1 is out.",
        "See Fig. 3 and No. 5 for more.",
        "Well... maybe later.",
        "It is 5 p.m. in Rome.",
        "The domain example.com was sold.",
        "Das ist z.B. Ein Test.",
        "As shown (Smith et al. 2020; Cf. Doe, 2019) before.",
    ],
)
def test_stays_whole(text: str) -> None:
    assert cut(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("He said no. Then he left.", ["He said no.", "Then he left."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("(It was late.) She cried!? Yes.", ["(It was late.)", "She cried!?", "Yes."]),
        ("It was 1999. Then it changed.", ["It was 1999.", "Then it changed."]),
        ("Wait… No.", ["Wait…", "No."]),
        ("Él llegó. ¿Quién? ¡Yo!", ["Él llegó.", "¿Quién?", "¡Yo!"]),
        ("Это кот. Он спит.", ["Это кот.", "Он спит."]),
        ("我喜欢猫。他走了！真的吗？", ["我喜欢猫。", "他走了！", "真的吗？"]),
        ("他说：“你好。”然后走了。", ["他说：“你好。”", "然后走了。"]),
        ("彼は「はい。」と言った。次。", ["彼は「はい。」", "と言った。", "次。"]),
        ("مرحبا بالعالم. كيف حالك؟ بخير.", ["مرحبا بالعالم.", "كيف حالك؟", "بخير."]),
        ("यह एक वाक्य है। यह दूसरा है। क्या?", ["यह एक वाक्य है।", "यह दूसरा है।", "क्या?"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]) -> None:
    assert stripped(text) == expected


def test_a_unit_owns_the_white_space_behind_it() -> None:
    assert cut("One.  Two.\n\n  Three.") == ["One.  ", "Two.\n\n", "  Three."]


def test_headings_and_list_items_stand_alone() -> None:
    text = "# Heading\n\nSome text. More.\n\n- item one\n- item two\n1. First\n2. Second\n"
    assert stripped(text) == [
        "# Heading",
        "Some text.",
        "More.",
        "- item one",
        "- item two",
        "1. First",
        "2. Second",
    ]


def test_table_rows_stand_alone() -> None:
    assert cut("| a | b |\n|---|---|\n| 1 | 2 |\n") == [
        "| a | b |\n",
        "|---|---|\n",
        "| 1 | 2 |\n",
    ]


def test_long_list_items_are_not_taken_for_wrapped_lines() -> None:
    item = "a line that is as long as those that people wrap their text to, or so"
    text = f"- {item}\n- {item}\n* {item}\n"
    assert len(cut(text)) == 3


@pytest.mark.parametrize("width", [45, 60, 72, 80, 100])
def test_soft_line_breaks_end_no_sentence(width: int) -> None:
    prose = (
        "The quick brown fox jumps over the lazy dog and then runs away from the hunter who was "
        "trying to catch it in the woods. It was never seen again by any of those men who had "
        "been looking for it since the day before. They went home, tired and hungry."
    )
    wrapped = textwrap.fill(prose, width)
    assert wrapped.count("\n") >= 2
    assert [" ".join(unit.split()) for unit in cut(wrapped)] == stripped(prose)


def test_transcripts_are_cut_at_line_breaks() -> None:
    lines = ["Ann: hi there\n", "Bob: hello, how are you today my friend\n", "Ann: fine\n"]
    assert cut("".join(lines)) == lines


def test_crlf_is_not_cut() -> None:
    assert cut("One\r\nTwo\r\n\r\nThree") == ["One\r\n", "Two\r\n\r\n", "Three"]
    assert texts("a\r\n\r\nb", paragraphs("a\r\n\r\nb")) == ["a\r\n\r\n", "b"]


def test_code_fences_stay_whole() -> None:
    fence = "```python\nx = 1. \ny = 'Hm. No. '\n\nz()\n```"
    assert cut(f"Before it.\n{fence}\nAfter. Done.") == [
        "Before it.\n",
        f"{fence}\n",
        "After. ",
        "Done.",
    ]


def test_an_unclosed_fence_does_not_swallow_a_long_text() -> None:
    text = "```\n" + "One more sentence. " * 400
    assert max(map(len, cut(text))) <= 2100


def test_paragraphs_are_parted_by_blank_lines() -> None:
    text = "One\ntwo.\n \t\nThree.\n\n\n  Four."
    assert texts(text, paragraphs(text)) == ["One\ntwo.\n \t\n", "Three.\n\n\n", "  Four."]


@pytest.mark.parametrize("filler", ["word ", "word, ", "(word) ", "wörd ", "слово "])
def test_text_without_an_end_is_cut_to_pieces(filler: str) -> None:
    text = filler * 2000
    sizes = [len(unit) for unit in cut(text)]
    assert max(sizes) <= MAX_SENTENCE + len(filler)
    assert min(sizes[:-1]) > MAX_SENTENCE // 4


def test_pieces_end_at_clauses_if_they_can() -> None:
    text = ("some words " * 9 + "end of it; ") * 30
    assert all(unit.endswith("; ") for unit in cut(text))


def test_thai_is_cut_at_its_spaces() -> None:
    text = "สวัสดีครับผมชื่อสมชายวันนี้อากาศดีมากครับ " * 40
    sizes = [len(unit) for unit in cut(text)]
    assert max(sizes) <= MAX_UNSPACED_SENTENCE + 42
    assert len(sizes) > 8


def test_one_giant_word_is_left_whole() -> None:
    assert cut("x" * 20_000) == ["x" * 20_000]
    assert texts("x" * 20_000, words("x" * 20_000)) == ["x" * 20_000]


# --- words and graphemes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!  foo-bar don't", ["Hello, ", "world!  ", "foo-bar ", "don't"]),
        ("Python和Java", ["Python", "和", "Java"]),
        ("日本語テキスト", ["日", "本", "語", "テキスト"]),
        ("「你好」他", ["「你", "好」", "他"]),
        ("สวัสดี ครับ", ["สวัสดี ", "ครับ"]),
        ("한국어 문장", ["한국어 ", "문장"]),
        ("  two\n", ["  two\n"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert texts(text, words(text)) == expected


@pytest.mark.parametrize(
    "text",
    ["ﾊﾟｿｺﾝ", "ｶﾞｿﾘﾝ", "か\u3099く", "が\u3099", "和\ufe00", "和\u200d和", "葛\U000e0100城"],
    ids=ascii,
)
def test_words_never_split_a_character(text: str) -> None:
    borders = {end for _, end in graphemes(text)}
    assert {end for _, end in words(text)} <= borders


@pytest.mark.parametrize("one", ["e\u0301", "👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "\r\n", "नि", "각"])
def test_graphemes_are_what_a_reader_sees(one: str) -> None:
    assert texts(f"a{one}b", graphemes(f"a{one}b"))[:2] in (["a", one], [f"a{one}", "b"])


# --- time -----------------------------------------------------------------------------------

ADVERSARIAL = [
    ".",
    "\n",
    " \n",
    "\r\n",
    " ",
    "(",
    "[",
    ")",
    "`",
    "``` ",
    "a. ",
    "A.",
    "1.",
    "1,",
    "not ",
    "not",
    "word ",
    "a@",
    "a.b-",
    "http://",
    "。",
    "和",
    "(A",
    "“",
    "e\u0301",
    "\u0301",
    "- a\n",
    "a, b; ",
    "5 ",
]
STEPS: dict[str, Callable[[str], object]] = {
    **CUTTERS,
    "atoms": lambda text: guards.atoms(text, guards.ATOM_KINDS),
    "keep": lambda text: guards.keep_spans(text, ["a.", "(", "not", "\n"]),
}


def seconds(step: Callable[[str], object], text: str) -> float:
    """The least CPU time of three."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        step(text)
        best = min(best, time.process_time() - started)
    return best


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_time_grows_with_the_length_only(step: Callable[[str], object]) -> None:
    slow = {}
    gc.disable()
    try:
        for piece in ADVERSARIAL:
            small = piece * (8_000 // len(piece))
            once = max(seconds(step, small), 1e-3)
            fourfold = seconds(step, small * 4)
            if fourfold / once > 11:  # linear is 4, quadratic 16
                slow[piece] = f"{once * 1000:.1f} ms -> {fourfold * 1000:.1f} ms"
    finally:
        gc.enable()
    assert not slow
