from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from laconic.core.budget import Budget, TokenCounter
from laconic.errors import BudgetError, InputError, LaconicError

# --- Budget ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate",
    [0, 0.0, -0.5, 1.5, 1.0000001, math.nan, math.inf, -math.inf, True, False, "0.5", None],
)
def test_a_rate_is_a_fraction(rate: Any) -> None:
    with pytest.raises(BudgetError, match=r"rate|number"):
        Budget.rate(rate)


@pytest.mark.parametrize(
    "n", [-1, 1.5, -0.5, math.nan, math.inf, -math.inf, True, False, "5", None, [5], 5j]
)
def test_tokens_are_a_whole_number(n: Any) -> None:
    with pytest.raises(BudgetError, match=r"whole number|number"):
        Budget.tokens(n)


@pytest.mark.parametrize("value", [np.nan, np.inf, np.float64(-1), np.bool_(True), np.int64(-2)])
def test_numpy_numbers_are_checked_too(value: Any) -> None:
    with pytest.raises(BudgetError):
        Budget.tokens(value)


@pytest.mark.parametrize("n", [7, 7.0, np.int64(7), np.int8(7), np.uint16(7), np.float32(7)])
def test_whole_numbers_of_any_kind_are_tokens(n: Any) -> None:
    limit = Budget.tokens(n).limit(100)
    assert limit == 7
    assert type(limit) is int


@pytest.mark.parametrize("rate", [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5)])
def test_fractions_of_any_kind_are_rates(rate: Any) -> None:
    assert Budget.rate(rate).limit(100) == 50
    assert Budget.of(rate).limit(100) == 50


@pytest.mark.parametrize("minimum", [-1, 1.5, math.nan, "3", None, True])
def test_the_minimum_of_a_passage_is_a_whole_number(minimum: Any) -> None:
    with pytest.raises(BudgetError, match="min_per_passage"):
        Budget.tokens(10, min_per_passage=minimum)


@pytest.mark.parametrize(
    ("value", "limit"), [(0, 0), (1, 1), (7, 7), (1.0, 100), (0.25, 25), (np.int64(9), 9)]
)
def test_ints_are_tokens_and_floats_are_rates(value: Any, limit: int) -> None:
    assert Budget.of(value).limit(100) == limit


@pytest.mark.parametrize("value", ["5", None, True, 1.5, -1, math.nan, [1], Decimal("0.5")])
def test_what_is_no_budget_is_refused(value: Any) -> None:
    with pytest.raises(BudgetError):
        Budget.of(value)


def test_a_budget_is_handed_back() -> None:
    budget = Budget.rate(0.5, per_passage=True, min_per_passage=3)
    assert Budget.of(budget) is budget


@pytest.mark.parametrize(
    ("rate", "total", "limit"),
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.1, 30, 3),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.299, 100, 29),
        (1 / 3, 100, 33),
        (1.0, 12345, 12345),
        (1e-9, 5, 1),
        (0.5, 1, 1),
        (0.01, 1, 1),
        (0.5, 0, 0),
    ],
)
def test_limit_of_a_rate(rate: float, total: int, limit: int) -> None:
    assert Budget.rate(rate).limit(total) == limit


@given(st.integers(1, 1000), st.integers(0, 10**6))
def test_a_rate_in_thousandths_is_met_exactly(thousandths: int, total: int) -> None:
    exact = math.floor(Fraction(thousandths, 1000) * total)
    assert Budget.rate(thousandths / 1000).limit(total) == min(total, max(1, exact))


@given(st.floats(0, 1, exclude_min=True), st.integers(0, 10**6))
def test_a_rate_is_never_exceeded(rate: float, total: int) -> None:
    limit = Budget.rate(rate).limit(total)
    assert 0 <= limit <= total
    assert limit <= max(1, rate * total + 1e-6)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_tokens_do_not_depend_on_the_input(n: int, total: int) -> None:
    assert Budget.tokens(n).limit(total) == n


