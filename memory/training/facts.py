"""Facts among filler text: conversations from which it can be told what a memory still knows.

A turn is filler, which a Markov chain makes easy to foresee, with facts in it that nothing
foretells: ``set k3 v17``. ``ask k3`` is answered by the value that was set last. ``recap`` is
answered by the last values of all keys, in any order, so that it looks at all of them: a prompt
to summarise that a model from scratch understands. Keys, values and places are drawn anew for
each conversation, so that nothing but the context tells them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from ..latent.base import Example

__all__ = ["Drawn", "Facts"]

Ids = NDArray[np.int64]

SPECIAL = ("<pad>", "<s>", "turn", "set", "ask", "recap", "end")
PAD, START, TURN, SET, ASK, RECAP, END = range(len(SPECIAL))

_FOLLOWERS = (0.75, 0.15, 0.07, 0.03)
"""How likely each of the words is that may follow a word of filler."""

SHORTEST, LONGEST = 24, 32
"""Tokens of a turn in training, where nothing else is said."""

TURN_LENGTH = 28
"""Tokens of a turn in measuring."""

_FACT = 3
"""Tokens of a fact."""


class Drawn(NamedTuple):
    """Conversations that are equally long.

    Attributes
    ----------
    context
        Token ids; shape ``(count, turns, length)``.
    keys, values
        Token ids of what can be asked, and of the answers, in any order; shape
        ``(count, facts)``. With overwriting a key may stand there more than once, always with
        the value that was set last.
    """

    context: Ids
    keys: Ids
    values: Ids

    def asked(
        self, generator: np.random.Generator, most: int | None = None
    ) -> tuple[Ids, tuple[bool, ...]]:
        """Questions about facts in any order, each followed by its answer.

        Parameters
        ----------
        generator
            Of the order.
        most
            Questions of a conversation; None for all.

        Returns
        -------
        ids
            Shape ``(count, 3 questions)``.
        learnt
            Which of the tokens of a row are answers.
        """
        order = generator.random(self.keys.shape).argsort(axis=1)[:, :most]
        keys, values = (np.take_along_axis(one, order, axis=1) for one in self[1:])
        ids = np.stack([np.full_like(keys, ASK), keys, values], axis=2)
        return ids.reshape(len(ids), -1), (False, False, True) * order.shape[1]


@dataclass(frozen=True, slots=True)
class Facts:
    """What conversations are made of.

    Attributes
    ----------
    keys, values, words
        How many there are of each; words are filler.
    slots
        Facts that a turn has room for.

    Raises
    ------
    InputError
        There are too few of something.
    """

    keys: int = 32
    values: int = 32
    words: int = 57
    slots: int = 2

    def __post_init__(self) -> None:
        if min(self.keys, self.values, self.slots) < 1 or self.words < len(_FOLLOWERS):
            raise InputError(
                f"keys, values and slots are at least 1, words at least {len(_FOLLOWERS)}"
            )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All tokens, in the order of their ids."""
        numbered = (("k", self.keys), ("v", self.values), ("w", self.words))
        return (*SPECIAL, *(f"{kind}{i}" for kind, count in numbered for i in range(count)))

    @property
    def first_key(self) -> int:
        """The id of the first key; values stand behind the keys, words behind the values."""
        return len(SPECIAL)

    @property
    def first_value(self) -> int:
        """The id of the first value."""
        return self.first_key + self.keys

    @property
    def first_word(self) -> int:
        """The id of the first word."""
        return self.first_value + self.values

    def tokenizer(self) -> Any:
        """A tokenizer that takes each word of a text for a token."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        tokens = {token: i for i, token in enumerate(self.vocabulary)}
        inner = Tokenizer(models.WordLevel(tokens, unk_token=SPECIAL[PAD]))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[START]} $A", special_tokens=[(SPECIAL[START], START)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            pad_token=SPECIAL[PAD],
            unk_token=SPECIAL[PAD],
            bos_token=SPECIAL[START],
            eos_token=SPECIAL[END],
        )

    def draw(
        self,
        generator: np.random.Generator,
        count: int,
        turns: int,
        length: int,
        facts: int,
        *,
        noise: float = 0.0,
        overwriting: bool = False,
        followers: int = len(_FOLLOWERS),
        marked: bool = True,
    ) -> Drawn:
        """Conversations with facts at places by chance.

        Parameters
        ----------
        generator
            What they are drawn with.
        count
            How many.
        turns, length
            Of each; tokens of a turn.
        facts
            Of each, of all the places that its turns have for one.
        noise
            The part of the filler that is any key, value or word instead.
        overwriting
            Whether a key may be set again.
        followers
            Words that may follow a word of filler; with fewer than the 4 that a model learns none
            is as surprising as a fact.
        marked
            Whether turns begin with ``turn``, rather than with a word.

        Raises
        ------
        InputError
            There is no fact, or no room or no keys for so many.
        """
        part, places = (length - 1) // self.slots, turns * self.slots
        if part < _FACT or not 1 <= facts <= min(places, self.keys):
            raise InputError(
                f"{turns} turns of {length} tokens have no room for {facts} facts of "
                f"{_FACT} tokens, or there are no {facts} keys"
            )
        ids = self._filler(generator, count, turns * length, followers)
        loud = generator.random(ids.shape) < noise
        anything = generator.integers(self.first_key, len(self.vocabulary), size=ids.shape)
        ids = np.where(loud, anything, ids).reshape(count, turns, length)
        if marked:
            ids[:, :, 0] = TURN
        flat = ids.reshape(count, turns * length)
        if overwriting:
            keys = generator.integers(self.keys, size=(count, 1)) + generator.integers(
                max(1, facts), size=(count, facts)
            )
            keys = keys % self.keys + self.first_key
        else:
            keys = _some(generator, count, self.keys, facts) + self.first_key
        values = generator.integers(self.values, size=(count, facts)) + self.first_value
        chosen = np.sort(_some(generator, count, places, facts), axis=1)
        place = chosen // self.slots * length + 1 + chosen % self.slots * part
        place += generator.integers(part - _FACT + 1, size=place.shape)
        rows = np.arange(count)[:, None]
        for i, tokens in enumerate((np.full_like(keys, SET), keys, values)):
            flat[rows, place + i] = tokens
        last = facts - 1 - np.argmax((keys[:, :, None] == keys[:, None, ::-1]), axis=2)
        return Drawn(ids, keys, np.take_along_axis(values, last, axis=1))

    def examples(
        self,
        count: int,
        seed: int,
        turns: int,
        *,
        shortest: int = SHORTEST,
        longest: int = LONGEST,
    ) -> list[Example]:
        """Conversations of 1 to `turns` turns that are full of facts, to train an adapter."""
        generator = np.random.default_rng([seed, count])
        found = []
        for _ in range(count):
            now, length = generator.integers([1, shortest], [turns + 1, longest + 1]).tolist()
            drawn = self.draw(generator, 1, now, length, now * self.slots)
            (asked,), learnt = drawn.asked(generator)
            first, *others = drawn.context[0].tolist()
            chunks = [[START, *first], *others, asked.tolist()]
            found.append(Example(tuple(map(tuple, chunks)), learnt))
        return found

    def _filler(
        self, generator: np.random.Generator, count: int, length: int, followers: int
    ) -> Ids:
        """A walk along the Markov chain, which is the same for all conversations."""
        chain = np.random.default_rng(0)
        follows = np.stack([chain.permutation(self.words)[:4] for _ in range(self.words)])
        likely = np.array(_FOLLOWERS[:followers])
        choices = generator.choice(followers, size=(length, count), p=likely / likely.sum())
        word = generator.integers(self.words, size=count)
        walk = np.empty((length, count), np.int64)
        for i, choice in enumerate(choices):
            walk[i] = word = follows[word, choice]
        filler: Ids = walk.T + self.first_word
        return filler


def _some(generator: np.random.Generator, count: int, among: int, few: int) -> Ids:
    """A few different numbers below `among` for each row, in any order."""
    found: Ids = generator.random((count, among)).argsort(axis=1)[:, :few]
    return found
