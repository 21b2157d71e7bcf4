"""An encoder that reads a passage once by itself and once together with a question.

The lower layers of a bidirectional encoder read question and passage apart, as it was trained
to; from there on two streams part. In one the upper layers go on so, and give the embeddings by
which passages are ranked. In the other the upper layers, changed by low-rank updates (LoRA, Hu
et al., ICLR 2022), read both together, and two heads say of each token whether it is wanted and
of the passage whether it is relevant, as Provence does (Chirkova et al., "Provence: efficient
and robust context pruning for retrieval-augmented generation", ICLR 2025). That question and
passage meet only in the upper layers is from DeFormer (Cao et al., ACL 2020).

Only the updates and the heads are learnt and saved, a file of a few megabytes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import ModelError
from .alignment import Floats, tokenize
from .hidden_states import MATCHES, Ids, Known, States, layers, matches, through
from .loading import load_sentence_transformer, quantized

__all__ = ["FEATURES", "FILE", "Kind", "Network", "bundled"]

FILE = "adapter.safetensors"
"""The file in which an adapter lies in its folder."""

FEATURES = 8
"""Numbers that are weighed for each unit; see `laconic.core.methods.pruner.features`."""

Kind = Literal["pruner", "tagger"]
"""What an adapter was trained for."""

_FORMAT = "laconic pruner 2"
_SCALE = 2.0
"""What the low-rank updates are multiplied by: the alpha of LoRA divided by its rank."""

_MOST_QUESTION, _MOST_TITLE = 64, 32
"""Tokens of a question and of a title that are read."""


class Network:
    """The encoder, the low-rank updates of its upper layers, and the heads.

    Parameters
    ----------
    encoder
        A hub id or folder of a BERT-like sentence-transformers model; None for
        all-MiniLM-L6-v2.
    joint
        Upper layers in which question and passage are read together.
    rank
        Of the updates.
    seed
        Of the updates' start. The global random generator is left as it is.
    device
        Where to run; None for the best there is.

    Raises
    ------
    MissingExtraError, ModelError
        The encoder cannot be loaded, or is not made of so many layers.
    """

    def __init__(
        self,
        encoder: Any = None,
        *,
        joint: int = 3,
        rank: int = 32,
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        import torch

        with torch.random.fork_rng(devices=[]):  # what the encoder lacks is made at random
            loaded = load_sentence_transformer(encoder, device=device)
        base: Any = getattr(loaded[0], "auto_model", None)
        stack = getattr(getattr(base, "encoder", None), "layer", ())
        if not (hasattr(base, "embeddings") and 1 <= joint <= len(stack)):
            raise ModelError(
                f"the encoder {encoder!r} has not {joint} layers to read question and passage "
                f"together with; take a BERT-like one, such as all-MiniLM-L6-v2"
            )
        base.eval().requires_grad_(False)
        self.tokenizer = loaded.tokenizer
        self.device = base.device
        self.joint, self.rank = joint, rank
        self.fingerprint = _fingerprint(base)
        self.mix: Floats = np.ones(FEATURES + 1)
        self.window = 256
        self.bf16 = False
        self._embeddings, self._pooling = base.embeddings, loaded[1]
        self._lower = layers(base.encoder, stack[: len(stack) - joint])
        self._upper = layers(base.encoder, stack[len(stack) - joint :])
        self._reader = copy.deepcopy(self._upper)
        generator = torch.Generator().manual_seed(seed)
        width = base.config.hidden_size
        tensors: dict[str, Any] = {
            "side": torch.zeros(2, width),
            "match": 0.05 * torch.randn(2, MATCHES, width, generator=generator),
            "token.match": torch.zeros(MATCHES),
        }
        for name, layer in self._linear():
            down = torch.randn(rank, layer.in_features, generator=generator)
            tensors[f"{name}.down"] = down / layer.in_features**0.5
            tensors[f"{name}.up"] = torch.zeros(layer.out_features, rank)
        for name in ("token", "passage"):
            tensors[f"{name}.weight"] = 0.02 * torch.randn(width, generator=generator)
            tensors[f"{name}.bias"] = torch.zeros(1)
        self.tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _linear(self) -> Iterator[tuple[str, Any]]:
        import torch

        for name, layer in self._reader.named_modules():
            if isinstance(layer, torch.nn.Linear):
                yield name, layer

    def attach(self, *, bf16: bool = False) -> None:
        """Let the updates act beside the layers, so that they can learn; the layers compute in
        bfloat16 if asked to.
        """

        def hook(down: Any, up: Any) -> Any:
            return lambda _, given, result: result + _SCALE * (given[0] @ down.T @ up.T)

        for tensor in self.tensors.values():
            tensor.requires_grad_(True)
        for name, layer in self._linear():
            layer.register_forward_hook(
                hook(self.tensors[f"{name}.down"], self.tensors[f"{name}.up"])
            )
        self.bf16 = bf16
        if bf16 and self.device.type == "cpu":
            # The gradients of its fused attention take three times as long in bfloat16.
            self._reader.config._attn_implementation = "eager"

    def merge(self) -> None:
        """Add the updates to the layers' weights: as fast as the encoder alone."""
        for name, layer in self._linear():
            update = self.tensors[f"{name}.up"].detach() @ self.tensors[f"{name}.down"].detach()
            layer.weight.data += _SCALE * update

    def quantize(self) -> None:
        """Compute linear layers in int8: faster on a CPU, a little less exact.

        Raises
        ------
        ModelError
            The network is not on a CPU.
        """
        self._lower, self._upper, self._reader = (
            quantized(part, self.device) for part in (self._lower, self._upper, self._reader)
        )

    def train(self, mode: bool) -> None:
        """Whether the layers that learn drop some of their activations; never of attention,
        where it would take a quarter of the time.
        """
        import torch

        for part in self._reader.modules():
            if isinstance(part, torch.nn.Dropout):
                part.train(mode)

    def question(self, text: str) -> Ids:
        """The tokens of a question, between those that the encoder starts and ends with."""
        (tokens,) = tokenize(self.tokenizer, [text])
        return self._row(tokens.ids[:_MOST_QUESTION])

    def title(self, text: str) -> Ids:
        """The tokens of a title."""
        (tokens,) = tokenize(self.tokenizer, [text])
        return tokens.ids[:_MOST_TITLE]

    def passage(self, title: Ids, ids: Ids) -> Ids:
        """The tokens of a window below its title; those of the window stand behind ``1 +
        len(title)`` others.
        """
        return self._row(title, ids)

    def _row(self, *ids: Ids) -> Ids:
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return np.concatenate([[first], *ids, [last]]).astype(np.int64)

    def lower(self, rows: Sequence[Ids]) -> States:
        """Read rows, each by itself, as far as the layers in which they may meet another."""
        import torch

        width = max(map(len, rows))
        given = np.full((len(rows), width), self.tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros((len(rows), width), bool)
        for i, row in enumerate(rows):
            given[i, : len(row)], mask[i, : len(row)] = row, True
        states = States(
            self._embeddings(input_ids=torch.from_numpy(given).to(self.device)),
            torch.from_numpy(mask).to(self.device),
        )
        return through(self._lower, states, bf16=self.bf16)

    def alone(self, states: States) -> tuple[Any, Any]:
        """Read on, each row by itself.

        Returns
        -------
        tokens : tensor, shape ``(rows, tokens, width)``
            The embedding of each token, of length 1.
        texts : tensor, shape ``(rows, width)``
            That of each row, as the encoder makes it.
        """
        from torch.nn.functional import normalize

        hidden = through(self._upper, states, bf16=self.bf16).hidden.float()
        pooled = self._pooling({"token_embeddings": hidden, "attention_mask": states.mask.long()})
        return normalize(hidden, dim=-1), normalize(pooled["sentence_embedding"], dim=-1)

    def together(self, questions: Sequence[Known], passages: Sequence[Known]) -> tuple[Any, Any]:
        """Read on, each passage with the question at the same place.

        Each token is told how well the other side matches it, which takes attention long to
        find out by itself: `matches`.

        Returns
        -------
        tokens : tensor, shape ``(rows, tokens)``
            The logit of each token of the passage for being wanted.
        relevance : tensor, shape ``(rows,)``
            The logit of each passage for being relevant.
        """
        import torch

        held, start = self.tensors, max(len(one.ids) for one in questions)
        one, two = (States.of([k.hidden for k in side]) for side in (questions, passages))
        there, here = matches(questions, passages)
        hidden = torch.cat(
            [
                one.hidden + held["side"][0] + there @ held["match"][0],
                two.hidden + held["side"][1] + here @ held["match"][1],
            ],
            dim=1,
        )
        mask = torch.cat([one.mask, two.mask], dim=1)
        hidden = through(self._reader, States(hidden, mask), bf16=self.bf16).hidden.float()
        tokens = hidden[:, start:] @ held["token.weight"] + here @ held["token.match"]
        relevance = hidden[:, 0] @ held["passage.weight"] + held["passage.bias"]
        return tokens + held["token.bias"], relevance

    def save(
        self, folder: str | Path, about: dict[str, Any] | None = None, *, kind: Kind = "pruner"
    ) -> Path:
        """Save the updates and heads in half precision, and what they were trained for; the
        file.
        """
        import torch
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        held = {k: v.detach().half().cpu().contiguous() for k, v in self.tensors.items()}
        held["mix"] = torch.tensor(self.mix, dtype=torch.float32)
        facts = {
            "kind": kind,
            "rank": self.rank,
            "joint": self.joint,
            "window": self.window,
            "encoder": self.fingerprint,
            "sha256": _digest(held),
            "about": about or {},
        }
        save_file(held, Path(folder) / FILE, {_FORMAT: json.dumps(facts)})
        return Path(folder) / FILE

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: Any = None,
        *,
        kind: Kind = "pruner",
        device: str | None = None,
    ) -> Network:
        """Load what `save` saved, ready to infer.

        Raises
        ------
        ModelError
            The file is missing, damaged, or of another kind or encoder.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise ModelError(
                f"there is no {file}; train an adapter with `laconic train {kind} --data ... "
                f"--out ...` and give its folder"
            )
        try:
            from safetensors import safe_open

            with safe_open(file, "pt") as stream:
                facts = json.loads((stream.metadata() or {})[_FORMAT])
                saved = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            rank, joint, window = (int(facts[name]) for name in ("rank", "joint", "window"))
            if facts["sha256"] != _digest(saved):
                raise ValueError("its values are not those that were saved")
            held = {name: tensor.float() for name, tensor in saved.items()}
        except Exception as error:
            raise ModelError(
                f"{file} is damaged or no adapter: {type(error).__name__}: {error}; train it "
                f"again, or reinstall laconic"
            ) from error
        if facts.get("kind") != kind:
            raise ModelError(
                f"{file} was trained as a {facts.get('kind')}, not as a {kind}; give the folder "
                f"of `laconic train {kind}`"
            )
        network = cls(encoder, joint=joint, rank=rank, device=device)
        if facts.get("encoder") != network.fingerprint:
            raise ModelError(
                f"{file} was trained for another encoder than "
                f"{encoder or 'all-MiniLM-L6-v2'}; pass the one that it was trained for"
            )
        mix = held.pop("mix", None)
        shapes = {name: tensor.shape for name, tensor in network.tensors.items()}
        given = {name: tensor.shape for name, tensor in held.items()}
        if mix is None or mix.shape != (FEATURES + 1,) or shapes != given:
            raise ModelError(f"{file} lacks some of what an adapter holds; train it again")
        if not all(bool(tensor.isfinite().all()) for tensor in (mix, *held.values())):
            raise ModelError(f"{file} holds values that are not finite; train it again")
        network.tensors = {name: tensor.to(network.device) for name, tensor in held.items()}
        network.mix, network.window = mix.double().numpy(), window
        network.merge()
        return network


def bundled(name: str) -> Path:
    """The folder of an adapter of all-MiniLM-L6-v2 that comes with laconic."""
    return Path(__file__).parents[1] / "weights" / name


def _digest(tensors: Mapping[str, Any]) -> str:
    """Of the values, so that damage shows: safetensors itself has no checksum."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(base: Any) -> str:
    """What an encoder is known by: the shapes and first values of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        if name.startswith("pooler."):  # is not used, and may have been made at random
            continue
        head = tensor.flatten()[:64].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + head.tobytes())
    return digest.hexdigest()
