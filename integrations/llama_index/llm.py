"""A local model with a memory of fixed size, as an LLM of LlamaIndex."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from pydantic import Field, PrivateAttr

from ...core.errors import InputError
from ...core.models.loading import load_transformer
from ...memory.base import ModelMemory
from ...memory.chat import Chat, Reply
from ...memory.make import make_memory
from ...memory.turns import Message
from ._messages import to_openai

__all__ = ["STATE", "LaconicLLM", "spoken"]

STATE = "laconic_state"
"""Key in ``additional_kwargs`` of a message that stands for a state of the model."""

_OPTIONS = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
}
"""What may be set for one call, and what `Chat.reply` calls it."""


class LaconicLLM(CustomLLM):
    """A causal language model that answers conversations of any length in a state of fixed size.

    A list of messages that was answered before costs only what is new in it, and one that
    begins with the message of an `InfiniPotMemory` or a `CCMMemory` goes on from its state.
    Messages that stand before that one, such as the prompt of a chat engine, are read behind the
    state and not remembered.

    Parameters
    ----------
    model
        A hub id, a folder, or a loaded causal language model of transformers.
    tokenizer
        Its tokenizer, with a chat template; None for the one that lies with the model.
    adapter
        For the memory ``"ccm"``: the folder of an adapter for this model, or a `CCM`.
    **fields
        The fields below, and those of ``CustomLLM``.

    Raises
    ------
    InputError
        The memory ``"ccm"`` has no adapter, another one has one, or a field is out of its range.
    ModelError
        There is no such model, or it cannot have this memory.
    StateError
        The adapter is damaged or of another model.
    UnknownMethodError
        There is no such memory.

    Examples
    --------
    >>> llm = LaconicLLM("Qwen/Qwen2.5-0.5B-Instruct", budget=2048)          # doctest: +SKIP
    >>> memory = InfiniPotMemory(llm)                                        # doctest: +SKIP
    >>> engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)      # doctest: +SKIP
    """

    model_name: str = ""
    """The model's name in traces; by default that of its configuration."""

    memory: str = "infinipot"
    """``"ccm"``, or the policy of a `KVMemory`: a key of `POLICIES`."""

    budget: int = 1024
    """Entries that each layer may hold; merged turns of an adapter have a size of their own."""

    memory_options: dict[str, Any] = Field(default_factory=dict)
    """Other parameters of `KVMemory`, or of laconic's `CCMMemory`."""

    max_bytes: int = 256 * 2**20
    """Bytes that the states of conversations may take between calls."""

    max_tokens: int = 256
    """Tokens of an answer at most."""

    temperature: float = 0.0
    """How to sample; 0 for the likeliest token."""

    top_k: int | None = None
    """How many of the likeliest tokens to sample from."""

    top_p: float | None = None
    """How much of the probability to sample from."""

    seed: int = 0
    """Of the sampling."""

    stop: list[str] = Field(default_factory=list)
    """Texts before the first of which an answer ends."""

    device: str | None = None
    """Where to load the model: ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best there is."""

    dtype: str | None = None
    """As what to load its weights; None for what they are."""

    _model: Any = PrivateAttr()
    _make: Callable[[], ModelMemory[Any]] = PrivateAttr()
    _chat: Chat = PrivateAttr()

    def __init__(
        self, model: Any, tokenizer: Any = None, *, adapter: Any = None, **fields: Any
    ) -> None:
        super().__init__(**fields)
        settings = {"device": self.device, "dtype": self.dtype, "trust_remote_code": False}
        self._model, tokenizer = load_transformer(
            model, "CausalLM", {**settings, "tokenizer": tokenizer}
        )
        self.model_name = self.model_name or str(self._model.config.name_or_path)
        self._make = make_memory(
            self._model,
            tokenizer,
            self.memory,
            adapter=adapter,
            budget=self.budget,
            **self.memory_options,
        ).fork
        self._chat = Chat(self._make, max_bytes=self.max_bytes)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized form."""
        return "LaconicLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks of a model; its window is what it reads without loss at most."""
        config = self._model.config.get_text_config(decoder=True)
        return LLMMetadata(
            context_window=config.max_position_embeddings,
            num_output=self.max_tokens,
            is_chat_model=True,
            model_name=self.model_name,
        )

    def new_memory(self) -> ModelMemory[Any]:
        """An empty memory, alike to all of this model."""
        return self._make()

    def hold(self, memory: ModelMemory[Any], key: str) -> None:
        """Answer behind this memory when messages name the key, as long as somebody has it."""
        self._chat.hold(memory, key)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer messages.

        Raises
        ------
        InputError
            The messages hold more than text, are none that the chat template can write, or the
            last is the assistant's; or an option is unknown or out of its range.
        StateError
            The memory whose state the messages name is gone.
        """
        return _response(self._replied(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` in a thread."""
        return _response(await asyncio.to_thread(self._replied, messages, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat`, with each piece of the answer as soon as it is written."""
        return self._streamed(messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """`stream_chat`, waiting for each piece."""
        return _waiting(self._streamed(messages, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a message of the user."""
        del formatted
        return _completion(_response(self._replied([ChatMessage(prompt)], kwargs)))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """`complete` in a thread."""
        del formatted
        reply = await asyncio.to_thread(self._replied, [ChatMessage(prompt)], kwargs)
        return _completion(_response(reply))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """`complete`, with each piece of the answer as soon as it is written."""
        del formatted
        return (_completion(part) for part in self._streamed([ChatMessage(prompt)], kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete`, waiting for each piece."""
        del formatted
        parts = _waiting(self._streamed([ChatMessage(prompt)], kwargs))
        return (_completion(part) async for part in parts)

    def _replied(
        self,
        messages: Sequence[ChatMessage],
        kwargs: dict[str, Any],
        stream: Callable[[str], None] | None = None,
    ) -> Reply:
        unknown = kwargs.keys() - _OPTIONS.keys()
        if unknown:
            raise InputError(f"unknown options {sorted(unknown)}, expected of {list(_OPTIONS)}")
        given = {name: getattr(self, name) for name in _OPTIONS} | kwargs
        given["stop"] = given["stop"] or ()
        named = [m.additional_kwargs[STATE] for m in messages if STATE in m.additional_kwargs]
        said = [spoken(m) for m in messages if STATE not in m.additional_kwargs]
        behind = str(named[-1]) if named else None
        options = {_OPTIONS[name]: value for name, value in given.items()}
        return self._chat.reply(said, behind=behind, stream=stream, **options)

    def _streamed(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> Generator[ChatResponse, None, None]:
        """The answer as it grows; at last with what it took."""
        parts: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stopped = threading.Event()

        def put(piece: str) -> None:
            if stopped.is_set():
                raise GeneratorExit
            parts.put(piece)

        def work() -> None:
            try:
                parts.put(self._replied(messages, kwargs, put))
            except BaseException as error:  # noqa: BLE001, which the reader raises
                parts.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        text = ""
        try:
            while isinstance(part := parts.get(), str):
                text += part
                message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
                yield ChatResponse(message=message, delta=part)
            thread.join()
            if isinstance(part, BaseException):
                raise part
            yield _response(part, delta=part.text.removeprefix(text))
        finally:
            stopped.set()


async def _waiting(
    parts: Generator[ChatResponse, None, None],
) -> AsyncGenerator[ChatResponse, None]:
    try:
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield part
    finally:
        with suppress(ValueError):  # a thread waits for the next piece still, which is the last
            parts.close()


def _response(reply: Reply, delta: str | None = None) -> ChatResponse:
    usage = {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
        "cached_tokens": reply.cached_tokens,
    }
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=reply.text),
        delta=delta,
        raw={"usage": usage, "finish_reason": reply.finish_reason},
        additional_kwargs=usage,
    )


def _completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def spoken(message: ChatMessage) -> Message:
    """A message as `Chat` takes it: what the model thought is left out."""
    written = to_openai(message)
    if isinstance(written["content"], list):
        written["content"] = [b for b in written["content"] if b["type"] != "thinking"]
    if "tool_calls" in written:
        known = ("id", "type", "function")
        calls = [{k: call[k] for k in known if k in call} for call in written["tool_calls"]]
        written["tool_calls"] = calls
    return written
