"""What a call does to the process, and how threads, batches and memory fare.

Each test says in its first line what the reference implementations do wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from laconic.core import METHODS, get_compressor
from laconic.core.compressor import Compressor
from laconic.core.models.causal_lm import CausalLM
from laconic.core.models.token_classifier import TokenClassifier
from laconic.core.types import Compression
from laconic.errors import BudgetError

Prose = Callable[..., str]

QUERY = "Who signed the treaty near the river?"
CAUSAL = ("llmlingua", "longllmlingua", "selective_context")
ONE_KIND = [
    ("llmlingua", "llama"),
    ("longllmlingua", "gpt2"),
    ("llmlingua2", "xlm-roberta"),
    ("selective_context", "gpt2"),
]


def parts(result: Compression) -> list[Any]:
    return [(p.index, p.spans) for p in result.passages]


class TestSideEffects:
    @pytest.mark.parametrize(("name", "kind"), ONE_KIND)
    def test_nothing_around_the_call_is_changed(
        self, models: Any, prose: Prose, name: str, kind: str
    ) -> None:
        """21: v2 seeds all generators, and sets PYTHONHASHSEED and cuDNN's flags."""
        AutoTokenizer.from_pretrained(models(kind))  # transformers may set what it needs

        def state() -> list[Any]:
            return [
                random.getstate(),
                str(np.random.get_state()),
                torch.get_rng_state().tolist(),
                dict(os.environ),
                torch.backends.cudnn.deterministic,
                torch.backends.cudnn.benchmark,
                torch.are_deterministic_algorithms_enabled(),
                torch.get_num_threads(),
                torch.is_grad_enabled(),
                torch.get_default_dtype(),
                np.geterr(),
            ]

        before = state()
        method = get_compressor(name, model=models(kind))
        method.compress([prose(50), prose(300, 1)], query=QUERY, budget=0.5)
        assert state() == before

    @pytest.mark.parametrize("name", METHODS)
    def test_defaults_cannot_be_changed_and_trust_no_one(self, name: str) -> None:
        """21: trust_remote_code=True is the default, and leaks from one instance to the next."""
        kinds = [type(get_compressor(name)), CausalLM, TokenClassifier]
        functions = [f for kind in kinds for _, f in inspect.getmembers(kind, inspect.isfunction)]
        parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
        assert not [p for p in parameters if isinstance(p.default, (list, dict, set))]
        trust = [p.default for p in parameters if p.name == "trust_remote_code"]
        assert trust == [False] * len(trust)
        assert len(trust) >= 2

    def test_settings_are_each_instance_s_own(self, models: Any) -> None:
        """21: the default dict of model settings is shared, and written to."""
        trusting = CausalLM(models("gpt2"), trust_remote_code=True, batch_tokens=64)
        trusting.load()
        other = CausalLM(models("gpt2"))
        assert other._settings["trust_remote_code"] is False
        assert other._settings["batch_tokens"] != 64

    def test_nothing_grows_from_call_to_call(self, case: Any, models: Any, prose: Prose) -> None:
        """21: context_idxs gets longer with every call."""
        name, kind = case
        judge = (
            CausalLM(models(kind))
            if name in CAUSAL
            else TokenClassifier(models(kind), cache_size=3)
        )
        method = get_compressor(name, model=judge)

        def size() -> int:
            held = {k: v for k, v in vars(method).items() if k != "model"}
            remembered = getattr(judge, "_remembered", ())
            return len(pickle.dumps(held)) + len(vars(judge)) + len(remembered)

        sizes = []
        for i in range(8):
            method.compress([prose(30, i), prose(9, i + 50)], query=f"{QUERY} {i}", budget=0.5)
            sizes.append(size())
        assert sizes[2:] == sizes[2:3] * 6

    @pytest.mark.parametrize("budget", ["+100", "*2", "__import__('os').getcwd()", "0.5"])
    def test_no_text_is_evaluated(self, method: Compressor, budget: Any) -> None:
        """21: context_budget is passed to eval()."""
        with pytest.raises(BudgetError):
            method.compress("Some text to shorten.", query=QUERY, budget=budget)


