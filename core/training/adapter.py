"""The steps of a training of a `Network`, from where an earlier run was stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.pruner_network import FILE, Kind, Network
from . import checkpoint

__all__ = ["Schedule", "fit", "refuse_trained", "save"]

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many steps are taken, and how large they are.

    Attributes
    ----------
    steps
        Updates.
    learning_rate, warmup
        The highest; the part of the steps in which it rises to that. Then it falls to 0.
    joint, rank
        Upper layers that learn; the rank of their updates.
    max_tokens
        Of a window.
    seed
        Of the start, the draws and the dropout.
    save_every
        Steps after which training can go on if it is stopped.
    bf16
        Whether layers compute in bfloat16: faster where the device does, a little less exact.

    Raises
    ------
    InputError
        A value is out of range.
    """

    steps: int = 1500
    learning_rate: float = 1e-3
    warmup: float = 0.06
    joint: int = 3
    rank: int = 32
    max_tokens: int = 192
    seed: int = 0
    save_every: int = 50
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "joint", "rank", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.max_tokens < 64:
            raise InputError(f"max_tokens is at least 64, got {self.max_tokens}")
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1):
            raise InputError("learning_rate is above 0, warmup from 0 to below 1")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        warm = max(1, round(self.warmup * self.steps))
        falling = (self.steps - step) / max(1, self.steps - warm)
        return self.learning_rate * min(1.0, (step + 1) / warm, falling)

    def network(self, encoder: Any, device: str | None) -> Network:
        """A network that has learnt nothing."""
        network = Network(encoder, joint=self.joint, rank=self.rank, seed=self.seed, device=device)
        network.window = self.max_tokens
        return network


def refuse_trained(out: Path) -> None:
    """Raise `InputError` if a folder holds an adapter."""
    if (out / FILE).exists():
        raise InputError(f"{out} holds an adapter already; take another folder")


def fit(
    network: Network,
    schedule: Schedule,
    learn: Callable[[int], float],
    owner: str,
    out: Path,
    *,
    progress: bool = False,
    stop_after: int | None = None,
) -> list[float]:
    """Take steps, and save a checkpoint in `out` now and then, from which a new call goes on.

    Parameters
    ----------
    network
        Its updates and heads are changed.
    schedule
        How many steps, how fast.
    learn
        Computes the gradients of a step; the loss.
    owner
        A digest of all that the run comes from.
    out
        The folder of the checkpoint.
    progress
        Whether to show a bar.
    stop_after
        Stop behind this step.

    Returns
    -------
    list of float
        The loss of each step so far.

    Raises
    ------
    StateError
        The checkpoint is damaged or of another run.
    """
    import torch
    from tqdm import tqdm

    network.attach(bf16=schedule.bf16)
    optimizer = torch.optim.AdamW(network.tensors.values(), weight_decay=0.01)
    losses: list[float] = []
    if state := checkpoint.resume(out / _CHECKPOINT, owner):
        for name, tensor in network.tensors.items():
            tensor.data.copy_(state["tensors"][name])
        optimizer.load_state_dict(state["optimizer"])
        losses = list(state["losses"])
    start, end = len(losses), min(schedule.steps, stop_after or schedule.steps)
    devices = [network.device] if network.device.type == "cuda" else []
    network.train(True)
    with (
        torch.random.fork_rng(devices),
        tqdm(range(start, end), initial=start, total=end, disable=not progress) as bar,
    ):
        for step in bar:
            torch.manual_seed(schedule.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            optimizer.zero_grad()
            losses.append(learn(step))
            torch.nn.utils.clip_grad_norm_(network.tensors.values(), 1.0)
            optimizer.step()
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
            if (step + 1) % schedule.save_every == 0 or step + 1 == end:
                tensors = {name: tensor.detach() for name, tensor in network.tensors.items()}
                state = {"losses": losses, "tensors": tensors}
                checkpoint.save(
                    out / _CHECKPOINT, owner, {**state, "optimizer": optimizer.state_dict()}
                )
    network.train(False)
    return losses


def save(network: Network, out: Path, kind: Kind, about: dict[str, Any]) -> None:
    """Save what was learnt in place of the checkpoint."""
    network.save(out, about, kind=kind)
    (out / _CHECKPOINT).unlink(missing_ok=True)
