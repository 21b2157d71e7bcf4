"""How surprised a causal language model is by each token of a text.

All values are negative log-likelihoods (NLL) in nats: ``-ln p(token | what precedes it)``. A
perplexity is the exponential of their mean; the methods rank by the mean itself, which orders
the same.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .alignment import Floats, Tokens, tokenize
from .loading import finite, fitting_batch, input_device, load_transformer

__all__ = ["CausalLM", "Stream", "start_token"]

Ids = NDArray[np.int64]

_LOGIT_ROWS = 512
"""Token positions whose logits exist at once: with a vocabulary of 50,000 this is 100 MB."""


class CausalLM:
    """A causal language model as a judge of text.

    Nothing is remembered between calls but the model, which is loaded at the first use. One
    object may be shared by threads; they take turns.

    Parameters
    ----------
    model
        A hub id, a folder, or a loaded ``AutoModelForCausalLM``.
    tokenizer
        Its fast tokenizer; None for the one that lies with the model.
    device
        Where to run a model that is loaded by name; None for the best there is.
    dtype
        A torch dtype or its name; None for the one of the weights, on a CPU float32.
    batch_tokens
        Tokens per forward pass, padding included; None for what suits the device.
    trust_remote_code
        Whether code that comes with the model may run.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: Any = None,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._source = model
        self._settings = {
            "tokenizer": tokenizer,
            "device": device,
            "dtype": dtype,
            "batch_tokens": batch_tokens,
            "trust_remote_code": trust_remote_code,
        }
        self._loaded: _Loaded | None = None
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings; what was loaded stays behind."""
        return functools.partial(type(self), self._source, **self._settings), ()

    def load(self) -> Any:
        """Load the model now rather than at the first use, and return it."""
        return self._get().model

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Cut each text into tokens, without special ones."""
        loaded = self._get()
        with self.lock:
            return tokenize(loaded.tokenizer, texts)

    @property
    def window(self) -> int:
        """Tokens that the model can take at once, the one it starts with included."""
        return self._get().window

    def room_before(self, text: Tokens) -> int:
        """Tokens that fit into the window in front of a text.

        Raises
        ------
        ModelError
            The text leaves less than half of it.
        """
        room = self.window - 1 - len(text)
        if room < self.window // 2:
            raise ModelError(
                f"the question takes {len(text)} tokens of the model's window of {self.window} "
                f"and may take half; shorten it, or take a model with a longer window"
            )
        return room

    def nll(
        self,
        texts: Sequence[Tokens],
        contexts: Sequence[Tokens] | None = None,
    ) -> list[Floats]:
        """NLL of every token of each text, given its context and the tokens before it.

        Texts are sorted by length and batched; equal ones are judged once, and so is a context
        that all texts share. Logits exist only for a chunk of the positions at a time. What is
        longer than the model's window is read through a window that slides by half its length.

        Parameters
        ----------
        texts
            What is judged.
        contexts
            What precedes each text; None for nothing.

        Returns
        -------
        list of array, shape ``(len(text),)``
            In nats. A first token that nothing precedes gets the log of the vocabulary's size,
            unless the tokenizer has a token that starts or ends texts: then that precedes it.

        Raises
        ------
        ModelError
            A context leaves no room for its text in the model's window.
        """
        loaded = self._get()
        given = [None] * len(texts) if contexts is None else contexts
        rows: dict[tuple[bytes, bytes], _Row] = {}
        places = []
        for tokens, context in zip(texts, given, strict=True):
            before = loaded.with_start(context)
            row = _Row(len(rows), 0, before, tokens.ids)
            places.append(rows.setdefault((before.tobytes(), row.ids.tobytes()), row).index)
        results = [np.full(len(row.ids), math.log(loaded.vocabulary)) for row in rows.values()]
        pieces = [piece for row in rows.values() for piece in row.pieces(loaded.window)]
        with self.lock:
            shared = loaded.shared_context(pieces)
            cache = loaded.read(shared) if len(shared) else None
            for batch in _batches(pieces, loaded.batch_tokens, len(shared)):
                judged = loaded.judge(batch, len(shared), cache)
                for piece, values in zip(batch, judged, strict=True):
                    end = piece.start + len(piece.ids)
                    results[piece.index][end - len(values) : end] = values
        return [results[place] for place in places]

    def stream(self, prefix: Tokens | None = None) -> Stream:
        """Start judging a text that is still being chosen; see `Stream`."""
        loaded = self._get()
        return Stream(loaded, loaded.with_start(prefix))

    def _get(self) -> _Loaded:
        with self.lock:
            if self._loaded is None:
                self._loaded = _Loaded(
                    *load_transformer(self._source, "CausalLM", self._settings),
                    self._settings["batch_tokens"],
                )
            return self._loaded


