from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from laconic.core.models.encoder import Encoder
from laconic.integrations.llama_index import LaconicEmbedding, LaconicNodePostprocessor

TEXTS = ["Tides follow the moon.", "Glass is made of sand.", "", "潮汐", "Tides follow the moon."]


class Letters:
    """An encoder that counts letters, and remembers who called it with how many texts."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def encode(self, texts: Sequence[str], **options: object) -> np.ndarray:
        self.calls.append((threading.get_ident(), len(texts)))
        return np.array([[1.0, t.count("a"), t.count("e"), len(t)] for t in texts])


def test_vectors_are_the_encoders() -> None:
    pytest.importorskip("sentence_transformers")
    embedding = LaconicEmbedding()
    expected = Encoder.shared().encode(TEXTS).tolist()
    assert embedding.get_text_embedding_batch(TEXTS) == expected
    assert embedding.get_text_embedding(TEXTS[1]) == expected[1]
    assert embedding.get_query_embedding(TEXTS[1]) == expected[1]
    assert embedding.get_text_embedding_batch([]) == []
    assert expected[0] != expected[1]
    assert embedding.model_name == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_batch_is_one_call_and_each_text_is_encoded_once() -> None:
    model = Letters()
    embedding = LaconicEmbedding(Encoder(model), embed_batch_size=64)
    embedding.get_text_embedding_batch(TEXTS)
    embedding([TextNode(text=text) for text in TEXTS])
    assert [count for _, count in model.calls] == [len(set(TEXTS))]


def test_async_gives_the_same_off_the_event_loop() -> None:
    model = Letters()
    encoder = Encoder(model, cache_size=0)
    embedding = LaconicEmbedding(encoder, embed_batch_size=64)
    batch = asyncio.run(embedding.aget_text_embedding_batch(TEXTS))
    text = asyncio.run(embedding.aget_text_embedding("sand"))
    query = asyncio.run(embedding.aget_query_embedding("sand"))
    assert len(model.calls) == 3
    assert threading.get_ident() not in {thread for thread, _ in model.calls}
    assert batch == encoder.encode(TEXTS).tolist()
    assert text == query == encoder.encode(["sand"])[0].tolist()


def test_an_index_and_the_postprocessor_share_one_model_and_its_cache() -> None:
    model = Letters()
    encoder = Encoder(model)
    text = "Sand becomes glass."
    LaconicEmbedding(encoder).get_text_embedding_batch([text, "sand?"])
    postprocessor = LaconicNodePostprocessor(
        method="extractive", method_options={"model": encoder}, order="score"
    )
    [kept] = postprocessor.postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text))], query_str="sand?"
    )
    assert kept.metadata["compression"]["score"] is not None
    assert [count for _, count in model.calls] == [2]


def test_a_pickle_has_the_same_encoder_or_there_is_none() -> None:
    again = pickle.loads(pickle.dumps(LaconicEmbedding(embed_batch_size=7)))
    assert again.to_dict() == LaconicEmbedding(embed_batch_size=7).to_dict()
    assert again.embed_batch_size == 7
    # An encoder that pickle cannot carry must not be replaced by the shared one in silence.
    other = LaconicEmbedding(Encoder(Letters()))
    try:
        copied = pickle.loads(pickle.dumps(other))
    except TypeError as error:
        assert "pickle" in str(error)
    else:
        assert copied.get_text_embedding("sea") == other.get_text_embedding("sea")
