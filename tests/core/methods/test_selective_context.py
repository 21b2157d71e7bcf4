from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from laconic.core.evaluation.reference import SelectiveContextReference
from laconic.core.method import Request
from laconic.core.methods.selective_context import SelectiveContext
from laconic.core.units import phrases
from laconic.errors import InputError

Models = Callable[[str], Path]

TEXT = (
    "Make LLM applications pay for fewer tokens. It stands between a retriever and a model, "
    "and keeps the sentences that the question needs. Tests run offline."
)


def scores(method: SelectiveContext, text: str) -> np.ndarray:
    spans = tuple(method.segment(text))
    return method.score(Request((text,), (spans,), ("",), None)).units[0]


def test_self_information_is_that_of_the_published_loop(models: Models) -> None:
    reference = SelectiveContextReference(models("gpt2"))
    theirs = [np.mean([value for _, value in s]) for s in reference.self_information(TEXT)]
    ours = scores(SelectiveContext(models("gpt2"), level="sentence"), TEXT)
    assert len(ours) == 3
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_levels_cut_as_they_say(models: Models) -> None:
    def cut(level: str) -> list[str]:
        method = SelectiveContext(models("gpt2"), level=level)  # type: ignore[arg-type]
        return [TEXT[a:b] for a, b in method.segment(TEXT)]

    assert len(cut("sentence")) < len(cut("phrase")) < len(cut("token"))
    assert all("".join(cut(level)) == TEXT for level in ("sentence", "phrase", "token"))


def test_phrases_open_with_function_words_and_end_with_marks() -> None:
    text = "The old man of the sea, who was tired, bought a very large fish in Rome."
    assert [text[a:b].strip() for a, b in phrases(text)] == [
        "The old man", "of the sea,", "who was tired,", "bought", "a very large fish", "in Rome.",
    ]  # fmt: skip


def test_noun_chunks_of_a_given_pipeline_are_the_phrases(models: Models) -> None:
    def nlp(text: str) -> SimpleNamespace:
        start = text.index("fewer tokens")
        chunk = SimpleNamespace(start_char=start, end_char=start + len("fewer tokens"))
        return SimpleNamespace(noun_chunks=[chunk])

    method = SelectiveContext(models("gpt2"), nlp=nlp)
    assert "fewer tokens. " in [TEXT[a:b] for a, b in method.segment(TEXT)]


def test_batches_and_passages_change_nothing(models: Models) -> None:
    method = SelectiveContext(models("gpt2"))
    together = method.compress([TEXT, TEXT[:44], "我喜欢猫。😀"], budget=1.0, order="score")
    for passage in together.passages:
        (alone,) = method.compress(passage.passage, budget=1.0, order="score").passages
        assert passage.score == pytest.approx(alone.score, abs=1e-5)


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="no level"):
        SelectiveContext(level="page")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="spaCy"):
        SelectiveContext(nlp="no_such_pipeline")
