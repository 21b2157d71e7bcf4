"""`laconic train`: the recipes of `laconic.core.training`."""

from __future__ import annotations

import argparse

from ...core.evaluation.metrics import mean_interval
from ...core.training.distribution_alignment import align, read_pairs

__all__ = ["run"]


def run(options: argparse.Namespace) -> None:
    """Tune and save a model, and print what it gained on pairs that were held out."""
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
    print(f"saved in {options.out}")
