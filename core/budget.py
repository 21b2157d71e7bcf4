"""How much may be left, and in whose tokens that is counted."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import regex

from .errors import BudgetError, InputError

__all__ = ["Budget", "TokenCounter"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens may be left.

    Make one with `Budget.tokens` or `Budget.rate`. A budget is a hard cap: the text that comes
    back never counts more.

    Attributes
    ----------
    kind
        ``"tokens"`` for a number of tokens, ``"rate"`` for a fraction of what came in.
    amount
        That number (at least 0) or that fraction (above 0, at most 1).
    per_passage
        Whether it holds for each passage alone rather than for all of them joined.
    min_per_passage
        Tokens promised to every passage before the rest is given to the best: each passage
        keeps at least its best unit, as far as the budget reaches. Default 0.
    """

    kind: Literal["tokens", "rate"]
    amount: float
    per_passage: bool = False
    min_per_passage: int = 0

    def __post_init__(self) -> None:
        amount = self.amount
        if isinstance(amount, bool) or not isinstance(amount, (int, float, np.number)):
            raise BudgetError(f"a budget is a number, got {amount!r}")
        if self.kind == "rate":
            if not 0 < amount <= 1:
                raise BudgetError(
                    f"rate is the fraction of tokens to keep, above 0 and at most 1, got "
                    f"{amount!r}; to keep nothing use Budget.tokens(0)"
                )
        elif amount != amount or amount < 0 or amount != int(min(amount, 2**62)):
            raise BudgetError(
                f"a budget in tokens is a whole number of at least 0, got {amount!r}; for a "
                f"fraction of the input use Budget.rate"
            )
        least = self.min_per_passage
        if isinstance(least, bool) or not isinstance(least, (int, np.integer)) or least < 0:
            raise BudgetError(f"min_per_passage is a whole number of at least 0, got {least!r}")

    @classmethod
    def tokens(cls, n: int, *, per_passage: bool = False, min_per_passage: int = 0) -> Budget:
        """At most `n` tokens, joiners between passages included."""
        return cls("tokens", n, per_passage, min_per_passage)

    @classmethod
    def rate(cls, r: float, *, per_passage: bool = False, min_per_passage: int = 0) -> Budget:
        """At most the fraction `r` of the tokens that came in, and at least one token."""
        return cls("rate", r, per_passage, min_per_passage)

    @classmethod
    def of(cls, value: Budget | float) -> Budget:
        """Read an int as tokens and a float as a rate; hand a budget back as it is."""
        if isinstance(value, Budget):
            return value
        return cls.rate(value) if isinstance(value, (float, np.floating)) else cls.tokens(value)

    def limit(self, total: int) -> int:
        """Tokens allowed of an input of `total` tokens."""
        if self.kind == "tokens":
            return int(self.amount)
        # The epsilon undoes binary rounding: 0.29 * 100 is 28.999….
        return min(total, max(1, math.floor(self.amount * total + 1e-9)))

    def scaled(self, factor: float) -> Budget:
        """Make the same kind of budget, `factor` times as large, at most the whole input."""
        if self.kind == "rate":
            return replace(self, amount=min(1.0, self.amount * factor))
        return replace(self, amount=math.ceil(self.amount * factor))

    def __str__(self) -> str:
        size = f"{int(self.amount)} tokens" if self.kind == "tokens" else f"rate {self.amount:g}"
        return size + (" per passage" if self.per_passage else "")


class TokenCounter:
    """Counts tokens, under a name that every result carries.

    Parameters
    ----------
    name
        What the count is called in results, for example ``"cl100k_base"``.
    count
        Function from a text to its number of tokens, special tokens not included.
    """

    def __init__(self, name: str, count: Callable[[str], int]) -> None:
        self.name = name
        self.count = count

    def count_many(self, texts: Iterable[str]) -> list[int]:
        """Count each text alone."""
        return [self.count(text) for text in texts]

    def __repr__(self) -> str:
        return f"TokenCounter({self.name!r})"

    @classmethod
    def of(cls, source: Any = None) -> TokenCounter:
        """Make a counter of whatever names or is a tokenizer.

        Parameters
        ----------
        source
            None: cl100k_base when its file is on this machine, else an estimate (see
            `approximate`). A str: the name of a tiktoken encoding or of a model that tiktoken
            knows. A callable: text to a count or to a list of tokens. An object with
            ``encode``: a tiktoken encoding or a Hugging Face tokenizer. A `TokenCounter`:
            itself.

        Raises
        ------
        InputError
            `source` is none of these, or tiktoken knows no such name.
        """
        if isinstance(source, TokenCounter):
            return source
        if source is None:
            return _default_counter()
        if isinstance(source, str):
            return _APPROXIMATE if source == _APPROXIMATE.name else _tiktoken_counter(source)
        if hasattr(source, "encode_ordinary"):
            return cls(source.name, lambda text: len(source.encode_ordinary(text)))
        if hasattr(source, "encode"):
            return _transformers_counter(source)
        if callable(source):
            return _callable_counter(source)
        raise InputError(
            f"a token counter is a tiktoken name, a tokenizer or a callable, got {source!r}"
        )

    @classmethod
    def approximate(cls) -> TokenCounter:
        """Estimate cl100k_base without its file, with no dependency and no network."""
        return _APPROXIMATE


