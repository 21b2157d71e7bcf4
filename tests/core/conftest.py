"""Small models with random weights and trained tokenizers, built once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from laconic.core.evaluation.random_models import build_model

TEXTS = [
    Path(__file__).parents[2].joinpath("LICENSE").read_text(encoding="utf-8"),
    "Make LLM applications pay for fewer tokens: laconic stands between a retriever and a model, "
    "and keeps the sentences that the question needs. Install the extra. Tests run offline.\n" * 3,
    "我喜欢猫。你呢？她去了北京。",
    "ذهبت إلى المدرسة",
    "สวัสดีครับ",
    "😀 12,345.67 e\u0301te\u0301",
]

Models = Callable[[str], Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The folder of a small model: gpt2, llama, qwen, bert, xlm-roberta or modernbert."""
    built: dict[str, Path] = {}
    # The reference implementation tells how words are cut by the name of the folder.
    names = {"bert": "bert-base-multilingual-cased", "xlm-roberta": "xlm-roberta-large"}

    def folder(kind: str) -> Path:
        if kind not in built:
            made = tmp_path_factory.mktemp("models") / names.get(kind, kind)
            built[kind] = build_model(kind, made, TEXTS)
        return built[kind]

    return folder
