"""A memory study that a laptop can run: facts are stated turn by turn, and asked for later.

Each turn states facts, a key and its value; the input names all keys in another order, each
followed by its value, which is to be predicted (associative recall). Keys are not repeated
within a conversation and values are drawn anew for each, so that nothing but the context tells
them: without it one value is as likely as another. A base model is trained from scratch on whole
contexts, then an adapter for each memory.

Such figures compare memories on one small model. They say nothing about large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from ...core.errors import InputError
from ...core.evaluation.metrics import Interval, wilson_interval
from ..latent.autocompressor import AutoCompressor
from ..latent.base import Example, LatentMemory
from ..latent.ccm import CCM
from ..latent.compressive import Compressive
from ..latent.gisting import Gisting, GistingOnline
from ..latent.icae import ICAE
from ..latent.plan import Spec, Update
from ..latent.rmt import RMT
from ..latent.xcompressor import XCompressor
from .fit import Recipe, fit

__all__ = ["FAMILY", "MEMORIES", "RECIPE", "RecallTask", "Score", "Study", "study", "train_base"]

_START, _TURN, _ASK = 1, 2, 3
_FIRST = 4
"""The first key; values stand behind the keys."""

RECIPE = Recipe(
    steps=1200,
    batch_size=64,
    micro_batch=64,
    learning_rate=3e-3,
    rank=16,
    alpha=32,
    dropout=0.0,
)


Build = Callable[[Any, Recipe], LatentMemory]
"""Makes a memory of a model, with an adapter of the recipe's rank."""


def _ccm(update: Update, comp_tokens: int) -> Build:
    spec = Spec(update, comp_tokens)
    return lambda model, recipe: CCM(model, spec, recipe.adapter(model, comp_tokens))


MEMORIES: Mapping[str, Build] = {"CCM-concat": _ccm("concat", 2), "CCM-merge": _ccm("merge", 8)}
"""As in the paper, a merged memory is given more COMP tokens (its table 15: 2 and 8)."""

FAMILY: Mapping[str, Build] = {
    **MEMORIES,
    "Gisting": lambda model, recipe: Gisting(model, 8, recipe.adapter(model, 8)),
    "Gisting-online": lambda model, recipe: GistingOnline(model, 2, recipe.adapter(model, 2)),
    "Compressive": lambda model, recipe: Compressive(model, 3, recipe.adapter(model, 0)),
    "AutoCompressor": lambda model, recipe: AutoCompressor(model, 2, recipe.adapter(model, 2)),
    "RMT": lambda model, recipe: RMT(model, 8, recipe.adapter(model, 8)),
    "ICAE": lambda model, recipe: ICAE(model, 2, recipe.adapter(model, 3)),
    "500xCompressor": lambda model, recipe: XCompressor(model, 2, recipe.adapter(model, 2)),
}
"""All learned memories: 2 entries for each turn, or 8 in all."""


