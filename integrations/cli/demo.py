"""`laconic demo`: a retriever, a compressor, and what they hand to a model, on real text."""

from __future__ import annotations

import argparse
import textwrap

from ...core import TokenCounter
from ...core.errors import MissingExtraError

__all__ = ["run"]

QUESTIONS: tuple[str, ...] = (
    "In which order are the operands of an assignment evaluated?",
    "What happens if a finally clause executes a return statement?",
    "When is a generator's close() method called and what does it raise?",
    "How does Python decide whether a name is local to a function?",
)

_RETRIEVED = 8
_WIDTH = 96


def run(options: argparse.Namespace) -> None:
    """Ask each question through both frameworks and print what is kept and what it costs."""
    try:
        import faiss  # noqa: F401
        import langchain_community.vectorstores  # noqa: F401
        import llama_index.vector_stores.faiss  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the demo", "all") from error
    topics = language_reference()
    counter = TokenCounter.of()
    total = sum(counter.count_many(topics.values()))
    print(f"Corpus: the Python language reference, {len(topics)} topics, {total:,} tokens")
    questions = [" ".join(options.question)] if options.question else list(QUESTIONS)
    print("\nLangChain: ContextualCompressionRetriever over a FAISS index")
    _show_langchain(topics, questions, options)
    print("\nLlamaIndex: RetrieverQueryEngine over a FAISS index")
    _show_llama_index(topics, questions, options)


def language_reference() -> dict[str, str]:
    """The text of each topic of the Python language reference, by the topic's name."""
    from pydoc_data.topics import topics

    return dict(topics)


def _show_langchain(
    topics: dict[str, str], questions: list[str], options: argparse.Namespace
) -> None:
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_community.vectorstores import FAISS
    from langchain_core.documents import Document
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    from ..langchain import LaconicDocumentCompressor, LaconicEmbeddings

    splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=0)
    documents = splitter.split_documents(
        [Document(text, metadata={"title": name}) for name, text in topics.items()]
    )
    index = FAISS.from_documents(documents, LaconicEmbeddings())
    base = index.as_retriever(search_kwargs={"k": _RETRIEVED})
    compressor = LaconicDocumentCompressor(method=options.method, rate=options.rate)
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=base)
    counter = TokenCounter.of()
    for question in questions:
        found, kept = base.invoke(question), retriever.invoke(question)
        before = counter.count("\n\n".join(d.page_content for d in found))
        after = counter.count("\n\n".join(d.page_content for d in kept))
        _show(question, before, after, len(found), len(kept), options.price)
        for document in kept:
            print(_quoted(document.metadata["title"], document.page_content))


def _show_llama_index(
    topics: dict[str, str], questions: list[str], options: argparse.Namespace
) -> None:
    import faiss
    from llama_index.core import Document, StorageContext, VectorStoreIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.vector_stores.faiss import FaissVectorStore

    from ..llama_index import LaconicEmbedding, LaconicNodePostprocessor

    embedding = LaconicEmbedding()
    dimension = len(embedding.get_text_embedding("dimension"))
    store = FaissVectorStore(faiss_index=faiss.IndexFlatIP(dimension))
    index = VectorStoreIndex.from_documents(
        [Document(text=text, metadata={"title": name}) for name, text in topics.items()],
        storage_context=StorageContext.from_defaults(vector_store=store),
        transformations=[SentenceSplitter(chunk_size=256, chunk_overlap=0)],
        embed_model=embedding,
    )
    postprocessor = LaconicNodePostprocessor(method=options.method, rate=options.rate)
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=_RETRIEVED, node_postprocessors=[postprocessor]
    )
    retriever = index.as_retriever(similarity_top_k=_RETRIEVED)
    counter = TokenCounter.of()
    for question in questions:
        found, kept = retriever.retrieve(question), engine.query(question).source_nodes
        before = counter.count("\n\n".join(n.text for n in found))
        after = counter.count("\n\n".join(n.text for n in kept))
        _show(question, before, after, len(found), len(kept), options.price)


def _show(question: str, before: int, after: int, found: int, kept: int, price: float) -> None:
    """One line of what a question would cost; prices are for a thousand such questions."""
    print(f"\n  {question}")
    print(
        f"    {before:,} -> {after:,} tokens ({after / max(1, before):.0%}), {kept} of {found} "
        f"chunks, ${before * price / 1000:,.2f} -> ${after * price / 1000:,.2f} a thousand times"
    )


def _quoted(title: str, text: str) -> str:
    return textwrap.indent(textwrap.fill(f"[{title}] {' '.join(text.split())}", _WIDTH), "      | ")
