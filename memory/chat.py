"""`Chat`: lists of messages answered by a memory, without reading again what was read before."""

from __future__ import annotations

import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from ..core.errors import BudgetError, InputError, StateError
from .base import ModelMemory
from .content import encoded
from .exchanges import Message, exchanges, jsonable, plain

if TYPE_CHECKING:
    from .generation import Draft

__all__ = ["Chat", "Reply"]

Tools = Sequence[Mapping[str, Any]] | None

_MOST_REPLIES = 256
"""Replies that are remembered by the state they were given behind."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what it took.

    Attributes
    ----------
    text
        The answer, up to the first stop string, without special tokens.
    input_tokens
        Tokens of the whole conversation up to the answer, of which the memory holds a part.
    cached_tokens
        How many of them had been read before.
    output_tokens
        Tokens that were written.
    finish_reason
        ``"stop"`` if the model or a stop string ended it, ``"length"`` if it was cut.
    state
        The key of the state that knows the messages and the answer.
    held_tokens, held_bytes
        What the memory held when the last messages came, as `ModelMemory` counts it.
    """

    text: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: Literal["stop", "length"]
    state: str
    held_tokens: int
    held_bytes: int


@dataclass(slots=True)
class _Held:
    """A memory, and an exchange that it has yet to read, which no one may ever want."""

    memory: ModelMemory[Any]
    unread: tuple[Message, ...] = ()
    tools: Tools = None
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = self.memory.nbytes


