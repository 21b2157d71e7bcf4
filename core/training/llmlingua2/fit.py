"""Training the token classifier that `LLMLingua2` judges with.

Source: Pan et al., "LLMLingua-2", Findings of ACL 2024, section 4. Unlike the reference
(microsoft/LLMLingua, experiments/llmlingua2) it trains on the raw text that the model will read,
padding and special tokens have no part in the loss, both labels weigh the same in it, and no
document is on both sides of the split.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import units
from ...errors import InputError, MissingExtraError, ModelError
from ...method import Flags
from ...models.alignment import first_units, mean_by_unit, tokenize
from ...models.loading import load_sentence_transformer, load_transformer
from ...models.token_classifier import TokenClassifier
from .annotate import Labelled

__all__ = ["Fit", "Score", "fit", "split"]

_IGNORED = -100
"""The label of a token that is not learnt, as PyTorch's cross-entropy has it."""

_WINDOW = 512
"""Tokens that are read at once, special ones included (section 4)."""

_LABELS = {0: "drop", 1: "keep"}


@dataclass(frozen=True, slots=True)
class Score:
    """How well it is told which words to keep.

    Attributes
    ----------
    precision
        The part of the words it keeps that are to be kept.
    recall
        The part of the words to be kept that it keeps.
    """

    precision: float
    recall: float

    @classmethod
    def of(cls, kept: Flags, wanted: Flags) -> Score:
        """Compare flags of the same shape; a part of nothing is 0."""
        both = float((kept & wanted).sum())
        return cls(both / max(1, kept.sum()), both / max(1, wanted.sum()))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    def __str__(self) -> str:
        return f"precision {self.precision:.3f}, recall {self.recall:.3f}, F1 {self.f1:.3f}"


@dataclass(frozen=True, slots=True)
class Fit:
    """What training came to.

    Attributes
    ----------
    trained, chosen, measured
        Texts that were trained on, that chose the best epoch, and that only measured.
    before, after
        The model on the last of these, words and marks with a probability of at least 0.5 kept.
    everything
        The same if everything is kept.
    """

    trained: int
    chosen: int
    measured: int
    before: Score
    after: Score
    everything: Score

    def __str__(self) -> str:
        return (
            f"{self.trained:,} texts trained on, {self.chosen:,} to choose the epoch by, "
            f"{self.measured:,} to measure on\n"
            f"before: {self.before}\nafter: {self.after}\nkeeping everything: {self.everything}"
        )


