"""Memories of local models, by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError

if TYPE_CHECKING:
    from .base import ModelMemory
    from .kv.cache import Storage
    from .latent import CCM

__all__ = ["make_memory"]


def make_memory(
    model: Any,
    tokenizer: Any,
    memory: str = "infinipot",
    *,
    adapter: str | Path | CCM | None = None,
    budget: int = 1024,
    keep: float = 0.5,
    storage: Storage | None = None,
    **options: Any,
) -> ModelMemory[Any]:
    """Make an empty memory; its forks cost nothing, where another one tries out the model again.

    Parameters
    ----------
    model, tokenizer
        A causal language model of transformers, and its tokenizer.
    memory
        ``"ccm"``, or the policy of a `KVMemory`: a key of `POLICIES`.
    adapter
        For ``"ccm"``: the folder of an adapter for this model, or a `CCM`.
    budget, keep, storage
        As `KVMemory` takes them. Of an adapter that concatenates turns without a cap, as many
        are held as fit the budget; others have a size of their own.
    **options
        Other parameters of `KVMemory` or `CCMMemory`.

    Returns
    -------
    ModelMemory
        A `KVMemory` or a `CCMMemory`.

    Raises
    ------
    BudgetError
        The budget is too small.
    InputError
        ``"ccm"`` has no adapter, another memory has one, or an option is out of its range.
    ModelError
        The model cannot have this memory.
    StateError
        The adapter is damaged or of another model.
    UnknownMethodError
        There is no such policy.

    Examples
    --------
    >>> memory = make_memory(model, tokenizer, "h2o", budget=2048)           # doctest: +SKIP
    >>> memory = make_memory(model, tokenizer, "ccm", adapter="folder")      # doctest: +SKIP
    """
    if memory != "ccm":
        if adapter is not None:
            raise InputError(f"the memory {memory!r} has no adapter; leave it out, or take 'ccm'")
        from .kv import KVMemory

        return KVMemory(model, tokenizer, memory, budget, keep=keep, storage=storage, **options)
    if adapter is None:
        raise InputError("the memory 'ccm' needs an adapter: the folder of a trained one, or a CCM")
    from .latent import CCM, CCMMemory

    ccm = adapter if isinstance(adapter, CCM) else CCM.from_pretrained(model, adapter, tokenizer)
    if ccm.spec.update == "concat" and ccm.spec.cap is None:
        cap = max(1, (budget - ccm.spec.sink) // ccm.spec.comp_tokens)
        ccm = CCM(model, replace(ccm.spec, cap=cap), ccm.adapter)
    return CCMMemory(ccm, tokenizer, **options)
