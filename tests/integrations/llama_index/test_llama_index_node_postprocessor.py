from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from pydantic import PrivateAttr, ValidationError

from laconic import TokenCounter, get_compressor
from laconic.core.models.loading import bundled_encoder
from laconic.errors import BudgetError
from laconic.integrations.llama_index import (
    CompressionEndEvent,
    CompressionStartEvent,
    LaconicNodePostprocessor,
)

Nodes = list[NodeWithScore]
LONG = "The weather was grey that day. Nobody had much to say. Lunch was soup again."


def lexical(**fields: Any) -> LaconicNodePostprocessor:
    return LaconicNodePostprocessor(method="lexical", **fields)


def joined_tokens(nodes: Nodes) -> int:
    texts = [n.node.get_content(metadata_mode=MetadataMode.NONE) for n in nodes]
    return TokenCounter.of().count("\n\n".join(texts))


def dump(nodes: Nodes) -> list[dict[str, Any]]:
    return [scored.to_dict() for scored in nodes]


class Watcher(BaseEventHandler):
    _seen: list[BaseEvent] = PrivateAttr(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self._seen.append(event)


@pytest.fixture
def events() -> Any:
    watcher = Watcher()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(watcher)
    yield watcher._seen
    dispatcher.event_handlers.remove(watcher)


# What the LongLLMLingua adapter gets wrong.


def test_eight_nodes_do_not_become_one(nodes: Nodes, query: str) -> None:
    kept = lexical(rate=0.5, min_tokens_per_document=1).postprocess_nodes(nodes, query_str=query)
    assert [n.node_id for n in kept] == [n.node_id for n in nodes]
    assert joined_tokens(kept) <= 0.5 * joined_tokens(nodes)


def test_scores_are_kept(nodes: Nodes, query: str) -> None:
    scores = {n.node_id: n.score for n in nodes}
    kept = lexical(rate=0.5).postprocess_nodes(nodes, query_str=query)
    assert kept
    assert all(n.score == scores[n.node_id] for n in kept)


def test_ids_relationships_and_places_in_the_document_are_kept(nodes: Nodes, query: str) -> None:
    before = {n.node_id: n.node for n in nodes}
    kept = lexical(rate=0.5).postprocess_nodes(nodes, query_str=query)
    assert any(n.text != before[n.node_id].get_content() for n in kept)
    for scored in kept:
        source = before[scored.node_id]
        assert isinstance(scored.node, TextNode) and isinstance(source, TextNode)
        assert scored.node.relationships == source.relationships
        assert scored.node.ref_doc_id == "document"
        assert scored.node.get_node_info() == source.get_node_info()


def test_metadata_is_each_nodes_own(nodes: Nodes, query: str) -> None:
    before = {n.node_id: dict(n.metadata) for n in nodes}
    kept = lexical(rate=0.5, min_tokens_per_document=1).postprocess_nodes(nodes, query_str=query)
    for scored in kept:
        assert scored.metadata.pop("compression")
        assert scored.metadata == before[scored.node_id]


def test_metadata_is_not_copied_into_the_text(nodes: Nodes, query: str) -> None:
    for scored in lexical(rate=0.9).postprocess_nodes(nodes, query_str=query):
        assert "topic:" not in scored.text
        seen = scored.get_content(metadata_mode=MetadataMode.LLM)
        assert seen == f"topic: {scored.metadata['topic']}\n\n{scored.text}"


def test_each_text_is_made_of_its_own_nodes_characters_so_no_words_are_glued(
    nodes: Nodes, query: str
) -> None:
    before = {n.node_id: n.text for n in nodes}
    kept = lexical(rate=0.6).postprocess_nodes(nodes, query_str=query)
    assert len(kept) > 1
    for scored in kept:
        spans = scored.metadata["compression"]["spans"]
        source = before[scored.node_id]
        assert scored.text == "".join(source[start:end] for start, end in spans)
        assert set(scored.text.split()) <= set(source.split())


def test_blank_lines_do_not_split_a_node() -> None:
    text = "\n\n".join(f"Paragraph {i} is about the number {i}." for i in range(8))
    node = NodeWithScore(node=TextNode(text=text))
    [kept] = lexical(rate=0.5).postprocess_nodes([node], query_str="number")
    assert kept.node_id == node.node_id
    assert kept.text.count("\n\n") >= 1


@pytest.mark.parametrize(
    "query", [None, QueryBundle(""), QueryBundle("  \n"), QueryBundle("a\n\nb")]
)
@pytest.mark.parametrize("method", ["lexical", "extractive"])
def test_no_blank_and_broken_queries_work(
    nodes: Nodes, query: QueryBundle | None, method: str
) -> None:
    postprocessor = LaconicNodePostprocessor(method=method, rate=0.5)
    kept = postprocessor.postprocess_nodes(nodes, query)
    assert 0 < joined_tokens(kept) <= 0.5 * joined_tokens(nodes)
    assert "a\n\nb" not in "".join(n.text for n in kept)


def test_the_best_node_survives_a_small_budget(nodes: Nodes, query: str) -> None:
    for method in ("lexical", "extractive"):
        postprocessor = LaconicNodePostprocessor(method=method, target_tokens=30)
        kept = postprocessor.postprocess_nodes(nodes, query_str=query)
        assert any("Anna Lind signed the treaty" in n.text for n in kept), method


def test_any_model_folder_may_be_used(nodes: Nodes, query: str) -> None:
    folder = bundled_encoder()
    if folder is None:
        pytest.skip("needs the bundled encoder")
    postprocessor = LaconicNodePostprocessor(
        method="extractive", method_options={"model": str(Path(folder))}, target_tokens=30
    )
    kept = postprocessor.postprocess_nodes(nodes, query_str=query)
    assert any("Anna Lind" in n.text for n in kept)
    assert {n.metadata["compression"]["method"] for n in kept} == {"extractive"}


def test_nodes_that_are_not_text_pass_through_in_their_places(nodes: Nodes, query: str) -> None:
    image = ImageNode(text="A caption. " + LONG, image_path="a.png")
    scan = Node(
        text_resource=MediaResource(text=LONG), image_resource=MediaResource(data=b"picture")
    )
    speech = Node(audio_resource=MediaResource(data=b"sound"))
    film = Node(text_resource=MediaResource(text=LONG), video_resource=MediaResource(data=b"film"))
    empty = TextNode(text="", metadata={"topic": "nothing"})
    pointer = IndexNode(text="", index_id="elsewhere")
    others = [NodeWithScore(node=n, score=0.1) for n in (image, scan, speech, film, empty, pointer)]
    mixed = [others[0], *nodes[:4], *others[1:5], *nodes[4:], others[5]]
    before = dump(others)

    postprocessor = lexical(rate=0.5, min_tokens_per_document=1)
    kept = postprocessor.postprocess_nodes(mixed, query_str=query)
    assert [n.node_id for n in kept] == [n.node_id for n in mixed]
    passed = [n for n in kept if "compression" not in n.metadata]
    assert all(one is other for one, other in zip(passed, others, strict=True))
    assert dump(passed) == before
    alone = postprocessor.postprocess_nodes(nodes, query_str=query)
    assert dump([n for n in kept if "compression" in n.metadata]) == dump(alone)


def test_nodes_without_text_alone_are_handed_back(events: list[BaseEvent]) -> None:
    given = [NodeWithScore(node=ImageNode(image_path="a.png"), score=0.5)]
    result = lexical().postprocess_nodes(given)
    assert result == given and result is not given
    assert lexical().postprocess_nodes([]) == []
    assert not events_of(events, CompressionStartEvent)


def test_it_is_made_again_from_its_dictionary_its_json_and_its_pickle(
    nodes: Nodes, query: str
) -> None:
    made = LaconicNodePostprocessor(
        method="extractive",
        method_options={"context_weight": 1.0},
        target_tokens=40,
        min_tokens_per_document=2,
        keep=("1435 mm",),
        order="score",
        counter="o200k_base",
    )
    expected = dump(made.postprocess_nodes(nodes, query_str=query))
    copies = [
        LaconicNodePostprocessor.from_dict(made.to_dict()),
        LaconicNodePostprocessor.from_json(made.to_json()),
        pickle.loads(pickle.dumps(made)),
    ]
    assert made.to_dict()["class_name"] == "LaconicNodePostprocessor"
    for again in copies:
        assert again.to_dict() == made.to_dict()
        assert dump(again.postprocess_nodes(nodes, query_str=query)) == expected


def test_pickling_carries_the_compressor_or_fails_and_never_changes_the_original() -> None:
    good = LaconicNodePostprocessor(compressor=get_compressor("lexical", k1=2.0))
    assert pickle.loads(pickle.dumps(good)).compressor == good.compressor

    class Local(type(get_compressor("lexical"))):  # type: ignore[misc]
        """Pickle cannot find a class that is local to a function."""

    bad = LaconicNodePostprocessor(compressor=Local())
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(bad)
    assert isinstance(bad.compressor, Local)


def test_wrong_settings_fail_when_they_are_given() -> None:
    with pytest.raises(ValueError, match="no method 'nonsense'"):
        LaconicNodePostprocessor(method="nonsense")
    with pytest.raises(ValueError, match="rate"):
        lexical(rate=2.0)
    with pytest.raises(ValidationError, match="target_token"):
        lexical(target_token=300)


def test_text_of_one_character_or_none_never_raises() -> None:
    texts = ["", " ", "\n\n", ".", "?!", "a", "\N{ZERO WIDTH SPACE}", "...", LONG]
    given = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    kept = lexical(target_tokens=3).postprocess_nodes(given, query_str="lunch")
    compressed = [n for n in kept if "compression" in n.metadata]
    assert 0 < joined_tokens(compressed) <= 3


def test_nothing_that_came_in_is_changed(nodes: Nodes, query: str) -> None:
    index_node = NodeWithScore(node=IndexNode(text=LONG, index_id="x"), score=0.2)
    given = [*nodes, index_node]
    before, objects = dump(given), [n.node for n in given]
    bundle = QueryBundle(query)
    kept = lexical(rate=0.5).postprocess_nodes(given, bundle)
    for scored in kept:
        scored.node.metadata["page"] = "changed"
        scored.node.excluded_llm_metadata_keys.append("changed")
        scored.node.relationships.clear()
        scored.score = -1.0
    assert dump(given) == before
    assert [n.node for n in given] == objects
    assert (bundle.query_str, bundle.embedding) == (query, None)


# The budget.


@pytest.mark.parametrize("target", [0, 1, 7, 25, 60, 10_000])
def test_one_budget_holds_for_all_nodes_together(nodes: Nodes, query: str, target: int) -> None:
    kept = lexical(target_tokens=target).postprocess_nodes(nodes, query_str=query)
    assert joined_tokens(kept) <= target
    assert bool(kept) == bool(target)
    if target == 10_000:
        assert [n.text for n in kept] == [n.text for n in nodes]


def test_a_budget_per_document_holds_for_each_node(nodes: Nodes, query: str) -> None:
    postprocessor = lexical(target_tokens=12, per_document=True)
    kept = postprocessor.postprocess_nodes(nodes, query_str=query)
    assert len(kept) == 8
    assert all(joined_tokens([n]) <= 12 for n in kept)


def test_what_must_be_kept_is_kept_or_it_fails(nodes: Nodes, query: str) -> None:
    kept = lexical(target_tokens=25, keep=("1435 mm",)).postprocess_nodes(nodes, query_str=query)
    assert any("1435 mm" in n.text for n in kept)
    with pytest.raises(BudgetError, match="must be kept"):
        lexical(target_tokens=2, keep=("1435 mm",)).postprocess_nodes(nodes, query_str=query)


def test_metadata_says_what_was_done_and_no_model_sees_it(nodes: Nodes, query: str) -> None:
    once = lexical(rate=0.7).postprocess_nodes(nodes, query_str=query)
    again = lexical(rate=0.7).postprocess_nodes(once, query_str=query)
    before = {n.node_id: n for n in once}
    assert again
    for scored in again:
        done = scored.metadata["compression"]
        assert set(done) == {
            "method", "tokens_before", "tokens_after", "counter", "score", "spans"
        }  # fmt: skip
        assert done["tokens_before"] == joined_tokens([before[scored.node_id]])
        assert done["tokens_after"] == joined_tokens([scored])
        assert json.loads(json.dumps(done)) == done
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert "compression" not in scored.get_content(metadata_mode=mode)
        assert scored.node.excluded_llm_metadata_keys == ["page", "compression"]
        assert scored.node.excluded_embed_metadata_keys == ["page", "compression"]


# Kinds and order of nodes.


def test_an_index_node_keeps_what_it_points_to() -> None:
    lock = threading.Lock()  # stands for an index, which cannot be copied either
    node = IndexNode(text=LONG, index_id="elsewhere", obj=lock)
    [kept] = lexical(rate=0.5).postprocess_nodes([NodeWithScore(node=node)], query_str="lunch")
    assert isinstance(kept.node, IndexNode)
    assert kept.node.index_id == "elsewhere"
    assert kept.node.obj is lock
    assert kept.text == "Lunch was soup again."


class NoteNode(TextNode):
    author: str = ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: TextNode(text=LONG),
        lambda: NoteNode(text=LONG, author="Ada"),
        lambda: Document(text=LONG),
        lambda: Node(text_resource=MediaResource(text=LONG)),
        lambda: IndexNode(text=LONG, index_id="x"),
    ],
)
def test_every_kind_of_text_node_stays_what_it_is(make: Callable[[], BaseNode]) -> None:
    node = make()
    [kept] = lexical(rate=0.5).postprocess_nodes([NodeWithScore(node=node)], query_str="lunch")
    assert type(kept.node) is type(node)
    assert kept.node.node_id == node.node_id
    assert kept.node.get_content(metadata_mode=MetadataMode.NONE) == "Lunch was soup again."
    assert getattr(kept.node, "author", None) == getattr(node, "author", None)


