"""Inputs, rates, sizes, models and machines that the reference implementations break on.

Each test says in its first line what they do: llmlingua 0.2.2, selective-context 0.1.4.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from laconic.core import Budget, TokenCounter, get_compressor
from laconic.core.compressor import Compressor
from laconic.core.evaluation.rates import shortfall
from laconic.core.models.causal_lm import CausalLM
from laconic.core.models.token_classifier import TokenClassifier
from laconic.core.testing import check_promises
from laconic.core.types import Compression, Passage
from laconic.errors import BudgetError, LaconicError, ModelError

Prose = Callable[..., str]

QUERY = "Who signed the treaty near the river?"
ONE_KIND = [
    ("llmlingua", "llama"),
    ("longllmlingua", "gpt2"),
    ("llmlingua2", "xlm-roberta"),
    ("selective_context", "gpt2"),
]
CAUSAL = ("llmlingua", "longllmlingua", "selective_context")


def kept_places(result: Compression) -> set[tuple[int, int]]:
    """Each character that is kept: its passage and its place there."""
    return {(p.index, i) for p in result.passages for span in p.spans for i in range(*span)}


class TestInput:
    @pytest.mark.parametrize(
        "texts", [[], "", [""], [" "], ["", "abc def"], ["", "abc def", "\n", "ghi jkl.", ""]]
    )
    def test_empty_passages_are_no_error_and_keep_their_places(
        self, method: Compressor, texts: Any
    ) -> None:
        """1: v1 raises RuntimeError on [""], v2 IndexError on [] and ZeroDivisionError on more."""
        passages = [Passage(t) for t in ([texts] if isinstance(texts, str) else texts)]
        for budget in (0, 1, 2, 0.5, 1.0):
            for order in ("source", "score"):
                result = method.compress(texts, query=QUERY, budget=budget, order=order)
                check_promises(passages, result, TokenCounter.of(), order)
        everything = method.compress(texts, query=QUERY, budget=1.0)
        assert [p.text for p in everything.passages] == [p.text for p in passages]
        some = method.compress(texts, query=QUERY, budget=1).text.strip()
        assert bool(some) == any(p.text.strip() for p in passages)

    def test_one_word_is_never_emptied(self, method: Compressor) -> None:
        """2: v2 returns "" for a single word."""
        for rate in (0.01, 0.3, 0.5, 0.99):
            assert method.compress("hello", query=QUERY, budget=rate).text == "hello"
        assert method.compress(["hello", ""], query=QUERY, budget=0.5).text == "hello"

    @pytest.mark.parametrize("rate", [0.2, 0.7])
    def test_equal_scores_keep_the_rate_and_always_the_same(
        self, case: tuple[str, str], silent: Any, prose: Prose, rate: float
    ) -> None:
        """2: a strict ">" at the threshold drops all that ties there, up to everything."""
        name, kind = case
        method = get_compressor(name, model=silent(kind))
        texts = [prose(40, 1), prose(90, 2)]
        result = method.compress(texts, query=QUERY, budget=rate)
        unused, allowed = shortfall(method, result, TokenCounter.of())
        assert unused <= allowed
        again = get_compressor(name, model=silent(kind))
        assert again.compress(texts, query=QUERY, budget=rate).text == result.text


class TestRates:
    @pytest.mark.parametrize("wrong", [0.0, -0.5, 1.5, float("nan"), "+100", "*2", -1, None])
    def test_a_rate_that_is_none_is_refused(self, method: Compressor, wrong: Any) -> None:
        """3: v2 takes rates of 1.5 and -0.5 silently and fails on 0 in numpy."""
        with pytest.raises(BudgetError):
            method.compress("Some text to shorten.", query=QUERY, budget=wrong)

    def test_tiny_budgets_leave_something_and_none_nothing(
        self, method: Compressor, prose: Prose
    ) -> None:
        """3: v2 returns "" at rates of .005 and .01, v1 leaves the tail at a rate of 0."""
        text = prose(60)
        for budget in (0.005, 0.01, 1):
            result = method.compress(text, query=QUERY, budget=budget)
            assert (result.limit, result.tokens_after) == (1, 1)
        assert method.compress(text, query=QUERY, budget=10).tokens_after in (9, 10)
        assert method.compress(text, query=QUERY, budget=0).text == ""

    def test_what_fits_comes_back_byte_for_byte(self, method: Compressor) -> None:
        """3: at a rate of 1 v1 loses a token or two and v2 all formatting."""
        text = "  def f(x):\n\treturn  x  # 1,2 ...\r\n\n\n\n* don't\u00a0 \u3000!\n"
        for budget in (1.0, Budget.rate(1), 10_000, Budget.tokens(1000, per_passage=True)):
            assert method.compress([text, text], query=QUERY, budget=budget).text == (
                f"{text}\n\n{text}"
            )

    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    @pytest.mark.parametrize("rate", [0.9, 0.5, 0.2])
    def test_the_rate_is_met_at_any_length(
        self, make: Any, prose: Prose, name: str, kind: str, rate: float
    ) -> None:
        """4: v1 returns prompts below 200 tokens whole, and never compresses the last block."""
        method, counter = make(name, kind), TokenCounter.of()
        lengths = [*range(1, 41), *range(50, 200, 25), *range(200, 401, 40)]
        texts = [prose(n, seed=n) for n in lengths]
        results = method.compress_many([(text, QUERY) for text in texts], budget=rate)
        for n, result in zip(lengths, results, strict=True):
            unused, allowed = shortfall(method, result, counter)
            assert unused <= allowed, n

    @pytest.mark.parametrize(
        ("name", "level"),
        [
            *itertools.product(("llmlingua", "longllmlingua"), ("token", "sentence", "document")),
            *itertools.product(("selective_context",), ("token", "sentence")),
        ],
    )
    def test_the_rate_is_met_at_any_level(
        self, make: Any, prose: Prose, name: str, level: str
    ) -> None:
        """4: selective-context keeps a share of its units, whatever their lengths."""
        method, counter = make(name, "gpt2", level=level), TokenCounter.of()
        requests = [([prose(n, i) for i in range(6)], QUERY) for n in (3, 10, 40)]
        for result in method.compress_many(requests, budget=0.5):
            unused, allowed = shortfall(method, result, counter)
            assert unused <= allowed

    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    def test_the_rate_is_met_at_1k_and_8k(
        self, make: Any, prose: Prose, name: str, kind: str
    ) -> None:
        """4: v1 undershoots by 2 to 4 points on long text."""
        method = make(name, kind)
        for words in (900, 7000):
            result = method.compress(prose(words), query=QUERY, budget=0.3)
            assert 0.98 * result.limit <= result.tokens_after <= result.limit

    @pytest.mark.parametrize("name", ["llmlingua", "longllmlingua"])
    def test_the_end_is_compressed_like_the_rest(self, make: Any, prose: Prose, name: str) -> None:
        """4: what is behind v1's last full block of 200 tokens stays whole."""
        text = prose(260)
        kept = {
            i for _, i in kept_places(make(name, "llama").compress(text, query="x", budget=0.5))
        }
        tail = range(len(text) - 250, len(text))
        assert 0.2 < len(kept.intersection(tail)) / len(tail) < 0.8


