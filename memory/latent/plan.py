"""Who sees what: one description of compressed context memory for its two forms.

Source: Kim et al., "Compressed Context Memory for Online Language Model Interaction", ICLR 2024
(arXiv 2312.03414), sections 3.1 and 3.2. In a chat, chunks are read one after another and each
leaves the keys and values of its COMP tokens, h(t), in a memory (recurrent form). In training,
all chunks stand in one sequence and a mask lets each token see what it would have seen in the
chat (parallel form). `Spec` says what a memory holds after t chunks and where it stands; both
forms ask it. `plan` lays out the parallel form.

The memories of all steps exist at once in the parallel form. Where a memory is no plain COMP
token (merged, or moved to another position) it is a virtual entry: a mix of COMP keys and
values that is appended to those of the tokens in every layer. This takes the place of the SUM
tokens of the official code, at fewer queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Literal, get_args

import torch

from ...core.errors import InputError

__all__ = ["Plan", "Positions", "Spec", "Update", "collate", "plan"]

Update = Literal["concat", "merge", "ema"]
Positions = Literal["skip", "slots", "plain"]

_NEVER = 1 << 30
"""A block that there is not."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A compressed context memory.

    Attributes
    ----------
    update
        ``"concat"`` appends h(t) to the memory; ``"merge"`` keeps the mean of all h; ``"ema"``
        keeps an exponential mean, ``(1 - decay) Mem(t-1) + decay h(t)``.
    comp_tokens
        COMP tokens behind each chunk, n.
    recurrent
        Whether chunks see the memory while they are compressed. If not, each is compressed by
        itself, and only the input sees the memory.
    sink
        So many first tokens of the conversation stay visible as they are.
    cap
        Chunks that a concatenated memory holds; the oldest leave first. None for all.
    positions
        ``"skip"``, as published: text is counted on and on, COMP tokens share the positions of
        the text behind them, and keys stay where they were made. ``"slots"``: the memory stands
        at the positions behind the sink, whatever its age, and text stands behind the memory,
        so that positions are bounded; keys that are averaged have the same rotation.
        ``"plain"``: COMP tokens are counted as text is.
    decay
        The weight of the newest chunk of ``"ema"``.

    Raises
    ------
    InputError
        A value is out of range, or `cap` is given where nothing is concatenated.
    """

    update: Update = "concat"
    comp_tokens: int = 2
    recurrent: bool = True
    sink: int = 0
    cap: int | None = None
    positions: Positions = "skip"
    decay: float = 0.5

    def __post_init__(self) -> None:
        if self.update not in get_args(Update):
            raise InputError(f"update is one of {get_args(Update)}, got {self.update!r}")
        if self.positions not in get_args(Positions):
            raise InputError(f"positions is one of {get_args(Positions)}, got {self.positions!r}")
        if self.comp_tokens < 1 or self.sink < 0:
            raise InputError(
                f"comp_tokens is at least 1 and sink at least 0, got {self.comp_tokens} and "
                f"{self.sink}"
            )
        if self.cap is not None and (self.cap < 1 or self.update != "concat"):
            raise InputError(
                f"cap is the number of chunks, at least 1, that update='concat' holds; got "
                f"cap={self.cap} with update={self.update!r}"
            )
        if not 0 < self.decay <= 1:
            raise InputError(f"decay is above 0 and at most 1, got {self.decay}")

    def rate(self, t: int) -> float:
        """The weight a_t of h(t) in the memory after chunk t, from 1 (section 3.1)."""
        if t == 1:
            return 1.0
        return 1 / t if self.update == "merge" else self.decay

    def weights(self, t: int) -> list[float]:
        """What h(1), ..., h(t) weigh in an averaged memory after chunk t."""
        found: list[float] = []
        for step in range(1, t + 1):
            rate = self.rate(step)
            found = [(1 - rate) * weight for weight in found] + [rate]
        return found

    def held(self, t: int) -> range:
        """The chunks, from 0, whose h a concatenated memory holds after chunk t."""
        return range(0 if self.cap is None else max(0, t - self.cap), t)

    def entries(self, t: int) -> int:
        """Entries that the memory holds after chunk t in each layer, without the sink."""
        chunks = len(self.held(t)) if self.update == "concat" else min(t, 1)
        return self.comp_tokens * chunks

    def start(self, t: int, text: int, reads: bool) -> int:
        """Position of the first token of what follows chunk t.

        Parameters
        ----------
        t
            Chunks before it.
        text
            Text tokens before it.
        reads
            Whether it sees the memory.
        """
        if self.positions != "slots":
            return text + (t * self.comp_tokens if self.positions == "plain" else 0)
        if t == 0:
            return 0
        return self.sink + (self.entries(t) if reads else 0)


@dataclass(frozen=True)
class Plan:
    """The parallel form of some conversations: Q tokens, C COMP tokens and V virtual entries.

    Rows are padded on the left. A block is a chunk with its COMP tokens, or the input at the
    end. A token sees the tokens before it in its own block, and of other blocks those entries
    that its block reads.

    Attributes
    ----------
    block
        The block of each token, from 0; -1 for padding. Shape ``(batch, Q)``.
    positions
        Shape ``(batch, Q)``.
    comp
        Where the COMP tokens stand; padded with 0. Shape ``(batch, C)``.
    row
        Which of a chunk's COMP tokens each is; -1 for padding. Shape ``(batch, C)``.
    reads_from, reads_to
        The first and the last block that reads an entry from afar; shape ``(batch, Q + V)``.
    mix
        What each COMP token weighs in each virtual entry; shape ``(batch, V, C)``.
    slots
        Positions of the virtual entries, shape ``(batch, V)``; None if keys are not moved.
    """

    block: torch.Tensor
    positions: torch.Tensor
    comp: torch.Tensor
    row: torch.Tensor
    reads_from: torch.Tensor
    reads_to: torch.Tensor
    mix: torch.Tensor
    slots: torch.Tensor | None

    @property
    def is_text(self) -> torch.Tensor:
        """Which tokens are text, not COMP and not padding; shape ``(batch, Q)``."""
        found = self.block >= 0
        places = self.gated
        found.view(-1)[places] = False
        return found

    @property
    def gated(self) -> torch.Tensor:
        """The COMP tokens' places in the flattened batch, row by row; shape ``(gated,)``."""
        offsets = torch.arange(len(self.comp), device=self.comp.device)[:, None]
        return (self.comp + offsets * self.block.shape[1])[self.row >= 0]

    def mask(self) -> torch.Tensor:
        """What each token sees; bool, shape ``(batch, 1, Q, Q + V)``."""
        tokens = self.block.shape[1]
        block = self.block[:, :, None]
        seen = (self.reads_from[:, None] <= block) & (block <= self.reads_to[:, None])
        own = (block == self.block[:, None]).tril()
        seen[:, :, :tokens] |= own
        return seen[:, None]

    def mask_mod(self) -> Callable[..., torch.Tensor]:
        """The same as a function of places, as FlexAttention takes it."""
        tokens = self.block.shape[1]
        virtual = self.reads_from.shape[1] - tokens
        own = torch.nn.functional.pad(self.block, (0, virtual), value=_NEVER)

        def sees(b: Any, _head: Any, q: Any, kv: Any) -> torch.Tensor:
            block = self.block[b, q]
            near: torch.Tensor = (own[b, kv] == block) & (kv <= q)
            return near | ((self.reads_from[b, kv] <= block) & (block <= self.reads_to[b, kv]))

        return sees

    def to(self, device: Any) -> Plan:
        """The same on a device."""
        moved = {n: v.to(device) for n, v in vars(self).items() if v is not None}
        return replace(self, **moved)


