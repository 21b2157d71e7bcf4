"""The study model: a small Llama, trained from scratch to look up facts in its context.

It learns all that is said, filler too, so that it knows what was to be expected; and most of all
the answers, many of each conversation. It begins with random tokens that are repeated, from which
a transformer learns to look up what followed a token before; conversations alone teach it to guess
among the values that it has seen. These grow longer as it gets better.

So small a model looks things up in its second layer and nowhere else, and there an entry can only
hold what the first has made of it, which leaves a compressed memory little to work with.
Large models are redundant. In the end the third layer therefore becomes a copy of the second (as in
the depth up-scaling of Kim et al. 2024, arXiv 2312.15166), and in training one or the other is left
out now and then (LayerDrop: Fan et al., ICLR 2020), until either is enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from ...core.errors import InputError
from ...core.training import checkpoint
from .facts import END, LONGEST, PAD, RECAP, SHORTEST, START, Facts

__all__ = ["COPY", "LOOKS_UP", "STAGES", "LabRecipe", "LabRun", "Stage", "train_lab"]

_LOG = "training.json"
_CHECKPOINT = "checkpoint.pt"

_MASTERED, _RECENT = 0.97, 20
"""The part of answers that must be right in so many steps before conversations grow."""

_HERE = 0.75
"""The part of the steps that is as long as can be; the others go over what was learnt before."""

_FILLER, _RECAP = 0.2, 0.3
"""Weights of tokens of the conversation and of a recap, beside 1 of an answer."""

_NOISE = 0.1

LOOKS_UP, COPY = 1, 2
"""The layer that looks facts up, and that which becomes its copy."""

_LEFT_OUT = 0.3
"""The part of the steps that do without the attention of either of these."""


class Stage(NamedTuple):
    """How long conversations are.

    Attributes
    ----------
    turns
        At the most; at least half of that.
    shortest, longest
        Tokens of a turn.
    facts
        Of a conversation at the most; at least half of that.
    """

    turns: int
    shortest: int
    longest: int
    facts: int


STAGES = (
    Stage(3, 4, 13, 0),
    Stage(2, 7, 7, 4),
    Stage(4, 7, 9, 8),
    Stage(4, 8, 16, 8),
    Stage(4, 16, LONGEST, 8),
    Stage(8, SHORTEST, LONGEST, 16),
    Stage(16, SHORTEST, LONGEST, 32),
    Stage(36, SHORTEST, LONGEST, 16),
)
"""From random tokens, repeated so often, over facts alone, to facts few and far between."""

_HARDER = 4
"""The first stage in which facts are overwritten, and filler is noisy."""


@dataclass(frozen=True, slots=True)
class LabRecipe:
    """How the study model is trained.

    Attributes
    ----------
    steps
        Updates.
    tokens
        Of each update, about.
    copied
        Updates behind those, when one layer has become a copy of another.
    learning_rate
        The highest. It rises in 100 steps, and falls to 0 in the second half; for the last updates
        it is a third of that.
    layers, width, heads
        Of the model.
    seed
        Of the model and the conversations.
    bf16
        Whether the forward pass runs in bfloat16; the weights stay in float32.
    save_every
        Steps after which training can go on if it is stopped.

    Raises
    ------
    InputError
        A value is out of range.
    """

    steps: int = 3000
    tokens: int = 3072
    copied: int = 300
    learning_rate: float = 3e-3
    layers: int = 4
    width: int = 128
    heads: int = 8
    seed: int = 0
    bf16: bool = False
    save_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "layers", "width", "heads", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.copied < 0 or (self.copied and self.layers <= COPY):
            raise InputError(
                f"copied is at least 0, and with fewer than {COPY + 1} layers it is 0; got "
                f"{self.copied} with {self.layers}"
            )
        if self.width % (2 * self.heads) or not self.learning_rate > 0:
            raise InputError(
                f"width is a multiple of 2 x heads, learning_rate above 0; got {self.width}, "
                f"{self.heads} and {self.learning_rate}"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if step < self.steps:
            return self.learning_rate * min(1.0, (step + 1) / 100, 2 * (1 - step / self.steps))
        done = step - self.steps
        return self.learning_rate / 3 * min(1.0, (done + 1) / 50, 2 * (1 - done / self.copied))

    def model(self, task: Facts) -> Any:
        """A model that has learnt nothing; the global random generator stays as it was."""
        config = LlamaConfig(
            vocab_size=len(task.vocabulary),
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=4096,
            # With the usual 0.02 it takes twice as long until it looks anything up.
            initializer_range=0.01,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: Any = LlamaForCausalLM(config)
        return model


@dataclass
class LabRun:
    """What training has done.

    Attributes
    ----------
    losses
        Of each step, in nats.
    stages
        The stage of each step, as a number in `STAGES`.
    correct
        For each step the part of the answers that were right; NaN where the conversations were
        none of the longest and plainest, by which it is judged whether they shall grow.
    """

    losses: list[float] = field(default_factory=list)
    stages: list[int] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)

    @property
    def stage(self) -> int:
        """The stage of the next step."""
        if not self.stages:
            return 0
        here = self.stages[-1]
        judged = [c for c, s in zip(self.correct, self.stages, strict=True) if s == here and c == c]
        recent = judged[-_RECENT:]
        mastered = len(recent) == _RECENT and sum(recent) / _RECENT >= _MASTERED
        return min(here + mastered, len(STAGES) - 1)

    def __str__(self) -> str:
        reached = [f"{self.stages.index(s) + 1}" for s in sorted(set(self.stages))]
        return (
            f"{len(self.losses)} steps, loss {self.losses[0]:.2f} -> "
            f"{np.mean(self.losses[-100:]):.2f}; stages began at steps {', '.join(reached)}"
        )


def train_lab(
    out: str | Path,
    recipe: LabRecipe | None = None,
    task: Facts | None = None,
    *,
    device: str | None = None,
    progress: bool = False,
    stop_after: int | None = None,
) -> LabRun:
    """Train the study model and save it, in half precision, with its tokenizer and its log.

    A call that was stopped goes on from its last checkpoint, which lies in `out`, when it is made
    again, and comes to the same model on the same machine.

    Parameters
    ----------
    out
        The folder.
    recipe, task
        How; what conversations are made of. None for the defaults.
    device
        Where to run; None for the CPU.
    progress
        Whether to show a bar.
    stop_after
        Stop behind this step and save a checkpoint only.

    Raises
    ------
    InputError
        `out` holds a model already.
    StateError
        The checkpoint is damaged or of another run.
    """
    recipe, task, out = recipe or LabRecipe(), task or Facts(), Path(out)
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a model already; take another folder")
    model = recipe.model(task).to(device or "cpu").train()
    optimizer = _optimizer(model)
    owner = hashlib.sha256(json.dumps([asdict(recipe), asdict(task), STAGES]).encode()).hexdigest()
    run = LabRun()
    if state := checkpoint.resume(out / _CHECKPOINT, owner):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        run = LabRun(state["losses"], state["stages"], state["correct"])
    last = recipe.steps + recipe.copied
    start, end = len(run.losses), min(last, stop_after or last)
    with tqdm(range(start, end), initial=start, total=end, disable=not progress) as bar:
        for step in bar:
            if step == recipe.steps:
                layers = model.get_decoder().layers
                layers[COPY].load_state_dict(layers[LOOKS_UP].state_dict())
                optimizer = _optimizer(model)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            with _left_out(model, recipe, step):
                _step(model, task, recipe, optimizer, run)
            bar.set_postfix(loss=f"{run.losses[-1]:.3f}", stage=run.stages[-1])
            if (step + 1) % recipe.save_every == 0 or step + 1 == end:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save(out / _CHECKPOINT, owner, {**state, **asdict(run)})
    if end == last:
        model.eval().half().cpu().save_pretrained(out)
        task.tokenizer().save_pretrained(out)
        log = {"recipe": asdict(recipe), "task": asdict(task), "run": asdict(run)}
        (out / _LOG).write_text(json.dumps(_rounded(log)) + "\n", encoding="utf-8")
        (out / _CHECKPOINT).unlink()
    return run


def _optimizer(model: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)


@contextmanager
def _left_out(model: Any, recipe: LabRecipe, step: int) -> Iterator[None]:
    """A step without the attention of one of the two layers that are alike, if it is to be one."""
    chance = np.random.default_rng([recipe.seed, step, 1]).random()
    layer = {0: LOOKS_UP, 1: COPY}.get(int(chance / _LEFT_OUT))
    if step < recipe.steps or layer is None:
        yield
        return
    attention = model.get_decoder().layers[layer].self_attn
    handle = attention.register_forward_hook(
        lambda _module, _given, found: (torch.zeros_like(found[0]), *found[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def _step(model: Any, task: Facts, recipe: LabRecipe, optimizer: Any, run: LabRun) -> None:
    """One update, noted in `run`."""
    generator = np.random.default_rng([recipe.seed, len(run.losses)])
    stage = run.stage
    chosen = stage if generator.random() < _HERE else int(generator.integers(stage + 1))
    ids, weights, is_plain = _conversations(task, generator, chosen, recipe.tokens)
    given, weights = ids.to(model.device), weights.to(model.device)[1:]
    with torch.autocast(given.device.type, torch.bfloat16, enabled=recipe.bf16):
        logits = model(input_ids=given).logits[:, :-1].float()
    target = given[:, 1:]
    nll = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    nll = nll.view(target.shape).mean(0)
    loss: Any = sum(w * nll[weights == w].mean() for w in weights.unique().tolist() if w)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    right = (logits[:, weights == 1].argmax(-1) == target[:, weights == 1]).float().mean()
    run.losses.append(float(loss.detach()))
    run.stages.append(stage)
    run.correct.append(float(right) if is_plain and chosen == stage else float("nan"))


def _conversations(
    task: Facts, generator: np.random.Generator, stage: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Conversations with their questions, what each place weighs, and whether they are plain."""
    most, shortest, longest, facts = STAGES[stage]
    if not facts:
        return *_repeats(task, generator, most, shortest, longest), True
    turns = int(generator.integers(max(1, most // 2), most + 1))
    length = int(generator.integers(shortest, longest + 1))
    facts = min(facts, turns * task.slots)
    facts = int(generator.integers(max(1, facts // 2), facts + 1))
    kind = generator.random() if stage >= _HARDER else 1.0
    drawn = task.draw(
        generator,
        max(3, min(128, tokens // (turns * length + 3 * facts))),
        turns,
        length,
        facts,
        overwriting=kind < 0.2,
        noise=_NOISE if 0.2 <= kind < 0.4 else 0.0,
    )
    context = drawn.context.reshape(len(drawn.context), -1)
    questions, learnt = drawn.asked(generator, 16)
    parts = [np.full((len(context), 1), START), context]
    weights = [0.0, *[_FILLER] * context.shape[1]]
    if generator.random() < 0.4:
        values = generator.permuted(drawn.values, axis=1)
        marks = (np.full((len(context), 1), mark) for mark in (RECAP, END))
        parts += [next(marks), values, next(marks)]
        weights += [0.0, *[_RECAP] * (facts + 1)]
    ids = np.concatenate([*parts, questions], axis=1)
    weights += [float(yes) for yes in learnt]
    return torch.from_numpy(ids), torch.tensor(weights), kind >= 0.4


def _repeats(
    task: Facts, generator: np.random.Generator, times: int, shortest: int, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values by chance, so many times over, and which of them can be known."""
    length = int(generator.integers(shortest, longest + 1))
    once = generator.integers(task.first_key, task.first_word, size=(64, length))
    ids = np.concatenate([np.full((64, 1), START), np.tile(once, times)], axis=1)
    weights = torch.ones(ids.shape[1])
    weights[: length + 2] = 0.0
    return torch.from_numpy(ids), weights


def _rounded(value: Any) -> Any:
    """JSON of a few digits; None for NaN."""
    if isinstance(value, float):
        return round(value, 4) if value == value else None
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
