from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from laconic.core import Passage, get_compressor
from laconic.core.methods.lexical import Lexical
from laconic.errors import LaconicError

FILLER = "The weather was fine that day. People walked about in the sun. Nothing else happened. "


def best(text: Any, query: str | None, budget: int = 14, **options: Any) -> str:
    return Lexical(**options).compress(text, query=query, budget=budget).text


def test_a_sentence_with_the_rare_words_of_the_query_wins() -> None:
    text = FILLER + "The zymurgist poured the kvass. " + FILLER
    assert best(text, "Which people met the zymurgist?", 10) == "The zymurgist poured the kvass."


def test_word_forms_are_the_same_word() -> None:
    text = FILLER + "She was connecting the cables. " + FILLER
    assert "connecting" in best(text, "connected cable", 9)


def test_case_does_not_matter() -> None:
    assert "NASA" in best(FILLER + "It was nAsA again, said NASA. " + FILLER, "nasa")


@pytest.mark.parametrize("query", ["what is it?", "the", "of and to"])
def test_a_query_of_stop_words_works(query: str) -> None:
    assert best(FILLER * 2, query)


@pytest.mark.parametrize("query", ["?!", "…", "zzzzz", "👍", "\ud800", "\x00"])
def test_a_query_that_nothing_matches_works(query: str) -> None:
    assert best(FILLER * 2, query)


@pytest.mark.parametrize("query", [None, "", "  \n"])
def test_without_a_query_the_first_typical_sentence_wins(query: str | None) -> None:
    text = "Bees make honey. " + FILLER + "Honey is made by bees. Bees like honey. "
    assert best(text, query, 5).startswith("Bees make honey")


def test_the_text_around_a_sentence_speaks_for_it() -> None:
    texts = [
        "Stones are old. It weighs four tons. They lie there.",
        "The elephant lives here. It weighs four tons. The elephant eats grass.",
    ]
    result = Lexical().compress(texts, query="elephant weighs", budget=16)
    assert [p.index for p in result.passages] == [1]


def test_the_title_helps_and_never_appears() -> None:
    body = "It was built in 1889. It is 330 m high. It is made of iron. "
    given = [Passage(FILLER, metadata={"title": "Weather"}), Passage(body + body)]
    titled = [given[0], Passage(body + body, metadata={"title": "Eiffel Tower"})]
    query = "When was the Eiffel Tower made?"
    without = Lexical().compress(given, query=query, budget=20, order="score")
    helped = Lexical().compress(titled, query=query, budget=20, order="score")
    assert helped.passages[0].index == 1
    score = {p.index: p.score for p in (*without.passages, *without.dropped)}
    assert helped.passages[0].score is not None
    assert score[1] is not None
    assert helped.passages[0].score > score[1]
    assert "Eiffel" not in helped.text


@pytest.mark.parametrize("title", [None, 5, "", ["a"], b"x", "\ud800"])
def test_odd_titles_do_no_harm(title: Any) -> None:
    passage = Passage(FILLER * 2, metadata={"title": title})
    assert Lexical().compress([passage], query="sun", budget=9).text


@pytest.mark.parametrize(
    ("text", "query", "wanted"),
    [
        ("我喜欢猫。天空是蓝色的。他昨天走了。", "天空是什么颜色？", "天空是蓝色的。"),
        (
            "彼は走った。富士山は日本一高い山です。猫がいる。",
            "富士山の高さ",
            "富士山は日本一高い山です。",
        ),
        (
            "나는 고양이를 좋아한다. 서울은 한국의 수도이다. 그는 갔다.",
            "서울은",
            "서울은 한국의 수도이다.",
        ),
        (
            "ฉันชอบแมว\nกรุงเทพเป็นเมืองหลวงของไทย\nเขาไปแล้ว",
            "เมืองหลวงของไทย",
            "กรุงเทพเป็นเมืองหลวงของไทย",
        ),
        ("Кошка спит. Москва столица России. Он ушёл.", "столица россии", "Москва столица России."),
        ("أنا أحب القطط. القاهرة عاصمة مصر. ذهب أمس.", "عاصمة مصر", "القاهرة عاصمة مصر."),
    ],
)
def test_other_scripts(text: str, query: str, wanted: str) -> None:
    assert Lexical().compress(text, query=query, budget=len(wanted) + 1, counter=len).text == wanted


def test_stemmers_of_other_languages() -> None:
    text = "Es regnete den ganzen Tag. Die Katzen schliefen. Niemand kam vorbei. "
    budget = len("Es regnete den ganzen Tag.")
    german = Lexical(stemmer="german").compress(text, query="Katze", budget=budget, counter=len)
    assert german.text == "Die Katzen schliefen."


def test_an_unknown_stemmer_is_a_typed_error() -> None:
    with pytest.raises(LaconicError, match="klingon"):
        get_compressor("lexical", stemmer="klingon").compress(FILLER, query="sun", budget=5)


@pytest.mark.parametrize("query", [None, "sun"])
def test_no_passages(query: str | None) -> None:
    result = Lexical().compress([], query=query, budget=5, order="score")
    assert (result.text, result.passages, result.dropped) == ("", (), ())


@pytest.mark.parametrize("query", [None, "sun", "?"])
@pytest.mark.parametrize("order", ["source", "score"])
def test_passages_of_marks_only(query: str | None, order: Any) -> None:
    result = Lexical().compress(
        ["... !!! ??? " * 9, "--- *** ", "   ", ""], query=query, budget=5, order=order
    )
    assert result.text
    assert result.tokens_after <= 5


def test_a_word_repeated_is_not_worth_its_repetitions() -> None:
    text = "Cat cat cat cat cat cat. The cat chased the dog around. " + FILLER
    assert best(text, "cat dog", 8) == "The cat chased the dog around."


def test_threads_give_the_serial_result() -> None:
    method = Lexical()
    texts = [FILLER + f"Word{i} is here. " + FILLER for i in range(40)]

    def run(i: int) -> str:
        return method.compress(texts[i], query=f"word{i}", budget=9).text

    serial = [run(i) for i in range(40)]
    assert all(f"Word{i} " in text for i, text in enumerate(serial))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(40))) == serial
