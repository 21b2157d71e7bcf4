from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import InputError
from laconic.memory.training.facts import ASK, SET, START, TURN, Drawn, Facts

TASK = Facts(keys=9, values=5, words=11)
WORDS = TASK.tokenizer().convert_ids_to_tokens


def stated(row: np.ndarray) -> list[tuple[int, int]]:
    """Key and value of each fact in a conversation, as they stand there."""
    ids = row.ravel()
    (places,) = np.nonzero(ids == SET)
    return [(int(ids[i + 1]), int(ids[i + 2])) for i in places]


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(7, 20),
    st.integers(0, 2**31),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
)
def test_what_is_asked_is_what_was_set_last(
    turns: int, length: int, seed: int, overwriting: bool, noise: float
) -> None:
    facts = min(9, 2 * turns)
    drawn = TASK.draw(
        np.random.default_rng(seed), 4, turns, length, facts, overwriting=overwriting, noise=noise
    )
    assert drawn.context.shape == (4, turns, length)
    assert (drawn.context[:, :, 0] == TURN).all()
    for row, keys, values in zip(*drawn, strict=True):
        said = stated(row)
        assert [key for key, _ in said] == keys.tolist()
        assert dict(zip(keys.tolist(), values.tolist(), strict=True)) == dict(said)
        if not overwriting:
            assert len(set(keys.tolist())) == facts
        assert {WORDS(key)[0] for key in keys.tolist()} == {"k"}
        assert {WORDS(value)[0] for value in values.tolist()} == {"v"}


def test_some_keys_are_set_again() -> None:
    drawn = Facts().draw(np.random.default_rng(0), 50, 4, 24, 8, overwriting=True)
    assert any(len(set(keys.tolist())) < 8 for keys in drawn.keys)


def test_filler_is_foreseeable_and_noise_is_not() -> None:
    def next_words(noise: float) -> float:
        (row,) = Facts().draw(np.random.default_rng(1), 1, 400, 32, 1, noise=noise).context
        pairs = np.stack([row[:, 1:-1].ravel(), row[:, 2:].ravel()], 1)
        return len(np.unique(pairs, axis=0))

    assert next_words(0.0) <= 4 * Facts().words + 10
    assert next_words(0.2) > 2 * next_words(0.0)


def test_questions_are_about_facts_and_answered() -> None:
    drawn = TASK.draw(np.random.default_rng(0), 3, 4, 10, 6)
    ids, learnt = drawn.asked(np.random.default_rng(1), most=4)
    assert ids.shape == (3, 12)
    assert learnt == (False, False, True) * 4
    for row, keys, values in zip(ids, drawn.keys, drawn.values, strict=True):
        facts = dict(zip(keys.tolist(), values.tolist(), strict=True))
        asked = row.reshape(-1, 3)
        assert (asked[:, 0] == ASK).all()
        assert len(set(asked[:, 1].tolist())) == 4
        assert all(facts[int(key)] == value for key, value in asked[:, 1:].tolist())


def test_examples_begin_once_and_are_the_same_for_a_seed() -> None:
    made = TASK.examples(12, seed=1, turns=3)
    assert made == TASK.examples(12, seed=1, turns=3) != TASK.examples(12, seed=2, turns=3)
    assert {len(example.chunks) - 1 for example in made} == {1, 2, 3}
    for example in made:
        *chunks, asked = example.chunks
        assert [chunk[0] for chunk in chunks] == [START] + [TURN] * (len(chunks) - 1)
        assert len({len(chunk) for chunk in chunks[1:]}) <= 1
        assert sum(example.learnt) == 2 * len(chunks) == len(asked) / 3


def test_the_tokenizer_takes_words_for_tokens() -> None:
    tokenizer = TASK.tokenizer()
    text = "turn w3 set k8 v4"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == [START, *ids]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(TASK.vocabulary) == 7 + 9 + 5 + 11


@pytest.mark.parametrize(
    ("turns", "length", "facts"),
    [(2, 10, 5), (1, 6, 1), (9, 20, 10)],
    ids=["full", "short", "keys"],
)
def test_what_has_no_room_is_refused(turns: int, length: int, facts: int) -> None:
    with pytest.raises(InputError, match="no room"):
        TASK.draw(np.random.default_rng(0), 1, turns, length, facts)


def test_too_few_of_something_is_refused() -> None:
    with pytest.raises(InputError, match="at least 4"):
        Facts(words=3)


def test_conversations_are_drawn_as_arrays() -> None:
    drawn = TASK.draw(np.random.default_rng(0), 2, 1, 7, 2)
    assert isinstance(drawn, Drawn)
    assert all(part.dtype == np.int64 for part in drawn)