class TestBudget:
    @pytest.mark.parametrize("named", ["tokenizer", "approximate", "cl100k_base", "words"])
    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    def test_many_documents_never_exceed_it_and_use_it(
        self, make: Any, models: Any, prose: Prose, name: str, kind: str, named: str
    ) -> None:
        """5: v1 returns 122 tokens for 50 asked, and v2 .32 of a list for .5."""
        counters = {
            "tokenizer": lambda: AutoTokenizer.from_pretrained(models(kind)),
            "words": lambda: lambda text: len(text.split()),
        }
        try:
            counter = TokenCounter.of(counters.get(named, lambda: named)())
        except LaconicError:
            pytest.skip(f"{named} is not on this machine")
        method = make(name, kind)
        passages = [Passage(prose(n, n)) for n in (90, 20, 130, 60, 1, 100)]
        for budget in (50, 0.2, 0.5):
            result = method.compress(passages, query=QUERY, budget=budget, counter=counter)
            check_promises(passages, result, counter)
            unused, allowed = shortfall(method, result, counter)
            assert unused <= allowed


class TestLength:
    def test_text_beyond_the_window_is_read_to_its_end(
        self, method: Compressor, prose: Prose
    ) -> None:
        """6: v1 truncates a passage to the window when it ranks it, v2 chunks that are too long."""
        texts = [prose(800, 1), prose(30, 2)]
        result = method.compress(texts, query=QUERY, budget=0.5)
        kept = kept_places(result)
        for start in range(0, len(texts[0]) - 1000, 1000):
            share = sum((0, i) in kept for i in range(start, start + 1000)) / 1000
            assert 0.05 < share < 0.95

    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    def test_nobody_is_warned_of_a_long_text(
        self, models: Any, prose: Prose, name: str, kind: str
    ) -> None:
        """6: the tokenizer says that a text of more than 512 tokens will fail, for each model."""
        said = logged(lambda: long_text(prose, name, models(kind)))
        assert said == []

    def test_nobody_is_warned_by_the_counter(self, models: Any, prose: Prose) -> None:
        """6: the same warning, from a Hugging Face tokenizer that counts."""
        counter = AutoTokenizer.from_pretrained(models("bert"))
        said = logged(lambda: long_text(prose, "llmlingua2", models("bert"), counter=counter))
        assert said == []

    def test_a_question_longer_than_the_window(self, method: Compressor, prose: Prose) -> None:
        """6: v1 cuts the question in the middle without a word."""
        texts, question = [prose(50, 1), prose(80, 2)], "why " * 2000
        if method.needs_query:
            with pytest.raises(ModelError, match=r"question takes .* shorten it"):
                method.compress(texts, query=question, budget=0.5)
        else:
            result = method.compress(texts, query=question, budget=0.5)
            assert result.text == method.compress(texts, budget=0.5).text

    def test_a_question_up_to_half_the_window_is_read(self, make: Any, prose: Prose) -> None:
        """6: with a long question v1 has less room than one of its segments."""
        method = make("longllmlingua", "llama")
        question = prose(70)
        assert 180 < len(method.model.tokenize([question])[0]) < 240
        result = method.compress([prose(700, 1), prose(80, 2)], query=question, budget=0.5)
        assert 0.98 * result.limit <= result.tokens_after


