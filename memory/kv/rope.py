"""Moving keys to other positions: rotary embedding is applied to what was embedded already.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021: a key at
position p is ``R(p) k``, and ``R(a) R(b) = R(a + b)``, so ``R(d)`` moves it by d. The model's own
functions are used, whatever its scheme (partial, interleaved, scaled, by layer type); whether
they move keys as they should is tried on the model itself before anything relies on it.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch

from ...core.errors import ModelError

__all__ = ["Rotator"]

_SHIFTS = (1, 37)
"""Positions by which a token is moved to see whether its keys follow."""

_WINDOWED = ("dynamic", "longrope")
"""Schemes that change beyond the positions that the model was trained on."""


class Rotator:
    """Moves keys by any number of positions, in float32.

    Parameters
    ----------
    model
        A causal language model of transformers.
    longest
        The largest position that will be used.

    Raises
    ------
    ModelError
        Its positions are no rotary embedding, or one that this cannot prove to move.
    """

    def __init__(self, model: Any, longest: int) -> None:
        decoder = model.get_decoder()
        self._rotary = getattr(decoder, "rotary_emb", None)
        attention = _attention(decoder)
        module = sys.modules[type(attention).__module__] if attention else None
        self._apply = getattr(module, "apply_rotary_pos_emb", None)
        if self._rotary is None or self._apply is None:
            raise ModelError(
                f"{type(model).__name__} has no rotary position embedding, and its keys cannot "
                f"be moved; take a model that has one, such as Llama, Qwen, Mistral or Gemma"
            )
        config = model.config.get_text_config(decoder=True)
        self._types: list[str] = list(
            getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        )
        self._scales: dict[str | None, float] = {}
        self._takes_type = "layer_type" in inspect.signature(self._rotary.forward).parameters
        self._check_window(config, longest)
        self._check_movement(model)

    def move(self, keys: torch.Tensor, by: torch.Tensor, layer: int) -> torch.Tensor:
        """Move keys by so many positions.

        Parameters
        ----------
        keys
            Shape ``(1, heads, entries, dim)``.
        by
            Positions, which may be negative; shape ``(heads, entries)``, or ``(1, entries)`` for
            all heads alike.
        layer
            The layer that they belong to.
        """
        full = keys.float()
        cos, sin = self._angles(full, by, layer)
        width = cos.shape[-1]
        # Heads stand as rows, for each entry of each head moves in its own way.
        turned = full[0, :, None, :, :width]
        # It turns queries too, of which there are none.
        _, turned = self._apply(turned[:, :0], turned, cos, sin)  # type: ignore[misc]
        moved = torch.cat([turned[None, :, 0], full[..., width:]], -1)
        return torch.where((by == 0)[None, :, :, None], keys, moved.to(keys.dtype))

    def _angles(
        self, keys: torch.Tensor, by: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kind = self._types[layer] if self._takes_type else None
        cos, sin = self._turned(keys, by, kind)
        if kind not in self._scales:
            # Some schemes scale what they turn: at position 0 there is nothing but the scale.
            self._scales[kind] = float(self._turned(keys, by[:1, :1] * 0, kind)[0].amax())
        return cos / self._scales[kind], sin / self._scales[kind]

    def _turned(
        self, keys: torch.Tensor, by: torch.Tensor, kind: str | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rotary: Any = self._rotary
        found: tuple[torch.Tensor, torch.Tensor]
        found = rotary(keys, by, layer_type=kind) if self._takes_type else rotary(keys, by)
        return found

    def _check_window(self, config: Any, longest: int) -> None:
        parameters = getattr(config, "rope_parameters", None) or {}
        schemes = [parameters, *(p for p in parameters.values() if isinstance(p, dict))]
        if any(scheme.get("rope_type") in _WINDOWED for scheme in schemes):
            given = [s.get("original_max_position_embeddings") for s in schemes]
            window = next((w for w in given if w), config.max_position_embeddings)
            if longest > window:
                raise ModelError(
                    f"the model's rotary embedding changes beyond {window} positions, and the "
                    f"memory would use {longest}; take a budget of at most {window}"
                )

    def _check_movement(self, model: Any) -> None:
        """One token sees nothing but itself, so in every layer its keys differ by R alone."""
        from .cache import new_cache

        token = torch.tensor([[1]], device=model.device)
        found = []
        for position in (0, *_SHIFTS):
            cache = new_cache(model)
            with torch.inference_mode():
                model(
                    input_ids=token,
                    past_key_values=cache,
                    position_ids=torch.full_like(token, position),
                )
            found.append([layer.keys for layer in cache.layers])
        tolerance = {torch.float32: 1e-4, torch.float16: 2e-2}.get(found[0][0].dtype, 1e-1)
        for shift, keys in zip(_SHIFTS, found[1:], strict=True):
            for layer, (start, end) in enumerate(zip(found[0], keys, strict=True)):
                by = torch.full(start.shape[1:3], shift, device=start.device)
                error = (self.move(start, by, layer) - end).float().norm() / end.float().norm()
                if not error < tolerance:
                    raise ModelError(
                        f"the keys of layer {layer} of {type(model).__name__} do not move with "
                        f"their positions as a rotary embedding has it; such models (latent or "
                        f"multimodal attention among them) cannot have a bounded memory"
                    )


def _attention(decoder: Any) -> Any:
    return next(
        (
            m
            for m in decoder.modules()
            if hasattr(m, "layer_idx") and type(m).__name__.endswith("Attention")
        ),
        None,
    )
