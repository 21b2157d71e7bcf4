"""Compressing prompts of which the parts differ: tagged text; instruction, documents, question.

Both are LLMLingua's (Jiang et al., "LLMLingua: Compressing Prompts for Accelerated Inference of
Large Language Models", EMNLP 2023): the tags of its structured prompts, and its budget
controller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .budget import Budget, TokenCounter
from .compressor import Compressor, Passages, as_passages, as_query
from .errors import BudgetError, InputError
from .guards import KeepPattern
from .regions import Layout, Region, as_compressor, compress_regions, fitted
from .types import JOINER, Compression

__all__ = ["PromptCompression", "compress_prompt", "compress_tagged"]

_TAG = re.compile(r"</?llmlingua(?![^\s,/>])[^<>]*>?")
_ATTRIBUTE = r"""(\w+)\s*=\s*("[^"]*"|'[^']*'|[^\s,"'=>]+)"""
_OPENING_TAG = re.compile(rf"<llmlingua(?:[\s,]+{_ATTRIBUTE})*[\s,]*>")
_CLOSING_TAG = re.compile(r"</llmlingua\s*>")


def compress_tagged(
    text: str,
    *,
    query: str | None = None,
    budget: Budget | float | None = None,
    method: Compressor | str = "auto",
    counter: Any = None,
    keep: Sequence[KeepPattern] = (),
) -> Compression:
    r"""Compress a text in which tags say what is protected and what has a rate of its own.

    ``<llmlingua compress=False>…</llmlingua>`` stays as it is. ``<llmlingua rate=0.4>…`` is left
    that fraction of its own tokens. What stands in ``<llmlingua>…`` or outside of tags shares
    what the budget leaves; where it does not reach for the rates, they give way. White space of
    what is dropped parts what is left. Attributes are parted by white space or commas, values
    may be quoted. Every other ``<`` is text.

    Parameters
    ----------
    text
        The tagged text.
    budget
        Of the whole text without its tags, protected parts included. None leaves all that has
        no rate as it is.
    method
        A compressor, or the name of one: a key of `METHODS`, or ``"auto"``.
    keep
        As for `Compressor.compress`; looked for in each part alone.

    The other parameters are those of `Compressor.compress`.

    Returns
    -------
    Compression
        One passage, the text without its tags, to which the spans refer.

    Raises
    ------
    InputError
        A tag is nested, not closed, closes nothing or says what no tag can.
    BudgetError
        What is protected, or what `keep` finds, does not fit.

    Examples
    --------
    >>> result = compress_tagged(
    ...     "<llmlingua compress=False>Answer in French.</llmlingua>\n"
    ...     "The sky is blue. Paris is the capital of France. Fish swim.",
    ...     query="What is the capital of France?",
    ...     budget=13,
    ...     method="lexical",
    ... )
    >>> print(result.text)
    Answer in French.
    Paris is the capital of France.
    """
    if not isinstance(text, str):
        raise InputError(f"tagged text is a str, got {type(text).__name__}")
    plain, regions = _untagged(text)
    if budget is None:
        regions = [replace(r, keep=r.keep or r.rate is None) for r in regions]
    return compress_regions(
        Layout(plain, _bordered(plain, regions), plain, flows=True),
        query=query,
        budget=1.0 if budget is None else budget,
        method=method,
        counter=counter,
        keep=keep,
    )


def _untagged(text: str) -> tuple[str, list[Region]]:
    """The text without its tags, and the regions that they and what is between them make."""
    pieces: list[str] = []
    regions: list[Region] = []
    opened: re.Match[str] | None = None
    attributes: dict[str, Any] = {}
    length = at = 0

    def add(piece: str) -> None:
        nonlocal length
        if piece:
            pieces.append(piece)
            regions.append(Region(length, length + len(piece), **attributes))
            length += len(piece)

    for tag in _TAG.finditer(text):
        add(text[at : tag.start()])
        is_closing = tag.group().startswith("</")
        if is_closing:
            if not _CLOSING_TAG.fullmatch(tag.group()):
                raise _tag_error(tag, "is not a closing tag", "write </llmlingua>")
            if opened is None:
                raise _tag_error(tag, "closes nothing", "remove it or open a tag before it")
        elif opened is not None:
            what = f"stands inside the one at character {opened.start()}"
            raise _tag_error(tag, what, "close that first; tags do not nest")
        attributes = {} if is_closing else _attributes(tag)
        opened = None if is_closing else tag
        at = tag.end()
    if opened is not None:
        raise _tag_error(opened, "is never closed", "write </llmlingua> behind its text")
    add(text[at:])
    return "".join(pieces), regions


def _attributes(tag: re.Match[str]) -> dict[str, Any]:
    """What an opening tag says of its region."""
    if not _OPENING_TAG.fullmatch(tag.group()):
        raise _tag_error(tag, "cannot be read", "write it as <llmlingua rate=0.4 compress=False>")
    found: dict[str, Any] = {}
    for name, quoted in re.findall(_ATTRIBUTE, tag.group()):
        value = quoted.strip("\"'")
        if name == "rate":
            key, read = "rate", _rate(value)
        elif name == "compress":
            key, read = "keep", {"true": False, "false": True}.get(value.lower())
        else:
            raise _tag_error(tag, f"has an attribute {name!r}", "only rate and compress are known")
        if read is None:
            raise _tag_error(
                tag,
                f"has {name}={quoted}",
                "a rate is above 0 and at most 1, compress is True or False",
            )
        if key in found:
            raise _tag_error(tag, f"has {name} twice", "give it once")
        found[key] = read
    return found