def split(
    labelled: Sequence[Labelled], held_out: float = 0.2, seed: int = 0
) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    """Part texts by their documents: to train on, to choose the epoch by, and to measure on.

    Parameters
    ----------
    labelled
        The texts, in any order, which makes no difference.
    held_out
        The part of the documents, at least two, that are not trained on: half of them choose and
        half measure.
    seed
        Of the choice.

    Raises
    ------
    InputError
        `held_out` is no part, or leaves no document to train on.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out is above 0 and below 1, got {held_out}")
    names = sorted({one.document for one in labelled})
    held = max(2, round(held_out * len(names)))
    if len(names) <= held:
        raise InputError(
            f"training needs at least 3 documents, of which 2 are held out, and some left; got "
            f"{len(names)}, of which {held} are held out"
        )
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    part = {names[i]: (place < held) + (place < held // 2) for place, i in enumerate(order)}
    parts: tuple[list[Labelled], list[Labelled], list[Labelled]] = ([], [], [])
    for one in sorted(labelled, key=lambda one: one.id):  # threads wrote them in any order
        parts[part[one.document]].append(one)
    return parts


def fit(
    labelled: Sequence[Labelled],
    out: str | Path,
    *,
    model: str | Path | None = None,
    epochs: int = 10,
    learning_rate: float = 5e-5,
    batch_size: int = 10,
    held_out: float = 0.2,
    seed: int = 0,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Fit:
    """Train a token classifier on labelled texts, and save its best epoch.

    A token is to be kept if it ends in a word that is. Texts are read in windows that end with
    sentences, of 512 tokens at the most. The best epoch is the one whose F1 of the tokens to be
    kept is highest on documents that choose it. A call that was stopped goes on behind its last
    whole epoch, which lies in `out`, when it is made again.

    Parameters
    ----------
    labelled
        What to learn from; see `annotate`.
    out
        The folder to save the model in, ready to be the ``model`` of `LLMLingua2`.
    model
        A hub id or a folder: a token classifier, such as a published LLMLingua-2, or an encoder,
        which gets a new head. None for all-MiniLM-L6-v2, bundled if installed.
    epochs
        Times that each text is read, as in the paper by default.
    learning_rate
        The highest; it falls linearly to 0. The paper's for XLM-RoBERTa (large) is 1e-5.
    batch_size
        Windows for each step, as in the paper by default.
    held_out
        The part of the documents that are never trained on; see `split`.
    seed
        Of the split, the order of the windows and a new head.
    device, trust_remote_code
        As `TokenClassifier` takes them.

    Raises
    ------
    InputError
        There are too few documents, their words are all kept or all dropped, or `out` holds a
        model already.
    MissingExtraError
        transformers or accelerate is not installed.
    ModelError
        The model cannot be loaded, or is none that can be trained for this.
    """
    out = Path(out)
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a model already; take another folder")
    parts = split(labelled, held_out, seed)
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("training", "training") from error
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("training", "training")
    transformers.set_seed(seed)
    classifier, tokenizer = _load(model, device, trust_remote_code)
    before = _score(classifier, tokenizer, parts[2])
    learnt, choosing, _ = ([row for one in part for row in _rows(tokenizer, one)] for part in parts)
    kept = np.concatenate([row["labels"] for row in learnt])
    kept = kept[kept != _IGNORED]
    if kept.all() or not kept.any():
        raise InputError("all words to learn from are kept, or none is; there is nothing to learn")
    checkpoints = out / "checkpoints"
    trainer = transformers.Trainer(
        model=classifier,
        args=transformers.TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="f1",
            logging_strategy="epoch",
            seed=seed,
            report_to="none",
            use_cpu=classifier.device.type == "cpu",
            remove_unused_columns=False,
        ),
        train_dataset=learnt,
        eval_dataset=choosing,
        data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
        compute_loss_func=_balanced_loss(float(kept.mean())),
        compute_metrics=_token_f1,
    )
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")))
    classifier.eval()
    after = _score(classifier, tokenizer, parts[2])
    classifier.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(checkpoints)
    wanted = np.concatenate([np.array(one.kept, bool) for one in parts[2]])
    everything = Score.of(np.ones_like(wanted), wanted)
    return Fit(len(parts[0]), len(parts[1]), len(parts[2]), before, after, everything)


def _load(
    source: str | Path | None, device: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """A token classifier with its head, or an encoder with a new one, and the tokenizer."""
    if source is not None and _has_head(source, trust_remote_code):
        settings = {
            "tokenizer": None,
            "device": device,
            "dtype": "float32",
            "trust_remote_code": trust_remote_code,
        }
        model, tokenizer = load_transformer(source, "TokenClassification", settings)
        if model.config.num_labels != len(_LABELS):
            raise ModelError(
                f"{source} has {model.config.num_labels} labels and LLMLingua-2 has 2; take an "
                f"encoder, or a classifier with two"
            )
        return model, tokenizer
    loaded = load_sentence_transformer(source, device=device, trust_remote_code=trust_remote_code)
    encoder = loaded[0].auto_model
    return _with_head(encoder, source).to(encoder.device).eval(), loaded.tokenizer


def _has_head(source: str | Path, trust_remote_code: bool) -> bool:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError):
        return True  # whoever loads it will say what is wrong
    return any("ForTokenClassification" in name for name in config.architectures or ())


def _with_head(encoder: Any, source: str | Path | None) -> Any:
    import transformers

    config = copy.deepcopy(encoder.config)
    config.num_labels, config.id2label = len(_LABELS), dict(_LABELS)
    config.label2id = {label: i for i, label in _LABELS.items()}
    try:
        model = transformers.AutoModelForTokenClassification.from_config(config)
    except ValueError as error:
        raise ModelError(f"{source} is no encoder that can classify tokens: {error}") from error
    model = model.float()
    lacking, _ = model.base_model.load_state_dict(encoder.state_dict(), strict=False)
    if lacking:
        raise ModelError(f"{source} lacks weights of a token classifier ({lacking[0]})")
    return model


def _rows(tokenizer: Any, one: Labelled) -> Iterator[dict[str, Any]]:
    """The windows of a text, special tokens around each, with labels."""
    first, last = ([i] for i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    room = min(tokenizer.model_max_length, _WINDOW) - 2
    (tokens,) = tokenize(tokenizer, [one.origin])
    labels = np.array(one.kept, np.int64)[first_units(one.words, tokens.offsets)]
    sentence = first_units(units.sentences(one.origin), tokens.offsets)
    start = 0
    while start < len(tokens):
        stop = min(start + room, len(tokens))
        ends = np.flatnonzero(np.diff(sentence[start : stop + 1])) + 1
        if stop < len(tokens) and len(ends):
            stop = start + int(ends[-1])
        yield {
            "input_ids": [*first, *tokens.ids[start:stop].tolist(), *last],
            "labels": [_IGNORED, *labels[start:stop].tolist(), _IGNORED],
        }
        start = stop


def _balanced_loss(part_kept: float) -> Callable[..., Any]:
    """Cross-entropy in which what is kept weighs as much as what is dropped."""
    import torch

    weights = torch.tensor([0.5 / (1 - part_kept), 0.5 / part_kept])

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:  # noqa: ARG001
        logits = outputs["logits"].flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(
            logits, labels.flatten(), weights.to(logits.device), ignore_index=_IGNORED
        )

    return loss


def _token_f1(evaluated: Any) -> dict[str, float]:
    is_learnt = evaluated.label_ids != _IGNORED
    kept = evaluated.predictions.argmax(-1) == 1
    return {"f1": Score.of(kept[is_learnt], evaluated.label_ids[is_learnt] == 1).f1}


def _score(model: Any, tokenizer: Any, labelled: Sequence[Labelled]) -> Score:
    """Compare words with their labels, each with the probability that `LLMLingua2` gives it."""
    tagged = TokenClassifier(model, tokenizer=tokenizer).tag([one.origin for one in labelled])
    kept = [
        mean_by_unit(one.origin, one.words, tags.offsets, tags.probabilities, 0.0) >= 0.5
        for one, tags in zip(labelled, tagged, strict=True)
    ]
    wanted = [np.array(one.kept, bool) for one in labelled]
    return Score.of(np.concatenate(kept), np.concatenate(wanted))