class Stream:
    """Judges segment after segment, each given only what was kept of those before.

    This is the conditional distribution of LLMLingua's iterative token-level compression
    (Jiang et al., EMNLP 2023, section 4.2, equation 5). Keys and values of what was kept stay
    in a cache, so a segment costs one forward pass over itself and over what the last one left.
    Make one with `CausalLM.stream`, and hold the model's `lock` while it is used.
    """

    def __init__(self, loaded: _Loaded, prefix: Ids) -> None:
        self._loaded = loaded
        self._prefix = prefix
        self._kept: list[Ids] = []
        self._cache: Any = None
        self._cached = 0
        self._pending = prefix

    def judge(self, segment: Ids) -> Floats:
        """NLL of each token of a segment, given what was kept; shape ``(len(segment),)``."""
        size = max(1, self._loaded.window // 2)
        if len(segment) <= size:
            return self._judge(segment)
        values = []
        kept = list(self._kept)
        for start in range(0, len(segment), size):
            part = segment[start : start + size]
            values.append(self._judge(part))
            self.keep(part)
        self._kept = kept
        self._restart(self._loaded.window - size)
        return np.concatenate(values)

    def _judge(self, segment: Ids) -> Floats:
        loaded = self._loaded
        if self._cached + len(self._pending) + len(segment) > loaded.window:
            self._restart(loaded.window - len(segment))
        if self._cache is None:
            self._cache = loaded.new_cache()
        ids = np.concatenate([self._pending, segment])[None]
        judged = loaded.run(ids, max(0, len(self._pending) - 1), self._cache)
        values = judged[0, len(self._pending) :]
        # The last kept token is run again: its logits predict the next segment.
        self._cached += max(0, len(self._pending) - 1)
        self._pending = self._pending[-1:]
        if self._cached:
            self._cache.crop(-len(segment))
        else:
            self._cache = None
        return values

    def keep(self, ids: Ids) -> None:
        """Add what is kept of the segment that was judged last."""
        self._kept.append(ids)
        self._pending = np.concatenate([self._pending, ids])

    def _restart(self, room: int) -> None:
        """Forget the oldest of what was kept: the prefix and the latest half window stay."""
        self._cache, self._cached = None, 0
        kept = np.concatenate([*self._kept, np.zeros(0, np.int64)])
        latest = min(room - len(self._prefix), self._loaded.window // 2)
        kept = kept[len(kept) - min(len(kept), max(0, latest)) :]
        self._kept = [kept]
        self._pending = np.concatenate([self._prefix, kept])


@dataclass(frozen=True, slots=True)
class _Row:
    """Tokens to judge, and those before them."""

    index: int
    start: int
    context: Ids
    ids: Ids

    def __len__(self) -> int:
        return len(self.context) + len(self.ids)

    def pieces(self, window: int) -> Iterator[_Row]:
        """Cut into rows that fit the window, each with as much before it as half the window."""
        room = window - len(self.context)
        if len(self.ids) and room < 1:
            raise ModelError(
                f"the context takes {len(self.context)} tokens and the model's window is "
                f"{window}; shorten the question, or take a model with a longer window"
            )
        yield _Row(self.index, 0, self.context, self.ids[:room])
        step = max(1, room // 2)
        for start in range(room, len(self.ids), step):
            before = self.ids[max(0, start - (room - step)) : start]
            context = np.concatenate([self.context, before])
            yield _Row(self.index, start, context, self.ids[start : start + step])


class _Loaded:
    """A model with its tokenizer and what is known of them."""

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int | None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        config = model.config.get_text_config()
        self.window = int(getattr(config, "max_position_embeddings", None) or 2**31)
        self.start = np.array(start_token(tokenizer), np.int64)
        self.device = input_device(model)
        self.batch_tokens = batch_tokens or fitting_batch(self.device)
        self._takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    def with_start(self, tokens: Tokens | None) -> Ids:
        return self.start if tokens is None else np.concatenate([self.start, tokens.ids])

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def shared_context(self, rows: Sequence[_Row]) -> Ids:
        """What the contexts of all rows begin with, short of the last token of the shortest."""
        if len(rows) < 2:
            return np.zeros(0, np.int64)
        first = rows[0].context
        length = min(len(row.context) for row in rows) - 1
        for row in rows[1:]:
            same = row.context[: max(0, length)] == first[: max(0, length)]
            length = int(np.argmin(same)) if not same.all() else length
        return first[: max(0, length)]

    def read(self, ids: Ids) -> Any:
        """A cache that holds the keys and values of these tokens."""
        import torch

        cache = self.new_cache()
        step = len(ids) if self._takes_rows else _LOGIT_ROWS
        with torch.inference_mode():
            inputs = torch.from_numpy(ids[None]).to(self.device)
            for low in range(0, len(ids), step):
                self._forward(inputs[:, low : low + step], cache, 1)
        return cache

    def judge(self, rows: Sequence[_Row], skipped: int, prefix: Any) -> list[Floats]:
        """NLL of the tokens of each row that something precedes.

        `prefix` holds the keys and values of the first `skipped` tokens, the same for all.
        """
        full = [np.concatenate([row.context, row.ids])[skipped:] for row in rows]
        # Position k predicts token k + 1; padding behind a row changes nothing before it.
        ids = np.zeros((len(rows), max(map(len, full))), np.int64)
        for i, row in enumerate(full):
            ids[i, : len(row)] = row
        first = min(max(0, len(row.context) - skipped - 1) for row in rows)
        cache = copy.deepcopy(prefix)
        if cache is not None:
            cache.batch_repeat_interleave(len(rows))
        values = self.run(ids, first, cache)
        return [
            values[i, max(1, len(row.context) - skipped) : len(full[i])]
            for i, row in enumerate(rows)
        ]

    def run(self, ids: Ids, first: int, cache: Any) -> Floats:
        """NLL of ``ids[:, first + 1:]``, given the cache and the tokens before each.

        All tokens but the last of each row enter the cache. Shape of `ids`; what is not asked
        for is the log of the vocabulary's size.
        """
        import torch

        count, width = ids.shape
        values = np.full(ids.shape, math.log(self.vocabulary))
        step = _LOGIT_ROWS // count
        if not self._takes_rows:
            first = 0  # logits come for all positions anyway
        if cache is None and width - 1 - first > step:
            cache = self.new_cache()
        with torch.inference_mode():
            inputs = torch.from_numpy(ids).to(self.device)
            low = 0
            while low < width - 1:
                high = min(max(low, first) + step, width - 1)
                keep = high - max(low, first)
                logits = self._forward(inputs[:, low:high], cache, keep)
                targets = inputs[:, high - keep + 1 : high + 1]
                values[:, high - keep + 1 : high + 1] = _nll(logits, targets)
                low = high
        return values

    def _forward(self, ids: Any, cache: Any, keep: int) -> Any:
        """Logits of the last `keep` positions; shape ``(rows, keep, vocabulary)``."""
        options = {"logits_to_keep": keep} if self._takes_rows else {}
        logits = self.model(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None, **options
        ).logits
        return logits[:, -keep:]


def start_token(tokenizer: Any) -> list[int]:
    """What precedes a text: the token that starts texts, else the one that ends them, if any."""
    start = tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start
    return [] if start is None else [start]


def _nll(logits: Any, targets: Any) -> Floats:
    """``-ln softmax(logits)[target]`` in float32; shape of the targets."""
    from torch.nn.functional import cross_entropy

    targets = targets.to(logits.device)
    values = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return finite(values.view_as(targets).cpu().numpy().astype(np.float64))


def _batches(rows: Sequence[_Row], most: int, shared: int) -> Iterator[list[_Row]]:
    """Group rows by length, so that none has more padded tokens than `most`, and each of them
    at least one position with logits.
    """
    batch: list[_Row] = []
    for row in sorted((row for row in rows if len(row.ids)), key=len):
        is_full = len(batch) == _LOGIT_ROWS or (len(batch) + 1) * (len(row) - shared) > most
        if batch and is_full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