def _rate(value: str) -> float | None:
    """Read a fraction to keep; None if it is none."""
    try:
        rate = float(value)
    except ValueError:
        return None
    return rate if 0 < rate <= 1 else None


def _tag_error(tag: re.Match[str], what: str, hint: str) -> InputError:
    shown = tag.group() if len(tag.group()) <= 60 else tag.group()[:59] + "…"
    return InputError(f"the tag {shown!r} at character {tag.start()} {what}; {hint}")


def _bordered(text: str, regions: Sequence[Region]) -> list[Region]:
    """Give the white space between compressible regions to the first, as units own theirs.

    White space alone between others goes with the region behind it.
    """
    placed: list[Region] = []
    for given in regions:
        region, last = given, placed[-1] if placed else None
        if last and not last.keep:
            if text[last.start : last.end].isspace():
                region = replace(region, start=placed.pop().start)
            elif not region.keep:
                start = region.end - len(text[region.start : region.end].lstrip())
                placed[-1] = replace(last, end=start)
                region = replace(region, start=start)
        if region.start < region.end:
            placed.append(region)
    return placed


@dataclass(frozen=True, slots=True, repr=False)
class PromptCompression:
    """The result of compressing a prompt of instruction, documents and question.

    Attributes
    ----------
    instruction, question
        What is left of them.
    documents
        The result for the documents, under the budget that was left for them.
    limit
        The budget in tokens, of `text`.
    counter
        Name of the tokenizer in which everything is counted.
    tokens_before, tokens_after
        Tokens of the parts as they came, joined by `JOINER`, and of `text`.
    """

    instruction: str
    documents: Compression
    question: str
    limit: int
    counter: str
    tokens_before: int
    tokens_after: int

    @property
    def text(self) -> str:
        """What is left of all parts, joined by `JOINER`; a part of which nothing is left is out."""
        return _joined(self.instruction, self.documents.text, self.question)

    @property
    def rate(self) -> float:
        """Fraction of the tokens kept; 1.0 for an empty prompt."""
        return self.tokens_after / self.tokens_before if self.tokens_before else 1.0

    def __str__(self) -> str:
        return (
            f"prompt: {self.tokens_before:,} -> {self.tokens_after:,} tokens "
            f"({self.rate:.1%} kept, {self.counter}); {self.documents}"
        )

    __repr__ = __str__


def compress_prompt(
    instruction: str,
    documents: Passages,
    question: str,
    *,
    budget: Budget | float,
    method: Compressor | str = "auto",
    counter: Any = None,
    keep: Sequence[KeepPattern] = (),
    instruction_rate: float = 1.0,
    question_rate: float = 1.0,
) -> PromptCompression:
    """Compress a prompt in parts, each at its own rate: LLMLingua's budget controller.

    The documents get what the whole budget leaves after instruction and question (section 4.1):
    ``(tau * L - (tau_ins * L_ins + tau_que * L_que)) / L_dems`` of their own tokens. The paper
    has ``tau_ins = 0.85`` and ``tau_que = 0.9``; here both are 1 unless set, as they are in its
    code, which leaves instruction and question as they came.

    Parameters
    ----------
    instruction, question
        What stands before and behind the documents; either may be empty. The question is the
        query that all parts are compressed for.
    documents
        As for `Compressor.compress`.
    budget
        Of the whole prompt, its parts joined by `JOINER`.
    method
        A compressor, or the name of one: a key of `METHODS`, or ``"auto"``.
    instruction_rate, question_rate
        Fraction of its own tokens that is left of each, above 0 and at most 1.

    The other parameters are those of `Compressor.compress`.

    Raises
    ------
    InputError
        A part is not text.
    BudgetError
        Instruction and question alone, or what `keep` finds, do not fit; or the budget is one
        per passage.
    """
    for name, part in (("instruction", instruction), ("question", question)):
        if not isinstance(part, str):
            raise InputError(f"{name} is a str, got {type(part).__name__}; leave it empty with ''")
    compressor, tokens, size = as_compressor(method), TokenCounter.of(counter), Budget.of(budget)
    if size.per_passage:
        raise BudgetError("the budget is that of the whole prompt; leave per_passage out")
    passages, query = as_passages(documents), as_query(question)

    def compressed(given: Passages, budget: Budget) -> Compression:
        return compressor.compress(given, query=query, budget=budget, keep=keep, counter=tokens)

    total = tokens.count(_joined(instruction, JOINER.join(p.text for p in passages), question))
    limit = size.limit(total)
    instruction = compressed(instruction, Budget.rate(instruction_rate)).text
    question = compressed(question, Budget.rate(question_rate)).text
    base = tokens.count(_joined(instruction, question))
    if base > limit:
        raise BudgetError(
            f"instruction and question alone take {base} tokens and the budget allows {limit}; "
            f"raise the budget or lower their rates"
        )

    def attempt(room: int) -> tuple[int, int, Compression]:
        left = compressed(passages, replace(size, kind="tokens", amount=room))
        return left.tokens_after, tokens.count(_joined(instruction, left.text, question)), left

    best = compressed(passages, Budget.rate(1.0))
    after = tokens.count(_joined(instruction, best.text, question))
    if after > limit:
        room = max(0, limit - base - tokens.count(JOINER))
        best = fitted(attempt, limit=limit, base=base, room=room, most=limit - base)
        after = tokens.count(_joined(instruction, best.text, question))
    return PromptCompression(instruction, best, question, limit, tokens.name, total, after)


def _joined(*parts: str) -> str:
    return JOINER.join(part for part in parts if part)
