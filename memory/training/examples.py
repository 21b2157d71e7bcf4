"""Conversations to learn from: turns that are compressed, an input, and the answer to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import InputError
from ..latent.base import Example

__all__ = ["Dialogue", "Example", "read_dialogues", "tokenize"]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation of which the last turn is to be learnt.

    Attributes
    ----------
    turns
        What is compressed, oldest first; may be empty.
    input, output
        What is asked, and the answer.
    """

    turns: tuple[str, ...]
    input: str
    output: str


def read_dialogues(file: str | Path) -> list[Dialogue]:
    """Read conversations from JSON lines.

    Parameters
    ----------
    file
        A line is an object with ``turns``, ``input`` and ``output``, or a list of turns, of which
        the last answers the one before it. A turn is a text, or a message with ``content``.

    Raises
    ------
    InputError
        A line is nothing of that or has no answer, or there are none. The message names the
        line.
    """
    found = []
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                found.append(_dialogue(line, f"{file}:{number}"))
    if not found:
        raise InputError(f"{file} has no conversations")
    return found


def tokenize(
    dialogue: Dialogue,
    tokenizer: Any,
    *,
    separator: str = "\n",
    max_turn_tokens: int = 256,
    max_tokens: int = 1024,
) -> Example:
    """Turn a conversation into tokens.

    Parameters
    ----------
    dialogue
        The conversation.
    tokenizer
        The base model's tokenizer. What it puts before a text stands before the conversation.
    separator
        Between turns. It belongs to the turn behind it, so that COMP tokens stand before it, as
        in the official code.
    max_turn_tokens
        Tokens of a turn at most; of a longer one the end is cut off, of a longer input the
        start.
    max_tokens
        Tokens of a conversation at most; of a longer one the oldest turns are left out.

    Raises
    ------
    InputError
        Input or answer come to no tokens, or do not fit.
    """

    def encoded(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    end = tokenizer.eos_token_id
    start = [t for t in tokenizer.encode("") if t != end or t == tokenizer.bos_token_id]
    part = encoded(separator)
    turns = [turn for text in dialogue.turns if (turn := encoded(text)[:max_turn_tokens])]
    turns = [part * (i > 0) + turn for i, turn in enumerate(turns)]
    question = encoded(dialogue.input)[-max_turn_tokens:]
    answer = encoded(dialogue.output)
    if not question or not answer:
        raise InputError(f"input or output come to no tokens: {dialogue!r:.120}")
    # Some tokenizers name no end.
    answer += [] if end is None else [end]
    last = [*(part if turns else []), *question, *part, *answer]
    room = max_tokens - len(start) - len(last)
    if room < 0:
        raise InputError(
            f"an input with its answer takes {len(last)} tokens, and a conversation at most "
            f"{max_tokens}; raise max_tokens"
        )
    while sum(map(len, turns)) > room:
        turns.pop(0)
    chunks = [*turns, last]
    chunks[0] = [*start, *chunks[0]]
    mask = (False,) * (len(chunks[-1]) - len(answer)) + (True,) * len(answer)
    return Example(tuple(map(tuple, chunks)), mask)


def _dialogue(line: str, place: str) -> Dialogue:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: no JSON: {error}") from error
    if isinstance(row, list):
        *turns, asked, output = [None, None, *row][-max(2, len(row)) :]
        row = {"turns": turns, "input": asked, "output": output}
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object or a list of turns, got {row!r:.60}")
    turns = row.get("turns", [])
    if not isinstance(turns, list):
        raise InputError(f"{place}: turns is a list, got {turns!r:.60}")
    question, answer = _text(row.get("input")), _text(row.get("output"))
    if not answer or not answer.strip():
        raise InputError(
            f"{place}: has no answer to learn; give output, or a list of two turns or more"
        )
    if not question or not question.strip():
        raise InputError(f"{place}: has no input that the answer belongs to")
    texts = [_text(turn) for turn in turns]
    if any(text is None for text in texts):
        raise InputError(f"{place}: a turn is a text, or a message with content, got {turns!r:.60}")
    return Dialogue(tuple(text for text in texts if text), question, answer)


def _text(turn: Any) -> str | None:
    """The text of a turn; None if it has none."""
    if isinstance(turn, dict):
        turn = turn.get("content")
    return turn if isinstance(turn, str) else None
