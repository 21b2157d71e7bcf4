"""Every registered method, every baseline and a pipeline keep every promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from laconic.core import METHODS, Pipeline, get_compressor
from laconic.core.compressor import Compressor
from laconic.core.evaluation.baselines import BASELINES
from laconic.core.testing import CompressorConformance

MODELS = {
    "selective_context": "gpt2",
    "llmlingua": "llama",
    "longllmlingua": "gpt2",
    "llmlingua2": "xlm-roberta",
}
"""Methods that need a model by name: the kind of a small one."""

PIPELINES = {"lexical+truncate": lambda: Pipeline(get_compressor("lexical"), _first("truncate"))}


def _first(baseline: str) -> Compressor:
    return BASELINES[baseline]()[0]


@pytest.fixture(params=[*METHODS, *BASELINES, *PIPELINES])
def compressor(request: pytest.FixtureRequest, models: Callable[[str], Path]) -> Compressor:
    if request.param in MODELS:
        return get_compressor(request.param, model=str(models(MODELS[request.param])))
    if request.param in METHODS:
        return get_compressor(request.param)
    return PIPELINES[request.param]() if request.param in PIPELINES else _first(request.param)


class TestEveryCompressor(CompressorConformance):
    @pytest.fixture
    def compressor(self, compressor: Compressor) -> Compressor:
        return compressor
