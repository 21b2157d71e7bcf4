"""What a user may set on both of LlamaIndex's ways to hold a text memory."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from ...core.compressor import Compressor
from ...memory.text import TextMemory

__all__ = ["MemorySettings"]


class MemorySettings(BaseModel):
    """How a memory of a given budget is made, as plain fields."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    method: str = "lexical"
    """The name of the method that compresses what is long; it needs no query."""

    counter: Any = None
    """Whose tokens are counted, as for `TokenCounter.of`; None: cl100k_base or an estimate.
    Only a name is written where the memory is."""

    recall: float = 0.6
    """The part of the budget that is kept for what a question needs."""

    compressor: Compressor | None = Field(default=None, exclude=True, repr=False)
    """A compressor to use in place of `method`."""

    encoder: Any = Field(default=None, exclude=True, repr=False)
    """Finds turns by their meaning too, as for `TextMemory`."""

    @field_serializer("counter")
    def _name_only(self, counter: Any) -> str | None:
        return counter if isinstance(counter, str) else None

    def made(self, budget: int, recall: float) -> TextMemory:
        """An empty memory of that budget."""
        return TextMemory(
            budget,
            counter=self.counter,
            method=self.compressor or self.method,
            encoder=self.encoder,
            recall=recall,
        )
