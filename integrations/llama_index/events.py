"""What a trace shows of a compression: counts, not whole texts."""

from __future__ import annotations

from llama_index.core.instrumentation.events import BaseEvent

__all__ = ["CompressionEndEvent", "CompressionStartEvent"]


class CompressionStartEvent(BaseEvent):
    """Nodes are about to be compressed."""

    query: str | None
    """What they are wanted for."""

    nodes: int
    """Nodes that came in."""

    @classmethod
    def class_name(cls) -> str:
        """Name in traces."""
        return "CompressionStartEvent"


class CompressionEndEvent(BaseEvent):
    """Nodes were compressed."""

    query: str | None
    """What they are wanted for."""

    nodes: int
    """Nodes that came in."""

    nodes_kept: int
    """Nodes that go on."""

    tokens_before: int
    """Tokens of the texts that came in, joined."""

    tokens_after: int
    """Tokens of the texts that go on, joined."""

    counter: str
    """Name of the tokenizer in which they are counted."""

    method: str
    """Name of the method that decided."""

    seconds: float
    """Wall time that it took."""

    @classmethod
    def class_name(cls) -> str:
        """Name in traces."""
        return "CompressionEndEvent"
