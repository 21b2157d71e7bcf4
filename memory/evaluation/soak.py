"""Many conversations at once, for a long time, with the process killed again and again."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

from ..sessions import Sessions
from ..text import TextMemory

__all__ = ["Lap", "soak"]

_USE = 20
"""Turns that a session is used for at a time."""

_CANARY = re.compile(r"canary-(\w+)-")


@dataclass(frozen=True, slots=True)
class Lap:
    """What happened from one kill to the next.

    Attributes
    ----------
    turns
        Turns that were observed, in all sessions.
    seconds
        How long it took.
    rss
        Most bytes that the process had.
    lost
        Turns whose `observe` had returned and that are gone.
    extra
        Turns that are there although their `observe` had not returned.
    """

    turns: int
    seconds: float
    rss: int
    lost: int
    extra: int

    def __str__(self) -> str:
        speed, rss = self.turns / self.seconds, self.rss / 2**20
        return f"| {self.turns:,} | {speed:.0f} | {rss:.0f} | {self.lost} | {self.extra} |"


def soak(
    folder: str | Path,
    *,
    sessions: int = 20,
    threads: int = 8,
    turns: int = 10_000,
    budget: int = 512,
    seconds: float = 60.0,
    seed: int = 0,
) -> Iterator[Lap]:
    """Talk in all sessions until each has had its turns; kill the process meanwhile.

    Half of the sessions fit into RAM. Every turn tells a word of its session, and after each
    turn what is read must be within the budget and hold no word of another session.

    Parameters
    ----------
    folder
        Where the sessions lie, empty.
    sessions, threads, turns
        How many, the turns of each session.
    budget
        Of each memory, in tokens.
    seconds
        The longest time between kills; the shortest is a tenth of it.
    seed
        Of all that is random.

    Yields
    ------
    Lap
        After each kill, and at the end.

    Raises
    ------
    RuntimeError
        A promise of the memory was broken; the process that saw it has printed which.
    """
    folder = Path(folder)
    drawn, spawning = random.Random(seed), multiprocessing.get_context("spawn")  # noqa: S311
    names = [f"s{i}" for i in range(sessions)]
    told: Counter[str] = Counter()
    while min(told[name] for name in names) < turns:
        lap = folder / "lap"
        lap.write_text("")
        begun = spawning.Event()
        arguments = (folder, names, threads, turns, budget, drawn.random(), begun)
        process = spawning.Process(target=_talk, args=arguments)
        process.start()
        begun.wait(120)
        started = time.perf_counter()
        process.join(drawn.uniform(seconds / 10, seconds))
        process.kill()
        process.join()
        if process.exitcode not in (0, -9):
            raise RuntimeError("a promise was broken; the lines above say which")
        taken = time.perf_counter() - started
        before, said, rss = told.copy(), told.copy(), 0
        for line in lap.read_text().splitlines():
            name, number, used = line.split()
            said[name], rss = max(said[name], int(number)), max(rss, int(used))
        left = Sessions(partial(TextMemory, budget), folder / "sessions", max_loaded=0)
        for name in names:
            with left.use(name) as memory:
                told[name] = memory.turns
        lost = sum((said - told).values())
        yield Lap((told - before).total(), taken, rss, lost, sum((told - said).values()))


def _talk(
    folder: Path,
    names: list[str],
    threads: int,
    turns: int,
    budget: int,
    seed: float,
    begun: Event,
) -> None:
    """Talk until all is said; runs in a process of its own."""
    import psutil

    loaded = len(names) // 2
    store = Sessions(partial(TextMemory, budget), folder / "sessions", max_loaded=loaded)
    words = [f"word{i}" for i in range(2000)]
    handle = os.open(folder / "lap", os.O_WRONLY | os.O_APPEND)
    process = psutil.Process()

    def talk(thread: int) -> None:
        drawn = random.Random(f"{seed} {thread}")  # noqa: S311
        left = set(names)
        while left:
            name = drawn.choice(sorted(left))
            with store.use(name) as memory:
                for _ in range(_USE):
                    number = memory.turns + 1
                    if number > turns:
                        left.discard(name)
                        break
                    text = " ".join(drawn.choices(words, k=12))
                    role = "user" if number % 2 else "assistant"
                    memory.observe({"role": role, "content": f"canary-{name}-{number} {text}"})
                    # One write of a line is whole, whichever thread it comes from.
                    os.write(handle, f"{name} {number} {process.memory_info().rss}\n".encode())
                    asked = drawn.choice(names)
                    _check(memory, name, f"canary-{asked}-{drawn.randint(1, number)} {text}")

    begun.set()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(talk, range(threads)))


def _check(memory: TextMemory, name: str, query: str) -> None:
    for messages in (memory.read(), memory.read(query)):
        tokens = memory.count(messages)
        if tokens > memory.budget:
            raise RuntimeError(f"session {name} gives {tokens} tokens of {memory.budget}")
        for other in _CANARY.findall(" ".join(message["content"] for message in messages)):
            if other != name:
                raise RuntimeError(f"session {name} gives what was said in {other}")
