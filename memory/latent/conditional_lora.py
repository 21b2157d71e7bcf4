"""Conditional LoRA: low-rank updates that act on chosen tokens and on no others.

Source: Kim et al., "Compressed Context Memory for Online Language Model Interaction", ICLR 2024
(arXiv 2312.03414), section 3.2: ``y = W x + 1[x is COMP] * (alpha / r) B A x`` on the query, key,
value and output projections of every layer; LoRA itself is Hu et al., ICLR 2022.

The model's own modules stay in place under their own names. Hooks add the update where the
attention module was called with a `Gate`; without one they return what the model computed.
"""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout, linear

from ...core.errors import ModelError

__all__ = ["TARGETS", "ConditionalLora", "Gate", "attention_modules"]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The projections that are adapted, as Llama, Qwen, Mistral and Gemma name them."""

_KWARG = "ccm"
"""The argument of the model's forward that reaches every attention module."""


@dataclass
class Gate:
    """Where the update acts in one forward pass; passed to the model as ``ccm=``.

    Attributes
    ----------
    lora
        Whose update; several may be attached to one model.
    index
        The tokens that it acts on, as places in the flattened batch; shape ``(gated,)``.
    """

    lora: ConditionalLora
    index: torch.Tensor


class ConditionalLora(nn.Module):
    """Low-rank updates of a model's projections, and the embeddings of the COMP tokens.

    Only these are trained; a new one is in eval mode. The model is not a submodule: its parameters
    are neither listed nor saved here.

    Parameters
    ----------
    model
        A causal language model whose attention has the projections of `TARGETS`.
    comp_tokens
        Rows of the embedding of COMP tokens, which stand outside of the vocabulary and begin as
        random tokens of it: means of it, as in the official code, with its spread around them.
    rank, alpha
        The update is ``alpha / rank * B A x``; A starts as Kaiming-uniform and B as zero.
    dropout
        Part of the inputs of A that is zeroed in training mode.
    seed
        Of A and of the embeddings.

    Raises
    ------
    ModelError
        The model has no such projections.
    """

    def __init__(
        self,
        model: Any,
        comp_tokens: int,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self._local = threading.local()
        self._handles: list[Any] = []
        modules = attention_modules(model)
        self.names = _projections(model, modules)
        device = model.device
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        for name in self.names:
            base = model.get_submodule(name)
            first = torch.empty(rank, base.in_features)
            nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
            self.lora_a[_key(name)] = nn.Parameter(first.to(device))
            self.lora_b[_key(name)] = nn.Parameter(
                torch.zeros(base.out_features, rank, device=device)
            )
        self.comp_embeddings = nn.Parameter(_first_embeddings(model, comp_tokens, generator))
        self._attach(model, modules)
        self.eval()

    @property
    def scaling(self) -> float:
        """The factor of the update."""
        return self.alpha / self.rank

    def tensors(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """A, shape ``(rank, in)``, and B, shape ``(out, rank)``, by the projection's name."""
        return {name: (self.lora_a[_key(name)], self.lora_b[_key(name)]) for name in self.names}

    def detach_from_model(self) -> None:
        """Take the hooks off the model; this object acts no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def update(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The output of a projection, with the update at the gated tokens.

        Parameters
        ----------
        name
            The projection.
        inputs
            Shape ``(batch, tokens, in)``.
        output
            What the projection made of them; shape ``(batch, tokens, out)``.
        """
        gate: Gate | None = getattr(self._local, "gate", None)
        if gate is None or not len(gate.index):
            return output
        key = _key(name)
        taken = inputs.flatten(0, 1)[gate.index].to(self.lora_a[key].dtype)
        taken = dropout(taken, self.dropout, self.training)
        added = linear(linear(taken, self.lora_a[key]), self.lora_b[key]) * self.scaling
        flat = output.flatten(0, 1)
        # Rows that are not gated are copied, so that they stay what they were bit by bit.
        return flat.index_add(0, gate.index, added.to(flat.dtype)).view_as(output)

    def _attach(self, model: Any, modules: list[Any]) -> None:
        # The model must not keep an adapter alive that nobody uses any more.
        me = weakref.ref(self)

        def enter(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            lora, gate = me(), kwargs.get(_KWARG)
            if lora is not None:
                lora._local.gate = gate if gate is not None and gate.lora is lora else None

        def leave(*_: Any) -> None:
            lora = me()
            if lora is not None:
                lora._local.gate = None

        def adapt(name: str) -> Any:
            def hook(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
                lora = me()
                return None if lora is None else lora.update(name, args[0], output)

            return hook

        # Gradient checkpointing runs a layer's forward again without the layer's own hooks; those
        # of the modules within run again too, with the arguments of the first time.
        for module in modules:
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, always_call=True),
            ]
        for name in self.names:
            self._handles.append(model.get_submodule(name).register_forward_hook(adapt(name)))
        weakref.finalize(self, _remove, self._handles)


def attention_modules(model: Any) -> list[Any]:
    """The attention modules of a decoder, in the order of their layers."""
    found = [
        m
        for m in model.get_decoder().modules()
        if hasattr(m, "layer_idx") and type(m).__name__.endswith("Attention")
    ]
    return sorted(found, key=lambda m: int(m.layer_idx))


def _projections(model: Any, modules: list[Any]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for module in modules:
        for target in TARGETS:
            part = getattr(module, target, None)
            if not isinstance(part, nn.Linear):
                raise ModelError(
                    f"{type(module).__name__} has no linear {target}; the adapter needs "
                    f"{', '.join(TARGETS)}, as Llama, Qwen, Mistral and Gemma have them"
                )
            found.append(names[id(part)])
    if not found:
        raise ModelError(f"{type(model).__name__} has no attention that can be adapted")
    return found


@torch.no_grad()
def _first_embeddings(model: Any, count: int, generator: torch.Generator) -> torch.Tensor:
    """Start values of COMP embeddings, shape ``(count, width)``, in float32.

    Row k from the end is the mean of the rows ``k, k + count, ...`` of the vocabulary, as the
    official code has it, with noise as wide as the vocabulary is, which is ours: the means are
    nearly alike, and COMP tokens that begin alike learn the same. Some models scale what they look
    up, so it is looked up.
    """
    table = model.get_input_embeddings()
    means, squares = [], torch.zeros(table.embedding_dim, device=model.device)
    for k in range(count):
        rows = torch.arange(k, table.num_embeddings, count, device=model.device)
        total = torch.zeros_like(squares)
        for part in rows.split(4096):
            embedded = table(part).float()
            total += embedded.sum(0)
            squares += embedded.square().sum(0)
        means.append(total / len(rows))
    if not means:
        return torch.zeros(0, table.embedding_dim, device=model.device)
    first = torch.stack(means[::-1])
    spread = (squares / table.num_embeddings - first.mean(0).square()).clamp_min(0).sqrt()
    noise = torch.randn(first.shape, generator=generator).to(first.device)
    return torch.addcmul(first, spread, noise)


def _key(name: str) -> str:
    """A projection's name as a key of a ParameterDict, which may hold no dots."""
    return name.replace(".", "/")


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