def long_text(prose: Prose, name: str, folder: Path, **options: Any) -> None:
    """Compress one with a model and a tokenizer that have warned of nothing yet."""
    method = get_compressor(name, model=folder)
    method.compress(prose(2000), query=QUERY, budget=0.5, **options)


def logged(action: Callable[[], None]) -> list[str]:
    """What transformers says on its loggers meanwhile."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, logger = Listener(), logging.getLogger("transformers")
    logger.addHandler(listener)
    try:
        action()
    finally:
        logger.removeHandler(listener)
    return said


class TestModels:
    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [("gpt2", "bfloat16"), ("llama", "float16"), ("qwen", "bfloat16"), ("qwen", "float32")],
    )
    @pytest.mark.parametrize("name", CAUSAL)
    def test_any_causal_model_in_any_precision(
        self, judge: Any, make: Any, prose: Prose, name: str, kind: str, dtype: str
    ) -> None:
        """7: v1 fails on Qwen, on the caches of transformers 4.45 on, and on bfloat16."""
        texts = [prose(60, 1), prose(40, 2), prose(230, 3)]
        method = get_compressor(name, model=judge(kind, dtype=dtype))
        assert len(method.model.tokenize(texts)[2]) > method.model.window
        result = method.compress(texts, query=QUERY, budget=0.6)
        assert str(next(method.model.load().parameters()).dtype) == f"torch.{dtype}"
        assert 0.98 * result.limit <= result.tokens_after <= result.limit
        full = make(name, kind).compress(texts, query=QUERY, budget=0.6)
        ranks = [{p.index: p.score for p in r.passages} for r in (result, full)]
        assert ranks[0] == pytest.approx(ranks[1], abs=0.05)

    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    def test_a_model_that_overflows_is_no_judge(
        self, models: Any, prose: Prose, name: str, kind: str
    ) -> None:
        """7: float16 overflows in some models; what is kept is then left to chance."""
        model, tokenizer = loaded(kind, models)
        head = getattr(model, "classifier", None) or model.get_output_embeddings()
        with torch.no_grad():
            head.weight.fill_(float("inf"))
        method = get_compressor(name, model=judging(kind)(model, tokenizer=tokenizer))
        with pytest.raises(ModelError, match="finite"):
            method.compress([prose(40), prose(30)], query=QUERY, budget=0.5, order="score")

    @pytest.mark.parametrize(
        "options", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"int8": True}], ids=str
    )
    @pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
    def test_any_classifier_in_any_precision(
        self, judge: Any, make: Any, prose: Prose, kind: str, options: dict[str, Any]
    ) -> None:
        """7, 9: v2 calls numpy() on bfloat16, and raises NotImplementedError for other models."""
        texts = [prose(350, 1), prose(900, 3)]
        method = get_compressor("llmlingua2", model=judge(kind, **options))
        result = method.compress(texts, budget=0.6)
        a, b = (
            kept_places(result),
            kept_places(make("llmlingua2", kind).compress(texts, budget=0.6)),
        )
        assert len(a & b) > 0.7 * len(a | b)

    def test_a_loaded_model_on_the_device_it_is_on(
        self, case: tuple[str, str], method: Compressor, models: Any, prose: Prose
    ) -> None:
        """8: PromptCompressor loads by name only, to "cuda", which not every machine has."""
        model, tokenizer = loaded(case[1], models, device_map={"": "cpu"})
        own = get_compressor(case[0], model=judging(case[1])(model, tokenizer=tokenizer))
        text = prose(100)
        expected = method.compress(text, query=QUERY, budget=0.5).text
        assert own.compress(text, query=QUERY, budget=0.5).text == expected
        best = "cuda" if torch.cuda.is_available() else "cpu"
        assert judging(case[1])(models(case[1])).load().device.type == best

    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    def test_a_model_whose_weights_are_offloaded(
        self, make: Any, models: Any, prose: Prose, tmp_path: Path, name: str, kind: str
    ) -> None:
        """8: sends tokens to the device it was told, wherever accelerate put the weights."""
        accelerate = pytest.importorskip("accelerate")
        model, tokenizer = loaded(kind, models)
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
        own = get_compressor(name, model=judging(kind)(model, tokenizer=tokenizer))
        text = prose(100)
        expected = make(name, kind).compress(text, query=QUERY, budget=0.5).text
        assert own.compress(text, query=QUERY, budget=0.5).text == expected

    @pytest.mark.parametrize("kind", ["gpt2", "bert"])
    def test_a_device_that_there_is_not(self, models: Any, kind: str) -> None:
        """8: AssertionError "Torch not compiled with CUDA enabled"."""
        with pytest.raises(ModelError, match="run on no-such-device"):
            judging(kind)(models(kind), device="no-such-device").load()

    @pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
    def test_a_classifier_under_any_name(
        self, make: Any, models: Any, prose: Prose, tmp_path: Path, kind: str
    ) -> None:
        """9: tells by the name of the folder how tokens make words, else NotImplementedError."""
        shutil.copytree(models(kind), tmp_path / "ours-v3")
        text = f"{prose(60)} 我喜欢猫。 {prose(60, 1)}"
        renamed = get_compressor("llmlingua2", model=tmp_path / "ours-v3")
        expected = make("llmlingua2", kind).compress(text, budget=0.4).text
        assert renamed.compress(text, budget=0.4).text == expected

    @pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
    def test_a_classifier_reads_between_its_own_special_tokens(
        self, models: Any, prose: Prose, kind: str
    ) -> None:
        """9: XLM-RoBERTa is given "[CLS]" and "[SEP]", which it reads as unknown."""
        classifier = TokenClassifier(models(kind))
        seen: list[Any] = []
        classifier.load().register_forward_pre_hook(
            lambda *call: seen.append(call[2]), with_kwargs=True
        )
        classifier.tag([prose(40), prose(700), "x1" * 1500])
        tokenizer = AutoTokenizer.from_pretrained(models(kind))
        assert seen
        for given in seen:
            for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
                row = ids[mask.bool()].tolist()
                assert [row[0], row[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
                assert tokenizer.cls_token_id not in row[1:]
                assert len(row) <= 512


def loaded(kind: str, models: Any, **options: Any) -> tuple[Any, Any]:
    is_causal = judging(kind) is CausalLM
    auto = AutoModelForCausalLM if is_causal else AutoModelForTokenClassification
    model = auto.from_pretrained(models(kind), **options).eval()
    return model, AutoTokenizer.from_pretrained(models(kind))


def judging(kind: str) -> type[Any]:
    return CausalLM if kind in ("gpt2", "llama", "qwen") else TokenClassifier


class TestOffline:
    def test_nothing_is_fetched_by_a_machine_that_has_only_the_model(
        self, models: Any, tmp_path: Path
    ) -> None:
        """10: fetches cl100k_base when it is made, and NLTK's data when it cuts sentences."""
        program = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.modules["llama_index"] = None  # which brings a copy of cl100k_base
