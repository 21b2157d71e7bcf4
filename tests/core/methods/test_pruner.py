from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

import torch

from laconic.core.method import Request
from laconic.core.methods.extractive import Extractive
from laconic.core.methods.pruner import Pruner, PrunerModel, Reading
from laconic.core.models.alignment import tokenize
from laconic.core.models.pruner_model import FILE, Network, best_mix, windows
from laconic.core.testing import CompressorConformance
from laconic.core.types import Span
from laconic.errors import InputError, ModelError

Models = Callable[[str], Path]

TEXTS = (
    "Make LLM applications pay for fewer tokens. It stands between a retriever and a model.",
    "Cats sleep all day long. Rain fell on the old town. Tests run offline.",
    "It keeps the sentences that the question needs. Install the extra.",
)
QUERY = "Which sentences does it keep?"


@pytest.fixture(scope="session")
def adapter(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the small BERT, with random weights."""
    network = Network(str(models("bert")), rank=4, seed=3, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.tensors.items():
        if name.endswith(".up"):
            tensor.normal_(std=0.05, generator=generator)
    network.mix = np.array([0.5, 2.0, 1.0, -1.0])
    folder = tmp_path_factory.mktemp("pruner")
    network.save(folder, {"about": "a test"})
    return folder


@pytest.fixture
def method(models: Models, adapter: Path) -> Pruner:
    return Pruner(adapter, encoder=str(models("bert")), device="cpu")


class TestConformance(CompressorConformance):
    @pytest.fixture
    def compressor(self, method: Pruner) -> Pruner:
        return method


def request(method: Pruner, query: str | None = QUERY) -> Request:
    units = tuple(tuple(method.segment(text)) for text in TEXTS)
    forced = tuple(np.zeros(len(spans), bool) for spans in units)
    return Request(TEXTS, units, ("", "A title", ""), query, forced)


def test_a_score_weighs_the_reader_with_similarity(method: Pruner) -> None:
    asked = request(method)
    (features,) = method.features([asked])
    scores = method.score(asked)
    for values, units in zip(features, scores.units, strict=True):
        assert units == pytest.approx(values @ [0.5, 2.0, 1.0] - 1.0)
    similar = method.extractive.score(asked)
    assert features[1][:, 0] == pytest.approx(similar.units[1])


def test_without_a_query_it_is_extractive(models: Models, method: Pruner) -> None:
    asked = request(method, None)
    expected = Extractive(str(models("bert")), device="cpu").score(asked)
    for ours, theirs in zip(method.score(asked).units, expected.units, strict=True):
        assert ours == pytest.approx(theirs)


def test_the_question_changes_what_is_said(method: Pruner) -> None:
    first = method.features([request(method)])[0][1][:, 1]
    second = method.features([request(method, "Do cats sleep?")])[0][1][:, 1]
    assert np.abs(first - second).max() > 1e-3


def test_merged_updates_say_what_attached_ones_do(models: Models, adapter: Path) -> None:
    merged = Network.load(adapter, str(models("bert")), device="cpu")
    attached = Network(str(models("bert")), rank=4, device="cpu")
    attached.tensors = merged.tensors
    attached.attach()
    frame = merged.frame(QUERY, "Title")
    (tokens,) = tokenize(merged.tokenizer, [TEXTS[0]])
    with torch.no_grad():
        (ours,), relevance = merged.forward([(frame, tokens.ids)])
        (theirs,), other = attached.forward([(frame, tokens.ids)])
    assert len(ours) == len(tokens)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(relevance, other, atol=1e-4)


def test_a_passage_is_judged_alike_in_any_company(models: Models, adapter: Path) -> None:
    model = PrunerModel(adapter, str(models("bert")), device="cpu", batch_tokens=4000)
    readings = [Reading(QUERY, "", text, [Span(0, len(text))]) for text in (*TEXTS, "Short.")]
    together = model.judge(readings)
    for reading, judged in zip(readings, together, strict=True):
        (alone,) = model.judge([reading])
        assert alone.units == pytest.approx(judged.units, abs=1e-4)
        assert alone.relevance == pytest.approx(judged.relevance, abs=1e-4)


def test_one_pass_for_each_short_passage(method: Pruner) -> None:
    rows: list[int] = []
    forward = method.model.load().forward

    def counted(given: Any) -> Any:
        rows.append(len(given))
        return forward(given)

    method.model.load().forward = counted  # type: ignore[method-assign]
    method.features([request(method)])
    assert sum(rows) == len(TEXTS)


def test_windows_fit_and_end_with_a_unit(models: Models) -> None:
    network = Network(str(models("bert")), device="cpu")
    text = "The work is free. " * 40
    units = [Span(18 * i, 18 * (i + 1)) for i in range(40)]
    (tokens,) = tokenize(network.tokenizer, [text])
    size = len(tokens) // 40
    found = windows(units, tokens, 10 * size + 3)
    assert [b for _, b in found[:-1]] == [a for a, _ in found[1:]]
    assert (found[0][0], found[-1][1]) == (0, len(tokens))
    assert all(0 < b - a <= 10 * size + 3 for a, b in found)
    assert all(a % size == 0 for a, _ in found)
    assert len(found) == 4
    assert max(b - a for a, b in windows([Span(0, len(text))], tokens, 30)) <= 30
    assert windows([], tokenize(network.tokenizer, [""])[0], 30) == [(0, 0)]


FACTS = ["Cats sleep all day. Rain fell.", "It keeps sentences. Tests run.", "Tom is a cat."]


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_threshold_leaves_out_what_is_unlikely(models: Models, adapter: Path, kept: int) -> None:
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
    method = Pruner(adapter, **options)
    units = tuple(tuple(method.segment(text)) for text in FACTS)
    scores = np.concatenate(method.score(Request(tuple(FACTS), units, ("",) * 3, QUERY)).units)
    likely = np.sort(1 / (1 + np.exp(-scores)))
    careful = Pruner(adapter, threshold=float(likely[-kept]) - 1e-9, **options)
    result = careful.compress(FACTS, query=QUERY, budget=0.99)
    whole = [FACTS[i][a:b].strip() for i, spans in enumerate(units) for a, b in spans]
    assert sum(text in result.text for text in whole) == kept
    assert sorted(scores)[-kept:] == [
        score for score, text in sorted(zip(scores, whole, strict=True)) if text in result.text
    ]


def test_threshold_leaves_out_long_sentences(models: Models, adapter: Path) -> None:
    method = Pruner(adapter, encoder=str(models("bert")), device="cpu", threshold=0.999999)
    assert len(method.compress(TEXTS, query=QUERY, budget=0.99).passages) == 1


def test_the_likeliest_stays_whatever_the_threshold(models: Models, adapter: Path) -> None:
    method = Pruner(adapter, encoder=str(models("bert")), device="cpu", threshold=0.999999)
    assert len(method.compress(FACTS, query=QUERY, budget=0.99).passages) == 1


def test_the_mix_is_that_which_tells_best() -> None:
    generator = np.random.default_rng(0)
    features = [generator.normal(size=(50, 3)) for _ in range(20)]
    wanted = [values @ [0.0, 2.0, 1.0] > 2.5 for values in features]
    mix = best_mix(features, wanted)
    assert abs(mix[0]) < 0.2 * mix[1]
    assert mix[1] / mix[2] == pytest.approx(2, rel=0.2)
    assert mix[3] < 0


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold is a probability"):
        Pruner("x", threshold=threshold)


def test_threads_and_copies_give_the_same(method: Pruner) -> None:
    queries = [f"{QUERY} {i}" for i in range(6)]
    expected = [method.compress(TEXTS, query=q, budget=0.4).text for q in queries]
    copied = pickle.loads(pickle.dumps(method))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda q: copied.compress(TEXTS, query=q, budget=0.4).text, queries)
        assert list(found) == expected


class TestBadModels:
    def test_no_adapter(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="laconic train pruner"):
            Pruner(tmp_path).compress(TEXTS, query=QUERY, budget=0.5)

    def test_another_encoder(self, adapter: Path, models: Models, tmp_path: Path) -> None:
        import transformers as hf

        other = tmp_path / "other"
        model: Any = hf.AutoModelForTokenClassification.from_pretrained(models("bert"))
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.add_(0.1)
        model.save_pretrained(other)
        hf.AutoTokenizer.from_pretrained(models("bert")).save_pretrained(other)
        with pytest.raises(ModelError, match="trained for another encoder"):
            Network.load(adapter, str(other), device="cpu")

    def test_an_encoder_without_token_types(self, adapter: Path, models: Models) -> None:
        with pytest.raises(ModelError, match="no token types"):
            Network.load(adapter, str(models("xlm-roberta")), device="cpu")

    @pytest.mark.parametrize("size", [0, 9, 4000])
    def test_a_damaged_file(self, adapter: Path, models: Models, tmp_path: Path, size: int) -> None:
        (tmp_path / FILE).write_bytes((adapter / FILE).read_bytes()[:size])
        with pytest.raises(ModelError, match="is damaged or no pruner"):
            Network.load(tmp_path, str(models("bert")), device="cpu")

    def test_values_that_are_not_finite(self, models: Models, tmp_path: Path) -> None:
        network = Network(str(models("bert")), rank=2, device="cpu")
        network.tensors["token.bias"].fill_(float("nan"))
        network.save(tmp_path)
        with pytest.raises(ModelError, match="not finite"):
            Network.load(tmp_path, str(models("bert")), device="cpu")

    def test_a_window_that_is_too_small(self) -> None:
        with pytest.raises(InputError, match="at least 128"):
            PrunerModel("x", window=100)
