from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from laconic.core import get_compressor
from laconic.core.evaluation.reference import reference_compressor
from laconic.core.method import Request
from laconic.core.methods.llmlingua import LLMLingua
from laconic.core.models.causal_lm import CausalLM
from laconic.core.units import words
from laconic.errors import InputError, ModelError

Models = Callable[[str], Path]

DOCUMENTS = [
    " The treaty was signed in 1848 by 12 states, and it does not apply to fishing.",
    " Make LLM applications pay for fewer tokens: it stands between a retriever and a model.",
    " Tests run offline and mirror the tree. Every method keeps every promise of the suite.",
    " Install the extra that you need, or all of them, with pip and a fresh environment.",
]

WORDS = "a retriever" + " and a model between a retriever and the tokens" * 8
"""One token a word, for every model."""


def without_start(folder: Path) -> CausalLM:
    """A GPT-2 that reads texts from their first token, as llmlingua does."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.eos_token = None
    return CausalLM(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer=tokenizer)


def request(method: LLMLingua, texts: Sequence[str], rate: float = 0.5) -> Request:
    spans = tuple(tuple(method.segment(text)) for text in texts)
    return Request(tuple(texts), spans, ("",) * len(texts), None, rate=rate)


def test_documents_stand_in_the_order_of_llmlingua(models: Models) -> None:
    reference = reference_compressor(models("llama"))
    ranked = reference.get_rank_results(DOCUMENTS, "", "llmlingua", "none", [0] * 4)
    method = LLMLingua(models("llama"))
    ((scores),) = method.rank([], [method.model.tokenize(DOCUMENTS)])
    assert np.argsort(-scores).tolist() == [i for i, _ in ranked]
    np.testing.assert_allclose(sorted(-scores), sorted(-value for _, value in ranked), atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_words_are_judged_given_what_was_kept_of_the_segments_before(
    models: Models, kind: str
) -> None:
    """Equation 5 of the paper, from plain conditional NLL, without a cache."""
    text = WORDS
    method = LLMLingua(models(kind), level="token", segment_tokens=30)
    (tokens,) = method.model.tokenize([text])
    assert len(tokens) == len(method.segment(text)), "the text must have one token a unit"
    (found,) = method.score(request(method, [text])).units
    kept = np.zeros(0, np.int64)
    for low in range(0, len(tokens), 30):
        segment = type(tokens)(tokens.ids[low : low + 30], tokens.offsets[low : low + 30])
        (surprise,) = method.model.nll([segment], [type(tokens)(kept, kept)])
        here = found[low : low + 30]
        # One part of the segment is kept, its least likely tokens.
        assert (np.argsort(-surprise) == np.argsort(-here)).all()
        assert abs((here > 0).sum() - len(segment) / 2) <= 1
        kept = np.concatenate([kept, segment.ids[here > 0]])


class TestCorrections:
    """Where the text differs from the reference's, and why."""

    def test_a_token_stays_for_its_own_surprise_and_not_for_its_successor_s(
        self, models: Models
    ) -> None:
        text = WORDS
        lm = without_start(models("gpt2"))
        method = LLMLingua(lm, level="token", segment_tokens=10_000)
        (tokens,) = lm.tokenize([text])
        (nll,) = lm.nll([tokens])
        (scores,) = method.score(request(method, [text])).units
        assert len(scores) == len(tokens)
        assert set(np.flatnonzero(scores > 0)) == set(np.argsort(-nll)[: len(tokens) // 2])
        reference = reference_compressor(models("gpt2"))
        theirs = reference.get_ppl(text, granularity="token").numpy()
        np.testing.assert_allclose(nll[1:], theirs, atol=1e-5)

    @pytest.mark.parametrize("count", [10, 20, 30])
    def test_short_prompts_and_the_last_segment_are_compressed(
        self, models: Models, count: int
    ) -> None:
        text = " ".join("".join(DOCUMENTS * 4).split()[:count])
        reference = reference_compressor(models("gpt2"))
        theirs = reference.compress_prompt([text], rate=0.5)["compressed_prompt"]
        ours = get_compressor("llmlingua", model=models("gpt2")).compress(text, budget=0.5)
        assert len(theirs.split()) > 0.9 * count
        assert ours.tokens_after <= ours.limit < 0.52 * ours.tokens_before

    def test_words_stay_whole(self, models: Models) -> None:
        text = "".join(DOCUMENTS)
        result = get_compressor("llmlingua", model=models("gpt2")).compress(text, budget=0.4)
        known = {text[a:b].strip() for a, b in words(text)}
        assert set(result.text.split()) <= known


def test_passages_of_low_perplexity_are_not_read_when_others_fill_the_budget(
    models: Models,
) -> None:
    method = LLMLingua(models("llama"), coarse_factor=2)
    scores = method.score(request(method, DOCUMENTS, rate=0.2))
    read = [bool((values > -1).any()) for values in scores.units]
    order = np.argsort(-scores.passages).tolist()
    assert [read[i] for i in order] == sorted(read, reverse=True)
    assert 1 <= sum(read) < len(DOCUMENTS)
    everything = LLMLingua(models("llama"), coarse_factor=None)
    scores = everything.score(request(everything, DOCUMENTS, rate=0.2))
    assert all((values > -1).all() for values in scores.units)


def test_what_must_be_kept_is_part_of_what_later_words_are_judged_by(models: Models) -> None:
    method = get_compressor("llmlingua", model=models("llama"), segment_tokens=20)
    text = "".join(DOCUMENTS)
    result = method.compress(text, budget=0.3, keep=["Install the extra"])
    assert "Install the extra" in result.text
    assert result.tokens_after <= result.limit


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="segment_tokens"):
        LLMLingua(segment_tokens=0)
    with pytest.raises(InputError, match="coarse_factor"):
        LLMLingua(coarse_factor=0.5)
    with pytest.raises(InputError, match="level"):
        LLMLingua(level="page")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"hub id .* or a folder"):
        LLMLingua("no/such-model").compress("a b c", budget=1)
