"""LangChain's messages as dicts in the form of OpenAI's API, and back; and a bounded view of them.

The dicts hold what a model is sent. What only LangChain knows (ids, artifacts, metadata) stays
with the original message, of which `restored` makes what is given back.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from ...core.budget import TokenCounter
from ...core.errors import BudgetError, InputError, LaconicError
from ...memory.text import TextMemory
from ...memory.turns import SYSTEM_ROLES, Costs, Message, grouped

__all__ = [
    "BoundedMessages",
    "Conversations",
    "count_tokens",
    "from_openai",
    "last_question",
    "restored",
    "to_openai",
]

logger = logging.getLogger(__name__)

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
)
_SYNONYMS = {"human": "user", "ai": "assistant"}
_SPOKEN = {"user", "assistant"} | SYSTEM_ROLES

_ROLE = "__openai_role__"
"""Where langchain-openai keeps the role of a developer's message."""

_IMAGE_TOKENS = 1600
_PLACE = "place"


def to_openai(messages: Sequence[BaseMessage]) -> list[Message]:
    """Write messages as dicts that share nothing with them.

    A tool call whose arguments are no JSON is a call like others if it has a result; if not, it
    stands under ``invalid_tool_calls``, for it waits for none. A result of a tool that failed
    has ``"status": "error"``.

    Raises
    ------
    InputError
        A message has a role that no chat API knows, or arguments that JSON cannot write.
    """
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    return [_written(message, place, answered) for place, message in enumerate(messages)]


def _written(message: BaseMessage, place: int, answered: Collection[str]) -> Message:
    written: Message = {"role": _role(message, place), "content": _content(message.content)}
    if isinstance(message, AIMessage):
        try:
            calls = [_call(c["id"], c["name"], json.dumps(c["args"])) for c in message.tool_calls]
        except (TypeError, ValueError) as error:
            raise InputError(f"message {place} calls a tool with no JSON: {error}") from error
        broken = [_call(c["id"], c["name"], c["args"]) for c in message.invalid_tool_calls]
        calls += [call for call in broken if call["id"] in answered]
        waiting = [call for call in broken if call["id"] not in answered]
        written |= {"tool_calls": calls} if calls else {}
        written |= {"invalid_tool_calls": waiting} if waiting else {}
    elif isinstance(message, ToolMessage):
        written["tool_call_id"] = message.tool_call_id
        if message.status == "error":
            written["status"] = "error"
    if message.name:
        written["name"] = message.name
    return written


def _role(message: BaseMessage, place: int) -> str:
    if isinstance(message, ChatMessage):
        role = _SYNONYMS.get(message.role, message.role)
        if role in _SPOKEN:
            return role
        raise InputError(
            f"message {place} has the role {message.role!r}, expected one of {sorted(_SPOKEN)}"
        )
    if isinstance(message, SystemMessage) and message.additional_kwargs.get(_ROLE) == "developer":
        return "developer"
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    raise InputError(
        f"message {place} is a {type(message).__name__}, which is nothing that was said; expected "
        f"HumanMessage, AIMessage, SystemMessage, ToolMessage or ChatMessage"
    )


