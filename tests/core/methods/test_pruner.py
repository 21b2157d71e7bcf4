from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

import torch

from laconic.core.guards import ATOM_KINDS, atoms
from laconic.core.method import Request
from laconic.core.methods.extractive import Extractive
from laconic.core.methods.pruner import Pruner, _InParts, features, parts, readings
from laconic.core.models.hidden_states import MATCHES, matches
from laconic.core.models.pruner import PrunerModel, Reading, pieces
from laconic.core.models.pruner_network import FILE, Network
from laconic.core.models.tagger import TaggerModel
from laconic.core.testing import CompressorConformance
from laconic.core.types import Compression, Span
from laconic.errors import InputError, ModelError

Models = Callable[[str], Path]

TEXTS = (
    "Make LLM applications pay for fewer tokens. It stands between a retriever and a model.",
    "Cats sleep all day long. Rain fell on the old town. Tests run offline.",
    "It keeps the sentences that the question needs. Install the extra.",
)
QUERY = "Which sentences does it keep?"
MIX = np.array([0.5, 0.2, 1.0, 1.0, 0.5, 0.1, 2.0, 1.0, -1.0])


@pytest.fixture(scope="session")
def adapter(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the small BERT, with random weights."""
    network = Network(str(models("bert")), joint=1, rank=4, seed=3, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.tensors.items():
        if name.endswith(".up"):
            tensor.normal_(std=0.05, generator=generator)
    network.mix = MIX
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


def test_a_score_is_what_is_weighed(method: Pruner) -> None:
    asked = request(method)
    judged = method.model.judge(readings(asked))
    found = method.score(asked)
    for values, units in zip(features(asked, judged), found.units, strict=True):
        assert units == pytest.approx(values @ MIX[:-1] + MIX[-1])
    assert found.passages == pytest.approx([j.similarity + j.relevance for j in judged])


def test_without_a_query_it_is_extractive(models: Models, method: Pruner) -> None:
    asked = request(method, None)
    expected = Extractive(str(models("bert")), device="cpu").score(asked)
    for ours, theirs in zip(method.score(asked).units, expected.units, strict=True):
        assert ours == pytest.approx(theirs)


def test_without_a_query_no_adapter_is_loaded(models: Models, tmp_path: Path) -> None:
    method = Pruner(tmp_path / "none", encoder=str(models("bert")), device="cpu")
    assert method.compress(TEXTS, budget=0.5).tokens_after > 0


def test_requests_with_and_without_a_query_keep_their_places(method: Pruner) -> None:
    asked = [request(method), request(method, None), request(method, "Do cats sleep?")]
    for many, one in zip(method.score_many(asked), map(method.score, asked), strict=True):
        for ours, theirs in zip(many.units, one.units, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)


def test_similarity_is_that_of_the_encoder(models: Models, method: Pruner) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(models("bert")), device="cpu")
    question, passage = encoder.encode([QUERY, TEXTS[0]], normalize_embeddings=True)
    (judged,) = method.model.judge([Reading(QUERY, "", TEXTS[0], [Span(0, len(TEXTS[0]))])])
    assert judged.similarity == pytest.approx(float(question @ passage), abs=2e-3)


def test_the_question_changes_what_is_said(method: Pruner) -> None:
    first, second = (
        method.model.judge(readings(request(method, query)))[0].units[:, 2]
        for query in (QUERY, "Do cats sleep?")
    )
    assert np.abs(first - second).max() > 1e-3


def test_merged_updates_say_what_attached_ones_do(models: Models, adapter: Path) -> None:
    merged = Network.load(adapter, str(models("bert")), device="cpu")
    attached = Network(str(models("bert")), joint=1, rank=4, device="cpu")
    attached.tensors = merged.tensors
    attached.attach()
    row = merged.question(TEXTS[0])
    said = []
    with torch.no_grad():
        for network in (merged, attached):
            question, passage = PrunerModel(network).know([network.question(QUERY), row])
            said.append(network.together([question], [passage]))
    assert said[0][0].shape == (1, len(row))
    for ours, theirs in zip(*said, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_token_is_told_what_matches_it(models: Models) -> None:
    network = Network(str(models("bert")), joint=1, device="cpu")
    model = PrunerModel(network)
    asked, there = model.know([network.question("tests offline"), network.question("offline it")])
    question, passage = matches([asked, asked], [there, there])
    assert question.shape == (2, len(asked.ids), MATCHES)
    alike = asked.tokens.float() @ there.tokens.float().T
    same = asked.ids[:, None] == there.ids[None, :]
    for row in question, passage:
        assert (row[:, 0, 1:] == 0).all()
        assert (row[:, -1, 1:] == 0).all()
    assert passage[1, 1:-1, 1].numpy() == pytest.approx(alike[1:-1, 1:-1].amax(0).numpy(), abs=1e-4)
    assert passage[0, 1:-1, 2].tolist() == same[1:-1, 1:-1].any(0).astype(float).tolist()
    assert question[0, :, 0].numpy() == pytest.approx(
        (asked.tokens.float() @ there.text.float()).numpy(), abs=1e-4
    )


def test_a_passage_is_judged_alike_in_any_company(models: Models, adapter: Path) -> None:
    model = PrunerModel(adapter, str(models("bert")), device="cpu", batch_tokens=4000)
    given = [Reading(QUERY, "", text, [Span(0, len(text))]) for text in (*TEXTS, "Short.", "")]
    for reading, judged in zip(given, model.judge(given), strict=True):
        (alone,) = model.judge([reading])
        assert alone.units == pytest.approx(judged.units, abs=1e-3)
        assert alone.relevance == pytest.approx(judged.relevance, abs=1e-3)


def test_what_is_remembered_is_read_once(models: Models, adapter: Path) -> None:
    model = PrunerModel(adapter, str(models("bert")), device="cpu", cache_size=10)
    given = [Reading(QUERY, "", text, [Span(0, len(text))]) for text in TEXTS]
    first = model.judge(given)
    model.load().lower = None  # type: ignore[assignment, method-assign]
    for ours, theirs in zip(model.judge(given), first, strict=True):
        assert ours.units == pytest.approx(theirs.units)


def test_windows_fit_and_end_with_a_unit(models: Models) -> None:
    network = Network(str(models("bert")), joint=1, device="cpu")
    text = "The work is free. " * 40
    units = [Span(18 * i, 18 * (i + 1)) for i in range(40)]

    def cut(units: list[Span], window: int) -> list[tuple[int, int]]:
        (tokens,), found = pieces(network, [Reading("?", "", text, units)], window)
        assert all(len(piece.row) <= window for piece in found)
        assert (found[0].start, found[-1].stop) == (0, len(tokens))
        assert [piece.stop for piece in found[:-1]] == [piece.start for piece in found[1:]]
        return [(piece.start, piece.stop) for piece in found]

    size = cut(units, 10_000)[0][1] // 40
    found = cut(units, 10 * size + 5)
    assert len(found) == 4
    assert all(a % size == 0 for a, _ in found)
    assert max(b - a for a, b in cut([Span(0, len(text))], 32)) <= 30
    empty = Reading("?", "A title", "", [])
    assert [(p.start, p.stop) for p in pieces(network, [empty], 64)[1]] == [(0, 0)]


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


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold is a probability"):
        Pruner("x", threshold=threshold)


LONG = (
    "The council met in the old school on Monday, since the hall was closed for repairs, and it "
    "set aside 40,000 euros for the bridge, which the mayor had asked for in spring. It rained."
)


def test_parts_tile_sentences_and_end_with_a_phrase(method: Pruner) -> None:
    sentences = method.segment(LONG)
    cut, owners = parts(LONG, sentences, [])
    assert owners.tolist() == [0] * (len(cut) - 1) + [1]
    assert "".join(LONG[start:end] for start, end in cut) == LONG
    assert [LONG[start:end] for start, end in cut[:2]] == [
        "The council met in the old school on Monday, ",
        "since the hall was closed for repairs, and it set aside 40,000 ",
    ]
    where = LONG.index("40,000 euros")
    held, _ = parts(LONG, sentences, [Span(where, where + len("40,000 euros"))])
    assert LONG[slice(*held[1])].endswith("set aside 40,000 euros ")
    assert parts("", (), ())[0] == []


def cut_sentences(method: Pruner, result: Compression) -> int:
    """How many sentences are kept in part only."""
    found = 0
    for passage in result.passages:
        kept = {i for a, b in passage.spans for i in range(a, b)}
        for start, end in method.segment(passage.passage.text):
            text = passage.passage.text[start:end]
            inside = set(range(start, start + len(text.rstrip())))
            found += bool(inside & kept) and not inside <= kept
    return found


@pytest.mark.parametrize("budget", [0.08, 40])
def test_where_little_may_be_kept_it_is_parts_of_sentences(
    models: Models, adapter: Path, budget: float
) -> None:
    options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
    given = [f"{LONG} That was all on day {i}." for i in range(10)]
    query = "What was set aside for the bridge?"
    method = Pruner(adapter, **options)
    low = method.compress(given, query=query, budget=budget)
    assert low.method == "pruner"
    assert 0.8 * low.limit < low.tokens_after <= low.limit
    assert cut_sentences(method, low) > 0
    assert cut_sentences(method, method.compress(given, query=query, budget=0.5)) == 0
    whole = Pruner(adapter, parts_below=0, **options)
    assert cut_sentences(method, whole.compress(given, query=query, budget=0.09)) == 0
    both = method.compress_many([(given, query), (given, None)], budget=budget)
    assert both[0].text == low.text
    assert both[1].text == method.compress(given, budget=budget).text


ATOMS = atoms(LONG, ATOM_KINDS)


def test_a_part_is_told_from_others_of_its_sentence_by_its_own_tokens(method: Pruner) -> None:
    asked = replace(request(method), passages=(LONG,), titles=("",))
    asked = replace(asked, units=(tuple(method.segment(LONG)),))
    cut = replace(asked, units=(tuple(parts(LONG, asked.units[0], ATOMS)[0]),))
    owners = parts(LONG, asked.units[0], ATOMS)[1]
    (judged,) = method.model.judge(readings(asked))
    (whole,), (found,) = method.score(asked).units, _InParts(method).score(cut).units
    shift = judged.parts - judged.units[owners, 2]
    assert found == pytest.approx(whole[owners] + MIX[6] * shift, abs=1e-4)
    assert np.ptp(shift[owners == 0]) > 1e-3


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_parts_below_is_a_rate(rate: float) -> None:
    with pytest.raises(InputError, match="parts_below is a rate"):
        Pruner("x", parts_below=rate)


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

    def test_an_adapter_of_a_tagger(self, models: Models, adapter: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"encoder": str(models("bert")), "device": "cpu"}
        Network.load(adapter, options["encoder"], device="cpu").save(tmp_path, kind="tagger")
        with pytest.raises(ModelError, match="was trained as a tagger, not as a pruner"):
            Pruner(tmp_path, **options).compress(TEXTS, query=QUERY, budget=0.5)
        with pytest.raises(ModelError, match="was trained as a pruner, not as a tagger"):
            TaggerModel(adapter, **options).tag(TEXTS)
        assert len(TaggerModel(tmp_path, **options).tag(TEXTS)) == len(TEXTS)

    def test_an_encoder_with_too_few_layers(self, models: Models) -> None:
        with pytest.raises(ModelError, match="has not 9 layers"):
            Network(str(models("bert")), joint=9, device="cpu")

    @pytest.mark.parametrize("size", [0, 9, 4000])
    def test_a_damaged_file(self, adapter: Path, models: Models, tmp_path: Path, size: int) -> None:
        (tmp_path / FILE).write_bytes((adapter / FILE).read_bytes()[:size])
        with pytest.raises(ModelError, match="is damaged or no adapter"):
            Network.load(tmp_path, str(models("bert")), device="cpu")

    def test_values_that_are_not_finite(self, models: Models, tmp_path: Path) -> None:
        network = Network(str(models("bert")), joint=1, rank=2, device="cpu")
        network.tensors["token.bias"].fill_(float("nan"))
        network.save(tmp_path)
        with pytest.raises(ModelError, match="not finite"):
            Network.load(tmp_path, str(models("bert")), device="cpu")

    def test_a_window_that_is_too_small(self) -> None:
        with pytest.raises(InputError, match="at least 64"):
            PrunerModel("x", window=50)