class Chat:
    """Answers lists of messages from memories, and keeps their states.

    A state is found by the messages that led to it, so that a list that is sent again with one
    more turn costs that turn, and a list that differs somewhere goes on from where it began to
    differ. A conversation is read in exchanges, each up to a message of the assistant: what is
    answered depends on the messages alone, not on what was kept. Threads may share it.

    Parameters
    ----------
    make
        Makes an empty memory; all that it makes are alike.
    max_bytes
        Bytes that the states kept may take, as `Memory.nbytes` counts them; the newest is kept
        in any case.

    Raises
    ------
    InputError
        `max_bytes` is no number of bytes.

    Examples
    --------
    >>> chat = Chat(lambda: KVMemory(model, tokenizer))          # doctest: +SKIP
    >>> said = [{"role": "user", "content": "My cat is Tom."}]   # doctest: +SKIP
    >>> chat.reply(said).text                                    # doctest: +SKIP
    """

    def __init__(
        self, make: Callable[[], ModelMemory[Any]], *, max_bytes: int = 256 * 2**20
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise InputError(f"max_bytes is a number of bytes, at least 0, got {max_bytes!r}")
        self._make = make
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Held] = OrderedDict()
        self._lent: WeakValueDictionary[str, ModelMemory[Any]] = WeakValueDictionary()
        self._replies: OrderedDict[str, tuple[str, tuple[Message, ...]]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of all states that are kept; what several share is counted for each."""
        with self._lock:
            return sum(held.nbytes for held in self._kept.values())

    def reply(
        self,
        messages: Sequence[Message],
        *,
        behind: str | None = None,
        tools: Tools = None,
        begin: str = "",
        answer_message: Callable[[str], Message] | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        stream: Callable[[str], None] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Reply:
        """Answer messages.

        Parameters
        ----------
        messages
            In the form of OpenAI's API, with text alone. They are not changed.
        behind
            The key of a state that knows what was said before; None if nothing was.
        tools
            As `ModelMemory.observe` takes them.
        begin
            Text that the answer begins with, whatever the model would have said.
        answer_message
            Makes of the answer's text the message that will stand for it in later lists; None
            for one of the assistant with that text.

        The other parameters are those of `ModelMemory.generate`; `stop` has texts before the
        first of which the answer ends.

        Returns
        -------
        Reply
            The answer. Of messages that are longer than the memory has room for, all but the
            end is read as turns that came before.

        Raises
        ------
        BudgetError
            The memory has no room for any prompt.
        InputError
            The messages are none that the chat template can write, the last is one of the
            assistant, or an option is out of its range.
        StateError
            There is no such state any more.
        """
        read, prompt = exchanges(plain(messages))
        if not prompt:
            raise InputError("nothing to answer: give a message behind the last of the assistant")
        known, memory, key = self._read(read, behind, tools)
        ids = memory.token_ids(prompt, asks=True, tools=tools)
        if begin:
            ids += encoded(begin, memory.tokenizer)
            if stream:
                stream(begin)
        options = {
            "max_new_tokens": max_new_tokens,
            "stop": stop,
            "stream": stream,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
        draft = _drafted(memory.fork(), ids, options)
        text = begin + draft.text
        said: Message = {"role": "assistant", "content": text}
        if answer_message:
            said = answer_message(text)
        exchange = (*prompt, *plain([said]))
        state = _next(key, exchange)
        self._keep(state, _Held(memory, exchange, tools))
        if behind is not None:
            self._note(behind, state, exchange)
        return Reply(
            text=text,
            input_tokens=memory.seen + len(ids),
            cached_tokens=known,
            output_tokens=draft.tokens,
            finish_reason=draft.finish_reason,
            state=state,
            held_tokens=memory.n_tokens,
            held_bytes=memory.nbytes,
        )

    def read(
        self, messages: Sequence[Message], *, behind: str | None = None, tools: Tools = None
    ) -> ModelMemory[Any]:
        """A memory of its own that knows messages, up to the last one of the assistant.

        Parameters
        ----------
        messages, behind, tools
            As `reply` takes them.

        Raises
        ------
        InputError, StateError
            As `reply` does.
        """
        return self._read(exchanges(plain(messages))[0], behind, tools)[1]

    def put(self, memory: ModelMemory[Any], key: str | None = None) -> str:
        """Keep what a memory knows now.

        Parameters
        ----------
        memory
            It may go on afterwards.
        key
            A name that stands for just this state; None for a new one.

        Returns
        -------
        str
            The key.
        """
        key = uuid.uuid4().hex if key is None else key
        self._keep(key, _Held(memory.fork()))
        return key

    def hold(self, memory: ModelMemory[Any], key: str | None = None) -> str:
        """Know what a memory knows for as long as somebody has it, whatever else is kept.

        Parameters
        ----------
        memory
            It must not go on afterwards.
        key
            As for `put`.

        Returns
        -------
        str
            The key.
        """
        key = uuid.uuid4().hex if key is None else key
        with self._lock:
            self._lent[key] = memory
        return key

    def get(self, key: str) -> ModelMemory[Any]:
        """A memory of its own that knows what the state of that key does.

        Raises
        ------
        StateError
            There is none any more.
        """
        found = self._find(key)
        if found is None:
            raise StateError(
                f"the state {key!r} is not kept any more; put() its memory again, or raise "
                f"max_bytes, {self._max_bytes} now"
            )
        return found

    def replied(self, behind: str, asked: str, answer: Message) -> str | None:
        """The key of the state that the latest reply behind a state has left.

        Parameters
        ----------
        behind
            The key that `reply` was given.
        asked
            A text that the last message had, or was made of.
        answer
            The message that stands for the answer.

        Returns
        -------
        str or None
            None if there was no reply to that with that answer, or its state is not kept.
        """
        with self._lock:
            state, exchange = self._replies.get(behind, ("", ()))
        is_it = exchange and asked in exchange[-2]["content"] and plain([answer])[0] == exchange[-1]
        return state if is_it and state in self else None

    def __contains__(self, key: str) -> bool:
        """Whether there is such a state."""
        with self._lock:
            return key in self._kept or key in self._lent

    def _read(
        self, told: Sequence[tuple[Message, ...]], behind: str | None, tools: Tools
    ) -> tuple[int, ModelMemory[Any], str]:
        """The tokens that had been read, a memory that has read all, and its key."""
        keys = [_next(behind or "", jsonable(list(tools or ())))]
        for exchange in told:
            keys.append(_next(keys[-1], exchange))
        for count in range(len(told), -1, -1):
            memory = self._find(keys[count])
            if memory is not None:
                break
        else:
            count, memory = 0, self._make() if behind is None else self.get(behind)
        known = memory.seen
        for exchange, key in zip(told[count:], keys[count + 1 :], strict=True):
            memory.observe(list(exchange), tools=tools)
            self._keep(key, _Held(memory.fork()))
        return known, memory, keys[-1]

    def _find(self, key: str) -> ModelMemory[Any] | None:
        with self._lock:
            held = self._kept.get(key)
            if held is None:
                lent = self._lent.get(key)
                return None if lent is None else lent.fork()
            self._kept.move_to_end(key)
            memory = held.memory.fork()
        if held.unread:
            memory.observe(list(held.unread), tools=held.tools)
            self._keep(key, _Held(memory.fork()))
        return memory

    def _note(self, behind: str, state: str, exchange: tuple[Message, ...]) -> None:
        with self._lock:
            self._replies[behind] = (state, exchange)
            self._replies.move_to_end(behind)
            if len(self._replies) > _MOST_REPLIES:
                self._replies.popitem(last=False)

    def _keep(self, key: str, held: _Held) -> None:
        """Keep a state, and let go of those not used for longest, up to the limit."""
        with self._lock:
            self._kept[key] = held
            self._kept.move_to_end(key)
            total = sum(held.nbytes for held in self._kept.values())
            while total > self._max_bytes and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                total -= gone.nbytes


def _drafted(memory: ModelMemory[Any], prompt: list[int], options: Mapping[str, Any]) -> Draft:
    """The answer to the tokens of a prompt; the memory may be changed."""
    half = (len(prompt) + 1) // 2
    try:
        return memory.draft(prompt, **options)
    except BudgetError:
        if half == len(prompt):
            raise
    # The end is what is asked; what a turn has no room for is read before.
    memory.observe(prompt[:half])
    return _drafted(memory, prompt[half:], options)


def _next(key: str, said: Any) -> str:
    """The key of the state that follows a state when this was said."""
    written = json.dumps([key, said], sort_keys=True, ensure_ascii=False)
    return blake2b(written.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
