"""Selective Context: drop the lexical units that carry the least self-information.

Source: Li et al., "Compressing Context to Enhance Inference Efficiency of Large Language
Models", EMNLP 2023, section 3. As in its published code a sentence is judged by itself, and a
unit's self-information is the mean of its tokens'.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np

from .. import guards, units
from ..errors import InputError
from ..method import Method, Request, Scores
from ..models.alignment import mean_by_unit, tile
from ..models.causal_lm import CausalLM
from ..types import Span

__all__ = ["SelectiveContext"]

_DEFAULT_MODEL = "openai-community/gpt2"

_Level = Literal["sentence", "phrase", "token"]


class SelectiveContext(Method):
    """Keep the phrases that tell a language model something new.

    Each sentence is judged by itself, all of them in batches. The query is not read.

    Parameters
    ----------
    model
        A `CausalLM`, or what makes one: a hub id, a folder. None for GPT-2.
    level
        The units that are kept or dropped.
    nlp
        A spaCy pipeline, or the name of an installed one, whose noun chunks are the phrases;
        None for the built-in chunker.
    device, dtype, trust_remote_code
        As `CausalLM` takes them, for a model that is loaded by name.
    """

    name = "selective_context"

    def __init__(
        self,
        model: Any = None,
        *,
        level: _Level = "phrase",
        nlp: Any = None,
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
    ) -> None:
        if level not in get_args(_Level):
            raise InputError(f"no level {level!r}; there are {', '.join(get_args(_Level))}")
        self.model = (
            model
            if isinstance(model, CausalLM)
            else CausalLM(
                model or _DEFAULT_MODEL,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
        )
        self.level = level
        self._nlp = _pipeline(nlp) if isinstance(nlp, str) else nlp

    def segment(self, text: str) -> Sequence[Span]:
        """Cut into units of the level; none reaches over the end of a sentence."""
        if self.level == "sentence":
            return units.sentences(text, guards.atoms(text))
        if self.level == "token":
            return tile(text, self.model.tokenize([text])[0].offsets)
        whole = guards.atoms(text, guards.ATOM_KINDS)
        if self._nlp is None:
            return units.phrases(text, whole)
        chunks = [Span(c.start_char, c.end_char) for c in self._nlp(text).noun_chunks]
        return units.words(text, guards.merged([*whole, *chunks]))

    def score(self, request: Request) -> Scores:
        """Score one request; see `score_many`."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[Scores]:
        """Judge the sentences of all requests in the same forward passes."""
        texts = [text for request in requests for text in request.passages]
        sentences = [
            (i, start, text[start:end])
            for i, text in enumerate(texts)
            for start, end in units.sentences(text, guards.atoms(text))
        ]
        tokens = self.model.tokenize([sentence for _, _, sentence in sentences])
        offsets: list[list[Any]] = [[np.zeros((0, 2), np.int64)] for _ in texts]
        values: list[list[Any]] = [[np.zeros(0)] for _ in texts]
        for (i, start, _), t, nll in zip(sentences, tokens, self.model.nll(tokens), strict=True):
            offsets[i].append(t.offsets + start)
            values[i].append(nll)
        judged = iter(
            [(np.concatenate(o), np.concatenate(v)) for o, v in zip(offsets, values, strict=True)]
        )
        results = []
        for request in requests:
            scores = tuple(
                mean_by_unit(text, spans, *next(judged), 0.0)
                for text, spans in zip(request.passages, request.units, strict=True)
            )
            means = np.array([v.mean() if len(v) else 0.0 for v in scores])
            results.append(Scores(scores, means))
        return results


def _pipeline(name: str) -> Any:
    try:
        return import_module("spacy").load(name)
    except (ImportError, OSError) as error:
        raise InputError(
            f"cannot load the spaCy pipeline {name!r}: pip install spacy, then python -m spacy "
            f"download {name}; or leave out nlp for the built-in chunker; {error}"
        ) from error
