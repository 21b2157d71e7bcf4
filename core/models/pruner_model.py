"""An encoder that reads a question together with a passage, and says what to keep of it.

One pass of a bidirectional encoder gives each token of the passage a logit for being kept and
the passage one for being relevant, as Provence does (Chirkova et al., "Provence: efficient and
robust context pruning for retrieval-augmented generation", ICLR 2025). The encoder itself stays
as it is: what is learnt are low-rank updates of its linear layers (LoRA, Hu et al., ICLR 2022)
and two heads, a file of about a megabyte.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..types import Span
from .alignment import Floats, Tokens, first_units, tokenize
from .loading import load_sentence_transformer

__all__ = ["FILE", "Frame", "Network", "best_mix", "windows"]

FILE = "pruner.safetensors"
"""The file in which an adapter lies in its folder."""

_FORMAT = "laconic pruner 1"
_SCALE = 2.0
"""What the low-rank updates are multiplied by: the alpha of LoRA divided by its rank."""

_MOST_QUESTION, _MOST_TITLE = 64, 32
"""Tokens of a question and of a title that are read."""

_RARE = 3.0
"""Weight of a token that is wanted, of which there are few, beside one that is not."""

_MIX = 4
"""Numbers of `Network.mix`."""

Flags = NDArray[np.bool_]
"""An array of marks."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands in front of the tokens of a window, and behind them.

    Attributes
    ----------
    question, title
        Ids: the first as ``[CLS] question [SEP]``.
    end
        The id of ``[SEP]``.
    """

    question: list[int]
    title: list[int]
    end: int

    def __len__(self) -> int:
        return len(self.question) + len(self.title) + 1


class Network:
    """The encoder, its low-rank updates and the heads.

    Parameters
    ----------
    encoder
        A hub id or folder of a BERT-like sentence-transformers model; None for
        all-MiniLM-L6-v2.
    rank
        Of the updates.
    seed
        Of the updates' start. The global random generator is left as it is.
    device
        Where to run; None for the best there is.

    Raises
    ------
    MissingExtraError, ModelError
        The encoder cannot be loaded, or is no transformer that takes token types.
    """

    def __init__(
        self, encoder: Any = None, *, rank: int = 16, seed: int = 0, device: str | None = None
    ) -> None:
        import torch

        with torch.random.fork_rng(devices=[]):  # what the encoder lacks is made at random
            loaded = load_sentence_transformer(encoder, device=device)
        self.base: Any = getattr(loaded[0], "auto_model", None)
        self.tokenizer = loaded.tokenizer
        if self.base is None or getattr(self.base.config, "type_vocab_size", 0) < 2:
            raise ModelError(
                f"the encoder {encoder!r} does not tell a question from a passage: it has no "
                f"token types; take a BERT-like one, such as all-MiniLM-L6-v2"
            )
        self.base.eval().requires_grad_(False)
        self.device = self.base.device
        self.rank = rank
        self.fingerprint = _fingerprint(self.base)
        self.mix: Floats = np.array([1.0, 1.0, 1.0, 0.0])
        self.window = 256
        generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Any] = {}
        for name, layer in self._linear():
            down = torch.randn(rank, layer.in_features, generator=generator)
            self.tensors[f"{name}.down"] = down / layer.in_features**0.5
            self.tensors[f"{name}.up"] = torch.zeros(layer.out_features, rank)
        for name in ("token", "passage"):
            width = self.base.config.hidden_size
            self.tensors[f"{name}.weight"] = 0.02 * torch.randn(width, generator=generator)
            self.tensors[f"{name}.bias"] = torch.zeros(1)
        self.tensors = {k: v.to(self.device) for k, v in self.tensors.items()}

    def _linear(self) -> Iterator[tuple[str, Any]]:
        import torch

        for name, layer in self.base.encoder.named_modules():
            if isinstance(layer, torch.nn.Linear):
                yield name, layer

    def attach(self) -> None:
        """Let the updates act beside the layers, so that they can learn."""

        def hook(down: Any, up: Any) -> Any:
            return lambda _, given, result: result + _SCALE * (given[0] @ down.T @ up.T)

        for tensor in self.tensors.values():
            tensor.requires_grad_(True)
        for name, layer in self._linear():
            layer.register_forward_hook(
                hook(self.tensors[f"{name}.down"], self.tensors[f"{name}.up"])
            )

    def merge(self) -> None:
        """Add the updates to the layers' weights: as fast as the encoder alone."""
        for name, layer in self._linear():
            update = self.tensors[f"{name}.up"].detach() @ self.tensors[f"{name}.down"].detach()
            layer.weight.data += _SCALE * update

    def frame(self, question: str, title: str) -> Frame:
        """What goes around the windows of a passage."""
        asked, named = tokenize(self.tokenizer, [question, title])
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        head = [first, *asked.ids[:_MOST_QUESTION].tolist(), last]
        return Frame(head, named.ids[:_MOST_TITLE].tolist(), last)

    def forward(self, rows: Sequence[tuple[Frame, NDArray[np.int64]]]) -> tuple[list[Any], Any]:
        """Read windows.

        Returns
        -------
        tokens : list of tensors
            For each row the logit of each of its tokens; shape ``(tokens,)``.
        relevance : tensor, shape ``(rows,)``
        """
        import torch

        width = max(len(frame) + len(ids) for frame, ids in rows)
        given = np.zeros((3, len(rows), width), np.int64)
        given[0] = self.tokenizer.pad_token_id or 0
        for i, (frame, ids) in enumerate(rows):
            row = [*frame.question, *frame.title, *ids.tolist(), frame.end]
            given[0, i, : len(row)] = row
            given[1, i, len(frame.question) : len(row)] = 1
            given[2, i, : len(row)] = 1
        ids, types, mask = torch.from_numpy(given).to(self.device)
        hidden = self.base(
            input_ids=ids, token_type_ids=types, attention_mask=mask
        ).last_hidden_state.float()
        held = self.tensors
        tokens = hidden @ held["token.weight"] + held["token.bias"]
        relevance = hidden[:, 0] @ held["passage.weight"] + held["passage.bias"]
        starts = [len(frame.question) + len(frame.title) for frame, _ in rows]
        cut = [
            tokens[i, s : s + len(row[1])]
            for i, (s, row) in enumerate(zip(starts, rows, strict=True))
        ]
        return cut, relevance

    def loss(
        self,
        rows: Sequence[tuple[Frame, NDArray[np.int64]]],
        owners: Sequence[NDArray[np.int64]],
        wanted: Sequence[Flags],
        questions: Sequence[int],
    ) -> Any:
        """How wrong it is about tokens, about passages, and about which units are best.

        The last is the cross-entropy of each wanted unit against all that are not, of all
        windows of its question: units of different passages must compare.

        Parameters
        ----------
        rows
            Windows.
        owners
            For each window the unit of each of its tokens.
        wanted
            For each window which units of its passage are wanted.
        questions
            The number of the question of each window.

        Returns
        -------
        tensor, a number
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits as entropy

        found, relevance = self.forward(rows)
        logits = torch.cat(found)
        unit_of_token: list[Any] = []
        row_of_unit: list[int] = []
        marks: list[bool] = []
        for row, (owner, flags) in enumerate(zip(owners, wanted, strict=True)):
            seen, place = np.unique(owner, return_inverse=True)
            unit_of_token.append(place + len(marks))
            row_of_unit += [row] * len(seen)
            marks += flags[seen].tolist()
        unit = torch.from_numpy(np.concatenate(unit_of_token)).to(self.device)
        row_of = torch.tensor(row_of_unit, device=self.device)
        goal = torch.tensor(marks, device=self.device)
        sums = torch.zeros(len(marks), device=self.device).index_add(0, unit, logits)
        means = sums / torch.bincount(unit, minlength=len(marks))
        weight = torch.tensor(_RARE, device=self.device)
        about_tokens = entropy(logits, goal[unit].float(), pos_weight=weight)
        is_gold = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        is_gold[row_of[goal]] = True
        about_passages = entropy(relevance, is_gold.float())
        asked = torch.tensor(questions, device=self.device)[row_of]
        scores = means + relevance[row_of]
        is_rival = (asked[:, None] == asked[None, :]) & ~goal[None, :]
        rivals = scores[None, :].expand(len(marks), -1).masked_fill(~is_rival, -math.inf)[goal]
        best = scores[goal]
        about_best = torch.logsumexp(torch.cat([best[:, None], rivals], 1), 1) - best
        return about_tokens + about_passages + about_best.mean()

    def save(self, folder: str | Path, about: dict[str, Any] | None = None) -> Path:
        """Save the updates and heads in half precision; the file."""
        import torch
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        held = {k: v.detach().half().cpu().contiguous() for k, v in self.tensors.items()}
        held["mix"] = torch.tensor(self.mix, dtype=torch.float32)
        facts: dict[str, Any] = {
            "rank": self.rank,
            "encoder": self.fingerprint,
            "window": self.window,
        }
        facts["about"] = about or {}
        save_file(held, Path(folder) / FILE, {_FORMAT: json.dumps(facts)})
        return Path(folder) / FILE

    @classmethod
    def load(cls, folder: str | Path, encoder: Any = None, *, device: str | None = None) -> Network:
        """Load what `save` saved, ready to infer.

        Raises
        ------
        ModelError
            The file is missing, damaged, or of another encoder.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise ModelError(
                f"there is no {file}; train a pruner with `laconic train pruner --data ... "
                f"--out ...` and give its folder"
            )
        try:
            from safetensors import safe_open

            with safe_open(file, "pt") as stream:
                facts = json.loads((stream.metadata() or {})[_FORMAT])
                held = {name: stream.get_tensor(name).float() for name in stream.keys()}  # noqa: SIM118
            rank, window = int(facts["rank"]), int(facts["window"])
        except Exception as error:
            raise ModelError(
                f"{file} is damaged or no pruner: {type(error).__name__}: {error}; train it "
                f"again, or reinstall laconic"
            ) from error
        network = cls(encoder, rank=rank, device=device)
        if facts.get("encoder") != network.fingerprint:
            raise ModelError(
                f"{file} was trained for another encoder than "
                f"{encoder or 'all-MiniLM-L6-v2'}; pass the one that it was trained for"
            )
        mix = held.pop("mix", None)
        shapes = {name: tensor.shape for name, tensor in network.tensors.items()}
        if mix is None or mix.shape != (_MIX,) or shapes != {k: v.shape for k, v in held.items()}:
            raise ModelError(f"{file} lacks some of what a pruner needs; train it again")
        if not all(bool(tensor.isfinite().all()) for tensor in (mix, *held.values())):
            raise ModelError(f"{file} holds values that are not finite; train it again")
        network.tensors = {name: tensor.to(network.device) for name, tensor in held.items()}
        network.mix, network.window = mix.double().numpy(), window
        network.merge()
        return network


