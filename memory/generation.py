"""Writing an answer: how the next token is chosen, where it ends, and its text as it grows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..core.errors import InputError

__all__ = ["Answer", "Draft", "chooser", "end_tokens"]

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""How tokenizers with byte fallback name a byte."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer of which the memory that wrote it knows nothing.

    Attributes
    ----------
    text
        The answer, up to the first stop string, without special tokens.
    prompt_tokens
        Tokens of the prompt.
    tokens
        Tokens that were written.
    finish_reason
        ``"stop"`` if the model or a stop string ended it, ``"length"`` if it was cut.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finish_reason: Literal["stop", "length"]


def chooser(
    temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> Callable[[torch.Tensor], int]:
    """What picks the next token from its logits, shape ``(vocabulary,)``.

    Raises
    ------
    InputError
        A parameter is out of its range.
    """
    if not _is_number(temperature) or not temperature >= 0:
        raise InputError(f"temperature is at least 0, got {temperature!r}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InputError(f"top_k is a number of tokens, at least 1, got {top_k!r}")
    if top_p is not None and not (_is_number(top_p) and 0 <= top_p <= 1):
        raise InputError(f"top_p is from 0 to 1, got {top_p!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed is a whole number, got {seed!r}")
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(float(top_p)))
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: torch.Tensor) -> int:
        nothing: Any = torch.zeros((1, 0), dtype=torch.long)
        scores: Any = warpers(nothing, logits[None].float())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator))

    return choose


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    given = tokenizer.eos_token_id if given is None else given
    return set(given) if isinstance(given, (list, tuple)) else {given}


class Answer:
    """The tokens of an answer and their text, without special tokens.

    Parameters
    ----------
    tokenizer
        Of transformers.
    stream
        Called with each piece of the text as soon as it is whole.
    stop
        Texts before the first of which the answer ends.

    Raises
    ------
    InputError
        A stop string is empty, or none.
    """

    def __init__(
        self, tokenizer: Any, stream: Callable[[str], None] | None, stop: Sequence[str] = ()
    ) -> None:
        if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
            raise InputError(f"stop is a list of texts that are not empty, got {stop!r}")
        self.tokens: list[int] = []
        self.stopped = False
        self.ended = False
        self._tokenizer = tokenizer
        self._stream = stream
        self._stop = tuple(stop)
        self._said = ""

    @property
    def text(self) -> str:
        """What was written so far, up to the first stop string."""
        text = str(self._tokenizer.decode(self.tokens, skip_special_tokens=True))
        return text[: min((text.find(s) for s in self._stop if s in text), default=len(text))]

    def add(self, token: int) -> None:
        """One more token."""
        self.tokens.append(token)
        if self._stop:
            text = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
            self.stopped = any(s in text for s in self._stop)
        # A character of several tokens is none before the last of them, and a run of bytes that
        # stand for themselves is decoded as a whole.
        if self._stream and not _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))):
            text = self.text
            if not text.endswith("\ufffd"):
                self._say(text if self.stopped else text[: len(text) - self._begun(text)])

    def end(self) -> None:
        """There are no more tokens."""
        if self._stream:
            self._say(self.text)

    def _begun(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((n for n in sizes if any(s.startswith(text[-n:]) for s in self._stop)), 0)

    def _say(self, text: str) -> None:
        if self._stream and len(text) > len(self._said) and text.startswith(self._said):
            self._stream(text[len(self._said) :])
            self._said = text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
