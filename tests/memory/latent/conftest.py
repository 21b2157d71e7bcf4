"""Tiny models with adapters whose updates are not zero."""

from __future__ import annotations

from typing import Any

import torch

from laconic.memory.latent.ccm import CCM, LatentState
from laconic.memory.latent.conditional_lora import ConditionalLora
from laconic.memory.latent.plan import Spec

from ..kv.conftest import make

FAMILIES = ("llama", "qwen3", "gemma3")
LENGTHS = (5, 7, 3, 6, 4)
"""Tokens of four chunks and an input."""


def model(name: str) -> Any:
    # The window must hold what a block sees; the layers alternate all the same.
    changes = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    made = make(name, **(changes | {"sliding_window": 64} if name == "gemma3" else {}))
    return made.requires_grad_(False)


def adapter(base: Any, comp_tokens: int = 2, seed: int = 3) -> ConditionalLora:
    """An adapter in eval mode with random values of a size that changes what it touches."""
    made = ConditionalLora(base, comp_tokens, rank=4).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1, generator=generator)
        made.comp_embeddings.mul_(5)
    return made


def conversation(batch: int = 1, lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    """Chunks of random tokens, each of shape ``(batch, tokens)``."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 128, (batch, n), generator=generator) for n in lengths]


def parallel(ccm: CCM, chunks: list[torch.Tensor]) -> torch.Tensor:
    rows = [[chunk[i] for chunk in chunks] for i in range(len(chunks[0]))]
    return ccm.parallel(rows)


def recurrent(ccm: CCM, chunks: list[torch.Tensor]) -> torch.Tensor:
    state = LatentState()
    for chunk in chunks[:-1]:
        state = ccm.observe(state, chunk, differentiable=True)
    return ccm.read(state, chunks[-1], differentiable=True)


def specs() -> dict[str, Spec]:
    """Every memory that can be described, with and without each option."""
    found = {}
    for update in ("concat", "merge", "ema"):
        for recurs in (True, False):
            for positions in ("skip", "slots"):
                for sink in (0, 2):
                    for cap in (None, 2) if update == "concat" else (None,):
                        spec = Spec(update, 2, recurs, sink, cap, positions)  # type: ignore[arg-type]
                        name = f"{update}-{'recur' if recurs else 'alone'}-{positions}-sink{sink}"
                        found[name + (f"-cap{cap}" if cap else "")] = spec
    return found
