"""Compressing the texts in a list of chat messages, which stay where and what they are."""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from .budget import Budget
from .compressor import Compressor
from .errors import InputError
from .guards import KeepPattern
from .regions import Layout, Region, compress_regions
from .types import JOINER, Compression, Span, render

__all__ = ["MessagesCompression", "compress_messages"]


@dataclass(frozen=True, slots=True, repr=False)
class MessagesCompression(Compression):
    """The result of compressing chat messages; `text` is what is left of their texts, joined.

    Attributes
    ----------
    messages
        The messages with what is left of their texts: new dicts, in the order in which the
        messages came, with the same keys.
    """

    messages: list[dict[str, Any]] = field(hash=False)


class _Text(NamedTuple):
    """A text in a list of messages: its message, and its part where the content is in parts."""

    message: int
    part: int | None
    text: str


def compress_messages(
    messages: Sequence[Mapping[str, Any]],
    *,
    query: str | None = None,
    budget: Budget | float,
    method: Compressor | str = "auto",
    counter: Any = None,
    keep: Sequence[KeepPattern] = (),
    keep_last: int = 1,
    roles: Sequence[str] = ("user", "assistant", "tool"),
) -> MessagesCompression:
    """Compress the older messages of a chat in the form of OpenAI's API.

    Texts are a ``content`` that is a str, and the ``text`` of a part ``{"type": "text"}``. All
    else (tool calls and their ids, names, images) is copied as it is. No message loses its
    place: the best unit of each text is kept before more is kept of any, and a text that not
    even that fits of is left ``""``.

    Parameters
    ----------
    messages
        Dicts with a ``role``. They are not changed.
    query
        What the messages are wanted for; by default the text of the last message of the user.
    budget
        Of all texts, those that stay as they are included, joined by `JOINER`, empty ones left
        out. What an API adds for roles and tool calls is not counted.
    method
        A compressor, or the name of one: a key of `METHODS`, or ``"auto"``.
    keep
        As for `Compressor.compress`; looked for in each text alone.
    keep_last
        How many messages at the end stay as they are.
    roles
        The roles of the messages that may be compressed.

    The other parameters are those of `Compressor.compress`.

    Returns
    -------
    MessagesCompression
        One passage, the texts joined by `JOINER`, to which the spans refer; and the messages.

    Raises
    ------
    InputError
        `messages` is no list of messages, or `keep_last` is no number of them.
    BudgetError
        The texts that stay as they are, or what `keep` finds, do not fit.

    Examples
    --------
    >>> result = compress_messages(
    ...     [
    ...         {"role": "user", "content": "Hello there! I am going to Paris in May."},
    ...         {"role": "assistant", "content": "How nice. Paris is mild in May. Take a coat."},
    ...         {"role": "user", "content": "What is Paris like in May?"},
    ...     ],
    ...     budget=23,
    ...     method="lexical",
    ... )
    >>> [message["content"] for message in result.messages[:2]]
    ['I am going to Paris in May.', 'Paris is mild in May.']
    """
    roles = (roles,) if isinstance(roles, str) else roles
    if isinstance(keep_last, bool) or not isinstance(keep_last, int) or keep_last < 0:
        raise InputError(f"keep_last is a number of messages, at least 0, got {keep_last!r}")
    texts = [text for text in _texts(messages) if text.text]
    regions: list[Region] = []
    for place, _, text in texts:
        start = regions[-1].end + len(JOINER) if regions else 0
        is_old = place < len(messages) - keep_last
        is_kept = not (is_old and messages[place].get("role") in roles)
        regions.append(Region(start, start + len(text), keep=is_kept))
    joined = JOINER.join(text.text for text in texts)
    result = compress_regions(
        Layout(joined, regions, joined),
        query=_last_question(messages, texts) if query is None else query,
        budget=budget,
        method=method,
        counter=counter,
        keep=keep,
        least=1,
    )
    spans = result.passages[0].spans if result.passages else ()
    shorter = [_copied(message) for message in messages]
    for (place, part, _), region in zip(texts, regions, strict=True):
        left = render(joined, _within(spans, region))
        if part is None:
            shorter[place]["content"] = left
        else:
            shorter[place]["content"][part]["text"] = left
    parts: dict[str, Any] = {f.name: getattr(result, f.name) for f in fields(result)}
    return MessagesCompression(**parts, messages=shorter)


def _copied(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that shares nothing, not even a part that stands in the message twice."""
    copied = copy.deepcopy(dict(message))
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        parts = map(copy.deepcopy, content)
        copied["content"] = tuple(parts) if isinstance(content, tuple) else list(parts)
    return copied


def _texts(messages: Any) -> Iterator[_Text]:
    """Find every text of every message."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise InputError(f"messages is a list of dicts, got {type(messages).__name__}")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {place} is a dict with a role, got {message!r}")
        content = message.get("content")
        if isinstance(content, str):
            yield _Text(place, None, content)
        elif isinstance(content, (list, tuple)):
            for part, value in enumerate(content):
                if isinstance(value, dict) and value.get("type") == "text":
                    yield _Text(place, part, _checked(value.get("text"), place))
        elif content is not None:
            _checked(content, place)


def _checked(text: Any, place: int) -> str:
    if not isinstance(text, str):
        raise InputError(
            f"the text of message {place} is {type(text).__name__}, expected a str, None or a "
            f"list of parts"
        )
    return text


def _last_question(messages: Sequence[Mapping[str, Any]], texts: Sequence[_Text]) -> str | None:
    """The text of the last message of the user; None where there is none."""
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return JOINER.join(text.text for text in texts if text.message in asked[-1:]) or None


def _within(spans: Sequence[Span], region: Region) -> list[Span]:
    """The parts of ascending spans that lie in the region."""
    first = bisect_right(spans, region.start, key=lambda span: span.end)
    last = bisect_left(spans, region.end, key=lambda span: span.start)
    return [Span(max(a, region.start), min(b, region.end)) for a, b in spans[first:last]]