def test_scaled() -> None:
    assert Budget.rate(0.2).scaled(3).limit(1000) == 600
    assert Budget.rate(0.5).scaled(3).limit(1000) == 1000
    assert Budget.tokens(10).scaled(1.25).limit(1000) == 13
    kept = Budget.tokens(10, per_passage=True, min_per_passage=2).scaled(2)
    assert (kept.per_passage, kept.min_per_passage) == (True, 2)


def test_a_budget_reads_well() -> None:
    assert str(Budget.tokens(10)) == "10 tokens"
    assert str(Budget.rate(0.25, per_passage=True)) == "rate 0.25 per passage"


# --- TokenCounter ---------------------------------------------------------------------------

SENTENCE = "Tokenization isn't trivial, is it?"


@pytest.fixture(scope="module")
def word_level() -> Tokenizer:
    """A fast tokenizer made here: words and marks, with special tokens around them."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "sky": 4, "is": 5, "blue": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def test_the_default_is_cl100k_base() -> None:
    counter = TokenCounter.of(None)
    assert counter.name == "cl100k_base"
    assert counter.count("hello world") == 2
    assert counter.count("") == 0


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("cl100k_base", "cl100k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini", "o200k_base"),
        ("o200k_base", "o200k_base"),
    ],
)
def test_names_of_encodings_and_models(name: str, encoding: str) -> None:
    assert TokenCounter.of(name).name == encoding


def test_encodings_differ() -> None:
    text = "नमस्ते दुनिया"
    assert TokenCounter.of("gpt-4o").count(text) < TokenCounter.of("cl100k_base").count(text)


@pytest.mark.parametrize("name", ["gpt-nonsense", "", "cl100k", "../etc"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="cl100k_base"):
        TokenCounter.of(name)


def test_an_encoding_that_cannot_be_had_offline_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def look_up(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(LaconicError, match="p50k_base"):
        TokenCounter.of("p50k_base")


@pytest.mark.parametrize("source", [5, 0.5, [], object(), b"cl100k_base", {}])
def test_what_cannot_count_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="token counter"):
        TokenCounter.of(source)


def test_a_counter_is_handed_back() -> None:
    counter = TokenCounter("mine", len)
    assert TokenCounter.of(counter) is counter
    assert "mine" in repr(counter)


def bytes_encoding() -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "bytes",
        pat_str=r"\S+|\s+",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )


def test_a_tiktoken_encoding() -> None:
    counter = TokenCounter.of(bytes_encoding())
    assert counter.name == "bytes"
    assert counter.count("añb") == 4
    assert counter.count("<|endoftext|>") == 13


@pytest.mark.parametrize("source", [None, "cl100k_base", "gpt-4o"])
def test_special_tokens_in_the_text_are_plain_text(source: str | None) -> None:
    counter = TokenCounter.of(source)
    assert counter.count("<|endoftext|>") > 3
    assert counter.count("a <|im_start|> b") > 5


@pytest.mark.parametrize("source", [None, "gpt-4o", "approximate"])
@given(text=st.text(st.characters(), max_size=30))
def test_any_text_can_be_counted(source: str | None, text: str) -> None:
    counter = TokenCounter.of(source)
    assert 0 <= counter.count(text) <= 4 * len(text)
    assert (counter.count(text) == 0) <= (len(text.strip()) < 2)


def test_a_fast_tokenizer(word_level: Tokenizer) -> None:
    counter = TokenCounter.of(word_level)
    assert counter.count("the sky is blue") == 4
    assert counter.count("the sky is \ud800 blue") == 5


def test_a_transformers_tokenizer(word_level: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_level, unk_token="[UNK]", name_or_path="my/tokenizer"
    )
    counter = TokenCounter.of(tokenizer)
    assert counter.name == "my/tokenizer"
    assert counter.count("the sky is blue") == 4
    assert counter.count_many(["the", "the sky", ""]) == [1, 2, 0]


def test_a_tokenizer_that_truncates_and_pads_still_counts_all(word_level: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(word_level.to_str())
    tokenizer.enable_truncation(3)
    assert TokenCounter.of(tokenizer).count("the sky is blue") == 4
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=16)
    assert TokenCounter.of(tokenizer).count("the sky is blue") == 4


def test_counting_leaves_the_tokenizer_as_it_was(word_level: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(word_level.to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=16)
    before = tokenizer.to_str()
    TokenCounter.of(tokenizer).count("the sky is blue")
    assert tokenizer.to_str() == before


@pytest.mark.parametrize(
    "function",
    [
        lambda text: len(text.split()),
        lambda text: text.split(),
        lambda text: np.int64(len(text.split())),
        lambda text: np.arange(len(text.split())),
        lambda text: tuple(text.split()),
    ],
    ids=["int", "list", "numpy int", "array", "tuple"],
)
def test_a_callable_returns_a_count_or_tokens(function: Any) -> None:
    count = TokenCounter.of(function).count("one two three")
    assert count == 3
    assert type(count) is int


def test_a_callable_gives_its_name() -> None:
    def words(text: str) -> int:
        return len(text.split())

    assert TokenCounter.of(words).name == "words"
    assert TokenCounter.of(len).name == "len"


def test_an_object_with_encode() -> None:
    class Letters:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1] * add_special_tokens + [ord(c) for c in text]

    counter = TokenCounter.of(Letters())
    assert (counter.name, counter.count("abc")) == ("Letters", 3)


def test_count_many() -> None:
    counter = TokenCounter.of(None)
    assert counter.count_many(iter([SENTENCE, "", "x"])) == [counter.count(SENTENCE), 0, 1]


# --- approximate ----------------------------------------------------------------------------


def english() -> Iterator[Any]:
    whole = list(topics.values())
    for name, text in {
        "everything": "\n".join(whole),
        "first half": "\n".join(whole[: len(whole) // 2]),
        "prose": topics["naming"] + topics["exceptions"] + topics["execmodel"],
        "long": topics["specialnames"],
    }.items():
        yield pytest.param(text, id=name)


@pytest.mark.parametrize("text", english())
def test_the_estimate_is_near_cl100k_base(text: str) -> None:
    estimate = TokenCounter.approximate().count(text)
    assert estimate == pytest.approx(TokenCounter.of("cl100k_base").count(text), rel=0.15)


def test_the_estimate_says_so() -> None:
    assert TokenCounter.approximate().name == "approximate"
    assert TokenCounter.of("approximate").count("two words") == 2


# --- no global state, no network (in fresh processes, as the encodings are remembered) --------

PRELUDE = """
import os, socket, sys, threading
def refuse(*a, **k):
    print("NETWORK", a[1:])
    os._exit(3)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