def test_the_best_come_first_on_demand_and_others_keep_their_places(
    nodes: Nodes, query: str
) -> None:
    image = NodeWithScore(node=ImageNode(image_path="a.png"))
    given = [nodes[0], image, *nodes[1:]]
    postprocessor = lexical(rate=0.9, order="score")
    kept = postprocessor.postprocess_nodes(given, query_str=query)
    assert kept[0].node_id == "node-treaty"
    assert kept[1] is image
    relevance = [n.metadata["compression"]["score"] for n in kept if n is not image]
    assert len(relevance) > 2 and relevance == sorted(relevance, reverse=True)


# Together with others.


def test_async_gives_the_same_off_the_event_loop(nodes: Nodes, query: str) -> None:
    threads: list[int] = []

    def count(text: str) -> int:
        threads.append(threading.get_ident())
        return len(text.split())

    inner = get_compressor("lexical")

    class Watched(type(inner)):  # type: ignore[misc]
        def compress(self, *args: Any, **kwargs: Any) -> Any:
            return super().compress(*args, **{**kwargs, "counter": count})

    postprocessor = LaconicNodePostprocessor(compressor=Watched(), rate=0.5)
    expected = dump(postprocessor.postprocess_nodes(nodes, query_str=query))
    assert set(threads) == {threading.get_ident()}
    threads.clear()
    result = asyncio.run(postprocessor.apostprocess_nodes(nodes, query_str=query))
    assert dump(result) == expected
    assert threads and threading.get_ident() not in threads


