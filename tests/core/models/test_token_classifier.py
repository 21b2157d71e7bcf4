from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from laconic.core.evaluation.reference import reference_compressor, reference_word_probabilities
from laconic.core.models.alignment import Tokens, mean_by_unit
from laconic.core.models.token_classifier import TokenClassifier, _windows
from laconic.core.types import Span
from laconic.errors import ModelError

Models = Callable[[str], Path]

TEXT = (
    "Make LLM applications pay for fewer tokens. It stands between a retriever and a model, "
    "and keeps the sentences that the question needs: 12 of 345 (or so)."
)
KINDS = ["bert", "xlm-roberta", "modernbert"]


def test_probabilities_are_those_of_one_forward_pass(models: Models) -> None:
    for kind in KINDS:
        tokenizer = AutoTokenizer.from_pretrained(models(kind))
        model = AutoModelForTokenClassification.from_pretrained(models(kind)).eval()
        encoded = tokenizer(TEXT, return_tensors="pt")
        with torch.inference_mode():
            expected = model(**encoded).logits.softmax(-1)[0, 1:-1, 1].numpy()
        (tagged,) = TokenClassifier(models(kind)).tag([TEXT])
        np.testing.assert_allclose(tagged.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_padding_change_nothing(models: Models, kind: str) -> None:
    texts = [TEXT * 3, "", TEXT, "a", "我喜欢猫。", " ", TEXT * 8, "\ud800 lone"]
    together = TokenClassifier(models(kind)).tag(texts)
    alone = TokenClassifier(models(kind), batch_tokens=1, cache_size=0)
    for text, tagged in zip(texts, together, strict=True):
        (expected,) = alone.tag([text])
        np.testing.assert_allclose(tagged.probabilities, expected.probabilities, atol=1e-5)
        assert tagged.offsets.shape == (len(tagged.probabilities), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_judged_to_their_end(models: Models, kind: str) -> None:
    classifier = TokenClassifier(models(kind))
    (long,) = classifier.tag([f"{TEXT} " * 40])
    assert len(long.probabilities) > 1000
    assert long.offsets[-1, 1] >= len(f"{TEXT} " * 40) - 1
    assert (long.probabilities > 0).all()
    (giant,) = classifier.tag(["x1" * 3000])
    assert (giant.probabilities > 0).all()


def test_what_was_tagged_is_remembered(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = TokenClassifier(models("bert"))
    first = classifier.tag([TEXT, TEXT])
    monkeypatch.setattr(classifier, "_forward", lambda _: pytest.fail("computed again"))
    assert classifier.tag([TEXT]) == first[:1]


def test_int8_stays_close(models: Models) -> None:
    (full,) = TokenClassifier(models("xlm-roberta")).tag([TEXT])
    (small,) = TokenClassifier(models("xlm-roberta"), int8=True).tag([TEXT])
    assert np.abs(full.probabilities - small.probabilities).mean() < 0.05
    assert not np.array_equal(full.probabilities, small.probabilities)


def test_copies_carry_the_settings_and_leave_the_model(models: Models) -> None:
    classifier = TokenClassifier(models("bert"), batch_tokens=99)
    classifier.tag([TEXT])
    for twin in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert twin._settings == classifier._settings
        assert twin._loaded is None


def test_a_label_that_the_model_lacks_and_a_missing_head_are_refused(models: Models) -> None:
    with pytest.raises(ModelError, match="2 labels"):
        TokenClassifier(models("bert"), label=2).load()
    with pytest.raises(ModelError, match=r"lacks weights|cannot load"):
        TokenClassifier(models("gpt2")).load()


def words_of(text: str, words: list[str]) -> list[Span]:
    """Where the reference's words stand, as tiles of the text."""
    starts, position = [], 0
    for word in words:
        position = text.index(word, position)
        starts.append(position)
        position += len(word)
    return [Span(a, b) for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_word_probabilities_are_those_of_llmlingua(models: Models, kind: str) -> None:
    reference = reference_compressor(models(kind), llmlingua2=True)
    (chunk,) = reference_word_probabilities(reference, TEXT)
    words = [word.replace("▁", "").replace("##", "") for word, _ in chunk]
    spans = words_of(TEXT, words)
    classifier = TokenClassifier(models(kind))
    if kind == "xlm-roberta":
        # llmlingua frames the text with [CLS] and [SEP], which XLM-RoBERTa reads as unknown.
        classifier.load()
        loaded = classifier._loaded
        assert loaded is not None
        assert [loaded.before, loaded.behind] == [[0], [2]]
        loaded.before = loaded.behind = [loaded.tokenizer.unk_token_id]
    (tagged,) = classifier.tag([TEXT])
    ours = mean_by_unit(TEXT, spans, tagged.offsets, tagged.probabilities, 0.0)
    np.testing.assert_allclose(ours, [probability for _, probability in chunk], atol=1e-5)


def test_windows_end_behind_a_sentence_else_a_word_else_anywhere() -> None:
    def cut(text: str, room: int) -> list[str]:
        offsets = np.array([[i, i + 1] for i in range(len(text))], np.int64).reshape(-1, 2)
        tokens = Tokens(np.arange(len(text)), offsets)
        return [text[a:b] for a, b in _windows(text, tokens, room)]

    assert cut("a b. cd ef", 6) == ["a b.", " cd ef"]
    assert cut("ab cd ef", 6) == ["ab cd", " ef"]
    assert cut("abcdefgh", 6) == ["abcdef", "gh"]
    assert cut("", 6) == []
