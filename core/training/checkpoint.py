"""A file from which a training that was stopped goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import StateError

__all__ = ["resume", "save"]


def save(path: Path, owner: str, state: dict[str, Any]) -> None:
    """Save what a run needs to go on, in place of what lies there.

    Parameters
    ----------
    path
        The file.
    owner
        A digest of all that the run comes from.
    state
        Tensors, numbers, texts, and lists and dicts of them.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save({"owner": owner, "state": state}, temporary)
    temporary.replace(path)


def resume(path: Path, owner: str) -> dict[str, Any] | None:
    """What was saved, on the CPU; None if nothing was.

    Raises
    ------
    StateError
        The file is damaged, or of another run.
    """
    import torch

    if not path.exists():
        return None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        theirs, state = held["owner"], dict(held["state"])
    except Exception as error:
        raise StateError(f"{path} is damaged: {error}; delete it to begin anew") from error
    if theirs != owner:
        raise StateError(
            f"{path} is of a run with another model, recipe or data; take another folder, or "
            f"delete it"
        )
    return state
