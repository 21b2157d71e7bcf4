"""Whether each token of a text should be kept, from a token classification model.

Source: Pan et al., "LLMLingua-2: Data Distillation for Efficient and Faithful Task-Agnostic
Prompt Compression", Findings of ACL 2024, section 4.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .alignment import Floats, Tokens, tokenize
from .loading import finite, fitting_batch, input_device, load_transformer, quantized
from .remembered import Remembered

__all__ = ["Tagged", "TokenClassifier"]

_SENTENCE_ENDS = frozenset(".!?\n。！？")


@dataclass(frozen=True, slots=True)
class Tagged:
    """What a classifier says of one text.

    Attributes
    ----------
    offsets
        Start and end of each token in the text; shape ``(tokens, 2)``.
    probabilities
        Probability that the token should be kept; shape ``(tokens,)``.
    """

    offsets: NDArray[np.int64]
    probabilities: Floats


class TokenClassifier:
    """Gives each token of a text the probability that it should be kept.

    A text is tokenized once; one that is longer than the model's window is cut at sentence
    ends. Windows of all texts are sorted by length and padded only to the longest of their
    batch. The results depend on nothing but the text, so they are remembered. The model is
    loaded at the first use. One classifier may be shared by threads.

    Parameters
    ----------
    model
        A hub id, a folder, or a loaded ``AutoModelForTokenClassification``.
    tokenizer
        Its fast tokenizer; None for the one that lies with the model.
    label
        The class that means "keep".
    device
        Where to run a model that is loaded by name; None for the best there is.
    dtype
        A torch dtype or its name; None for the one of the weights, on a CPU float32.
    int8
        Whether to quantize the linear layers (dynamically, on a CPU): faster, a little less
        exact.
    batch_tokens
        Tokens per forward pass, padding included; None for what suits the device.
    cache_size
        Texts remembered, the least recently used forgotten first; 0 for none.
    trust_remote_code
        Whether code that comes with the model may run.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        label: int = 1,
        device: str | None = None,
        dtype: Any = None,
        int8: bool = False,
        batch_tokens: int | None = None,
        cache_size: int = 10_000,
        trust_remote_code: bool = False,
    ) -> None:
        self._source = model
        self._settings = {
            "tokenizer": tokenizer,
            "label": label,
            "device": device,
            "dtype": dtype,
            "int8": int8,
            "batch_tokens": batch_tokens,
            "cache_size": cache_size,
            "trust_remote_code": trust_remote_code,
        }
        self._loaded: _Loaded | None = None
        self._remembered: Remembered[Tagged] = Remembered(cache_size)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings; what was loaded and remembered stays behind."""
        return functools.partial(type(self), self._source, **self._settings), ()

    def tag(self, texts: Sequence[str]) -> list[Tagged]:
        """Tag each text.

        Raises
        ------
        MissingExtraError, ModelError
            The model cannot be loaded, or is none that classifies tokens.
        """
        with self._lock:
            return self._remembered.get(texts, self._forward)

    def load(self) -> Any:
        """Load the model now rather than at the first use, and return it."""
        if self._loaded is None:
            model, tokenizer = load_transformer(self._source, "TokenClassification", self._settings)
            label, labels = self._settings["label"], getattr(model.config, "num_labels", 0)
            if not 0 <= label < labels:
                raise ModelError(
                    f"label {label} was to mean 'keep' and the model has {labels} labels; take "
                    f"a token classifier, or another label"
                )
            self._loaded = _Loaded(model, tokenizer, self._settings)
        return self._loaded.model

    def _forward(self, texts: list[str]) -> list[Tagged]:
        self.load()
        assert self._loaded is not None
        loaded = self._loaded
        tokenized = tokenize(loaded.tokenizer, texts)
        pieces = [
            (i, start, tokens.ids[start:end])
            for i, (text, tokens) in enumerate(zip(texts, tokenized, strict=True))
            for start, end in _windows(text, tokens, loaded.room)
        ]
        pieces.sort(key=lambda piece: len(piece[2]))
        probabilities = [np.zeros(len(tokens)) for tokens in tokenized]
        for batch in _batches(pieces, loaded.batch_tokens, loaded.extra):
            rows = loaded.probabilities([ids for _, _, ids in batch], self._settings["label"])
            for (i, start, ids), row in zip(batch, rows, strict=True):
                probabilities[i][start : start + len(ids)] = row
        return [Tagged(t.offsets, p) for t, p in zip(tokenized, probabilities, strict=True)]


class _Loaded:
    """A model with its tokenizer, and what goes around a text."""

    def __init__(self, model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.device = input_device(model)
        framed = tokenizer("a", return_special_tokens_mask=True)
        special = framed["special_tokens_mask"]
        inside = [i for i, flag in enumerate(special) if not flag]
        first, last = (inside[0], inside[-1]) if inside else (len(special), len(special) - 1)
        self.before: list[int] = framed["input_ids"][:first]
        self.behind: list[int] = framed["input_ids"][last + 1 :]
        self.extra = len(self.before) + len(self.behind)
        self.pad = tokenizer.pad_token_id or 0
        self.room = _window(model.config) - self.extra
        self.model = quantized(model, model.device) if settings["int8"] else model
        self.batch_tokens = settings["batch_tokens"] or fitting_batch(self.device)

    def probabilities(self, rows: Sequence[NDArray[np.int64]], label: int) -> list[Floats]:
        import torch

        width = max(map(len, rows)) + self.extra
        ids = np.full((len(rows), width), self.pad, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            framed = [*self.before, *row.tolist(), *self.behind]
            ids[i, : len(framed)] = framed
            mask[i, : len(framed)] = 1
        with torch.inference_mode():
            logits = self.model(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
            ).logits
            kept = finite(logits.float().softmax(-1)[..., label].cpu().numpy().astype(np.float64))
        start = len(self.before)
        return [kept[i, start : start + len(row)] for i, row in enumerate(rows)]


def _window(config: Any) -> int:
    """Tokens that the model can take, special ones included."""
    window = int(getattr(config, "max_position_embeddings", None) or 512)
    # RoBERTa counts positions from behind the padding id.
    is_shifted = "roberta" in str(config.model_type) or config.model_type == "camembert"
    return window - (config.pad_token_id or 0) - 1 if is_shifted else window


def _windows(text: str, tokens: Tokens, room: int) -> Iterator[tuple[int, int]]:
    """Cut tokens so that each run fits, behind a sentence, else a word, where there is one."""
    start = 0
    ends = tokens.offsets[:, 1].tolist()
    while len(tokens) - start > room:
        candidates = range(start + room, start, -1)
        sentence = (k for k in candidates if text[ends[k - 1] - 1] in _SENTENCE_ENDS)
        word = (k for k in candidates if text[ends[k - 1] : ends[k - 1] + 1].isspace())
        stop = next(sentence, 0) or next(word, start + room)
        yield start, stop
        start = stop
    if start < len(tokens):
        yield start, len(tokens)


def _batches(
    pieces: Sequence[tuple[int, int, NDArray[np.int64]]], most: int, extra: int
) -> Iterator[list[tuple[int, int, NDArray[np.int64]]]]:
    """Group pieces that are sorted by length, so that none has more padded tokens than `most`."""
    batch: list[tuple[int, int, NDArray[np.int64]]] = []
    for piece in pieces:
        if batch and (len(batch) + 1) * (len(piece[2]) + extra) > most:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