def plan(spec: Spec, lengths: Sequence[int]) -> Plan:
    """Lay out one conversation.

    Parameters
    ----------
    spec
        The memory.
    lengths
        Tokens of each chunk and, at the end, of the input with its answer, which is not
        compressed.

    Returns
    -------
    Plan
        Of batch size 1.

    Raises
    ------
    InputError
        A chunk has no tokens, or the first has fewer than the sink.
    """
    if not lengths or min(lengths) < 1:
        raise InputError(f"each chunk and the input have at least one token, got {list(lengths)}")
    if lengths[0] < spec.sink:
        raise InputError(f"the first chunk has {lengths[0]} tokens, and the sink {spec.sink}")
    return _laid_out(spec, tuple(lengths))


@lru_cache(maxsize=1024)
def _laid_out(spec: Spec, lengths: tuple[int, ...]) -> Plan:
    n, last = spec.comp_tokens, len(lengths) - 1
    block: list[int] = []
    positions: list[int] = []
    comp: list[int] = []
    text = 0
    for b, length in enumerate(lengths):
        start = spec.start(b, text, spec.recurrent or b == last)
        count = length + (n if b < last else 0)
        comp += range(len(block) + length, len(block) + count)
        block += [b] * count
        positions += range(start, start + count)
        text += length
    reads = torch.tensor([[_NEVER], [-1]]).repeat(1, len(block))
    reads[:, : spec.sink] = torch.tensor([[1], [last]])
    readers = range(1, last + 1) if spec.recurrent else range(max(last, 1), last + 1)
    virtual, mix, slots = _virtual(spec, readers, last)
    if spec.update == "concat" and spec.positions != "slots":
        reads[:, comp] = virtual
        virtual, mix, slots = virtual[:, :0], mix[:0], slots[:0]
    reads = torch.cat([reads, virtual], 1)
    return Plan(
        block=torch.tensor([block]),
        positions=torch.tensor([positions]),
        comp=torch.tensor([comp], dtype=torch.long),
        row=torch.arange(n).repeat(last)[None],
        reads_from=reads[None, 0],
        reads_to=reads[None, 1],
        mix=mix[None],
        slots=slots[None] if spec.positions == "slots" else None,
    )


