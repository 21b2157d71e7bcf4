"""`laconic chat`: a conversation of any length with a local model, in a cache of fixed size.

Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BudgetError, InputError, LaconicError
from ._models import load_model

if TYPE_CHECKING:
    from ...memory.content import Content

__all__ = ["run"]


def run(options: argparse.Namespace) -> None:
    """Answer each line of standard input until it ends."""
    memory = _memory(options)
    if options.load:
        memory.load(options.load)
    chat = _Chat(memory, options)
    for stream in (sys.stdin, sys.stdout):
        # A stray byte, or a character that the terminal lacks, must not end a long conversation.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    prompt = ""
    if sys.stdin.isatty():
        prompt = "> "
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  (gives input() a history and arrow keys)
        _say("/help lists the commands, /quit or the end of input ends")
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                print()  # what comes next in the terminal has a line of its own
            break
        if line == "/quit":
            break
        try:
            if line:
                chat.take(line)
        except BrokenPipeError:  # nobody reads the answers
            raise
        except (LaconicError, OSError) as error:
            _say(" ".join(str(error).split()))
        except KeyboardInterrupt:
            print()
            _say("stopped; the memory is as it was")


def _memory(options: argparse.Namespace) -> Any:
    from ...memory.kv import get_policy
    from ...memory.make import make_memory

    get_policy(options.memory)  # a wrong name is known before the model is loaded
    model, tokenizer = load_model(options.model, options.device, options.dtype)
    return make_memory(
        model,
        tokenizer,
        "ccm" if options.adapter else options.memory,
        adapter=options.adapter,
        budget=options.budget,
        keep=options.keep,
    )


class _Chat:
    """A memory, and what is done with it at a line."""

    def __init__(self, memory: Any, options: argparse.Namespace) -> None:
        self.memory = memory
        self.options = options
        self.commands: dict[str, tuple[str, str, Callable[..., None]]] = {
            "/read": ("FILE", "read a text file of any length", self.read),
            "/save": ("FILE", "write the memory to a file", self.save),
            "/load": ("FILE", "take the memory from a file", self.load),
            "/stats": ("", "say how much was read and how much is held", self.stats),
            "/clear": ("", "forget everything", self.clear),
            "/help": ("", "list the commands", self.help),
        }

    def take(self, line: str) -> None:
        """Follow a command, or answer."""
        if not line.startswith("/"):
            self.answer(line)
            return
        name, *rest = line.split(maxsplit=1)
        if name not in self.commands:
            raise InputError(f"no command {name!r}; /help lists them")
        wanted, _, follow = self.commands[name]
        if wanted and not rest:
            raise InputError(f"{name} needs a file: {name} {wanted}")
        follow(*rest)

    def answer(self, line: str) -> None:
        try:
            self.memory.generate(
                self._content(line),
                max_new_tokens=self.options.max_new_tokens,
                temperature=self.options.temperature,
                stream=lambda piece: print(piece, end="", flush=True),
                seed=self.memory.seen,  # no two turns throw the same dice
            )
        except BudgetError as error:
            raise BudgetError(f"{error}; here, /read FILE reads what is long") from error
        print(flush=True)
        self.stats()

    def read(self, name: str) -> None:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not UTF-8 text ({error}); convert it first") from error
        if "\0" in text:
            raise InputError(f"{name} is binary, expected text")
        self.memory.observe(self._content(text))
        self.stats()

    def save(self, name: str) -> None:
        self.memory.save(Path(name).expanduser())
        _say(f"saved in {name}")

    def load(self, name: str) -> None:
        self.memory.load(Path(name).expanduser())
        self.stats()

    def clear(self, _: str = "") -> None:
        self.memory.clear()
        self.stats()

    def stats(self, _: str = "") -> None:
        """Say what the memory holds, and what a cache that keeps all would hold."""
        memory = self.memory
        full = _bytes_of_full_cache(memory.model, memory.seen)
        _say(
            f"{memory.seen:,} tokens seen, {memory.n_tokens:,} of {memory.budget:,} entries, "
            f"{_readable(memory.nbytes)} held; a full cache would take {_readable(full)}"
        )

    def help(self, _: str = "") -> None:
        for name, (argument, text, _follow) in self.commands.items():
            _say(f"{f'{name} {argument}':<12}{text}")
        _say(f"{'/quit':<12}end; Ctrl-C stops an answer")

    def _content(self, text: str) -> Content:
        """The text as the model is used to; the system message stands before the very first."""
        system = None if self.memory.seen else self.options.system
        if not getattr(self.memory.tokenizer, "chat_template", None):
            return f"{system}\n{text}\n" if system else f"{text}\n"
        said = {"user": text} if system is None else {"system": system, "user": text}
        return [{"role": role, "content": content} for role, content in said.items()]


def _bytes_of_full_cache(model: Any, tokens: int) -> int:
    """What keys and values of so many tokens take in the cache that transformers would use."""
    from transformers import DynamicCache

    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Layers of sliding-window attention hold no more than their window there, too.
    layers = DynamicCache(config=model.config).layers
    entries = sum(min(tokens, getattr(layer, "sliding_window", tokens)) for layer in layers)
    total: int = entries * 2 * heads * size * model.dtype.itemsize
    return total


def _readable(size: float) -> str:
    """Bytes in the unit that gives a short number."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} GiB"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
