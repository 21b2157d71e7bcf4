"""Teaching an encoder which sentences answer a question: the recipe behind `Pruner`.

The labels cost nothing: a sentence is wanted if it is marked as evidence, or if it holds an
answer in the one passage that does. Other sentences, and passages that a retriever took for
good, are what is to be dropped. Some documents are never trained on, so that figures can be
measured on them; some others teach only how to weigh what the pruner says against what
`Extractive` says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import guards, units
from ..errors import InputError, MissingExtraError, StateError
from ..evaluation.datasets import Example, load
from ..evaluation.metrics import contains_answer
from ..method import Flags, Floats, Request
from ..methods.pruner import Pruner, PrunerModel
from ..models.alignment import first_units, tokenize
from ..models.pruner_model import FILE, Network, best_mix, windows
from ..types import Span

__all__ = ["Labelled", "Part", "Recipe", "Run", "label", "part", "read", "train"]

_CHECKPOINT = "checkpoint.pt"

Part = Literal["learnt", "weighed", "held out"]
"""What a question is for."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a pruner is trained.

    Attributes
    ----------
    steps
        Updates.
    questions
        Questions for each update, drawn from each file as often as from any other.
    passages
        Passages of a question that are read: those with evidence, and others by chance.
    learning_rate, warmup
        The highest; the part of the steps in which it rises to that. Then it falls to 0.
    rank
        Of the low-rank updates.
    max_tokens
        Of a question with its passage: a longer passage is read in part.
    held_out, weighed
        The parts of all documents that are never trained on, and that teach how to weigh.
    weighed_questions
        Questions of each file, at the most, that teach how to weigh.
    seed
        Of the start and of the draws; what is held out does not depend on it.
    save_every
        Steps after which training can go on if it is stopped.

    Raises
    ------
    InputError
        A value is out of range.
    """

    steps: int = 600
    questions: int = 4
    passages: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.06
    rank: int = 16
    max_tokens: int = 192
    held_out: float = 0.5
    weighed: float = 0.07
    weighed_questions: int = 40
    seed: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "questions", "rank", "weighed_questions", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.passages < 2 or self.max_tokens < 128:
            raise InputError("passages is at least 2 and max_tokens at least 128")
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1):
            raise InputError("learning_rate is above 0, warmup from 0 to below 1")
        if min(self.held_out, self.weighed) < 0 or self.held_out + self.weighed >= 1:
            raise InputError("held_out and weighed are parts, and leave some to learn from")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        warm = max(1, round(self.warmup * self.steps))
        falling = (self.steps - step) / max(1, self.steps - warm)
        return self.learning_rate * min(1.0, (step + 1) / warm, falling)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question with its passages, cut into sentences of which some are wanted.

    Attributes
    ----------
    example
        Where it comes from.
    titles, units
        Of each passage; a title is ``""`` for none.
    wanted
        For each passage which of its units are; shape ``(units,)``, bool.
    """

    example: Example
    titles: tuple[str, ...]
    units: tuple[tuple[Span, ...], ...]
    wanted: tuple[Flags, ...]

    @property
    def question(self) -> str:
        """What is asked."""
        return self.example.question

    @property
    def gold(self) -> list[int]:
        """The passages with a wanted sentence."""
        return [i for i, flags in enumerate(self.wanted) if flags.any()]

    def document(self, passage: int) -> str:
        """What a passage's document is told by: its title, or else how it begins."""
        return self.titles[passage] or self.example.passages[passage].text[:200]


@dataclass
class Run:
    """What training has done.

    Attributes
    ----------
    losses
        Of each step.
    counts
        How many questions each part holds.
    mix
        The weights of `Extractive`'s score, of a sentence's logit and of its passage's, and
        what is added.
    """

    losses: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    mix: tuple[float, ...] = ()

    def __str__(self) -> str:
        tail = self.losses[-20:]
        parts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        weights = ", ".join(f"{weight:.2f}" for weight in self.mix)
        return (
            f"questions: {parts}; {len(self.losses)} steps, loss {self.losses[0]:.3f} -> "
            f"{sum(tail) / len(tail):.3f}; weights {weights}"
        )


