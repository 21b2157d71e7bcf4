"""What a model still finds in a bounded cache, by how much it has read.

Conversations are those of `laconic.memory.training.facts`, of one length each: a few facts among
filler, all of them asked for at the end. What is counted is the part of a conversation's facts
that are recalled, so that each conversation is one observation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...core.evaluation.metrics import Interval, wilson_interval
from ..kv import KVMemory, get_policy
from ..kv.policies import Policy
from ..training.facts import ASK, START, TURN_LENGTH, Drawn, Facts

__all__ = ["ABLATIONS", "POTS", "Recalled", "Way", "conversations", "recall"]


@dataclass(frozen=True, slots=True)
class Way:
    """How a conversation is held.

    Attributes
    ----------
    policy
        Name in `laconic.memory.kv.policies.POLICIES`.
    options
        Of the policy.
    memory
        Of `KVMemory`.
    is_bounded
        Whether the pot is smaller than what is read.
    asks
        Whether the policy is asked once, when all was read.
    """

    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    is_bounded: bool = True
    asks: bool = False

    def hold(self, model: Any, tokenizer: Any, pot: int, length: int) -> KVMemory:
        """An empty memory for a conversation of so many tokens."""
        policy: Policy = get_policy(self.policy, **self.options)
        if self.is_bounded:
            return KVMemory(model, tokenizer, policy, budget=pot, **self.memory)
        return KVMemory(model, tokenizer, policy, budget=length + 8, keep=pot // 2)


def _infinipot(memory: Mapping[str, Any] | None = None, **options: Any) -> Way:
    return Way("infinipot", {"catalyst": "recap", **options}, memory or {})


POTS: Mapping[str, Way] = {
    "full cache": Way("truncation", is_bounded=False),
    "SnapKV after all was read": Way("snapkv", {"watches": 8}, is_bounded=False, asks=True),
    "InfiniPot": _infinipot(),
    "SnapKV": Way("snapkv", {"watches": 8}),
    "H2O": Way("h2o"),
    "TOVA": Way("tova"),
    "SirLLM": Way("sirllm"),
    "StreamingLLM": Way("streaming_llm"),
    "truncation": Way("truncation"),
}
"""The policies. SnapKV watches 8 queries, for its 32 would be all that a pot of 64 keeps."""

ABLATIONS: Mapping[str, Way] = {
    "alpha 0, no NuC": _infinipot(alpha=0.0),
    "alpha 0.25": _infinipot(alpha=0.25),
    "alpha 0.5, InfiniPot": _infinipot(),
    "alpha 0.75": _infinipot(alpha=0.75),
    "alpha 1, no CaP": _infinipot(alpha=1.0),
    "no CR-RoPE": _infinipot({"rerotate": False}),
    "attention pooled over 3": _infinipot(pool=3),
    "int8": _infinipot({"storage": "int8"}),
    "int4": _infinipot({"storage": "int4"}),
}
"""InfiniPot with a part left out, and with other values of its parameters."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What one way of holding conversations recalls.

    Attributes
    ----------
    name
        Of the way.
    length
        Tokens of a conversation.
    parts
        For each conversation the part of its facts that were recalled.
    nbytes
        Of the state behind a conversation.
    """

    name: str
    length: int
    parts: tuple[float, ...]
    nbytes: int

    @property
    def interval(self) -> Interval:
        """The mean over conversations with its 95 % interval (Wilson), which is rather too wide:
        a conversation is not only wholly right or wholly wrong.
        """
        return wilson_interval(sum(self.parts), len(self.parts))

    def beside(self, other: Recalled | None) -> Recalled:
        """The conversations of both, which differ in the model."""
        return replace(self, parts=(*other.parts, *self.parts)) if other else self


def conversations(
    task: Facts,
    length: int,
    *,
    count: int = 128,
    facts: int = 8,
    seed: int = 0,
    noise: float = 0.0,
    overwriting: bool = False,
    followers: int = 3,
    marked: bool = False,
) -> Drawn:
    """Conversations of about so many tokens, of which none was trained on.

    Parameters
    ----------
    task
        What they are made of.
    length
        Tokens.
    count, facts
        How many; facts of each, fewer where they are too short for so many.
    seed
        Of their own: training draws with the seeds of its steps.
    noise, overwriting, followers, marked
        As `Facts.draw` takes them.
    """
    turns = max(1, round(length / TURN_LENGTH))
    generator = np.random.default_rng([seed, length, 2**20])
    most = min(facts, turns * task.slots)
    return task.draw(
        generator,
        count,
        turns,
        TURN_LENGTH,
        most,
        noise=noise,
        overwriting=overwriting,
        followers=followers,
        marked=marked,
    )


def recall(
    model: Any, tokenizer: Any, ways: Mapping[str, Way], pot: int, drawn: Drawn
) -> Iterator[Recalled]:
    """Tell each conversation turn by turn to each way of holding it, and ask for all facts.

    Parameters
    ----------
    model, tokenizer
        The study model.
    ways
        By name.
    pot
        Entries that a layer may hold.
    drawn
        The conversations.
    """
    _, turns, each = drawn.context.shape
    for name, way in ways.items():
        parts, nbytes = [], 0
        for context, keys, values in zip(*drawn, strict=True):
            memory = way.hold(model, tokenizer, pot, turns * each)
            for i, turn in enumerate(context.tolist()):
                memory.observe(turn if i else [START, *turn])
            if way.asks:
                memory.distill()
            nbytes = memory.nbytes
            right = [_answer(memory, key) == value for key, value in zip(keys, values, strict=True)]
            parts.append(float(np.mean(right)))
        yield Recalled(name, turns * each, tuple(parts), nbytes)


def _answer(memory: KVMemory, key: int) -> int:
    """The likeliest answer to a question, of which no trace is left."""
    text = memory.generate([ASK, int(key)], max_new_tokens=1, commit=False)
    return int(memory.tokenizer.convert_tokens_to_ids(text.strip()))
