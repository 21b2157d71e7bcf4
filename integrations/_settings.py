"""What a user may set on any face, and the compressor that comes of it.

Both frameworks build their components on pydantic, so this module needs one of them installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from ..core import (
    Budget,
    CompressedPassage,
    Compression,
    Compressor,
    Order,
    Passage,
    TokenCounter,
    get_compressor,
)

__all__ = ["CompressionSettings", "facts"]


class _Made:
    """The compressor that settings describe, made once for as long as they stay the same.

    It is of no account when settings are compared, and is made anew for their copies.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[Any, ...], Compressor] | None = None

    def compressor(self, settings: CompressionSettings) -> Compressor:
        if settings.compressor is not None:
            return settings.compressor
        described = (settings.method, dict(settings.method_options))
        last = self._last
        if last is None or last[0] != described:
            last = (described, get_compressor(settings.method, **settings.method_options))
            self._last = last
        return last[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Made)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Made, ()


class CompressionSettings(BaseModel):
    """How to compress, as plain fields that can be copied, compared and written to a file."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    method: str = "auto"
    """Name of a laconic method; ``"auto"`` for the best that runs without a download."""

    method_options: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the method's class, for example ``{"model": "BAAI/bge-small-en-v1.5"}``."""

    rate: float | None = None
    """Fraction of the tokens to keep, above 0 and at most 1. Default 0.5 when neither this nor
    `target_tokens` is set."""

    target_tokens: int | None = None
    """Tokens to keep at most."""

    per_document: bool = False
    """Whether the budget holds for each document alone rather than for all of them together."""

    min_tokens_per_document: int = 0
    """Tokens promised to each document before the rest goes to the best ones."""

    keep: tuple[str, ...] = ()
    """Literal strings that must survive, with the sentence around them."""

    order: Order = "source"
    """``"source"`` leaves documents in their order, ``"score"`` puts the most relevant first."""

    counter: Any = None
    """Whose tokens are counted, as for `TokenCounter.of`: a tiktoken encoding or model name, a
    tokenizer, a function. None: cl100k_base if its file is on this machine, else an estimate.
    Only a name is written where the component is."""

    compressor: SkipJsonSchema[Compressor | None] = Field(default=None, exclude=True, repr=False)
    """A compressor to use in place of `method`; it may be shared by several components."""

    _made: _Made = PrivateAttr(default_factory=lambda: _Made())

    @field_serializer("counter")
    def _name_only(self, counter: Any) -> str | None:
        return counter if isinstance(counter, str) else None

    @model_validator(mode="after")
    def _check(self) -> CompressionSettings:
        if self.rate is not None and self.target_tokens is not None:
            raise ValueError("set rate or target_tokens, not both")
        _ = self.budget
        if not isinstance(self.counter, (str, type(None))):  # which may have to be loaded
            TokenCounter.of(self.counter)
        if self.method != "auto":  # which may look for a model
            self._made.compressor(self)
        return self

    @property
    def budget(self) -> Budget:
        """The budget that the fields describe."""
        each, least = self.per_document, self.min_tokens_per_document
        if self.target_tokens is not None:
            return Budget.tokens(self.target_tokens, per_passage=each, min_per_passage=least)
        rate = 0.5 if self.rate is None else self.rate
        return Budget.rate(rate, per_passage=each, min_per_passage=least)

    def compress(
        self, passages: Sequence[Passage], query: str | None, budget: Budget | None = None
    ) -> Compression:
        """Compress passages as the fields say, or to another budget."""
        return self._made.compressor(self).compress(
            passages,
            query=query,
            budget=self.budget if budget is None else budget,
            keep=self.keep,
            counter=self.counter,
            order=self.order,
        )


def facts(compression: Compression, passage: CompressedPassage) -> dict[str, Any]:
    """What the metadata of one of its documents will say of a compression."""
    return {
        "method": compression.method,
        "tokens_before": passage.tokens_before,
        "tokens_after": passage.tokens_after,
        "counter": compression.counter,
        "score": passage.score,
        "spans": [[start, end] for start, end in passage.spans],
    }
