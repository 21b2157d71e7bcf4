"""Endless text: a sliding window, before it a compressed memory of what has left it.

Source: Kim et al., "Compressed Context Memory for Online Language Model Interaction", ICLR 2024
(arXiv 2312.03414), section 4 and the official ``test_stream.py``: when the window is full, its
oldest tokens become a few entries of the memory, the oldest of which leave in turn. As in
StreamingLLM (Xiao et al., ICLR 2024), first tokens stay, and keys are rotated by where they stand
in the window rather than by where they were in the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...core.errors import InputError
from .attention import Pass, moved
from .base import Chunk
from .ccm import CCM
from .state import Entries, LatentState

__all__ = ["Stream", "StreamState"]


@dataclass(frozen=True)
class StreamState:
    """What is left of a text.

    Attributes
    ----------
    latent
        The sink and the memory.
    live
        By layer, the tokens in the window, with keys as at position 0.
    seen
        Tokens read since the start.
    """

    latent: LatentState = field(default_factory=LatentState)
    live: tuple[Entries, ...] = ()
    seen: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return self.latent.nbytes + sum(k.nbytes + v.nbytes for k, v in self.live)


class Stream:
    """Reads a text without end at constant memory and constant cost for each token.

    Parameters
    ----------
    ccm
        The model with its adapter. Its memory must be bounded, its positions slots, and chunks
        must see the memory.
    window
        Entries of a layer at most, at any time: sink, memory, tokens and COMP tokens together.
        The official code has 160.
    segment
        Tokens that are compressed at once, 64 there.

    Raises
    ------
    InputError
        The memory is of another kind, or does not fit into the window.
    """

    def __init__(self, ccm: CCM, window: int = 160, segment: int = 64) -> None:
        spec = ccm.spec
        if spec.positions != "slots" or not spec.recurrent:
            raise InputError("a stream needs positions='slots' and recurrent=True")
        if spec.update == "concat" and spec.cap is None:
            raise InputError("a stream needs a bounded memory: give cap, or update='merge'")
        most = spec.sink + spec.comp_tokens * (spec.cap or 1) + spec.comp_tokens
        if segment <= spec.sink or window < most + segment or window > ccm.window:
            raise InputError(
                f"sink, memory and COMP tokens take {most} entries and a segment {segment}, more "
                f"than the sink; window is at least their sum and at most the model's "
                f"{ccm.window}, got {window}"
            )
        self.ccm = ccm
        self.window = window
        self.segment = segment

    def start(self) -> StreamState:
        """The state before the first token."""
        return StreamState()

    @torch.no_grad()
    def feed(self, state: StreamState, chunk: Chunk) -> tuple[torch.Tensor, StreamState]:
        """Read a stretch of text.

        Parameters
        ----------
        state
            It stays as it is.
        chunk
            Token ids, of one text or of several side by side; of any number.

        Returns
        -------
        logits
            What is expected behind each token; shape ``(batch, tokens, vocabulary)``. They do not
            depend on how a text is cut into stretches.
        state
            The new state.

        Raises
        ------
        InputError
            They are no token ids.
        """
        ids = self.ccm._ids(chunk)
        logits = []
        while ids.shape[1]:
            room = self.window - self.ccm.spec.comp_tokens - self._held(state)
            if room < 1:
                state = self._compressed(state)
                continue
            found, state = self._read(state, ids[:, :room])
            logits.append(found)
            ids = ids[:, room:]
        return torch.cat(logits, 1), state

    def _held(self, state: StreamState) -> int:
        """Entries that a layer holds."""
        latent = state.latent
        sink = self.ccm.spec.sink if latent.steps else 0
        live = state.live[0][0].shape[2] if state.live else 0
        return sink + self.ccm.spec.entries(latent.steps) + live

    def _read(self, state: StreamState, ids: torch.Tensor) -> tuple[torch.Tensor, StreamState]:
        nothing = torch.zeros(0, dtype=torch.long, device=ids.device)
        logits, made = self._forward(
            state, state.live, self.ccm.embed(ids, nothing, nothing), nothing
        )
        live = tuple(
            (torch.cat([k, new_k], 2), torch.cat([v, new_v], 2))
            for (k, v), (new_k, new_v) in zip(state.live or _empty(made), made, strict=True)
        )
        return logits, StreamState(state.latent, live, state.seen + ids.shape[1])

    def _compressed(self, state: StreamState) -> StreamState:
        """The state with the oldest segment of the window in the memory."""
        spec, batch = self.ccm.spec, state.live[0][0].shape[0]
        oldest = tuple((k[:, :, : self.segment], v[:, :, : self.segment]) for k, v in state.live)
        device = oldest[0][0].device
        rows = torch.arange(spec.comp_tokens, device=device).repeat(batch)
        places = torch.arange(len(rows), device=device)
        comp = self.ccm.embed(torch.zeros_like(rows).view(batch, -1), places, rows)
        _, made = self._forward(state, oldest, comp, places)
        first: list[Entries] = []
        if state.latent.steps == 0 and spec.sink:
            first = [
                (self._at(k[:, :, : spec.sink], 0, i), v[:, :, : spec.sink])
                for i, (k, v) in enumerate(oldest)
            ]
        latent = state.latent.updated(spec, made, first, self.segment)
        live = tuple(
            (k[:, :, self.segment :].clone(), v[:, :, self.segment :].clone())
            for k, v in state.live
        )
        return StreamState(latent, live, state.seen)

    def _forward(
        self,
        state: StreamState,
        live: tuple[Entries, ...],
        embedded: torch.Tensor,
        gated: torch.Tensor,
    ) -> tuple[torch.Tensor, list[Entries]]:
        """Logits of embedded tokens behind what is held, and their entries, as at position 0."""
        ccm, latent = self.ccm, state.latent
        start = ccm.spec.start(latent.steps, 0, reads=True)
        cache = ccm.past(latent, reads=True)
        for i, (keys, values) in enumerate(live):
            cache.update(self._at(keys, start, i), values, i)
        past, (batch, tokens) = cache.get_seq_length(), embedded.shape[:2]
        start += live[0][0].shape[2] if live else 0
        mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=embedded.device)
        positions = torch.arange(start, start + tokens, device=embedded.device)
        output = ccm.model(
            inputs_embeds=embedded,
            attention_mask=mask.tril(past).expand(batch, 1, -1, -1),
            position_ids=positions.expand(batch, -1),
            past_key_values=cache,
            use_cache=True,
            ccm=Pass(ccm.adapter, gated),
        )
        made = [
            (self._at(x.keys[:, :, past:], -start, i, step=-1), x.values[:, :, past:].clone())
            for i, x in enumerate(cache.layers)
        ]
        return output.logits, made

    def _at(self, keys: torch.Tensor, start: int, layer: int, step: int = 1) -> torch.Tensor:
        """Keys moved by ``start, start + step, ...``."""
        assert self.ccm.rotator is not None
        count = keys.shape[2]
        by = start + step * torch.arange(count, device=keys.device)
        turned = moved(self.ccm.rotator, keys.float(), by.expand(len(keys), -1), layer)
        return turned.to(keys.dtype)


def _empty(made: list[Entries]) -> tuple[Entries, ...]:
    return tuple((k[:, :, :0], v[:, :, :0]) for k, v in made)