def windows(units: Sequence[Span], tokens: Tokens, room: int) -> list[tuple[int, int]]:
    """Cut tokens into runs of about the same length that fit, behind a unit where that can be.

    No tokens are one empty run.
    """
    count = len(tokens)
    owners = first_units(units, tokens.offsets) if count else np.zeros(0, np.int64)
    borders = np.flatnonzero(np.diff(owners)) + 1
    found, start = [], 0
    while count - start > room:
        goal = start + (count - start) / -(-(count - start) // room)
        fitting = borders[(borders > start) & (borders <= start + room)]
        nearest = fitting[np.argmin(np.abs(fitting - goal))] if len(fitting) else start + room
        found.append((start, int(nearest)))
        start = int(nearest)
    return [*found, (start, count)]


def best_mix(features: Sequence[Floats], wanted: Sequence[Flags]) -> Floats:
    """The weights with which wanted units come out best, and likely.

    Parameters
    ----------
    features
        For each question what is weighed of each unit; shape ``(units, 3)``.
    wanted
        For each question which units are wanted; shape ``(units,)``.

    Returns
    -------
    array, shape ``(4,)``
        A weight for each feature, and what is added so that the sum is a logit.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as entropy

    pairs = [
        (torch.from_numpy(f), torch.from_numpy(w)) for f, w in zip(features, wanted, strict=True)
    ]
    mix = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([mix], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        total = 1e-3 * (mix**2).sum()
        for values, goal in pairs:
            scores = values @ mix[:3] + mix[3]
            best, rivals = scores[goal], scores[~goal]
            about_best = torch.logaddexp(best, torch.logsumexp(rivals, 0)) - best
            if len(rivals) and len(best):
                total = total + about_best.mean() / len(pairs)
            total = total + entropy(scores, goal.double()) / len(pairs)
        total.backward()
        return total

    optimizer.step(closure)
    mixed: Floats = mix.detach().numpy()
    return mixed


def _fingerprint(base: Any) -> str:
    """What an encoder is known by: the shapes and first values of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        if name.startswith("pooler."):  # is not used, and may have been made at random
            continue
        head = tensor.flatten()[:64].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + head.tobytes())
    return digest.hexdigest()