def _virtual(
    spec: Spec, readers: range, last: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The memories that blocks read.

    Returns
    -------
    reads, mix, slots
        Of shapes ``(2, V)``, ``(V, C)`` and ``(V,)``. Entries of a concatenated memory whose
        positions do not matter are in the order of the COMP tokens, one for each.
    """
    n = spec.comp_tokens
    rows: list[list[float]] = []
    found: dict[tuple[int, ...], list[int]] = {}
    if spec.update == "concat":
        if spec.positions != "slots":
            found = {(c, c): [_NEVER, -1] for c in range(last * n)}
        for reader in readers:
            held = spec.held(reader)
            for slot, (b, k) in enumerate(product(held, range(n))):
                c = b * n + k
                key = (c, slot if spec.positions == "slots" else c)
                first = found.get(key, [_NEVER, -1])[0]
                found[key] = [min(first, reader), reader]
        rows = torch.eye(last * n)[[c for c, _ in found]].tolist()
    else:
        for reader, k in product(readers, range(n)):
            found[reader, k] = [reader, reader]
            row = torch.zeros(last, n)
            row[:reader, k] = torch.tensor(spec.weights(reader))
            rows.append(row.flatten().tolist())
    return (
        torch.tensor(list(found.values()), dtype=torch.long).view(len(found), 2).T,
        torch.tensor(rows).view(len(rows), last * n),
        torch.tensor([spec.sink + slot for _, slot in found], dtype=torch.long),
    )


def collate(plans: Sequence[Plan]) -> Plan:
    """One plan for several conversations of one `Spec`, as rows of a batch."""

    def padded(name: str, dim: int, value: float, left: bool = False) -> torch.Tensor:
        given = [getattr(p, name)[0] for p in plans]
        most = max(g.shape[dim] for g in given)
        out = []
        for g in given:
            missing = most - g.shape[dim]
            sides = [0, 0] * (g.dim() - dim - 1) + ([missing, 0] if left else [0, missing])
            out.append(torch.nn.functional.pad(g, sides, value=value))
        return torch.stack(out)

    block = padded("block", 0, -1, left=True)
    tokens = block.shape[1]
    shifted = [_shifted(p, tokens) for p in plans]
    plans = shifted
    mix = [p.mix[0] for p in plans]
    most_v, most_c = max(m.shape[0] for m in mix), max(m.shape[1] for m in mix)
    return Plan(
        block=block,
        positions=padded("positions", 0, 0, left=True),
        comp=padded("comp", 0, 0),
        row=padded("row", 0, -1),
        reads_from=padded("reads_from", 0, _NEVER),
        reads_to=padded("reads_to", 0, -1),
        mix=torch.stack(
            [
                torch.nn.functional.pad(m, (0, most_c - m.shape[1], 0, most_v - m.shape[0]))
                for m in mix
            ]
        ),
        slots=None if plans[0].slots is None else padded("slots", 0, 0),
    )


def _shifted(given: Plan, tokens: int) -> Plan:
    """The plan with its tokens at the end of so many places."""
    by = tokens - given.block.shape[1]
    pad = torch.nn.functional.pad
    return replace(
        given,
        comp=given.comp + by,
        reads_from=pad(given.reads_from, (by, 0), value=_NEVER),
        reads_to=pad(given.reads_to, (by, 0), value=-1),
    )
