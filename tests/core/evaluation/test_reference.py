"""llmlingua and Selective Context run here as published, and leave no traces."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core.evaluation.random_models import build_model
from laconic.core.evaluation.reference import (
    SelectiveContextReference,
    reference_compressor,
    reference_word_probabilities,
)
from laconic.errors import InputError, MissingExtraError, ModelError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.xdist_group("reference")

NAMES = "Ada Ben Cleo Dan Eve Finn Gus Hana Ivo Jun".split()
PLACES = "Paris Oslo Lima Cairo Perth Quito Turin Delhi Osaka Accra".split()
TEXTS = [
    Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8"),
    *(f"{NAMES[n % 10]} sells {n} boats in {PLACES[n % 10]}." for n in range(2, 999, 7)),
    "Where does Eve sell her boats? Yes.",
    "東京は日本の首都です。人口は約1400万人。\n他住在北京市。",
    "Ünïcode: naïve café, 3.50 € on 2024-01-02, 12,345.67 tons 😀👍🏽.",
] * 2
QUESTION = "Where does Eve sell her boats?"


def story(tokens: int, seed: int, tokenizer: Any) -> str:
    """Sentences without meaning, of about so many tokens."""
    rng = random.Random(seed)
    sentences: list[str] = []
    while not sentences or len(tokenizer(" ".join(sentences)).input_ids) < tokens:
        sentences += [
            f"{rng.choice(NAMES)} sells {rng.randint(2, 999)} boats in {rng.choice(PLACES)}."
            for _ in range(10)
        ]
    return " ".join(sentences)


@contextmanager
def process_unchanged() -> Iterator[None]:
    def state() -> tuple[Any, ...]:
        return (
            dict(os.environ),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        )

    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="module", autouse=True)
def _setting() -> Iterator[None]:
    # Here, for what its dependencies do to the environment when they are first imported.
    pytest.importorskip("llmlingua")
    # Models so small wait for their threads far longer than they compute.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    size = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 1200}
    return {
        kind: build_model(
            kind,  # type: ignore[arg-type]
            root / kind,
            TEXTS,
            **size,
            positions=8192 if kind in ("gpt2", "llama") else 512,
        )
        for kind in ("gpt2", "llama", "bert", "xlm-roberta", "modernbert")
    }


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def causal(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    with process_unchanged():
        return reference_compressor(folders[request.param])


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def classifier(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    with process_unchanged():
        return reference_compressor(folders[request.param], llmlingua2=True)


@pytest.fixture(scope="module")
def documents(causal: Any) -> list[str]:
    return [story(400, seed, causal.tokenizer) for seed in range(3)]


def token_nll(compressor: Any, text: str) -> Any:
    ids = compressor.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = compressor.model(ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def test_token_nll(causal: Any, documents: list[str]) -> None:
    expected = token_nll(causal, documents[0])
    torch.testing.assert_close(causal.get_ppl(documents[0], granularity="token"), expected)
    torch.testing.assert_close(causal.get_ppl(documents[0]), expected.mean())


def test_token_nll_with_a_cache_that_is_a_list(causal: Any, documents: list[str]) -> None:
    tokens = causal.tokenizer(documents[0], return_tensors="pt")
    pair = tokens.input_ids, tokens.attention_mask
    _, cache = causal.get_ppl("", "token", *pair, return_kv=True, end=300)
    cut = [[keys[:, :, :100], values[:, :, :100]] for keys, values in cache]
    rest = causal.get_ppl("", "token", *pair, past_key_values=cut)
    torch.testing.assert_close(rest, token_nll(causal, documents[0])[100:], atol=1e-4, rtol=1e-4)


def test_conditional_nll(causal: Any, documents: list[str]) -> None:
    first = len(causal.tokenizer(documents[0]).input_ids)
    after = causal.get_condition_ppl(documents[0], QUESTION, "after")
    expected = token_nll(causal, documents[0] + QUESTION)[first - 1 :].mean()
    torch.testing.assert_close(after, expected)


def test_documents_are_ranked(causal: Any, documents: list[str]) -> None:
    lengths = [causal.get_token_length(document) for document in documents]
    ranked = causal.get_rank_results(documents, QUESTION, "longllmlingua", "after", lengths)
    scores = [score for _, score in ranked]
    assert scores == sorted(scores)
    assert sorted(index for index, _ in ranked) == [0, 1, 2]
    kept, ratios, used = causal.control_context_budget(
        documents,
        lengths,
        2000,
        question=QUESTION,
        condition_in_question="after",
        reorder_context="sort",
        dynamic_context_compression_ratio=0.3,
        rank_method="longllmlingua",
    )
    assert used == [index for index, _ in ranked]
    assert kept == [documents[index] for index in used]
    np.testing.assert_allclose(ratios, [0.3, 0, -0.3], atol=1e-9)


def test_llmlingua(causal: Any, documents: list[str]) -> None:
    with process_unchanged():
        result = causal.compress_prompt(documents, rate=0.5, use_sentence_level_filter=True)
        again = causal.compress_prompt(documents, rate=0.5, use_sentence_level_filter=True)
    assert result == again
    assert 0.3 < result["compressed_tokens"] / result["origin_tokens"] < 0.7


def test_longllmlingua(causal: Any, documents: list[str]) -> None:
    with process_unchanged():
        result = causal.compress_prompt(
            documents,
            question=QUESTION,
            rate=0.5,
            condition_compare=True,
            condition_in_question="after_condition",
            rank_method="longllmlingua",
            reorder_context="sort",
            dynamic_context_compression_ratio=0.3,
        )
    assert result["compressed_prompt"].endswith(QUESTION)
    assert 0.3 < result["compressed_tokens"] / result["origin_tokens"] < 0.7


def test_llmlingua_on_many_segments(causal: Any) -> None:
    text = story(4100, 9, causal.tokenizer)
    result = causal.compress_prompt([text], rate=0.2)
    assert 0.1 < result["compressed_tokens"] / result["origin_tokens"] < 0.4


def test_llmlingua2(classifier: Any) -> None:
    texts = [story(700, seed, classifier.tokenizer) for seed in range(2)]
    with process_unchanged():
        result = classifier.compress_prompt(texts, rate=0.4, use_context_level_filter=False)
    assert len(result["compressed_prompt_list"]) == 2
    assert 0.3 < result["compressed_tokens"] / result["origin_tokens"] < 0.5


def test_word_probabilities(classifier: Any) -> None:
    text = story(700, 0, classifier.tokenizer)
    with process_unchanged():
        first, *others = reference_word_probabilities(classifier, text)
    assert len(others) == 1
    glued = "".join(word for chunk in (first, *others) for word, _ in chunk).replace("▁", "")
    assert glued == text.replace(" ", "")


def test_word_probabilities_are_the_model_s(classifier: Any) -> None:
    text = "Ada sells 7 boats in Oslo."
    # So llmlingua has it for both; XLM-RoBERTa, without such tokens, reads them as unknown.
    tokens = ["[CLS]", *classifier.tokenizer.tokenize(text), "[SEP]"]
    ids = torch.tensor([classifier.tokenizer.convert_tokens_to_ids(tokens)])
    with torch.no_grad():
        expected = classifier.model(ids).logits[0].softmax(-1)[1:-1, 1].tolist()
    [chunk] = reference_word_probabilities(classifier, text, token_to_word="first")
    remaining = iter(expected)
    for _, probability in chunk:
        assert any(probability == pytest.approx(other, abs=1e-6) for other in remaining)


def test_forced_words_are_certain(classifier: Any) -> None:
    [chunk] = reference_word_probabilities(
        classifier, "In 7 boats? Yes.", force_tokens=["?"], force_reserve_digit=True
    )
    certain = {word.strip("▁") for word, probability in chunk if probability == 1}
    assert certain >= {"7", "?"}
    assert "_PromptCompressor__merge_token_to_word" not in vars(classifier)


def test_wrong_models_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        reference_compressor(tmp_path / "none")
    with pytest.raises(ModelError, match="causal"):
        reference_compressor(folders["bert"])
    for kind in ("gpt2", "modernbert"):
        with pytest.raises(ModelError, match=kind):
            reference_compressor(folders[kind], llmlingua2=True)
    with pytest.raises(ModelError, match="no folder"):
        SelectiveContextReference(tmp_path / "none")


def test_without_llmlingua(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(MissingExtraError, match=r"laconic\[bench\]"):
        reference_compressor(folders["gpt2"])


@pytest.fixture(scope="module")
def selective(folders: dict[str, Path]) -> SelectiveContextReference:
    return SelectiveContextReference(folders["gpt2"])


def test_self_information(selective: SelectiveContextReference, folders: dict[str, Path]) -> None:
    text = "Ada  sells 7 boats.\nIs it so? Mr. Ben, e.g. in Oslo, has 3.5 of them! He has. "
    sentences = selective.sentences(text)
    assert sentences == [
        "Ada sells 7 boats.",
        "Is it so?",
        "Mr. Ben, e.g. in Oslo, has 3.5 of them! He has.",
    ]
    oracle = reference_compressor(folders["gpt2"])
    for sentence, pairs in zip(sentences, selective.self_information(text), strict=True):
        assert "".join(token for token, _ in pairs) == sentence
        nll = oracle.get_ppl(f"<|endoftext|>{sentence}", granularity="token")
        np.testing.assert_allclose([value for _, value in pairs], nll, rtol=1e-4, atol=1e-4)


def test_selective_context(selective: SelectiveContextReference) -> None:
    text = story(300, 4, selective.tokenizer)
    pairs = [pair for sentence in selective.self_information(text) for pair in sentence]
    by_token = selective.compress(text)
    median = np.percentile([value for _, value in pairs], 35)
    assert by_token == "".join(token for token, value in pairs if value >= median)
    kept = selective.compress(text, reduce_ratio=0.5, level="sentence").split(".")
    assert 0.4 < (len(kept) - 1) / text.count(".") < 0.6
    assert selective.compress(" \n ") == ""
    with pytest.raises(InputError, match="phrase"):
        selective.compress(text, level="phrase")  # type: ignore[arg-type]


def test_a_beginning_is_needed(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = build_model("qwen", tmp_path, TEXTS, width=32, heads=2)
    with pytest.raises(ModelError, match="beginning"):
        SelectiveContextReference(folder)
