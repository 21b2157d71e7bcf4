from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.core import units
from laconic.core.training.llmlingua2.annotate import (
    Labelled,
    annotate,
    read_labelled,
    write_labelled,
)
from laconic.core.training.llmlingua2.collect import Pair
from laconic.errors import InputError


def label(origin: str, compressed: str, **options: Any) -> Labelled:
    return annotate(Pair("id", "document", origin, compressed), **options)


def shown(labelled: Labelled) -> str:
    """The words with their labels: what is kept in brackets."""
    parts = [
        (labelled.origin[slice(*span)].strip(), kept)
        for span, kept in zip(labelled.words, labelled.kept, strict=True)
    ]
    return " ".join(f"[{text}]" if kept else text for text, kept in parts)


@pytest.mark.parametrize(
    ("compressed", "origin"),
    [
        # words left out, in order
        ("Paris capital France.", "[Paris] is the [capital] of [France] [.]"),
        # case and the marks around a word
        ('paris "capital" (France)', "[Paris] is the [capital] of [France] ."),
        # words that the model made up
        ("Paris nice capital indeed", "[Paris] is the [capital] of France ."),
        # in another order: found backward
        ("France: capital, Paris", "[Paris] is the [capital] of [France] ."),
        # nothing of it
        ("Tokyo", "Paris is the capital of France ."),
        # all of it
        ("Paris is the capital of France.", "[Paris] [is] [the] [capital] [of] [France] [.]"),
    ],
)
def test_words_of_one_sentence(compressed: str, origin: str) -> None:
    assert shown(label("Paris is the capital of France.", compressed)) == origin


@pytest.mark.parametrize(
    ("origin", "compressed", "expected"),
    [
        # each label is given once, and the nearest word gets it
        ("the cat saw the dog", "cat saw the dog", "the [cat] [saw] [the] [dog]"),
        ("the cat saw the dog", "the dog the", "[the] cat saw [the] [dog]"),
        ("a b a b a b", "b b b", "a [b] a [b] a [b]"),
        ("no no no yes", "no no", "[no] [no] no yes"),
        # a word said more often than it stands there
        ("very good work", "very very good", "[very] [good] work"),
        # nearer behind than in front
        ("left x y z left go", "z left", "left x y [z] [left] go"),
        ("left z x y left go", "z left", "[left] [z] x y left go"),
    ],
)
def test_words_that_stand_there_often(origin: str, compressed: str, expected: str) -> None:
    assert shown(label(origin, compressed)) == expected


@pytest.mark.parametrize(
    ("origin", "compressed", "expected"),
    [
        ("She was running to houses.", "She run house", "[She] was [running] to [houses] ."),
        ("The analysed colour it is.", "analyzed color", "The [analysed] [colour] it is ."),
        ("Tom's plan isn’t new.", "Tom plan isn't", "[Tom's] [plan] [isn’t] new ."),
        # the same form first, if another one is nearer
        ("runs and run", "run", "runs and [run]"),
        # similar to some degree only, and from the same letter on
        ("able form causal", "unable from casual", "able form causal"),
        # numbers are the same or they are not
        ("In 1995 it cost 12,345.67 euros.", "1996 12,345.68", "In 1995 it cost 12,345.67 euros ."),
        (
            "In 1995 it cost $12,345.67 (or 50%).",
            "1995 12,345.67 50%",
            "In [1995] it cost [$12,345.67] (or [50%).]",
        ),
    ],
)
def test_forms_of_words(origin: str, compressed: str, expected: str) -> None:
    assert shown(label(origin, compressed)) == expected


def test_similar_words_can_be_left_alone() -> None:
    assert shown(label("colour it is", "color", similarity=1.0)) == "colour it is"
    assert shown(label("Häuser am See", "Haus See", stemmer="german")) == "[Häuser] am [See]"


@pytest.mark.parametrize(
    ("origin", "compressed", "expected"),
    [
        ("我喜欢猫。你呢？", "喜欢猫你", "我 [喜] [欢] [猫。] [你] 呢？"),
        ("我喜欢猫。", "猫，我", "[我] 喜 欢 [猫。]"),
        ("ذهبت إلى المدرسة.", "ذهبت المدرسة", "[ذهبت] إلى [المدرسة] ."),
        ("L'été à Paris, il pleut.", "ÉTÉ Paris pleut", "L'été à [Paris] , il [pleut] ."),
        ("Die Straße ist groß.", "STRASSE groß.", "Die [Straße] ist [groß] [.]"),
    ],
)
def test_other_languages(origin: str, compressed: str, expected: str) -> None:
    assert shown(label(origin, compressed)) == expected


