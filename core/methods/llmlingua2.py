"""LLMLingua-2: keep the words that a token classifier wants kept.

Source: Pan et al., "LLMLingua-2: Data Distillation for Efficient and Faithful Task-Agnostic
Prompt Compression", Findings of ACL 2024. The probability of a word is the mean of its tokens'
(section 4.2). Where the reference implementation (llmlingua 0.2.2) compares words within each
chunk of 512 tokens, all words of a request are compared with each other here, as the paper's
compression strategy has it, so that the budget is met exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import regex

from .. import guards, units
from ..method import Flags, Method, Request, Scores
from ..models.alignment import mean_by_unit
from ..models.token_classifier import TokenClassifier
from ..types import Span

__all__ = ["LLMLingua2"]

_DEFAULT_MODEL = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"

_DIGIT = regex.compile(r"\p{Nd}")


class LLMLingua2(Method):
    r"""Keep the words that carry the meaning, whatever will be asked of them.

    The units are words and the marks behind them; characters where a script has no spaces.
    Numbers with their units, negations with what they negate, URLs, citations and code are
    units of their own that are never cut. The query is not read: put a method that reads it in
    front with `Pipeline`, for example ``Pipeline(Extractive(), LLMLingua2())``.

    Parameters
    ----------
    model
        A `TokenClassifier`, another object with its ``tag``, or what makes one: a hub id, a
        folder. None for the published
        XLM-RoBERTa (large); ``"microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"``
        is smaller.
    force_tokens
        Texts that are kept wherever they stand, as words of their own: ``["\n", ".", "?"]``,
        ``["The answer is"]``. Line breaks survive between kept words in any case.
    reserve_digits
        Whether every word with a digit is kept.
    drop_consecutive
        Whether a forced text that would directly follow the same one is left out.
    device, dtype, int8, trust_remote_code
        As `TokenClassifier` takes them, for a model that is loaded by name.
    """

    name = "llmlingua2"

    def __init__(
        self,
        model: Any = None,
        *,
        force_tokens: Sequence[str] = (),
        reserve_digits: bool = False,
        drop_consecutive: bool = False,
        device: str | None = None,
        dtype: Any = None,
        int8: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.model = (
            model
            if hasattr(model, "tag")
            else TokenClassifier(
                model or _DEFAULT_MODEL,
                device=device,
                dtype=dtype,
                int8=int8,
                trust_remote_code=trust_remote_code,
            )
        )
        self.force_tokens = guards.literals(force_tokens)
        self.reserve_digits = reserve_digits
        self.drop_consecutive = drop_consecutive

    def segment(self, text: str) -> Sequence[Span]:
        """Cut into words and marks; what must not be cut, and what is forced, stays whole."""
        whole = guards.merged(
            [*guards.atoms(text, guards.ATOM_KINDS), *guards.keep_spans(text, self.force_tokens)]
        )
        return units.words(text, whole, marks=True)

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Score several requests in the same forward passes."""
        texts = [text for request in requests for text in request.passages]
        tagged = iter(self.model.tag(texts))
        results = []
        for request in requests:
            values = [
                mean_by_unit(text, spans, tags.offsets, tags.probabilities, 0.0)
                for text, spans, tags in zip(request.passages, request.units, tagged, strict=False)
            ]
            means = np.array([v.mean() if len(v) else 0.0 for v in values])
            forced = []
            for text, spans, v in zip(request.passages, request.units, values, strict=True):
                named = guards.overlaps(spans, guards.keep_spans(text, self.force_tokens))
                forced.append(named | self._reserved(text, spans))
                if self.drop_consecutive and named.any():
                    likely = v > np.quantile(v, 1 - request.rate)
                    repeats = _repeats(text, spans, named, likely | forced[-1])
                    forced[-1][repeats] = False
                    v[repeats] = -np.inf
            results.append(Scores(tuple(values), means, tuple(forced)))
        return results

    def _reserved(self, text: str, spans: Sequence[Span]) -> Flags:
        """Which units have a digit that is to be kept."""
        if not self.reserve_digits:
            return np.zeros(len(spans), bool)
        return np.array([bool(_DIGIT.search(text, *span)) for span in spans], bool)


def _repeats(text: str, spans: Sequence[Span], named: Flags, kept: Flags) -> list[int]:
    """The named units that would directly follow the same one, given what is kept."""
    repeats = []
    last = ""
    for unit in np.flatnonzero(kept).tolist():
        word = text[slice(*spans[unit])].strip()
        if named[unit] and word == last:
            repeats.append(unit)
        last = word if named[unit] else ""
    return repeats
