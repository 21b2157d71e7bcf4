from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from laconic.core import Pipeline, get_compressor
from laconic.core.evaluation.reference import reference_compressor
from laconic.core.method import Request
from laconic.core.methods.longllmlingua import LongLLMLingua
from laconic.errors import InputError, ModelError, QueryRequiredError

Models = Callable[[str], Path]

DOCUMENTS = [
    " The treaty was signed in 1848 by 12 states, and it does not apply to fishing.",
    " Make LLM applications pay for fewer tokens: it stands between a retriever and a model.",
    " Tests run offline and mirror the tree. Every method keeps every promise of the suite.",
    " Install the extra that you need, or all of them, with pip and a fresh environment.",
]
QUERY = " What stands between a retriever and a model?"


def request(method: LongLLMLingua, times: int = 1, rate: float = 0.5) -> Request:
    texts = tuple(text * times for text in DOCUMENTS)
    spans = tuple(tuple(method.segment(text)) for text in texts)
    return Request(texts, spans, ("",) * len(DOCUMENTS), QUERY, rate=rate)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_documents_stand_in_the_order_of_llmlingua(models: Models, kind: str) -> None:
    reference = reference_compressor(models(kind))
    if kind == "gpt2":  # the one difference: we let GPT-2 start with its token for that
        start = reference.tokenizer.bos_token
        theirs = [f"{start}{document}" for document in DOCUMENTS]
    else:
        theirs = DOCUMENTS
    ranked = reference.get_rank_results(theirs, QUERY, "longllmlingua", "after", [0] * 4)
    method = LongLLMLingua(models(kind))
    (scores,) = method.rank([request(method)], [method.model.tokenize(DOCUMENTS)])
    assert np.argsort(-scores).tolist() == [i for i, _ in ranked]
    np.testing.assert_allclose(sorted(-scores), [value for _, value in ranked], atol=1e-5)


def test_contrastive_nll_is_that_of_llmlingua(models: Models) -> None:
    method = LongLLMLingua(models("llama"))
    reference = reference_compressor(models("llama"))
    text = DOCUMENTS[0]
    (tokens,) = method.model.tokenize([text])
    plain, conditional = (s.judge(tokens.ids) for s in method.judges(request(method)))
    prefix = f"{QUERY}\n\n"
    self_loss = reference.get_ppl(text, granularity="token").numpy()
    loss = reference.get_ppl(f"{prefix}{text}", granularity="token").numpy()
    theirs = self_loss - loss[-len(tokens) :]
    np.testing.assert_allclose(plain - conditional, theirs, atol=1e-5)


def test_better_passages_keep_a_larger_part(models: Models) -> None:
    method = LongLLMLingua(models("llama"), dynamic_ratio=0.3, coarse_factor=None)
    scores = method.score(request(method, 5))
    kept = [float((values > 0).mean()) for values in scores.units]
    parts = [kept[i] for i in np.argsort(-scores.passages)]
    np.testing.assert_allclose(parts, [0.8, 0.6, 0.4, 0.2], atol=0.12)
    flat = LongLLMLingua(models("llama"), dynamic_ratio=0, coarse_factor=None)
    kept = [float((values > 0).mean()) for values in flat.score(request(flat, 5)).units]
    np.testing.assert_allclose(kept, 0.5, atol=0.12)


def test_the_best_passages_come_first_when_asked(models: Models) -> None:
    method = get_compressor("longllmlingua", model=models("llama"))
    result = method.compress(DOCUMENTS, query=QUERY, budget=0.6, order="score")
    scores = [p.score for p in result.passages]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]


def test_it_chooses_documents_for_another_method(models: Models) -> None:
    coarse = LongLLMLingua(models("llama"), level="document")
    fine = get_compressor("llmlingua2", model=models("xlm-roberta"))
    result = Pipeline(coarse, fine).compress(DOCUMENTS, query=QUERY, budget=0.2)
    (scores,) = coarse.rank([request(coarse)], [coarse.model.tokenize(DOCUMENTS)])
    assert result.tokens_after <= result.limit
    best = set(np.argsort(-scores)[: len(result.passages)].tolist())
    assert {p.index for p in result.passages} == best


def test_a_passage_longer_than_the_window_counts_as_its_best_part(models: Models) -> None:
    method = LongLLMLingua(models("gpt2"))
    long = "".join(DOCUMENTS[:1] * 60) + DOCUMENTS[1]
    passages = method.model.tokenize([long, DOCUMENTS[1]])
    assert len(passages[0]) > method.model.window
    asked = Request((long, DOCUMENTS[1]), ((), ()), ("", ""), QUERY)
    (scores,) = method.rank([asked], [passages])
    assert np.isfinite(scores).all()


def test_a_query_is_needed_and_must_leave_room(models: Models) -> None:
    method = LongLLMLingua(models("gpt2"))
    with pytest.raises(QueryRequiredError):
        method.compress(DOCUMENTS, budget=0.5)
    with pytest.raises(ModelError, match="shorten it"):
        method.compress(DOCUMENTS, query="why " * 500, budget=0.5)
    with pytest.raises(InputError, match="dynamic_ratio"):
        LongLLMLingua(dynamic_ratio=2)
