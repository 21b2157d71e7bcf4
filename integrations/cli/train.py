"""`laconic train`: the recipes of `laconic.core.training` and `laconic.memory.training`."""

from __future__ import annotations

import argparse
from typing import Any

from ...core.evaluation.metrics import mean_interval
from . import lab
from ._models import load_model
from .train_llmlingua2 import run as take_step

__all__ = ["run"]


def run(options: argparse.Namespace) -> None:
    """Follow a recipe, and save what came of it."""
    if options.recipe in ("llmlingua2", "lab"):
        {"llmlingua2": take_step, "lab": lab.train}[options.recipe](options)
        return
    {"align": _align, "ccm": _ccm, "pruner": _pruner, "tagger": _tagger}[options.recipe](options)
    print(f"saved in {options.out}")


def _align(options: argparse.Namespace) -> None:
    """Tune a model, and print what it gained on pairs that were held out."""
    from ...core.training.distribution_alignment import align, read_pairs

    result = align(
        options.model,
        read_pairs(options.data, options.prompt.split(","), options.output),
        options.out,
        epochs=options.epochs,
        rank=options.rank,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        max_tokens=options.max_tokens,
        device=options.device,
    )
    gains = [a - b for a, b in zip(result.before, result.after, strict=True)]
    before, after, gain = map(mean_interval, (result.before, result.after, gains))
    print(
        f"NLL of a token in nats, {len(gains)} held-out pairs: {before.value:.3f} before, "
        f"{after.value:.3f} after {result.trained} pairs, gain {gain.value:.3f} "
        f"[{gain.low:.3f}, {gain.high:.3f}]"
    )


def _pruner(options: argparse.Namespace) -> None:
    """Train a pruner, and print what it was trained on."""
    from ...core.training.pruner import Recipe, Split, train

    recipe = Recipe(
        questions=options.questions,
        passages=options.passages,
        weighed_questions=options.weighed_questions,
        **_schedule(options),
    )
    where = {"encoder": options.model, "device": options.device}
    split = Split(held_out=options.held_out)
    print(
        train(options.data, options.out, recipe, split, extra=options.extra, progress=True, **where)
    )


def _tagger(options: argparse.Namespace) -> None:
    """Train a tagger, and print what it was trained on."""
    from ...core.training.tagger import Recipe, Split, train

    recipe = Recipe(least_questions=options.least_questions, **_schedule(options))
    where = {"encoder": options.model, "device": options.device}
    split = Split(held_out=options.held_out, weighed=0.0)
    print(train(options.data, options.out, recipe, split, progress=True, **where))


def _schedule(options: argparse.Namespace) -> dict[str, Any]:
    """What recipes of a pruner and of a tagger have in common."""
    names = ("steps", "windows", "learning_rate", "joint", "rank", "max_tokens", "seed", "bf16")
    return {name: getattr(options, name) for name in names}


def _ccm(options: argparse.Namespace) -> None:
    """Train an adapter of compressed context memory."""
    from ...memory.latent import Spec
    from ...memory.training.ccm import Recipe, train
    from ...memory.training.examples import read_dialogues, tokenize

    spec = Spec(
        options.update,
        options.comp_tokens,
        recurrent=not options.alone,
        sink=options.sink,
        positions=options.positions,
    )
    recipe = Recipe(
        steps=options.steps,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        learning_rate=options.learning_rate,
        rank=options.rank,
        alpha=options.alpha,
        seed=options.seed,
        bf16=options.bf16,
        checkpointing=options.checkpointing,
    )
    dialogues = read_dialogues(options.data)
    model, tokenizer = load_model(options.model, options.device)
    size = {"max_turn_tokens": options.max_turn_tokens, "max_tokens": options.max_tokens}
    examples = [tokenize(dialogue, tokenizer, **size) for dialogue in dialogues]
    result = train(
        model, spec, examples, recipe, folder=options.out, tokenizer=tokenizer, progress=True
    )
    print(f"{len(examples)} conversations: {result}")