@pytest.mark.parametrize(
    ("origin", "compressed", "expected"),
    [
        # a mark that the compressed text has, behind the same word or behind those dropped
        ("He said: no, really.", "said no.", "He [said] : [no] , really [.]"),
        ("He said: no, really.", "said: no,", "He [said] [:] [no] [,] really ."),
        ("It ended. He (then) left.", "It. left", "[It] ended [.] He (then ) [left] ."),
        # never one that stands behind the next kept word
        ("One two. Three.", "One. two Three", "[One] [two] . [Three] ."),
        # nor one that is not there, or stands behind a word that was made up
        ("One two, three.", "One; two: nice, three", "[One] [two] , [three] ."),
        ("- one\n- two", "- two", "[-] one - [two]"),
        ("Go (really). Stop!", "Go really. Stop!", "[Go] [(really] [).] [Stop] [!]"),
    ],
)
def test_marks(origin: str, compressed: str, expected: str) -> None:
    assert shown(label(origin, compressed)) == expected


def test_a_word_is_looked_for_no_further_than_the_window() -> None:
    origin = f"start {'x ' * 10}far {'y ' * 20}end"
    compressed = "start far end"
    assert sum(label(origin, compressed, window=25).kept) == 3
    near = label(origin, compressed, window=15)
    assert sum(near.kept) == 2
    assert not near.kept[-1]
    # It stands in the original all the same.
    assert near.quality.variation_rate == 0
    assert near.quality.alignment_gap == pytest.approx(1 / len(near.words))


def test_the_rates_are_those_of_the_paper() -> None:
    # 8 words; 5 compressed, of which "the" stands there once but comes twice and 1 is made up
    quality = label("Paris is the old capital of all France.", "Paris the the nice capital").quality
    assert quality.variation_rate == pytest.approx(1 / 5)
    assert quality.hitting_rate == pytest.approx(4 / 8)
    assert quality.matching_rate == pytest.approx(3 / 8)
    assert quality.alignment_gap == pytest.approx(1 / 8)
    nothing = label("Paris.", "...").quality
    assert (nothing.variation_rate, nothing.matching_rate) == (1.0, 0.0)
    assert label("...", "Paris.").quality.matching_rate == 0.0


WORDS = st.lists(
    st.sampled_from("the cats cat saw run runs running Zürich 12 13 我 猫 it's a,b".split()),
    min_size=1,
    max_size=40,
)


@given(WORDS, st.data())
def test_words_left_out_and_nothing_else(words: list[str], data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    left = [word for word, flag in zip(words, flags, strict=True) if flag] or words[:1]
    result = label(" ".join(words), " ".join(left))
    kept = [
        result.origin[slice(*span)].strip()
        for span, flag in zip(result.words, result.kept, strict=True)
        if flag
    ]
    assert sorted(kept) == sorted(left)
    assert result.quality.variation_rate == 0
    assert result.quality.alignment_gap == 0


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts(origin: str, compressed: str) -> None:
    result = label(origin, compressed)
    assert list(result.words) == units.words(origin, marks=True)
    assert len(result.kept) == len(result.words)
    quality = result.quality
    assert 0 <= quality.variation_rate <= 1
    assert 0 <= quality.matching_rate <= 1
    assert quality.alignment_gap >= 0
    assert label(origin, compressed) == result


@given(st.text(min_size=1, max_size=60))
def test_a_text_with_itself(text: str) -> None:
    result = label(text, text)
    assert all(result.kept)
    assert result.quality.alignment_gap == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is at least 1"),
        ({"similarity": 0.0}, "similarity above 0"),
        ({"similarity": 1.1}, "at most 1"),
        ({"stemmer": "klingon"}, "no stemmer 'klingon'; there are .*english"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        label("a", "a", **options)


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        labelled = [label("Paris, the 我 \ud800 city.", "Paris city"), label("A b.", "b")]
        write_labelled(tmp_path / "new" / "labelled.jsonl", labelled)
        assert read_labelled(tmp_path / "new" / "labelled.jsonl") == labelled

    def test_a_write_that_fails_leaves_the_file_as_it_was(self, tmp_path: Path) -> None:
        file = tmp_path / "labelled.jsonl"
        write_labelled(file, [label("A b.", "b")])
        before = file.read_bytes()
        with pytest.raises(InputError):
            write_labelled(file, (label(text, text, window=len(text)) for text in ("a", "")))
        assert file.read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"origin": ""}, "needs a text under 'origin'"),
            ({"origin": "A b. C"}, "the words do not tile the text"),
            ({"words": [[0, 2], [3, 4]], "kept": [1, 0]}, "the words do not tile the text"),
            ({"kept": [1]}, "3 words and 1 labels"),
            ({"words": [[0]]}, "not what .* writes: ValueError"),
            ({"words": None}, "not what .* writes: TypeError"),
            ({"hitting_rate": None}, "not what .* writes: TypeError"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path: Path, change: Any, message: str) -> None:
        file = tmp_path / "labelled.jsonl"
        write_labelled(file, [label("A b.", "b")])
        (row,) = file.read_text().splitlines()
        file.write_text(f"{row}\n{json.dumps({**json.loads(row), **change})}\n")
        with pytest.raises(InputError, match=rf"labelled.jsonl:2: {message}"):
            read_labelled(file)
        missing = json.loads(row)
        del missing["kept"]
        file.write_text(json.dumps(missing))
        with pytest.raises(InputError, match=r"labelled.jsonl:1: not what .* KeyError: 'kept'"):
            read_labelled(file)