before = dict(os.environ)
"""


def fresh(code: str, tmp_path: Path) -> str:
    """What a fresh process prints, with no tiktoken cache of the user's."""
    clean = {k: v for k, v in os.environ.items() if "CACHE_DIR" not in k} | {
        "TMPDIR": str(tmp_path)
    }
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_the_default_needs_no_network_and_leaves_the_environment(tmp_path: Path) -> None:
    code = """
from laconic import TokenCounter
print(TokenCounter.of().name, TokenCounter.of().count("hello world"), dict(os.environ) == before)
"""
    assert fresh(code, tmp_path) == "cl100k_base 2 True"
    assert list(tmp_path.iterdir()) == []


def test_without_the_file_the_default_is_the_estimate(tmp_path: Path) -> None:
    code = """
sys.modules["llama_index"] = None
from laconic import TokenCounter
print(TokenCounter.of().name, dict(os.environ) == before)
"""
    assert fresh(code, tmp_path) == "approximate True"
    assert list(tmp_path.iterdir()) == []


def test_threads_that_load_encodings_leave_the_environment(tmp_path: Path) -> None:
    code = """
from laconic import TokenCounter
start = threading.Barrier(2)
names = []
def load(name):
    start.wait()
    names.append(TokenCounter.of(name).name)
threads = [threading.Thread(target=load, args=[n]) for n in ("cl100k_base", "o200k_base")]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(names), dict(os.environ) == before)
"""
    assert fresh(code, tmp_path) == "['cl100k_base', 'o200k_base'] True"