# A word costs a token and one more for every 7 characters beyond the first 4, digits go in threes,
# signs take half a token a byte, and other scripts two fifths: close to cl100k_base on prose.
_PIECE = regex.compile(
    r"(?P<word> ?[A-Za-z]+)|(?P<digits> ?\p{N}+)|(?P<letters> ?[\p{L}\p{M}]+)"
    r"|(?P<space>\s+)|(?P<marks> ?[^\s\p{L}\p{M}\p{N}]+)"
)


def _approximate_count(text: str) -> int:
    total = 0
    for match in _PIECE.finditer(text):
        kind, length = match.lastgroup, match.end() - match.start()
        if kind == "word":
            total += 1 + max(0, length - 4) // 7
        elif kind == "space":
            total += "\n" in match.group() or length > 1
        elif kind == "digits":
            total += -(-length // 3)
        else:
            # bytes, not characters: these scripts and signs take 2 to 4 bytes each
            size = len(match.group().encode("utf-8", "surrogatepass"))
            total += -(-size * 2 // (5 if kind == "letters" else 4))
    return total


_APPROXIMATE = TokenCounter("approximate", _approximate_count)


def _tiktoken_cache_dirs() -> Iterator[Path]:
    """Folders in which tiktoken's encodings may lie already."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    import tempfile

    yield Path(tempfile.gettempdir()) / "data-gym-cache"
    spec = importlib.util.find_spec("llama_index")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield Path(folder) / "core" / "_static" / "tiktoken_cache"


_ENVIRONMENT_LOCK = threading.Lock()

_ENCODING_FILES = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}
"""Name under which tiktoken caches an encoding: sha1 of the address it comes from."""


def _cache_dir(encoding_name: str) -> Path | None:
    """The folder that holds the encoding already."""
    file = _ENCODING_FILES.get(encoding_name)
    folders = _tiktoken_cache_dirs() if file else iter(())
    return next((folder for folder in folders if (folder / str(file)).is_file()), None)


@contextmanager
def _tiktoken_reads(folder: Path | None) -> Iterator[None]:
    """Let tiktoken look there for its files, which only the environment can tell it."""
    if folder is None:
        yield
        return
    with _ENVIRONMENT_LOCK:
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


@functools.cache
def _default_counter() -> TokenCounter:
    return _tiktoken_counter("cl100k_base") if _cache_dir("cl100k_base") else _APPROXIMATE


@functools.cache
def _tiktoken_counter(name: str) -> TokenCounter:
    import tiktoken

    try:
        encoding_name = tiktoken.encoding_name_for_model(name)
    except KeyError:
        encoding_name = name
    try:
        with _tiktoken_reads(_cache_dir(encoding_name)):
            encoding = tiktoken.get_encoding(encoding_name)
    except ValueError as error:
        known = ", ".join(tiktoken.list_encoding_names())
        raise InputError(f"tiktoken knows no {name!r}; its encodings are {known}") from error
    except OSError as error:
        raise InputError(
            f"the encoding {encoding_name!r} is not on this machine and cannot be downloaded; "
            f"set TIKTOKEN_CACHE_DIR to a folder that holds it, or count with 'approximate'"
        ) from error
    return TokenCounter(encoding_name, lambda text: len(encoding.encode_ordinary(text)))


def _transformers_counter(tokenizer: Any) -> TokenCounter:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    # Those of transformers would warn of texts that are longer than the model's window.
    options = {"verbose": False} if hasattr(tokenizer, "is_fast") else {}
    if hasattr(tokenizer, "no_truncation"):  # a bare `tokenizers.Tokenizer` cuts what it encodes
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def count(text: str) -> int:
        ids = tokenizer.encode(without_surrogates(text), add_special_tokens=False, **options)
        return len(getattr(ids, "ids", ids))

    return TokenCounter(name, count)


def _callable_counter(function: Callable[[str], Any]) -> TokenCounter:
    name = getattr(function, "__name__", type(function).__name__)

    def count(text: str) -> int:
        result = function(text)
        if isinstance(result, (int, np.integer)):
            return int(result)
        if hasattr(result, "__len__"):
            return len(result)
        raise InputError(f"the token counter {name!r} gave {result!r}, expected a count or a list")

    return TokenCounter(name, count)


_SURROGATE = regex.compile(r"[\uD800-\uDFFF]")


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes, character for character."""
    return text if text.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