from laconic.core import METHODS, get_compressor
for name in METHODS: get_compressor(name)
assert "torch" not in sys.modules
for case in sys.argv[1:]:
    name, folder = case.split("=")
    result = get_compressor(name, model=folder).compress(
        "Rivers run to the sea. The sea is deep. Who knows why?", query="Why?", budget=0.5)
    assert 0 < result.tokens_after <= result.limit, result
    print(result.counter)
assert not {"nltk", "spacy", "llmlingua"} & set(sys.modules)
"""
        cases = [f"{name}={models(kind)}" for name, kind in ONE_KIND]
        done = subprocess.run(
            [sys.executable, "-c", program, *cases],
            capture_output=True,
            text=True,
            check=False,
            env={"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["approximate"] * len(cases)

    @pytest.mark.parametrize(
        "name", ["llmlingua", "longllmlingua", "llmlingua2", "selective_context"]
    )
    def test_a_model_out_of_reach_is_named(self, name: str) -> None:
        """10: makes the user wait for the hub's retries when it is constructed."""
        method = get_compressor(name)
        with pytest.raises(ModelError, match=r"cannot load .*hub id .* or a folder"):
            method.compress("Some text to shorten.", query=QUERY, budget=0.5)

    def test_what_looks_like_a_special_token_is_text(self, method: Compressor) -> None:
        """10: tiktoken raises on "<|endoftext|>", v1 deletes "<s>", v2 "[NEW0]" and "<unk>"."""
        special = "<|endoftext|> <s> </s> [CLS] [SEP] [NEW0] [UNK] <unk> <mask> [PAD] <|im_end|>"
        text = f"It began: {special} and then a river ran near the old harbour, as it always had."
        for budget in (0.8, 0.9):
            kept = method.compress(text, query=QUERY, budget=budget, keep=special.split()).text
            assert [word for word in kept.split() if word in special.split()] == special.split()
        for rate in (0.3, 0.6):
            left = method.compress(text, query=QUERY, budget=rate).text
            words = regex.compile(r"\w+").findall
            assert set(words(left)) <= set(words(text))