def label(example: Example) -> Labelled | None:
    """Say which sentences of an example are wanted; None where that cannot be told.

    It cannot if nothing is marked as evidence and several passages hold an answer, or none.
    """
    texts = [passage.text for passage in example.passages]
    cut = tuple(tuple(units.sentences(text, guards.atoms(text))) for text in texts)
    wanted = tuple(np.zeros(len(spans), bool) for spans in cut)
    if example.supporting:
        for place, (start, end) in example.supporting:
            for i, unit in enumerate(cut[place]):
                wanted[place][i] |= unit.start < end and start < unit.end
    else:
        holders = [i for i, text in enumerate(texts) if contains_answer(text, example.answers)]
        if len(holders) != 1:
            return None
        for i, (start, end) in enumerate(cut[holders[0]]):
            sentence = texts[holders[0]][start:end]
            wanted[holders[0]][i] = contains_answer(sentence, example.answers)
    titles = tuple(str(passage.metadata.get("title") or "") for passage in example.passages)
    return Labelled(example, titles, cut, wanted) if any(f.any() for f in wanted) else None


def part(document: str, recipe: Recipe) -> Part:
    """What a document is for: the same whatever the seed and the other documents."""
    place = int.from_bytes(hashlib.sha256(document.encode("utf-8", "replace")).digest()[:4], "big")
    if place < recipe.held_out * 2**32:
        return "held out"
    return "weighed" if place < (recipe.held_out + recipe.weighed) * 2**32 else "learnt"


def read(files: Sequence[str | Path], recipe: Recipe) -> list[dict[Part, list[Labelled]]]:
    """Read questions, and part those of each file by the document of their first evidence.

    Raises
    ------
    InputError
        A file cannot be read, or leaves no question to learn from.
    """
    parted: list[dict[Part, list[Labelled]]] = []
    for file in files:
        found: dict[Part, list[Labelled]] = {"learnt": [], "weighed": [], "held out": []}
        for example in load(file):
            labelled = label(example)
            if labelled:
                found[part(labelled.document(labelled.gold[0]), recipe)].append(labelled)
        if not found["learnt"]:
            raise InputError(
                f"{file} has no question to learn from: each needs supporting sentences, or "
                f"answers that stand in one passage alone"
            )
        parted.append(found)
    return parted


