"""A tiny local model with a chat template, one that says what it is told, and an adapter."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from laconic.core.evaluation.random_models import build_model
from laconic.integrations.langchain import ChatLaconic
from laconic.memory.latent.ccm import CCM
from laconic.memory.latent.plan import Spec

from ...memory.latent.conftest import adapter

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[call {{ c.function.name }} "
    "{{ c.function.arguments | tojson }}]{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@functools.cache
def folder() -> Path:
    """Where the model lies; it stays for as long as the tests run."""
    text = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
    place = Path(tempfile.mkdtemp()) / "llama"
    size = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 600, "positions": 16384}
    build_model("llama", place, [text], **size)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(place)
    return place


@functools.cache
def pair() -> tuple[Any, Any]:
    """The model and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder()).eval()
    return model, AutoTokenizer.from_pretrained(folder())


@functools.cache
def adapter_folder() -> Path:
    """An adapter for the model."""
    model, tokenizer = pair()
    place = folder().parent / "adapter"
    with torch.no_grad():
        CCM(model, Spec("merge", 4), adapter(model, 4)).save_pretrained(place, tokenizer)
    return place


def local(memory: str = "infinipot", **fields: Any) -> ChatLaconic:
    """A chat model over the model, with a small memory."""
    model, tokenizer = pair()
    if memory == "ccm":
        fields["adapter"] = adapter_folder()
    settings = {"model": model, "tokenizer": tokenizer, "memory": memory, "budget": 200}
    return ChatLaconic(**{**settings, "keep": 80, "max_tokens": 8, **fields})


class Told(LlamaForCausalLM):
    """A model that answers what a rule says of the prompt, token by token."""

    rule: Callable[[str], str]
    tokenizer: Any
    prompts: list[str]
    left: list[int]

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        read = input_ids[0].tolist()
        if len(read) > 1:
            text = self.tokenizer.decode(read)
            self.prompts.append(text)
            said = self.tokenizer.encode(self.rule(text), add_special_tokens=False)
            self.left = [*said, self.config.eos_token_id]
        if self.left:
            output.logits[:, -1] = -100.0
            output.logits[:, -1, self.left.pop(0)] = 100.0
        return output


def told(rule: Callable[[str], str], **fields: Any) -> ChatLaconic:
    """A chat model that answers by a rule."""
    model = Told.from_pretrained(folder()).eval()
    model.rule, model.tokenizer, model.prompts, model.left = rule, pair()[1], [], []
    settings = {"model": model, "tokenizer": pair()[1], "budget": 2000, "max_tokens": 200}
    return ChatLaconic(**{**settings, **fields})
