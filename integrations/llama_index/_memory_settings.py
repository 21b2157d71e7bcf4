"""What a user may set on both of LlamaIndex's ways to hold a text memory."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    model_validator,
)

from ...core.compressor import Compressor
from ...memory.text import TextMemory

__all__ = ["MemorySettings"]


class _Objects:
    """Those settings of a memory that no dict can hold."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)
        self.name = uuid.uuid4().hex
        _ATTACHED[self.name] = self


_ATTACHED: WeakValueDictionary[str, _Objects] = WeakValueDictionary()
"""Those of the memories in this process. LlamaIndex writes a context's memory to a dict and back
at every run.
"""


class MemorySettings(BaseModel):
    """How a memory of a given budget is made, as plain fields.

    What is made of a memory's dict in the same process, while that memory is still there, has its
    objects, too: its encoder, its compressor, a counter that is not named. Elsewhere they are
    given anew.
    """

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

    _objects: _Objects | None = PrivateAttr(default=None)

    @field_serializer("counter")
    def _name_only(self, counter: Any) -> str | None:
        return counter if isinstance(counter, str) else None

    @model_validator(mode="before")
    @classmethod
    def _with_objects(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = dict(data)
        objects = _ATTACHED.get(given.pop("attached", ""))
        fields = objects.fields.items() if objects else ()
        return given | {k: v for k, v in fields if given.get(k) is None}

    def attached(self) -> dict[str, str]:
        """What a dict says of the objects that it cannot hold; nothing if there are none."""
        values = {name: getattr(self, name) for name in ("counter", "compressor", "encoder")}
        held = {k: v for k, v in values.items() if v is not None and not isinstance(v, str)}
        if self._objects is None and held:
            self._objects = _Objects(held)
        return {"attached": self._objects.name} if self._objects else {}

    def made(self, budget: int, recall: float) -> TextMemory:
        """An empty memory of that budget."""
        return TextMemory(
            budget,
            counter=self.counter,
            method=self.compressor or self.method,
            encoder=self.encoder,
            recall=recall,
        )