class TestConcurrency:
    def test_threads_and_tasks_say_what_one_says(
        self, case: Any, method: Compressor, models: Any, prose: Prose
    ) -> None:
        """22: context_idxs and the ranking model are set on the shared object."""
        name, kind = case
        requests = [
            ([prose(40 + i, i), prose(60, i + 20)], f"{prose(4, i)}?", 0.2 + i / 10)
            for i in range(4)
        ]
        serial = [parts(method.compress(p, query=q, budget=b)) for p, q, b in requests]
        # Not loaded yet, and the tokenizer counts for all threads at the same time.
        shared = get_compressor(name, model=models(kind))
        counter = AutoTokenizer.from_pretrained(models(kind))
        counted = [
            parts(method.compress(p, query=q, budget=b, counter=counter)) for p, q, b in requests
        ]

        def compress(request: Any) -> list[Any]:
            p, q, b = request
            return [
                parts(shared.compress(p, query=q, budget=b)),
                parts(shared.compress(p, query=q, budget=b, counter=counter)),
            ]

        with ThreadPoolExecutor(6) as pool:
            threaded = list(pool.map(compress, requests))
        assert threaded == [list(pair) for pair in zip(serial, counted, strict=True)]

        async def gather() -> list[Any]:
            calls = (shared.acompress(p, query=q, budget=b) for p, q, b in requests)
            return [parts(result) for result in await asyncio.gather(*calls)]

        assert asyncio.run(gather()) == serial

    def test_methods_may_share_a_model(self, make: Any, models: Any, prose: Prose) -> None:
        """22, 23: each method loads a model of its own."""
        lm = CausalLM(models("llama"))
        loads: list[Any] = []
        texts = [prose(80, 1), prose(150, 2)]

        def compress(name: str) -> list[Any]:
            loads.append(id(lm.load()))
            method = get_compressor(name, model=lm)
            return parts(method.compress(texts, query=QUERY, budget=0.4))

        names = CAUSAL * 3
        with ThreadPoolExecutor(6) as pool:
            threaded = list(pool.map(compress, names))
        alone = {n: make(n, "llama").compress(texts, query=QUERY, budget=0.4) for n in CAUSAL}
        assert threaded == [parts(alone[name]) for name in names]
        assert len(set(loads)) == 1

    def test_a_task_leaves_the_event_loop_alone(self, method: Compressor, prose: Prose) -> None:
        """22: there is no async method, so that a server waits for each compression."""
        counting: set[str] = set()

        def counter(text: str) -> int:
            counting.add(threading.current_thread().name)
            return len(text.split())

        asyncio.run(method.acompress(prose(60), query=QUERY, budget=0.5, counter=counter))
        assert counting
        assert threading.current_thread().name not in counting


class TestBatches:
    def forwards(self, judge: Any) -> list[tuple[int, int]]:
        """Rows and tokens of each forward pass from now on."""
        seen: list[tuple[int, int]] = []
        judge.load().register_forward_pre_hook(
            lambda *call: seen.append(tuple(call[2]["input_ids"].shape)), with_kwargs=True
        )
        return seen

    def test_many_requests_give_what_each_gives(self, case: Any, judge: Any, prose: Prose) -> None:
        """23: one document at a time, one forward pass each."""
        name, kind = case
        texts = [prose(n, n) for n in (5, 60, 33, 120, 1, 40, 90, 12)]
        requests = [
            (texts[:3], "Who?"),
            (texts, QUERY),
            ([], "x"),
            (texts[2:5], prose(30)),
            (texts[::-1], "What history?"),
            ("", "y"),
        ]
        # What is remembered would be the same anyway.
        options = {} if name in CAUSAL else {"cache_size": 0}
        method = get_compressor(name, model=judge(kind, **options))
        together = method.compress_many(requests, budget=0.4, order="score")
        for result, (passages, query) in zip(together, requests, strict=True):
            alone = method.compress(passages, query=query, budget=0.4, order="score")
            assert parts(result) == parts(alone)
            for a, b in zip(result.passages, alone.passages, strict=True):
                assert a.score == pytest.approx(b.score, abs=1e-4)

    @pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
    def test_documents_are_classified_once_for_all_queries(
        self, models: Any, prose: Prose, kind: str
    ) -> None:
        """23: v2 reads each document once a query, and twice with its context filter."""
        classifier = TokenClassifier(models(kind), batch_tokens=4096)
        method = get_compressor("llmlingua2", model=classifier)
        seen = self.forwards(classifier)
        texts = [prose(40, i) for i in range(20)]
        method.compress(texts, query="Who?", budget=0.5)
        assert 1 <= len(seen) <= 3
        assert sum(rows for rows, _ in seen) == 20
        seen.clear()
        method.compress(texts[::-1], query="When?", budget=0.3)
        assert seen == []
        method.compress([*texts, prose(40, 99)], query="When?", budget=0.3)
        assert [rows for rows, _ in seen] == [1]

    @pytest.mark.parametrize("name", ["llmlingua", "longllmlingua"])
    def test_passages_are_ranked_together(self, models: Any, prose: Prose, name: str) -> None:
        """23: one forward pass for each document."""
        lm = CausalLM(models("llama"), batch_tokens=2048)
        method = get_compressor(name, model=lm, level="document")
        seen = self.forwards(lm)
        method.compress_many(
            [([prose(20, i + 10 * k) for i in range(10)], QUERY) for k in range(3)], budget=0.5
        )
        assert sum(rows for rows, _ in seen) >= 30
        assert len(seen) <= 10

    def test_sentences_are_judged_together(self, models: Any, prose: Prose) -> None:
        """23: selective-context runs GPT-2 once for each sentence."""
        lm = CausalLM(models("gpt2"), batch_tokens=2048)
        seen = self.forwards(lm)
        text = prose(600)
        get_compressor("selective_context", model=lm).compress(text, budget=0.5)
        assert text.count(".") > 50
        assert len(seen) <= 8

    def test_equal_sentences_are_judged_once(self, models: Any, prose: Prose) -> None:
        """23: nothing is known of what was read before."""
        lm = CausalLM(models("llama"), batch_tokens=2048)
        method = get_compressor("selective_context", model=lm)
        seen = self.forwards(lm)
        method.compress([prose(60)], budget=0.5)
        once = sum(rows * width for rows, width in seen)
        seen.clear()
        method.compress([prose(60)] * 5, budget=0.5)
        assert sum(rows * width for rows, width in seen) == once

    @pytest.mark.parametrize(("name", "times"), [("llmlingua", 2.0), ("longllmlingua", 3.8)])
    def test_a_long_text_is_not_read_over_and_over(
        self, models: Any, prose: Prose, name: str, times: float
    ) -> None:
        """24: v1 gives 2.4 tokens to the model for each of the text, LongLLMLingua 4.1."""
        lm = CausalLM(models("llama"), batch_tokens=2048)
        method = get_compressor(name, model=lm)
        seen = self.forwards(lm)
        text = prose(800)
        length = len(lm.tokenize([text])[0])
        assert length > 2 * lm.window
        method.compress([text], query=QUERY, budget=0.4)
        assert length < sum(rows * width for rows, width in seen) < times * length


