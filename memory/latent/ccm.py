"""Compressed context memory: each chunk of a conversation becomes a few learned entries.

Source: Kim et al., "Compressed Context Memory for Online Language Model Interaction", ICLR 2024
(arXiv 2312.03414). At step t the model reads chunk c(t) and, behind it, n COMP tokens; their
keys and values in all layers are h(t) = g_comp(Mem(t-1), c(t)), and Mem(t) = g_update(Mem(t-1),
h(t)). What is asked sees Mem(t) in place of the chunks (section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import DynamicCache

from ...core.errors import InputError
from ..kv.attention import attach
from ..kv.rope import Rotator
from . import files
from .attention import How, Pass, mask_and_blocks, moved, window_of
from .base import Chunk, Example, LatentMemory, answer_nll
from .conditional_lora import ConditionalLora
from .plan import Plan, Spec, collate, plan
from .state import Entries, LatentState

__all__ = ["CCM", "LatentState"]

Adapts = Literal["comp", "chunks", "all"]
"""Which tokens the adapter acts on: COMP tokens, those of chunks as well, or all."""


class CCM(LatentMemory):
    """A frozen model with an adapter that compresses what it reads.

    The object holds nothing of any conversation: states are given and returned, and one object
    serves all conversations and threads. The model's weights are never touched; without COMP
    tokens it computes what it would without the adapter, bit by bit.

    Parameters
    ----------
    model
        A causal language model of transformers with rotary positions (Llama, Qwen, Mistral,
        Gemma). Its attention implementation is set to one that computes the same as ``"sdpa"``.
    spec
        The memory.
    adapter
        The adapter; None for a new one, which must be trained.
    attention
        How the parallel form attends: ``"dense"`` with a mask, ``"blocks"`` with each block by
        itself, ``"flex"`` with FlexAttention on a GPU. ``"auto"`` takes the one of the first two
        that computes fewer scores.

    Raises
    ------
    ModelError
        The model has no projections that can be adapted, or keys that cannot be moved.
    InputError
        The adapter has another number of COMP tokens.
    """

    adapts: Adapts = "comp"

    def __init__(
        self,
        model: Any,
        spec: Spec,
        adapter: ConditionalLora | None = None,
        *,
        attention: How = "auto",
    ) -> None:
        self.model = model
        self.spec = spec
        self.adapter = adapter or ConditionalLora(model, spec.comp_tokens)
        rows = len(self.adapter.comp_embeddings)
        if rows != spec.comp_tokens:
            raise InputError(
                f"the adapter has {rows} COMP tokens and the memory is asked to have "
                f"{spec.comp_tokens}; set comp_tokens={rows}"
            )
        self.attention: How = attention
        self.window = window_of(model)
        slots = spec.positions == "slots"
        self.rotator = Rotator(model, self.window) if slots else None
        attach(model)

    def start(self) -> LatentState:
        """The state of a conversation that has not begun."""
        return LatentState()

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """The summed NLL of all learnt tokens in nats, from the parallel form."""
        return answer_nll(self.parallel([example.chunks for example in examples]), examples)

    def parallel(self, conversations: Sequence[Sequence[Chunk]]) -> torch.Tensor:
        """Read whole conversations at once, as training does.

        Parameters
        ----------
        conversations
            Each is a list of chunks, which are compressed, and at the end the input with its
            answer, which is not.

        Returns
        -------
        tensor, shape ``(batch, tokens, vocabulary)``
            Logits of the inputs, which end together: those of a shorter input are the last.

        Raises
        ------
        InputError
            There are no tokens, unknown ones, or more in a chunk than the model's window.
        """
        attach(self.model)
        lengths = [tuple(len(chunk) for chunk in chunks) for chunks in conversations]
        for row in lengths:
            for t, length in enumerate(row):
                self._check(t, length, sum(row[:t]), t == len(row) - 1)
        layout = collate([plan(self.spec, row) for row in lengths]).to(self.model.device)
        given = [
            torch.as_tensor(chunk, device="cpu") for chunks in conversations for chunk in chunks
        ]
        ids = torch.zeros_like(layout.block)
        ids[layout.is_text] = self._ids(torch.cat(given))[0]
        mask, blocks = mask_and_blocks(layout, self.attention)
        gated, rows = layout.gated, layout.row[layout.row >= 0]
        output = self.model(
            inputs_embeds=self.embed(ids, gated, rows),
            attention_mask=mask,
            position_ids=layout.positions,
            use_cache=False,
            logits_to_keep=max(row[-1] for row in lengths),
            ccm=Pass(self.adapter, self._adapted(layout), layout, self.rotator, blocks),
        )
        logits: torch.Tensor = output.logits
        return logits

    def observe(
        self, state: LatentState, chunk: Chunk, *, differentiable: bool = False
    ) -> LatentState:
        """Read a chunk and compress it.

        Parameters
        ----------
        state
            It stays as it is.
        chunk
            Token ids of shape ``(tokens,)``, or ``(batch, tokens)`` for conversations side by
            side.
        differentiable
            Whether the new state keeps the graph of its gradients.

        Raises
        ------
        InputError
            As for `parallel`.
        """
        ids = self._ids(chunk)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            _, cache = self._forward(state, ids, compress=True)
            return self._updated(state, cache, ids.shape[1])

    def read(
        self, state: LatentState, chunk: Chunk, *, differentiable: bool = False
    ) -> torch.Tensor:
        """Logits of an input that sees the memory; nothing is left of it.

        Parameters
        ----------
        state, chunk, differentiable
            As for `observe`.

        Returns
        -------
        tensor, shape ``(batch, tokens, vocabulary)``

        Raises
        ------
        InputError
            As for `parallel`.
        """
        ids = self._ids(chunk)
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            logits, _ = self._forward(state, ids, compress=False)
            return logits

    @torch.no_grad()
    def extend(
        self, state: LatentState, chunk: Chunk, cache: Any = None, done: int = 0
    ) -> tuple[torch.Tensor, Any]:
        """Read an input part by part.

        Parameters
        ----------
        state
            It stays as it is.
        chunk
            Token ids of the next part.
        cache
            What the parts before it have left; None for the first.
        done
            How many tokens they had.

        Returns
        -------
        logits, cache
            Of shape ``(batch, tokens, vocabulary)``, and what all parts have left.

        Raises
        ------
        InputError
            As for `parallel`.
        """
        return self._forward(state, self._ids(chunk), False, cache, done)

    @torch.no_grad()
    def compressed(self, state: LatentState, chunk: Chunk, cache: Any = None) -> LatentState:
        """The state after a chunk that was read with `extend`, which left `cache`.

        Raises
        ------
        InputError
            As for `parallel`.
        """
        ids = self._ids(chunk)
        if cache is None or not self.spec.recurrent or self.adapts != "comp":
            # What was read is not what a chunk looks like when it is compressed.
            return self.observe(state, ids)
        _, cache = self._forward(state, ids[:, :0], True, cache, ids.shape[1])
        return self._updated(state, cache, ids.shape[1])

    @torch.no_grad()
    def generate(
        self, state: LatentState, chunk: Chunk, max_new_tokens: int, ends: Sequence[int] = ()
    ) -> list[int]:
        """What most likely follows an input that sees the memory, up to one of `ends`.

        Raises
        ------
        InputError
            As for `parallel`; prompt and answer must fit into the model's window together.
        """
        ids, cache, done = self._one(chunk), None, 0
        self._check(state.steps, ids.shape[1] + max_new_tokens, state.text, last=True)
        written: list[int] = []
        while len(written) < max_new_tokens and not (written and written[-1] in ends):
            logits, cache = self.extend(state, ids, cache, done)
            done += ids.shape[1]
            ids = logits[:, -1].argmax(-1, keepdim=True)
            written.append(int(ids))
        return written

    @classmethod
    def from_pretrained(cls, model: Any, folder: str | Path, tokenizer: Any = None) -> CCM:
        """Load what `save_pretrained` wrote, for the same base model.

        Raises
        ------
        StateError
            The folder holds no adapter, a damaged one, or one of another model or tokenizer.
        """
        spec, adapter = files.load(folder, model, tokenizer)
        return cls(model, spec, adapter)

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write the adapter to a folder; the base model is not saved."""
        files.save(folder, self.spec, self.adapter, self.model, tokenizer)

    def state_bytes(self, t: int) -> int:
        """Bytes of the state of one conversation after chunk t.

        ``sum over layers of 2 heads dim (entries(t) bytes_memory + sink bytes_model)``, where
        averages are held in float32 and all else as the model computes it.
        """
        if t == 0:
            return 0
        config = self.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = self.model.dtype.itemsize
        memory = self.spec.entries(t) * (size if self.spec.update == "concat" else 4)
        per_layer = 2 * heads * dim * (memory + self.spec.sink * size)
        return int(config.num_hidden_layers * per_layer)

    def _forward(
        self,
        state: LatentState,
        ids: torch.Tensor,
        compress: bool,
        cache: Any = None,
        done: int = 0,
    ) -> tuple[torch.Tensor, Any]:
        """One step of the recurrent form: logits, and the cache that it leaves.

        `cache` is what the `done` tokens of the block that were read before have left.
        """
        attach(self.model)
        batch, length = ids.shape
        n = self.spec.comp_tokens if compress else 0
        reads = self.spec.recurrent or not compress
        self._check(state.steps, done + length, state.text, last=not compress)
        cache = self.past(state, reads) if cache is None else cache
        past, tokens, device = cache.get_seq_length(), length + n, ids.device
        start = self.spec.start(state.steps, state.text, reads) + done
        places = torch.arange(batch * tokens, device=device).view(batch, tokens)
        gated = places[:, length:].flatten()
        adapted = {
            "comp": gated,
            "chunks": places.flatten() if n else gated,
            "all": places.flatten(),
        }
        mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=device).tril(past)
        padded = torch.nn.functional.pad(ids, (0, n))
        rows = torch.arange(n, device=device).repeat(batch)
        output = self.model(
            inputs_embeds=self.embed(padded, gated, rows),
            attention_mask=mask.expand(batch, 1, -1, -1),
            position_ids=torch.arange(start, start + tokens, device=device).expand(batch, -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 if compress else 0,
            ccm=Pass(self.adapter, adapted[self.adapts]),
        )
        return output.logits, cache

    def past(self, state: LatentState, reads: bool) -> Any:
        """A cache that holds what the next chunk sees."""
        cache = DynamicCache()
        for i in range(max(len(state.sink), len(state.memory))):
            parts = [state.sink[i]] if state.sink else []
            if reads and state.memory:
                keys, values = state.memory[i]
                if self.rotator is not None:
                    end = self.spec.sink + keys.shape[2]
                    slots = torch.arange(self.spec.sink, end, device=keys.device)
                    slots = slots.expand(keys.shape[0], -1)
                    keys = moved(self.rotator, keys.float(), slots, i)
                parts.append((keys.to(self.model.dtype), values.to(self.model.dtype)))
            if parts:
                keys, values = (torch.cat(x, 2) for x in zip(*parts, strict=True))
                cache.update(keys, values, i)
        return cache

    def _updated(self, state: LatentState, cache: Any, length: int) -> LatentState:
        """The state after a chunk, from the cache that it left."""
        spec, n = self.spec, self.spec.comp_tokens
        start = spec.start(state.steps, state.text, spec.recurrent) + length
        made: list[Entries] = []
        for i, layer in enumerate(cache.layers):
            keys, values = layer.keys[:, :, -n:], layer.values[:, :, -n:]
            if self.rotator is not None:
                positions = torch.arange(start, start + n, device=keys.device)
                by = -positions.expand(keys.shape[0], -1)
                keys = moved(self.rotator, keys.float(), by, i).to(keys.dtype)
            made.append((keys, values))
        first: list[Entries] = []
        if state.steps == 0 and spec.sink:
            first = [(x.keys[:, :, : spec.sink], x.values[:, :, : spec.sink]) for x in cache.layers]
        return state.updated(spec, made, first, length)

    def embed(self, ids: torch.Tensor, gated: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens, shape ``(batch, tokens, width)``, of which some are COMP."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(ids)
        if not len(gated):
            return embedded
        comp = self.adapter.comp_embeddings[rows].to(embedded.dtype)
        return embedded.flatten(0, 1).index_copy(0, gated, comp).view_as(embedded)

    def _adapted(self, layout: Plan) -> torch.Tensor:
        """Places in the flattened batch that the adapter acts on in a parallel forward."""
        if self.adapts == "comp":
            return layout.gated
        acts = layout.block >= 0
        if self.adapts == "chunks":
            acts = acts & (layout.block < layout.block[:, -1:])
        return acts.flatten().nonzero()[:, 0]

    def _check(self, t: int, length: int, text: int, last: bool) -> None:
        """Whether a block fits into what the model can attend to."""
        spec = self.spec
        if t == 0 and length < spec.sink:
            raise InputError(f"the first chunk has {length} tokens, and the sink {spec.sink}")
        reads = spec.recurrent or last
        n = 0 if last else spec.comp_tokens
        if length < 1:
            raise InputError("each chunk and the input have at least one token, got one of none")
        seen = (spec.sink if t else 0) + (spec.entries(t) if reads else 0) + length + n
        if seen > self.window:
            raise InputError(
                f"a chunk of {length} tokens with what it sees takes {seen} entries, and the "
                f"model's window has {self.window}; give shorter chunks"
            )
        end = spec.start(t, text, reads) + length + n
        longest = self.model.config.get_text_config(decoder=True).max_position_embeddings
        if end > longest:
            raise InputError(
                f"the conversation has reached position {end}, and the model was made for "
                f"{longest}; positions='slots' do not grow with the conversation"
            )