def _content(content: str | Sequence[str | Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    # Some providers' blocks have no type.
    return [
        {"type": "text", "text": block} if isinstance(block, str) else {"type": "other", **block}
        for block in content
    ]


def _call(name: str | None, function: str | None, arguments: str | None) -> dict[str, Any]:
    called = {"name": function or "", "arguments": arguments or ""}
    return {"id": name, "type": "function", "function": called}


def from_openai(messages: Sequence[Mapping[str, Any]]) -> list[BaseMessage]:
    """Make messages of dicts; what a model is sent is what `to_openai` was given.

    Raises
    ------
    InputError
        A dict has a role that `to_openai` does not write, or a tool's result names no call.
    """
    return [_read(message, place) for place, message in enumerate(messages)]


def _read(message: Mapping[str, Any], place: int) -> BaseMessage:
    role, content = message.get("role"), message.get("content") or ""
    fields: dict[str, Any] = {"content": content, "name": message.get("name")}
    if role == "user":
        return HumanMessage(**fields)
    if role == "assistant":
        return AIMessage(**fields, **_calls(message))
    if role == "developer":
        return SystemMessage(**fields, additional_kwargs={_ROLE: role})
    if role == "system":
        return SystemMessage(**fields)
    if role == "tool" and isinstance(message.get("tool_call_id"), str):
        status = message.get("status", "success")
        return ToolMessage(**fields, tool_call_id=message["tool_call_id"], status=status)
    raise InputError(
        f"message {place} has the role {role!r}, expected user, assistant, system, developer, or "
        f"tool with a tool_call_id"
    )


def _calls(message: Mapping[str, Any]) -> dict[str, Any]:
    """The tool calls of a message as the fields of an `AIMessage`."""
    valid, invalid = [], []
    listed = [*(message.get("tool_calls") or ()), *(message.get("invalid_tool_calls") or ())]
    for call in listed:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        try:
            args = json.loads(arguments)
        except ValueError:
            args = None
        if isinstance(args, dict):
            valid.append({"id": call["id"], "name": name, "args": args, "type": "tool_call"})
        else:
            broken = {"id": call["id"], "name": name, "args": arguments, "error": None}
            invalid.append({**broken, "type": "invalid_tool_call"})
    return {"tool_calls": valid, "invalid_tool_calls": invalid}


def restored(message: Mapping[str, Any], original: BaseMessage) -> BaseMessage:
    """The original message with the texts of a dict that was made of it.

    It is the same object where no text differs. Blocks that are no text are those of the
    original; text blocks of which nothing is left are left out, for APIs refuse them.
    """
    before: Any = original.content
    after: Any = message.get("content") or ""
    if isinstance(before, str):
        content = after
    else:
        pairs = [(old, _block(old, new)) for old, new in zip(before, after, strict=True)]
        content = [new for old, new in pairs if new is old or _text(new)]
    return original if content == before else original.model_copy(update={"content": content})


def _block(old: Any, new: Mapping[str, Any]) -> Any:
    if new["type"] != "text" or new["text"] == _text(old):
        return old
    return new["text"] if isinstance(old, str) else {**old, "text": new["text"]}


def _text(block: Any) -> Any:
    return block if isinstance(block, str) else block.get("text")


def count_tokens(messages: Sequence[BaseMessage], counter: TokenCounter) -> int:
    """Tokens of messages as `BoundedMessages` counts them.

    Raises
    ------
    InputError
        As `to_openai` does.
    """
    return Costs(counter, _IMAGE_TOKENS).of(to_openai(messages))


def last_question(messages: Sequence[BaseMessage]) -> str | None:
    """The text of the last message of the user; None where there is none."""
    asked = (m for m in reversed(messages) if isinstance(m, HumanMessage))
    return next((str(message.text) or None for message in asked), None)


class BoundedMessages:
    """A view within a budget of messages that mostly grow by their end.

    Messages that fit are given back as they are. Otherwise a memory follows them: it reads what
    is new, and begins again where what it read before has changed. Threads may share it.

    Parameters
    ----------
    like
        A memory with the settings of those to be made.
    """

    def __init__(self, like: TextMemory) -> None:
        self._like = like
        self._lock = threading.Lock()
        self._taken = 0
        self._forget()

    def read(
        self, messages: Sequence[BaseMessage], query: str | None = None, *, taken: int | None = None
    ) -> list[BaseMessage]:
        """Give messages that take no more tokens than the budget.

        Where that is impossible, for the newest turn does not fit, a tool's result has no call
        or the compressor fails, all messages are given as they are, and a warning is logged. An
        earlier turn that does not fit, however compressed, is left out.

        Parameters
        ----------
        messages
            All of them. They are not changed.
        query
            What the view is wanted for, as for `TextMemory.read`.
        taken
            Tokens of the budget that something else takes; None for as many as last time.

        Returns
        -------
        list of BaseMessage
            Those of which nothing was cut are the same objects; those of which something was
            are copies with the same id, artifact and metadata. The message that quotes earlier
            ones has ``additional_kwargs["lc_source"] == "laconic"``.
        """
        try:
            with self._lock:
                self._taken = self._taken if taken is None else taken
                return self._bounded(messages, query)
        except LaconicError as error:
            logger.warning("messages are used as they are: %s", error)
        except Exception:  # a compressor or an encoder can be anything
            logger.warning("messages are used as they are", exc_info=True)
        return list(messages)

    def _bounded(self, messages: Sequence[BaseMessage], query: str | None) -> list[BaseMessage]:
        written = self._followed(messages)
        free = self._like.budget - self._taken
        if sum(self._costs) <= free:
            return list(messages)
        if free <= 0:
            raise BudgetError(
                f"the system message and the tools take {self._taken} tokens, and the budget is "
                f"{self._like.budget}; raise it or shorten them"
            )
        shown = self._fed(written, free).read(query)
        return [restored(m, messages[m[_PLACE]]) if _PLACE in m else _quote(m) for m in shown]

    def _forget(self) -> None:
        self._memory: TextMemory | None = None
        self._marks: list[bytes] = []
        self._costs: list[int] = []
        self._read = 0

    def _followed(self, messages: Sequence[BaseMessage]) -> list[Message]:
        """The messages as dicts, after what is known of them was brought up to date."""
        written = to_openai(messages)
        marks = [_mark(d, m) for d, m in zip(written, messages, strict=True)]
        pairs = enumerate(zip(self._marks, marks, strict=False))
        same = min(len(marks), len(self._marks))
        same = next((place for place, (old, new) in pairs if old != new), same)
        if same < self._read:
            self._forget()
            same = 0
        costs = Costs(self._like.counter, _IMAGE_TOKENS)
        self._costs[same:] = [costs.of([message]) for message in written[same:]]
        self._marks[same:] = marks[same:]
        return written

    def _fed(self, written: Sequence[Message], free: int) -> TextMemory:
        """The memory, after it has read all messages."""
        # What is taken varies a little with prompts that name the time, and what a provider has
        # cached is worth more than a few tokens.
        step = max(1, self._like.budget // 32)
        memory = self._memory
        if memory is None or not free - 2 * step <= memory.budget <= free:
            like, self._read = self._like, 0
            memory = self._memory = TextMemory(
                free if free < step else free // step * step,
                counter=like.counter,
                method=like.method,
                encoder=like.encoder,
                recall=like.recall,
            )
        new = [{**m, _PLACE: self._read + i} for i, m in enumerate(written[self._read :])]
        try:
            memory.observe(new)
        except BudgetError:
            self._feed_what_fits(memory, new)
        self._read = len(written)
        return memory

    def _feed_what_fits(self, memory: TextMemory, new: Sequence[Message]) -> None:
        """Leave out turns that no view could show, unless it is the newest that does not fit."""
        *older, newest = grouped(new)
        for unit in older:
            try:
                memory.observe(unit)
            except BudgetError as error:
                logger.warning("an earlier turn is left out: %s", error)
            self._read += len(unit)
        memory.observe(newest)


def _mark(written: Message, message: BaseMessage) -> bytes:
    said = json.dumps([message.id, written], default=repr)
    return blake2b(said.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _quote(message: Mapping[str, Any]) -> BaseMessage:
    return HumanMessage(message["content"], additional_kwargs={"lc_source": "laconic"})


class Conversations:
    """Bounded views of many threads; those not used for longest are forgotten.

    Parameters
    ----------
    like
        A memory with the settings of those to be made.
    max_threads
        How many are kept.

    Raises
    ------
    InputError
        `max_threads` is no number of threads.
    """

    def __init__(self, like: TextMemory, max_threads: int) -> None:
        if isinstance(max_threads, bool) or not isinstance(max_threads, int) or max_threads < 1:
            raise InputError(f"max_threads is a number of threads, at least 1, got {max_threads!r}")
        self._like, self._max_threads = like, max_threads
        self._threads: OrderedDict[str, BoundedMessages] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, thread: str | None) -> BoundedMessages:
        """The view of a thread; one that is kept by nobody where there is no thread."""
        if thread is None:
            return BoundedMessages(self._like)
        with self._lock:
            found = self._threads.setdefault(thread, BoundedMessages(self._like))
            self._threads.move_to_end(thread)
            if len(self._threads) > self._max_threads:
                self._threads.popitem(last=False)
            return found
