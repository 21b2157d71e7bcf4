"""StreamingLLM: keep the first few entries, on which attention rests, and the newest.

Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import LayerView, Policy, edges

__all__ = ["StreamingLLM"]


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keep the first and the newest entries.

    Parameters
    ----------
    sink
        Entries at the start that stay (the paper's 4).
    """

    sink: int = 4

    name = "streaming_llm"

    def score(self, layer: LayerView, keep: int) -> torch.Tensor:
        """The place of each entry; the first above all."""
        places = torch.arange(len(layer), dtype=torch.float32, device=layer.keys.device)
        return edges(places.expand(layer.keys.shape[0], -1), min(self.sink, keep), 0)