def train(
    files: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    encoder: Any = None,
    device: str | None = None,
    progress: bool = False,
    stop_after: int | None = None,
) -> Run:
    """Train a pruner, and save it.

    A call that was stopped goes on from its last checkpoint, which lies in `out`, when it is
    made again, and comes to the same adapter on the same machine.

    Parameters
    ----------
    files
        JSON lines as `laconic.core.evaluation.datasets` reads them.
    out
        The folder to save the adapter in, ready to be the ``model`` of `Pruner`.
    recipe
        How; None for the defaults.
    encoder, device
        As `Network` takes them.
    progress
        Whether to show a bar.
    stop_after
        Stop behind this step and save a checkpoint only.

    Raises
    ------
    InputError
        A file cannot be read or learnt from, or `out` holds a pruner already.
    MissingExtraError, ModelError
        The encoder cannot be loaded.
    StateError
        The checkpoint is damaged or of another run.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if (out / FILE).exists():
        raise InputError(f"{out} holds a pruner already; take another folder")
    try:
        import torch
        from tqdm import tqdm
    except ImportError as error:
        raise MissingExtraError("training", "training") from error
    parted = read(files, recipe)
    network = Network(encoder, rank=recipe.rank, seed=recipe.seed, device=device)
    network.window = recipe.max_tokens
    network.attach()
    optimizer = torch.optim.AdamW(network.tensors.values(), weight_decay=0.01)
    learnt = [found["learnt"] for found in parted]
    owner, checkpoint = _owner(network, recipe, learnt), out / _CHECKPOINT
    run = Run(counts={name: sum(len(f[name]) for f in parted) for name in parted[0]})
    if checkpoint.exists():
        _resume(checkpoint, owner, run, network, optimizer)
    start, end = len(run.losses), min(recipe.steps, stop_after or recipe.steps)
    with tqdm(range(start, end), initial=start, total=end, disable=not progress) as bar:
        for step in bar:
            run.losses.append(_step(network, optimizer, learnt, recipe, step))
            bar.set_postfix(loss=f"{run.losses[-1]:.3f}")
            if (step + 1) % recipe.save_every == 0 or step + 1 == end:
                _save(checkpoint, owner, run, network, optimizer)
    if end < recipe.steps:
        return run
    chosen = [one for found in parted for one in found["weighed"][: recipe.weighed_questions]]
    network.mix = _weigh(network, chosen, encoder, device) if chosen else network.mix
    run.mix = tuple(network.mix.tolist())
    network.save(out, asdict(recipe))
    checkpoint.unlink(missing_ok=True)
    return run


def _step(
    network: Network, optimizer: Any, learnt: Sequence[Any], recipe: Recipe, step: int
) -> float:
    """One update; its loss."""
    import torch

    read: list[Any] = []
    for i in range(recipe.questions):
        turn, file = divmod(step * recipe.questions + i, len(learnt))
        epoch, place = divmod(turn, len(learnt[file]))
        order = np.random.default_rng([recipe.seed, epoch, file]).permutation(len(learnt[file]))
        labelled = learnt[file][int(order[place])]
        generator = np.random.default_rng([recipe.seed, step, i])
        chosen = _passages(labelled, recipe, generator)
        read += [(*_row(network, labelled, p, recipe, generator), i) for p in chosen]
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    optimizer.zero_grad()
    loss = network.loss(*zip(*read, strict=True))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.tensors.values(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _passages(labelled: Labelled, recipe: Recipe, generator: np.random.Generator) -> list[int]:
    """The passages of a question that are read: some with evidence, and others if there are."""
    gold = labelled.gold
    others = [i for i, spans in enumerate(labelled.units) if i not in gold and spans]
    # The document of another question may be one that is never to be trained on.
    others = [i for i in others if part(labelled.document(i), recipe) != "held out"]
    some = generator.permutation(gold)[: recipe.passages - 1].tolist()
    return [*some, *generator.permutation(others)[: recipe.passages - len(some)].tolist()]


def _row(
    network: Network, labelled: Labelled, passage: int, recipe: Recipe, generator: Any
) -> tuple[Any, Any, Flags]:
    """A window of a passage, the unit of each of its tokens, and which units are wanted."""
    text, spans = labelled.example.passages[passage].text, labelled.units[passage]
    frame = network.frame(labelled.question, labelled.titles[passage])
    (tokens,) = tokenize(network.tokenizer, [text])
    owners = first_units(spans, tokens.offsets)
    wanted = labelled.wanted[passage]
    cut = windows(spans, tokens, recipe.max_tokens - len(frame))
    telling = [(a, b) for a, b in cut if wanted[owners[a:b]].any()]
    start, stop = (telling or cut)[int(generator.integers(len(telling or cut)))]
    return (frame, tokens.ids[start:stop]), owners[start:stop], wanted


def _weigh(
    network: Network, chosen: Sequence[Labelled], encoder: Any, device: str | None
) -> Floats:
    """The mix that is best for whole requests, of which the network was taught nothing."""
    method = Pruner(PrunerModel.of(network), encoder=encoder, device=device)
    features = method.features(
        Request(tuple(p.text for p in one.example.passages), one.units, one.titles, one.question)
        for one in chosen
    )
    wanted = [np.concatenate(one.wanted) for one in chosen]
    return best_mix([np.concatenate(values) for values in features], wanted)


def _owner(network: Network, recipe: Recipe, learnt: Sequence[Sequence[Labelled]]) -> str:
    """What a checkpoint belongs to."""
    how = {**asdict(recipe), "weighed_questions": 0}  # makes no difference so far
    digest = hashlib.sha256(json.dumps([network.fingerprint, how]).encode())
    for source in learnt:
        for labelled in source:
            digest.update(repr((labelled.example, labelled.wanted)).encode("utf-8", "replace"))
    return digest.hexdigest()


def _save(path: Path, owner: str, run: Run, network: Network, optimizer: Any) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    held = {
        "owner": owner,
        "losses": run.losses,
        "tensors": {name: tensor.detach() for name, tensor in network.tensors.items()},
        "optimizer": optimizer.state_dict(),
    }
    temporary = path.with_suffix(".part")
    torch.save(held, temporary)
    temporary.replace(path)


def _resume(path: Path, owner: str, run: Run, network: Network, optimizer: Any) -> None:
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        theirs = held["owner"]
        if theirs == owner:
            for name, tensor in network.tensors.items():
                tensor.data.copy_(held["tensors"][name])
            optimizer.load_state_dict(held["optimizer"])
            run.losses = list(held["losses"])
    except Exception as error:
        raise StateError(f"{path} is damaged: {error}; delete it to begin anew") from error
    if theirs != owner:
        raise StateError(
            f"{path} is of a run with another encoder, recipe or data; take another folder, or "
            f"delete it"
        )
