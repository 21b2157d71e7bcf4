from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.core.evaluation.reference import reference_compressor
from laconic.core.models import causal_lm
from laconic.core.models.causal_lm import CausalLM
from laconic.errors import ModelError

Models = Callable[[str], Path]

TEXT = "Make LLM applications pay for fewer tokens. It stands between a retriever and a model."
QUESTION = "\nWhat stands between a retriever and a model?"
KINDS = ["gpt2", "llama", "qwen"]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, models: Models) -> Path:
    return models(request.param)


def plain(folder: Path, ids: list[int]) -> np.ndarray:
    """NLL of each token but the first, from one forward pass over all of them."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    chosen = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    return -chosen.numpy()


def test_batches_and_lengths_change_nothing(folder: Path) -> None:
    lm = CausalLM(folder, batch_tokens=64)
    tokens = lm.tokenize([TEXT * n for n in (3, 1, 2)] + ["", "a"])
    values = lm.nll(tokens)
    assert [len(v) for v in values] == [len(t) for t in tokens]
    start = lm._get().start.tolist()
    for t, v in zip(tokens, values, strict=True):
        expected = plain(folder, start + t.ids.tolist()) if len(t) else np.zeros(0)
        np.testing.assert_allclose(v[len(v) - len(expected) :], expected, atol=1e-5)


def test_logits_in_chunks_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = CausalLM(folder)
    tokens = lm.tokenize([TEXT, TEXT * 3])
    whole = lm.nll(tokens)
    monkeypatch.setattr(causal_lm, "_LOGIT_ROWS", 14)
    for a, b in zip(whole, lm.nll(tokens), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_shared_context_is_the_context_of_each(folder: Path) -> None:
    lm = CausalLM(folder, batch_tokens=100)
    question, *texts = lm.tokenize([QUESTION, TEXT, TEXT[20:], TEXT[5:50], "It"])
    together = lm.nll(texts, [question] * len(texts))
    for text, values in zip(texts, together, strict=True):
        (alone,) = lm.nll([text], [question])
        np.testing.assert_allclose(values, alone, atol=1e-5)
        ids = [*lm._get().start.tolist(), *question.ids.tolist(), *text.ids.tolist()]
        np.testing.assert_allclose(values, plain(folder, ids)[-len(text) :], atol=1e-5)


def test_a_first_token_without_a_start_is_as_likely_as_any(models: Models) -> None:
    folder = models("gpt2")
    lm = without_start(folder)
    (tokens,) = lm.tokenize([TEXT])
    (values,) = lm.nll([tokens])
    assert values[0] == math.log(lm.load().config.vocab_size)
    np.testing.assert_allclose(values[1:], plain(folder, tokens.ids.tolist()), atol=1e-5)


def without_start(folder: Path) -> CausalLM:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.eos_token = None
    return CausalLM(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer=tokenizer)


def test_a_text_longer_than_the_window_is_judged_to_its_end(folder: Path) -> None:
    lm = CausalLM(folder)
    (tokens,) = lm.tokenize([TEXT * 70])
    assert len(tokens) > 2 * lm.window
    (values,) = lm.nll([tokens])
    assert np.isfinite(values).all()
    assert (values > 0).all()
    start = lm._get().start.tolist()
    head = plain(folder, [*start, *tokens.ids[: lm.window - len(start)].tolist()])
    np.testing.assert_allclose(values[1 - len(start) :][: len(head)], head, atol=1e-5)


def test_a_stream_that_keeps_all_judges_as_one_pass(folder: Path) -> None:
    lm = CausalLM(folder)
    (tokens,) = lm.tokenize([TEXT * 5])
    stream = lm.stream()
    values = []
    for start in range(0, len(tokens), 17):
        segment = tokens.ids[start : start + 17]
        values.append(stream.judge(segment))
        stream.keep(segment)
    np.testing.assert_allclose(np.concatenate(values), lm.nll([tokens])[0], atol=1e-4)


def test_a_stream_sees_its_prefix_and_what_was_kept_and_nothing_else(folder: Path) -> None:
    lm = CausalLM(folder)
    prefix, first, second = lm.tokenize([QUESTION, TEXT, TEXT[::-1]])
    stream = lm.stream(prefix)
    stream.judge(first.ids)
    kept = first.ids[::3]
    stream.keep(kept)
    judged = stream.judge(second.ids)
    ids = [*lm._get().start, *prefix.ids, *kept, *second.ids]
    expected = plain(folder, [int(i) for i in ids])[-len(second) :]
    np.testing.assert_allclose(judged, expected, atol=1e-5)


def test_a_stream_goes_on_behind_the_window(folder: Path) -> None:
    lm = CausalLM(folder)
    (tokens,) = lm.tokenize([TEXT * 70])
    prefix = lm.tokenize([QUESTION])[0]
    stream = lm.stream(prefix)
    for start in range(0, len(tokens), 100):
        segment = tokens.ids[start : start + 100]
        values = stream.judge(segment)
        assert np.isfinite(values).all()
        stream.keep(segment)
    long = stream.judge(tokens.ids[: lm.window + 10])
    assert np.isfinite(long).all()
    assert len(long) == lm.window + 10


def test_half_precision_gives_finite_values_close_to_the_full(models: Models) -> None:
    full, half = CausalLM(models("llama")), CausalLM(models("llama"), dtype="bfloat16")
    tokens = full.tokenize([TEXT])
    np.testing.assert_allclose(full.nll(tokens)[0], half.nll(tokens)[0], atol=0.5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
class TestReference:
    """llmlingua 0.2.2 on the same weights."""

    def lm(self, folder: Path, kind: str) -> CausalLM:
        # llmlingua starts with a token only where the tokenizer adds it, GPT-2's does not.
        return without_start(folder) if kind == "gpt2" else CausalLM(folder)

    def test_token_nll(self, models: Models, kind: str) -> None:
        lm = self.lm(models(kind), kind)
        reference = reference_compressor(models(kind))
        theirs = reference.get_ppl(TEXT, granularity="token").double().numpy()
        (ours,) = lm.nll(lm.tokenize([TEXT]))
        np.testing.assert_allclose(ours[-len(theirs) :], theirs, atol=1e-5)
        assert len(theirs) >= len(ours) - 1

    @pytest.mark.parametrize("condition", ["before", "after"])
    def test_conditional_nll(self, models: Models, kind: str, condition: str) -> None:
        lm = self.lm(models(kind), kind)
        reference = reference_compressor(models(kind))
        # llmlingua tokenizes both as one text, which has the same tokens where a space parts them.
        document, asked = f" {TEXT}", f" {QUESTION.strip()}"
        theirs = float(
            reference.get_condition_ppl(document, asked, condition_in_question=condition)
        )
        text, question = lm.tokenize([document, asked])
        ours = (lm.nll([question], [text]) if condition == "after" else lm.nll([text], [question]))[
            0
        ].mean()
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_copies_carry_the_settings_and_leave_the_model(models: Models) -> None:
    lm = CausalLM(models("gpt2"), batch_tokens=99)
    lm.load()
    for twin in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm))):
        assert twin._settings == lm._settings
        assert twin._loaded is None


def test_a_question_that_fills_half_the_window_is_refused(models: Models) -> None:
    lm = CausalLM(models("gpt2"))
    with pytest.raises(ModelError, match="shorten it"):
        lm.room_before(lm.tokenize(["why " * 400])[0])


def test_a_model_without_such_a_head_is_refused(models: Models) -> None:
    with pytest.raises(ModelError, match=r"lacks weights|cannot load"):
        CausalLM(models("bert")).load()


def test_an_unknown_model_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"hub id .* or a folder"):
        CausalLM(tmp_path / "none").load()


def test_a_slow_tokenizer_is_refused(models: Models) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(models("gpt2")).eval()
    with pytest.raises(ModelError, match="offsets"):
        CausalLM(model, tokenizer=object()).load()
    with pytest.raises(ModelError, match="tokenizer="):
        CausalLM(model).load()
    with pytest.raises(ModelError, match="eval"):
        CausalLM(model.train(), tokenizer=object()).load()
