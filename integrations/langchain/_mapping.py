"""Documents to passages and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document

from ...core import Compression, Passage
from ...core.errors import InputError
from .._settings import CompressionSettings, facts

__all__ = ["checked", "compress"]


def checked(documents: Any) -> list[Document]:
    """List the documents.

    Raises
    ------
    InputError
        They are not several, or one of them is no `Document`.
    """
    if isinstance(documents, (str, Document)) or not isinstance(documents, Iterable):
        raise InputError(
            f"documents is {type(documents).__name__}, expected a list of langchain_core "
            f"Documents; pass a single one as [document]"
        )
    listed = list(documents)
    for place, document in enumerate(listed):
        if not isinstance(document, Document):
            raise InputError(
                f"documents[{place}] is {type(document).__name__}, expected a langchain_core "
                f"Document; wrap a text as Document(page_content=text)"
            )
    return listed


def compress(
    settings: CompressionSettings, documents: Sequence[Document], query: str | None
) -> tuple[list[Document], Compression]:
    """Compress documents as the settings say.

    Returns
    -------
    shortened : list of Document
        A copy of each document of which something is left; its id, its class and its metadata
        are kept, and ``metadata["compression"]`` says what was done.
    compression : Compression
        The result they were made from.
    """
    passages = [Passage(d.page_content, d.id, d.metadata) for d in documents]
    compression = settings.compress(passages, query)
    shortened = []
    for passage in compression.passages:
        document = documents[passage.index]
        metadata = {**document.metadata, "compression": facts(compression, passage)}
        update = {"page_content": passage.text, "metadata": metadata}
        shortened.append(document.model_copy(update=update))
    return shortened, compression
