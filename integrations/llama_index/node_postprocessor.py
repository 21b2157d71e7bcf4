"""Compression of retrieved nodes, between a retriever and a response synthesizer."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)

from ...core import CompressedPassage, Compression, Passage
from .._settings import CompressionSettings, facts
from .events import CompressionEndEvent, CompressionStartEvent

__all__ = ["LaconicNodePostprocessor"]

_FACTS = "compression"
"""Metadata key under which a node says how it was compressed."""

dispatcher = get_dispatcher(__name__)


class LaconicNodePostprocessor(CompressionSettings, BaseNodePostprocessor):
    """Shorten the text of retrieved nodes to a budget in tokens.

    The budget holds for the texts of all nodes together, or for each with ``per_document``.
    Metadata that the synthesizer shows beside a text is neither compressed nor counted.

    Each node goes on as a copy that differs in its text and in ``metadata["compression"]``,
    which says what was done and is hidden from the LLM and from embedding models. Id, score,
    relationships and the other metadata are those of the node that came in, and so are
    ``start_char_idx`` and ``end_char_idx``: they tell where in its document the node was, and
    the ``spans`` in ``metadata["compression"]`` which parts of it are left. A node of which
    nothing is left is left out. Nodes without text and nodes with images, audio or video pass
    through as they are and cost nothing.

    The parameters are the fields of `CompressionSettings`.

    Examples
    --------
    >>> from llama_index.core.schema import NodeWithScore, TextNode
    >>> node = TextNode(text="The sky is blue. Paris is the capital of France. Fish swim.")
    >>> compress = LaconicNodePostprocessor(method="lexical", target_tokens=8)
    >>> [kept] = compress.postprocess_nodes(
    ...     [NodeWithScore(node=node, score=0.7)], query_str="What is the capital of France?"
    ... )
    >>> kept.text, kept.score, kept.node_id == node.node_id
    ('Paris is the capital of France.', 0.7, True)
    """

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized form."""
        return "LaconicNodePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        places = [place for place, scored in enumerate(nodes) if _is_text(scored.node)]
        if not places:
            return list(nodes)
        query = query_bundle.query_str if query_bundle else None
        dispatcher.event(CompressionStartEvent(query=query, nodes=len(nodes)))
        result = self.compress([_passage(nodes[place].node) for place in places], query)
        kept = _put_back(nodes, places, result)
        dispatcher.event(
            CompressionEndEvent(
                query=query,
                nodes=len(nodes),
                nodes_kept=len(kept),
                tokens_before=result.tokens_before,
                tokens_after=result.tokens_after,
                counter=result.counter,
                method=result.method,
                seconds=result.seconds,
            )
        )
        return kept

    def __reduce__(self) -> tuple[Any, ...]:
        # The inherited way deletes from the object whatever of it cannot be pickled.
        names = type(self).model_fields.keys() - {"callback_manager"}
        return partial(type(self), **{name: getattr(self, name) for name in names}), ()


def _is_text(node: BaseNode) -> bool:
    """Whether a node has text and nothing else that an LLM would be shown."""
    if isinstance(node, Node):
        if node.image_resource or node.audio_resource or node.video_resource:
            return False
    elif not isinstance(node, TextNode) or isinstance(node, ImageNode):
        return False
    return bool(node.get_content(metadata_mode=MetadataMode.NONE))


def _passage(node: BaseNode) -> Passage:
    return Passage(node.get_content(metadata_mode=MetadataMode.NONE), node.node_id, node.metadata)


def _put_back(
    nodes: list[NodeWithScore], places: list[int], result: Compression
) -> list[NodeWithScore]:
    """Put what is left in the places of its nodes, in the order of the result."""
    free = sorted(places[passage.index] for passage in result.passages)
    kept = dict(enumerate(nodes))
    for place in places:
        del kept[place]
    for place, passage in zip(free, result.passages, strict=True):
        kept[place] = _compressed(nodes[places[passage.index]], passage, result)
    return [kept[place] for place in sorted(kept)]


def _compressed(
    scored: NodeWithScore, passage: CompressedPassage, result: Compression
) -> NodeWithScore:
    # What an IndexNode points to may be a whole index, so the copy points to it too.
    target = getattr(scored.node, "obj", None)
    node = copy.deepcopy(scored.node, {id(target): target})
    node.set_content(passage.text)
    node.metadata[_FACTS] = facts(result, passage)
    for hidden in (node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys):
        if _FACTS not in hidden:
            hidden.append(_FACTS)
    return scored.model_copy(update={"node": node})
