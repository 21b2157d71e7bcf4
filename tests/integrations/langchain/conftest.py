"""Documents to compress, and a real tracer to watch it with."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

QUERY = "How tall is the Eiffel Tower?"

TEXTS = {
    "tower": (
        "The Eiffel Tower stands on the Champ de Mars in Paris. It is 330 metres tall. "
        "It was the tallest structure in the world for 41 years. Gustave Eiffel's company "
        "built it from 1887 to 1889 as the entrance to a world's fair."
    ),
    "bridge": (
        "The Forth Bridge crosses the Firth of Forth in Scotland. It opened in 1890. "
        "It is 2,467 metres long. More than 50,000 tonnes of steel went into it."
    ),
    "bread": (
        "Sourdough bread rises with wild yeast. Mix flour and water and wait for a week.\n\n"
        "Feed the starter each day. Bake it in a very hot oven with some steam."
    ),
    "height": (
        "Heights of well known buildings differ by source.\n\n"
        "The Eiffel Tower is 330 metres tall with its antennas, and the Burj Khalifa 828 metres."
    ),
}


@pytest.fixture
def query() -> str:
    return QUERY


@pytest.fixture
def documents() -> list[Document]:
    """New documents for each test, each with an id and a reranker's score."""
    return [
        Document(
            text,
            id=f"id-{name}",
            metadata={"source": f"{name}.txt", "relevance_score": 0.5 + i, "tags": [name]},
        )
        for i, (name, text) in enumerate(TEXTS.items())
    ]


@pytest.fixture
def runs() -> RunCollectorCallbackHandler:
    """LangChain's own collector of finished root runs, each with its child runs."""
    return RunCollectorCallbackHandler()