@pytest.mark.parametrize("method", ["lexical", "extractive"])
def test_threads_and_tasks_give_the_serial_result(nodes: Nodes, method: str) -> None:
    postprocessor = LaconicNodePostprocessor(method=method, rate=0.4)
    queries = [f"{word} of {topic}?" for topic in ("tea", "bees", "tides") for word in ("who", "")]
    serial = [dump(postprocessor.postprocess_nodes(nodes, query_str=q)) for q in queries]
    assert len({json.dumps(result) for result in serial}) > 1
    with ThreadPoolExecutor(4) as pool:
        threaded = pool.map(lambda q: postprocessor.postprocess_nodes(nodes, query_str=q), queries)
        assert [dump(result) for result in threaded] == serial

    async def run_all() -> list[Nodes]:
        calls = [postprocessor.apostprocess_nodes(nodes, query_str=q) for q in queries]
        return await asyncio.gather(*calls)

    assert [dump(result) for result in asyncio.run(run_all())] == serial


def events_of(events: list[BaseEvent], kind: type[BaseEvent]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_events_carry_counts(nodes: Nodes, query: str, events: list[BaseEvent]) -> None:
    given = [*nodes, NodeWithScore(node=ImageNode(image_path="a.png"))]
    kept = lexical(target_tokens=25).postprocess_nodes(given, query_str=query)
    [start] = events_of(events, CompressionStartEvent)
    [end] = events_of(events, CompressionEndEvent)
    assert (start.query, start.nodes) == (query, 9)
    assert (end.query, end.nodes, end.nodes_kept) == (query, 9, len(kept))
    assert end.tokens_before == joined_tokens(nodes)
    assert end.tokens_after == joined_tokens(kept[:-1]) <= 25
    assert end.method == "lexical" and end.counter == TokenCounter.of().name
    assert end.seconds > 0
    assert start.span_id and start.span_id == end.span_id
    for event in (start, end):
        assert event.model_dump()["class_name"] == type(event).__name__
        assert "Anna Lind" not in event.model_dump_json()


def test_a_compressor_may_be_shared(nodes: Nodes, query: str) -> None:
    shared = get_compressor("lexical", context_weight=0.0)
    one, two = (LaconicNodePostprocessor(compressor=shared, rate=0.3) for _ in range(2))
    assert one.compressor is two.compressor is shared
    kept = one.postprocess_nodes(nodes, query_str=query)
    assert kept and dump(kept) == dump(two.postprocess_nodes(nodes, query_str=query))


metadata = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=20)
)
scored_nodes = st.lists(
    st.builds(
        lambda text, metadata, score, kind: NodeWithScore(
            node=kind(text=text, metadata=metadata), score=score
        ),
        st.text(max_size=80) | st.lists(st.sampled_from(LONG.split()), max_size=60).map(" ".join),
        metadata,
        st.none() | st.floats(allow_nan=False),
        st.sampled_from([TextNode, NoteNode, ImageNode, Document]),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    given_nodes=scored_nodes,
    query=st.none() | st.text(max_size=30),
    target=st.integers(0, 120),
    per_document=st.booleans(),
)
def test_any_nodes_keep_who_they_are_and_fit_the_budget(
    given_nodes: Nodes, query: str | None, target: int, per_document: bool
) -> None:
    before = dump(given_nodes)
    postprocessor = lexical(target_tokens=target, per_document=per_document)
    kept = postprocessor.postprocess_nodes(given_nodes, QueryBundle(query) if query else None)
    assert dump(given_nodes) == before

    order = [n.node_id for n in given_nodes]
    places = [order.index(n.node_id) for n in kept]
    assert places == sorted(set(places))
    for place, scored in zip(places, kept, strict=True):
        source = given_nodes[place]
        assert scored.score == source.score
        assert type(scored.node) is type(source.node)
        own = {key: value for key, value in source.metadata.items() if key != "compression"}
        assert {k: v for k, v in scored.metadata.items() if k != "compression"} == own
    compressed = [
        n for n in kept if n.get_content() and not isinstance(n.node, ImageNode)
    ]  # the others pass through and cost nothing
    for group in [[n] for n in compressed] if per_document else [compressed]:
        assert joined_tokens(group) <= target
    passed = {
        p for p, n in enumerate(given_nodes) if isinstance(n.node, ImageNode) or not n.get_content()
    }
    assert passed <= set(places)
