from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

try:
    has_llama_index = find_spec("llama_index.core") is not None
except ModuleNotFoundError:
    has_llama_index = False
if not has_llama_index:
    collect_ignore_glob = ["test_llama_index_[!m]*.py", "test_llama_index_m[!i]*.py"]

TOPICS = {
    "bread": "Sourdough needs a starter of flour and water. Bakers feed it every day.",
    "treaty": "Anna Lind signed the treaty of Oslo in 1994. The ink was blue.",
    "tides": "Tides follow the moon. Spring tides come at new and full moon.",
    "chess": "A bishop moves along diagonals. It never leaves its colour.",
    "tea": "Green tea is steamed in Japan. Black tea is left to oxidise.",
    "bees": "Worker bees live for six weeks in summer. The queen lives for years.",
    "glass": "Glass is made of sand and soda. It is blown while it glows.",
    "rail": "The gauge of most railways is 1435 mm. Spain built wider tracks.",
}
"""Eight texts, one of which answers `QUERY`."""

QUERY = "Who signed the treaty?"


@pytest.fixture
def query() -> str:
    return QUERY


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    from llama_index.core.schema import (
        NodeRelationship,
        NodeWithScore,
        ObjectType,
        RelatedNodeInfo,
        TextNode,
    )

    return [
        NodeWithScore(
            score=0.9 - place / 10,
            node=TextNode(
                id_=f"node-{topic}",
                text=f"{text}\n\nThe end of the part about {topic} is here.",
                metadata={"topic": topic, "page": place},
                excluded_embed_metadata_keys=["page"],
                excluded_llm_metadata_keys=["page"],
                start_char_idx=100 * place,
                end_char_idx=100 * place + 99,
                relationships={
                    NodeRelationship.SOURCE: RelatedNodeInfo(
                        node_id="document", node_type=ObjectType.DOCUMENT
                    ),
                    NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id=f"before-{topic}"),
                },
            ),
        )
        for place, (topic, text) in enumerate(TOPICS.items())
    ]


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A small Llama with random weights, and a tokenizer with a chat template."""
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from laconic.core.evaluation.random_models import build_model

    text = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("models") / "llama"
    size: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 600}
    build_model("llama", folder, [text], **size, positions=4096)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


@pytest.fixture(scope="session")
def ccm(local_model: tuple[Any, Any]) -> Any:
    """That model with an adapter of random values."""
    import torch

    from laconic.memory.latent.ccm import CCM
    from laconic.memory.latent.conditional_lora import ConditionalLora
    from laconic.memory.latent.plan import Spec

    adapter = ConditionalLora(local_model[0], 4, rank=4).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.1, generator=generator)
        return CCM(local_model[0], Spec("merge", 4), adapter)
