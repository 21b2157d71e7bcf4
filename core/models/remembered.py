"""What models said of texts, so that a text that comes again costs nothing."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

__all__ = ["Remembered"]

Result = TypeVar("Result")
Text = TypeVar("Text", str, bytes)


class Remembered(Generic[Result]):
    """Results by the hash of the text they are for, the least recently used forgotten first.

    Not safe to use from two threads at once.

    Parameters
    ----------
    size
        Results remembered; 0 for none.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._results: OrderedDict[bytes, Result] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def get(
        self, texts: Sequence[Text], compute: Callable[[list[Text]], Iterable[Result]]
    ) -> list[Result]:
        """Return a result for each text; `compute` is given the distinct ones not known."""
        keys = [_key(text) for text in texts]
        missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._results}
        fresh = dict(zip(missing, compute(list(missing.values())), strict=True)) if missing else {}
        found = [fresh[key] if key in fresh else self._results[key] for key in keys]
        for key, result in zip(keys, found, strict=True):
            self._results[key] = result
            self._results.move_to_end(key)
        while len(self._results) > max(0, self.size):
            self._results.popitem(last=False)
        return found


def _key(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return hashlib.blake2b(data, digest_size=16).digest()
