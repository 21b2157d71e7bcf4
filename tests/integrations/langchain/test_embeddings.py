from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from laconic.core.methods.extractive import Extractive
from laconic.core.models.encoder import Encoder
from laconic.errors import ModelError
from laconic.integrations.langchain import LaconicDocumentCompressor, LaconicEmbeddings


class Counting:
    """A model that embeds a text by its letters, and counts how often it is given one."""

    def __init__(self) -> None:
        self.given: Counter[str] = Counter()

    def encode(self, texts, **kwargs):
        self.given.update(texts)
        return np.array([[1 + text.count(letter) for letter in "aeiourst"] for text in texts])


def test_vectors_are_the_encoders() -> None:
    encoder = Encoder(Counting())
    embeddings = LaconicEmbeddings(encoder)
    texts = ["one text", "another text", "one text"]
    vectors = embeddings.embed_documents(texts)
    np.testing.assert_array_equal(np.float32(vectors), encoder.encode(texts))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert embeddings.embed_query("another text") == vectors[1]
    assert all(type(x) is float for x in vectors[0])
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents(texts)) == vectors
    assert asyncio.run(embeddings.aembed_query("one text")) == vectors[0]


def test_the_default_is_the_shared_encoder() -> None:
    assert LaconicEmbeddings().encoder is Encoder.shared()


def test_the_bundled_encoder_knows_what_is_alike() -> None:
    pytest.importorskip("sentence_transformers")
    embeddings = LaconicEmbeddings()
    vectors = np.array(embeddings.embed_documents(["A dog barks.", "The bank raised rates."]))
    alike = vectors @ embeddings.embed_query("What sound does a puppy make?")
    assert alike[0] > alike[1] + 0.1


def test_a_name_is_no_encoder() -> None:
    with pytest.raises(ModelError, match=r"pass Encoder\('BAAI/bge-small-en-v1.5'\)"):
        LaconicEmbeddings("BAAI/bge-small-en-v1.5")


def test_an_index_and_a_compressor_embed_a_text_once(documents, query) -> None:
    pytest.importorskip("faiss")
    from langchain_community.vectorstores import FAISS

    model = Counting()
    encoder = Encoder(model)
    store = FAISS.from_documents(documents, LaconicEmbeddings(encoder))
    assert set(model.given) == {d.page_content for d in documents}
    found = store.similarity_search(query, k=4)
    compressor = LaconicDocumentCompressor(compressor=Extractive(encoder), rate=0.5)
    assert compressor.compress_documents(found, query)
    assert len(model.given) > len(documents) + 1, "sentences are embedded too"
    assert set(model.given.values()) == {1}
