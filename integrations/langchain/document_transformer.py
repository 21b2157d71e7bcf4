"""Documents, shortened when no query is known yet: at ingestion, or for a summary."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import BaseDocumentTransformer, Document

from ...core.errors import InputError
from .._settings import CompressionSettings
from ._mapping import checked, compress

__all__ = ["LaconicDocumentTransformer"]


class LaconicDocumentTransformer(CompressionSettings, BaseDocumentTransformer):
    """Shorten documents with any laconic method that can do without a query.

    The twin of `LaconicDocumentCompressor`, with the same settings and the same promises.

    Parameters
    ----------
    **settings
        The fields of `CompressionSettings`.
    """

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Shorten documents.

        Parameters
        ----------
        documents
            The documents. They are not changed.
        **kwargs
            None are known. LangChain's signature asks for them, and one that is given is an
            error rather than overlooked.

        Returns
        -------
        list of Document
            The documents of which something is left, in the order that `order` says.

        Raises
        ------
        InputError
            `documents` holds something that is no `Document`, or there are `kwargs`.
        BudgetError
            What must be kept does not fit in the budget.
        QueryRequiredError
            The method needs a query.
        """
        if kwargs:
            raise InputError(
                f"transform_documents takes documents only, got {', '.join(kwargs)} too; "
                f"settings go to the constructor, and a query to LaconicDocumentCompressor"
            )
        return compress(self, checked(documents), None)[0]

    async def atransform_documents(
        self, documents: Sequence[Document], **kwargs: Any
    ) -> list[Document]:
        """`transform_documents` in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.transform_documents, documents, **kwargs)
