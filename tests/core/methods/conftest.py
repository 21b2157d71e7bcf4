"""The methods that ask a model, each with small ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core import get_compressor
from laconic.core.compressor import Compressor
from laconic.core.models.causal_lm import CausalLM
from laconic.core.models.token_classifier import TokenClassifier

Models = Callable[[str], Path]
Judge = Callable[..., Any]
Make = Callable[..., Compressor]

CASES = [
    ("llmlingua", "gpt2"),
    ("llmlingua", "llama"),
    ("longllmlingua", "gpt2"),
    ("longllmlingua", "llama"),
    ("llmlingua2", "bert"),
    ("llmlingua2", "xlm-roberta"),
    ("selective_context", "gpt2"),
    ("selective_context", "llama"),
]

_WORDS = (
    "the a of in to treaty river council signed number people water station north music engine "
    "history report quickly green window between after letter market which was built by "
    "engineers near old small early harbour"
).split()


@pytest.fixture(scope="session")
def judge(models: Models) -> Judge:
    """What reads with a small model: a causal one, or one that classifies tokens."""

    @functools.cache
    def made(kind: str, **options: Any) -> Any:
        is_causal = kind in ("gpt2", "llama", "qwen")
        return (CausalLM if is_causal else TokenClassifier)(models(kind), **options)

    return made


@pytest.fixture(scope="session")
def make(judge: Judge) -> Make:
    """A method by name, with the model of that kind that all tests share."""

    def made(name: str, kind: str, **options: Any) -> Compressor:
        return get_compressor(name, model=judge(kind), **options)

    return made


@pytest.fixture
def silent(models: Models) -> Callable[[str], Any]:
    """What reads with a model to which all is alike, since all its weights are zero."""

    def made(kind: str) -> Any:
        import transformers as hf

        is_causal = kind in ("gpt2", "llama", "qwen")
        auto = hf.AutoModelForCausalLM if is_causal else hf.AutoModelForTokenClassification
        model: Any = auto.from_pretrained(models(kind)).eval()
        for parameter in model.requires_grad_(False).parameters():
            parameter.zero_()
        tokenizer = hf.AutoTokenizer.from_pretrained(models(kind))
        return (CausalLM if is_causal else TokenClassifier)(model, tokenizer=tokenizer)

    return made


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def method(case: tuple[str, str], make: Make) -> Compressor:
    return make(*case)


@pytest.fixture(scope="session")
def prose() -> Callable[..., str]:
    """Text of so many words in sentences; the same seed gives the same text."""

    def made(words: int, seed: int = 0) -> str:
        generator = np.random.default_rng(seed)
        text: list[str] = []
        while len(text) < words:
            size = generator.integers(5, 14)
            sentence = [_WORDS[i] for i in generator.integers(0, len(_WORDS), size)]
            text += [sentence[0].capitalize(), *sentence[1:-1], f"{sentence[-1]}."]
        return " ".join(text[:words])

    return made