@dataclass(frozen=True, slots=True)
class RecallTask:
    """Conversations that state facts and ask for them.

    Attributes
    ----------
    turns
        The most turns of a conversation.
    facts
        Facts of a turn.
    keys, values
        How many there are of each.

    Raises
    ------
    InputError
        There are fewer keys than facts.
    """

    turns: int = 4
    facts: int = 2
    keys: int = 16
    values: int = 16

    def __post_init__(self) -> None:
        if min(self.turns, self.facts, self.values) < 1 or self.turns * self.facts > self.keys:
            raise InputError(
                f"{self.turns} turns of {self.facts} facts need {self.turns * self.facts} keys, "
                f"there are {self.keys}"
            )

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return _FIRST + self.keys + self.values

    def draw(
        self, count: int, turns: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Conversations of so many turns.

        Returns
        -------
        context
            Shape ``(count, turns, 1 + 2 facts)``.
        asked
            The input: values stand at 2, 4, ...; shape ``(count, 1 + 2 turns facts)``.
        """
        facts = turns * self.facts
        keys = torch.rand(count, self.keys, generator=generator).argsort(1)[:, :facts] + _FIRST
        values = torch.randint(self.values, (count, facts), generator=generator)
        values += _FIRST + self.keys
        stated = torch.stack([keys, values], -1).view(count, turns, 2 * self.facts)
        order = torch.rand(count, facts, generator=generator).argsort(1)
        asked = torch.stack([keys.gather(1, order), values.gather(1, order)], -1).flatten(1)
        marks = torch.full((count, turns, 1), _TURN), torch.full((count, 1), _ASK)
        return torch.cat([marks[0], stated], 2), torch.cat([marks[1], asked], 1)

    def examples(self, count: int, seed: int) -> list[Example]:
        """Conversations of 1 to `turns` turns, to train an adapter."""
        generator = torch.Generator().manual_seed(seed)
        found: list[Example] = []
        for turns in range(1, self.turns + 1):
            share = count * turns // self.turns - count * (turns - 1) // self.turns
            context, asked = self.draw(share, turns, generator)
            learnt = (False, *(False, True) * (turns * self.facts))
            for stated, last in zip(context.tolist(), asked.tolist(), strict=True):
                stated[0] = [_START, *stated[0]]
                found.append(Example((*map(tuple, stated), tuple(last)), learnt))
        return found


@dataclass(frozen=True, slots=True)
class Score:
    """How often the first value that was asked for was the likeliest one.

    Attributes
    ----------
    correct, n
        Conversations in which it was, and all. Only one question of each is counted, for those
        of one conversation are not independent.
    nbytes
        Bytes of what the input saw of one conversation: key/value entries, or a soft prompt.
    """

    correct: int
    n: int
    nbytes: int

    @property
    def accuracy(self) -> float:
        """The part that was right."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """Its 95 % interval (Wilson)."""
        return wilson_interval(self.correct, self.n)


@dataclass
class Study:
    """Scores by method, then by the number of turns."""

    scores: dict[str, dict[int, Score]] = field(default_factory=dict)

    def recovered(self, method: str, turns: int) -> float:
        """The part of the gap between no context and the full one that a memory closes."""
        none, full, own = (self.scores[m][turns].accuracy for m in ("none", "full", method))
        return (own - none) / (full - none)

    def __str__(self) -> str:
        lines = [
            "| context | turns | bytes | accuracy [95 % interval] | n | gap recovered |",
            "|---|---|---|---|---|---|",
        ]
        for method, by_turns in self.scores.items():
            for turns, score in by_turns.items():
                low, high = score.interval.low, score.interval.high
                lines.append(
                    f"| {method} | {turns} | {score.nbytes} | {score.accuracy:.3f} "
                    f"[{low:.3f}, {high:.3f}] | {score.n} | {self.recovered(method, turns):.2f} |"
                )
        return "\n".join(lines)


def train_base(
    task: RecallTask,
    *,
    layers: int = 3,
    width: int = 64,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = False,
) -> Any:
    """Train a small Llama to recall facts from its whole context.

    The first third of the steps repeats random tokens, from which a transformer learns to look
    up what followed a token before; the task alone takes it far longer to get there. Then comes
    the task.

    Parameters
    ----------
    task
        The conversations.
    layers, width
        Of the model, which has 4 heads.
    steps, batch_size, learning_rate
        Of AdamW; the rate rises in 100 steps and falls along a cosine.
    seed
        Of the model and of the conversations.
    progress
        Whether to show a bar.

    Returns
    -------
    LlamaForCausalLM
        In eval mode.
    """
    config = LlamaConfig(
        vocab_size=task.vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
    with tqdm(range(steps), desc="base model", disable=not progress) as bar:
        for step in bar:
            done = step / steps
            rate = min(1.0, step / 100) * max(0.05, 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate
            repeats = done < 0.35 or (done < 0.5 and step % 2)
            ids, learnt = (_repeats if repeats else _recalls)(task, batch_size, generator)
            logits = model(input_ids=ids).logits[:, :-1]
            loss = cross_entropy(logits[learnt[:, 1:]], ids[:, 1:][learnt[:, 1:]])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return model.eval()


def study(
    task: RecallTask | None = None,
    memories: Mapping[str, Build] = MEMORIES,
    recipe: Recipe = RECIPE,
    *,
    base_steps: int = 2000,
    examples: int = 20_000,
    held_out: int = 1000,
    turns: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Study:
    """Train a base model and an adapter for each memory, and compare them.

    Parameters
    ----------
    task
        The conversations.
    memories
        What is compared with no context and the full one, by name; `FAMILY` for all there are.
    recipe
        How adapters are trained.
    base_steps
        Steps of the base model.
    examples
        Conversations that adapters learn from, again and again.
    held_out
        Conversations of each length that are measured; drawn from another seed than those that
        anything was trained on.
    turns
        Lengths that are measured; None for all that are trained.
    seed
        Of the models and the conversations.
    progress
        Whether to show bars.
    """
    task = task or RecallTask()
    model = train_base(task, steps=base_steps, seed=seed, progress=progress)
    learnt = task.examples(examples, seed + 1)
    recipe = replace(recipe, seed=seed)
    held = {
        t: task.draw(held_out, t, torch.Generator().manual_seed(seed + 2))
        for t in turns or range(1, task.turns + 1)
    }
    found = Study()
    for full in (False, True):
        found.scores["full" if full else "none"] = {
            t: _bare_score(model, full, *drawn) for t, drawn in held.items()
        }
    for name, build in memories.items():
        memory = fit(build(model, recipe), learnt, recipe, progress=progress).memory
        found.scores[name] = {t: _score(memory, *drawn) for t, drawn in held.items()}
        memory.adapter.detach_from_model()
    return found


@torch.no_grad()
def _score(memory: LatentMemory, context: torch.Tensor, asked: torch.Tensor) -> Score:
    """Answers to the first question, from a memory that was told turn by turn."""
    state = memory.start()
    for i, chunk in enumerate(context.unbind(1)):
        start = torch.full((len(chunk), 0 if i else 1), _START)
        state = memory.observe(state, torch.cat([start, chunk], 1))
    logits = memory.read(state, asked[:, :2])
    return _counted(logits, asked, state.nbytes // len(asked))


@torch.no_grad()
def _bare_score(model: Any, full: bool, context: torch.Tensor, asked: torch.Tensor) -> Score:
    """Answers of the model, with all context or none."""
    start = torch.full((len(asked), 1), _START)
    read = torch.cat([start, *([context.flatten(1)] if full else []), asked[:, :2]], 1)
    config = model.config
    entry = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    nbytes = (read.shape[1] - 2) * entry * model.dtype.itemsize
    return _counted(model(input_ids=read).logits, asked, nbytes)


def _counted(logits: torch.Tensor, asked: torch.Tensor, nbytes: int) -> Score:
    correct = int((logits[:, -1].argmax(-1) == asked[:, 2]).sum())
    return Score(correct, len(asked), nbytes)


def _recalls(
    task: RecallTask, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Conversations in one piece, and which of their tokens are learnt."""
    turns = int(torch.randint(1, task.turns + 1, (1,), generator=generator))
    context, asked = task.draw(count, turns, generator)
    ids = torch.cat([torch.full((count, 1), _START), context.flatten(1), asked], 1)
    learnt = torch.zeros_like(ids, dtype=torch.bool)
    learnt[:, ids.shape[1] - asked.shape[1] + 2 :: 2] = True
    return ids, learnt


def _repeats(
    task: RecallTask, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, three times over, and which of them can be known."""
    length = int(torch.randint(4, 14, (1,), generator=generator))
    once = torch.randint(_FIRST, task.vocabulary, (count, length), generator=generator)
    ids = torch.cat([torch.full((count, 1), _START), once, once, once], 1)
    learnt = torch.ones_like(ids, dtype=torch.bool)
    learnt[:, : length + 2] = False
    return ids, learnt