class TestMemory:
    @pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen"])
    @pytest.mark.parametrize("name", CAUSAL)
    def test_logits_exist_for_a_few_positions_at_a_time(
        self, models: Any, prose: Prose, name: str, kind: str
    ) -> None:
        lm = CausalLM(models(kind), batch_tokens=2048)
        """24: v1 holds the logits of all positions about four times over."""
        rows = self.rows(lm, name, prose)
        assert max(rows) <= 512 < sum(rows)

    @pytest.mark.parametrize("name", ["llmlingua", "selective_context"])
    def test_nor_for_more_when_there_are_many_short_texts(self, models: Any, name: str) -> None:
        """24: the same."""
        lm = CausalLM(models("gpt2"), batch_tokens=2048)
        assert max(self.rows(lm, name, None)) <= 512

    def test_nor_for_more_from_a_model_that_always_gives_all(
        self, models: Any, prose: Prose
    ) -> None:
        """24: the same, with the models of transformers 4.44."""
        model = OldGPT2.from_pretrained(models("gpt2")).eval()
        lm = CausalLM(
            model, tokenizer=AutoTokenizer.from_pretrained(models("gpt2")), batch_tokens=2048
        )
        assert max(self.rows(lm, "longllmlingua", prose)) <= 512

    def test_a_model_that_always_gives_all_says_the_same(
        self, make: Any, models: Any, prose: Prose
    ) -> None:
        """24: the same."""
        model = OldGPT2.from_pretrained(models("gpt2")).eval()
        lm = CausalLM(
            model, tokenizer=AutoTokenizer.from_pretrained(models("gpt2")), batch_tokens=2048
        )
        for name in CAUSAL:
            old, new = get_compressor(name, model=lm), make(name, "gpt2")
            texts = [prose(300, 1), prose(60, 2)]
            assert (
                old.compress(texts, query=QUERY, budget=0.4).text
                == new.compress(texts, query=QUERY, budget=0.4).text
            )

    def rows(self, lm: CausalLM, name: str, prose: Prose | None) -> list[int]:
        """Positions for which each forward pass makes logits."""
        sizes: list[int] = []
        hook = (
            lm.load()
            .get_output_embeddings()
            .register_forward_hook(lambda *call: sizes.append(call[2].shape[0] * call[2].shape[1]))
        )
        texts = [prose(250, 1), *(prose(60, i) for i in range(9))] if prose else ["a"] * 1500
        get_compressor(name, model=lm).compress(texts, query=QUERY, budget=0.3)
        hook.remove()
        return sizes


class OldGPT2(GPT2LMHeadModel):
    """As in the first versions of transformers that are supported: without logits_to_keep."""

    def forward(
        self, input_ids: Any = None, past_key_values: Any = None, use_cache: Any = None
    ) -> Any:
        return super().forward(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache
        )
