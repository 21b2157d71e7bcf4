"""`ChatLaconic`: a local model whose context is a bounded memory, as a chat model."""

from __future__ import annotations

import contextvars
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
)
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr

from ...core.errors import InputError
from ._messages import to_openai
from ._tool_calls import beginning, read_calls, shown

if TYPE_CHECKING:
    from ...memory.base import ModelMemory
    from ...memory.chat import Chat, Reply

__all__ = ["ChatLaconic", "handle"]

_STATE, _BEGUN = "laconic_state", "laconic_begun"

_OPTIONS = ("temperature", "top_k", "top_p", "seed")


def handle(key: str, begun: bool) -> ChatMessage:
    """The message that stands for a state in which all that was said before is known.

    Parameters
    ----------
    key
        Of the state, in the model's chat.
    begun
        Whether it has read what stands before the handle, such as the system prompt, too.
    """
    about = {_STATE: key, _BEGUN: begun}
    return ChatMessage(role="memory", content="", additional_kwargs=about)


class _AbandonedError(Exception):
    """Nobody listens any more."""


class _Local:
    """The model and the chats that fields describe, made when they are first used.

    It is of no account when settings are compared, and is made anew for deep copies.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[Any, tuple[Any, Any]] = {}
        self._chats: dict[Any, tuple[Callable[[], ModelMemory[Any]], Chat]] = {}

    def pair(self, llm: ChatLaconic) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        from ...core.models.loading import load_transformer

        names = ("tokenizer", "device", "dtype", "trust_remote_code")
        settings = {name: getattr(llm, name) for name in names}
        described = (llm.model, *settings.values())
        with self._lock:
            if described not in self._models:
                self._models[described] = load_transformer(llm.model, "CausalLM", settings)
            return self._models[described]

    def chat(self, llm: ChatLaconic) -> tuple[Callable[[], ModelMemory[Any]], Chat]:
        """What makes empty memories, and the chat that answers from them."""
        from ...memory.chat import Chat
        from ...memory.make import make_memory

        model, tokenizer = self.pair(llm)
        names = ("memory", "adapter", "budget", "keep", "storage")
        options = {name: getattr(llm, name) for name in names}
        described = (id(model), *options.values(), llm.cache_bytes)
        with self._lock:
            if described not in self._chats:
                make = make_memory(model, tokenizer, **options).fork
                self._chats[described] = (make, Chat(make, max_bytes=llm.cache_bytes))
            return self._chats[described]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Local)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Local, ()


class ChatLaconic(BaseChatModel):
    """A local model that answers from a memory of bounded size, however long the conversation.

    Messages that were read are not read again: what a list of messages leaves in the memory is
    kept, and a list that begins with the same goes on from there. Tools are bound for models
    whose chat template writes them; a call that is asked for by `tool_choice` is begun for the
    model. The model is loaded when it is first used, and copies share it.

    Parameters
    ----------
    **fields
        The fields below, and those of ``BaseChatModel``. A call may set `temperature`, `top_k`,
        `top_p`, `seed`, `max_tokens` and `stop` for itself.

    Raises
    ------
    ValidationError
        A field is of a wrong type.

    Examples
    --------
    >>> llm = ChatLaconic(model="Qwen/Qwen3-0.6B", budget=2048)   # doctest: +SKIP
    >>> llm.invoke("Hello").text                                  # doctest: +SKIP
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: Any
    """A hub id or a folder, or a model of transformers that is loaded already."""

    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """Its tokenizer; None for the one that lies with the model."""

    memory: str = "infinipot"
    """``"ccm"``, or the policy of a `KVMemory`, which bounds any model without training."""

    adapter: str | Path | None = None
    """The folder of the trained adapter that ``"ccm"`` needs."""

    budget: int = 1024
    """Entries that a layer may hold; merged turns of an adapter have a size of their own."""

    keep: int | float = 0.5
    """How many of them stay when it is full: a part (float) or a number (int)."""

    storage: Any = None
    """How they are held, as for `KVMemory`."""

    device: str | None = None
    """Where the model is loaded to; None for the best there is."""

    dtype: str | None = None
    """What its weights are loaded as; None for what they are, on a CPU float32."""

    temperature: float = 0.0
    """0 for the likeliest token."""

    top_p: float | None = None
    """The share of the likelihood that is sampled from."""

    top_k: int | None = None
    """How many of the likeliest tokens are sampled from."""

    max_tokens: int = 256
    """Tokens that an answer has at most."""

    stop: list[str] | None = None
    """Texts before the first of which an answer ends."""

    seed: int = 0
    """Of the sampling."""

    cache_bytes: int = 256 * 2**20
    """Bytes that the states of conversations may take; one that was let go of is read anew."""

    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""

    _local: _Local = PrivateAttr(default_factory=lambda: _Local())

    @property
    def chat(self) -> Chat:
        """The chat that answers, with the states that it keeps."""
        return self._local.chat(self)[1]

    def new_memory(self) -> ModelMemory[Any]:
        """An empty memory of the model."""
        return self._local.chat(self)[0]()

    @property
    def model_name(self) -> str:
        """The name of the model."""
        named = self.model if isinstance(self.model, (str, Path)) else None
        return str(named or getattr(self.model, "name_or_path", "") or type(self.model).__name__)

    @property
    def _llm_type(self) -> str:
        return "laconic"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("memory", "budget", "keep", "storage", "dtype", "max_tokens", "stop", *_OPTIONS)
        described = {name: getattr(self, name) for name in names}
        adapter = None if self.adapter is None else str(self.adapter)
        return {"model": self.model_name, "adapter": adapter, **described}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "laconic"
        params.setdefault("ls_model_name", self.model_name)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        ids: list[int] = self._local.pair(self)[1].encode(text, add_special_tokens=False)
        return ids

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Parameters
        ----------
        tools
            Tools, functions, pydantic classes or JSON schemas.
        tool_choice
            None or ``"auto"``; ``"none"``; ``"any"``, ``"required"`` or True; or a tool's name.

        Raises
        ------
        InputError
            There is no such tool, or no such choice.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        if tool_choice == "none":
            return self.bind(**kwargs)
        beginning(schemas, tool_choice)
        return self.bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        reply, message = self._reply(messages, stop, None, kwargs)
        about = self._about(reply)
        message = message.model_copy(update=about)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
        abandoned = threading.Event()
        heard = said = ""

        def say(text: str) -> None:
            if abandoned.is_set():
                raise _AbandonedError
            pieces.put(text)

        def work() -> None:
            try:
                pieces.put(self._reply(messages, stop, say, kwargs))
            except BaseException as error:  # noqa: BLE001
                pieces.put(error)

        def chunk(text: str, **fields: Any) -> ChatGenerationChunk:
            made = ChatGenerationChunk(message=AIMessageChunk(content=text, **fields))
            if run_manager:
                run_manager.on_llm_new_token(text, chunk=made)
            return made

        worker = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
        worker.start()
        try:
            while isinstance(piece := pieces.get(), str):
                heard += piece
                new = (shown(heard) if kwargs.get("tools") else heard)[len(said) :]
                if new:
                    said += new
                    yield chunk(new)
            if isinstance(piece, BaseException):
                raise piece
            reply, message = piece
            calls = [
                tool_call_chunk(name=c["name"], args=json.dumps(c["args"]), id=c["id"], index=i)
                for i, c in enumerate(message.tool_calls)
            ]
            broken = [
                tool_call_chunk(name=c["name"], args=c["args"], id=c["id"], index=i)
                for i, c in enumerate(message.invalid_tool_calls, len(calls))
            ]
            yield chunk(
                str(message.content)[len(said) :],
                tool_call_chunks=calls + broken,
                chunk_position="last",
                **self._about(reply),
            )
        finally:
            abandoned.set()
            worker.join()

    def _reply(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        stream: Callable[[str], None] | None,
        kwargs: Mapping[str, Any],
    ) -> tuple[Reply, AIMessage]:
        options = dict(kwargs)
        tools = options.pop("tools", None) or []
        begin = beginning(tools, options.pop("tool_choice", None))
        chosen = {name: options.pop(name, getattr(self, name)) for name in _OPTIONS}
        most = options.pop("max_tokens", self.max_tokens)
        if options:
            raise InputError(
                f"a call may set {', '.join(_OPTIONS)}, max_tokens and stop, got "
                f"{', '.join(options)}"
            )
        behind, told = self._behind(messages)
        made: list[AIMessage] = []

        def answer_message(text: str) -> Mapping[str, Any]:
            made.append(read_calls(text, tools) if tools else AIMessage(content=text))
            return to_openai(made)[0]

        reply = self.chat.reply(
            to_openai(told),
            behind=behind,
            tools=tools or None,
            begin=begin,
            answer_message=answer_message,
            max_new_tokens=most,
            stop=stop or self.stop or (),
            stream=stream,
            **chosen,
        )
        return reply, made[0]

    def _behind(self, messages: Sequence[BaseMessage]) -> tuple[str | None, list[BaseMessage]]:
        """The key of the state that a handle stands for, and the messages to read behind it."""
        places = [i for i, m in enumerate(messages) if _STATE in m.additional_kwargs]
        if not places:
            return None, list(messages)
        at, about = places[-1], messages[places[-1]].additional_kwargs
        # The system prompt comes before the handle each time, and is read once.
        before = [] if about.get(_BEGUN) else messages[:at]
        return about[_STATE], [
            m for m in (*before, *messages[at:]) if _STATE not in m.additional_kwargs
        ]

    def _about(self, reply: Reply) -> dict[str, Any]:
        return {
            "usage_metadata": {
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
                "total_tokens": reply.input_tokens + reply.output_tokens,
                "input_token_details": {"cache_read": reply.cached_tokens},
            },
            "response_metadata": {
                "model_name": self.model_name,
                "model_provider": "laconic",
                "finish_reason": reply.finish_reason,
                "memory": {"entries": reply.held_tokens, "bytes": reply.held_bytes},
            },
        }
