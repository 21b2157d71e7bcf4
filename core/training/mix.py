"""How to weigh what is said of a unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..method import Flags, Floats

__all__ = ["best_mix"]


def best_mix(features: Sequence[Floats], wanted: Sequence[Flags], start: Floats) -> Floats:
    """The weights with which wanted units come out best, and likely.

    Parameters
    ----------
    features
        For each question what is weighed of each unit; shape ``(units, features)``.
    wanted
        For each question which units are wanted; shape ``(units,)``.
    start
        Weights to begin with and not to leave far without need; shape ``(features + 1,)``.

    Returns
    -------
    array, shape ``(features + 1,)``
        A weight for each feature, and what is added so that the sum is a logit.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as entropy

    pairs = [
        (torch.from_numpy(f), torch.from_numpy(w)) for f, w in zip(features, wanted, strict=True)
    ]
    near = torch.tensor(start, dtype=torch.float64)
    mix = near.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([mix], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        total = 1e-3 * ((mix - near) ** 2).sum()
        for values, goal in pairs:
            scores = values @ mix[:-1] + mix[-1]
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
