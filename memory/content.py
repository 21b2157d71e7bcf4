"""What a memory of a local model reads: text, token ids or chat messages, as token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from jinja2 import TemplateError

from ..core.errors import InputError

__all__ = ["NO_ANSWER", "Content", "encoded", "token_ids"]

Content = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""What can be read: a text, token ids, or chat messages with ``role`` and ``content``."""

_WORD = re.compile(r"\w+")

NO_ANSWER = -1
"""Stands for the last token of an answer where there is none."""

_ASKED = {"role": "user", "content": "?"}
_ANSWERED = {"role": "assistant", "content": "!"}


def token_ids(
    content: Content,
    tokenizer: Any,
    size: int,
    *,
    first: bool = True,
    asks: bool = False,
    answered: int = NO_ANSWER,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The tokens of what is to be read.

    Parameters
    ----------
    content
        What is to be read.
    tokenizer
        Of transformers.
    size
        Token ids are below it.
    first
        Whether nothing was read before.
    asks
        Whether the assistant is asked to speak behind chat messages.
    answered
        The last token of an answer that the model has just written, which the chat template has
        yet to close; `NO_ANSWER` if what was read last is whole.
    tools
        JSON schemas of tools, which the chat template writes where a conversation begins.

    Raises
    ------
    InputError
        It is nothing of that, has ids that the model does not know, or messages or tools that
        the chat template refuses or leaves out.
    """
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text holds half a character: {error}") from error
        ids = encoded(content, tokenizer, special=first)
    elif _is_messages(content):
        ids = _rendered([dict(m) for m in content], tokenizer, first, asks, answered, tools)
    else:
        ids = _as_ids(content)
    if any(not 0 <= token < size for token in ids):
        raise InputError(f"token ids are from 0 to {size - 1}, got {min(ids)} to {max(ids)}")
    return ids


def encoded(text: str, tokenizer: Any, special: bool = False) -> list[int]:
    """The tokens of a text, which may be longer than the model's window.

    Raises
    ------
    InputError
        It is no tokenizer.
    """
    if not callable(getattr(tokenizer, "encode", None)):
        raise InputError(f"expected a tokenizer of transformers, got {tokenizer!r:.80}")
    return list(tokenizer.encode(text, add_special_tokens=special, verbose=False))


def _rendered(
    messages: list[dict[str, Any]],
    tokenizer: Any,
    first: bool,
    asks: bool,
    answered: int,
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[int]:
    """Chat messages as the template writes them behind what was read before."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template; give the text, or set tokenizer.chat_template"
        )

    def render(listed: list[dict[str, Any]], asks: bool) -> str:
        text = tokenizer.apply_chat_template(
            listed,
            tools=list(tools) if first and tools else None,
            tokenize=False,
            add_generation_prompt=asks,
        )
        return str(text)

    if first:
        try:
            text = render(messages, asks)
            _check_written(messages, tools or (), text)
            return encoded(text, tokenizer)
        except TemplateError as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error
    # A template may open a conversation in a way of its own, and tokens depend on what stands
    # before them: both are seen behind a short conversation that ends as the real one did.
    refusal: Exception | None = None
    for opening in ([_ASKED, _ANSWERED], [_ASKED]):
        try:
            if answered != NO_ANSWER:
                before = render([_ASKED], True) + _ANSWERED["content"]
            else:
                before = render(opening, False)
            whole = render([*opening, *messages], asks)
            _check_written(messages, (), whole)
        except TemplateError as error:
            refusal = error
            continue
        if not whole.startswith(before):
            before = render(opening, False)
        known, ids = encoded(before, tokenizer), encoded(whole, tokenizer)
        if not whole.startswith(before) or ids[: len(known)] != known:
            return encoded(render(messages, asks), tokenizer)
        ids = ids[len(known) :]
        return ids[1:] if ids[:1] == [answered] else ids
    raise InputError(f"the chat template refuses these messages: {refusal}") from refusal


def _check_written(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str
) -> None:
    """Raise `InputError` if a chat template has left something out, as some do silently.

    Templates trim and escape, and cut the reasoning of an assistant: a word must be there.
    """
    for message in messages:
        content = message.get("content")
        words = _WORD.findall(content) if isinstance(content, str) else []
        if message.get("role") != "assistant" and words and max(words, key=len) not in text:
            raise InputError(
                f"the chat template leaves out messages with the role {message.get('role')!r}; "
                f"say it in a message of the user, or take a model that was trained for them"
            )
    for tool in tools:
        name = str(tool.get("function", tool).get("name", ""))
        if name not in text:
            raise InputError(
                f"the chat template leaves out the tool {name!r}; take a model that was trained "
                f"to call tools"
            )


def _is_messages(content: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return (
        isinstance(content, Sequence)
        and len(content) > 0
        and all(isinstance(message, Mapping) for message in content)
    )


def _as_ids(content: Any) -> list[int]:
    ids = content.tolist() if hasattr(content, "tolist") else content
    if isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], list):
        ids = ids[0]
    is_list = isinstance(ids, Sequence) and not isinstance(ids, (str, bytes))
    if is_list and any(isinstance(row, (list, tuple)) for row in ids):
        raise InputError(f"a memory reads one sequence at a time, got a batch of {len(ids)}")
    if not is_list or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise InputError(
            f"expected a text, token ids or messages with role and content, got {content!r:.80}"
        )
    return list(ids)
