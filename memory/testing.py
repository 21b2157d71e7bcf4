"""What every memory of a local model must do, as tests: subclass and give a `make` fixture.

The tests are those that laconic holds its own memories to.

Examples
--------
>>> class TestMine(ModelMemoryConformance):
...     @pytest.fixture
...     def make(self, model, tokenizer):
...         return lambda: MyMemory(model, tokenizer)
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from safetensors import safe_open

from ..core.errors import InputError, StateError
from .base import ModelMemory

__all__ = ["ModelMemoryConformance"]

Make = Callable[[], ModelMemory]  # type: ignore[type-arg]

_TURNS = [
    "My cat is called Tom.",
    "It sleeps.",
    "The licensor grants you a license. " * 60,
    "And then?",
]


def _content(memory: ModelMemory) -> tuple[dict[str, str], dict[str, bytes]]:  # type: ignore[type-arg]
    """What its file holds, whatever the order."""
    with TemporaryDirectory() as folder:
        memory.save(Path(folder, "state"))
        with safe_open(Path(folder, "state"), framework="np") as file:
            held = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
            return file.metadata(), held


def _talk(memory: ModelMemory) -> list[str]:  # type: ignore[type-arg]
    """A short conversation, with a long turn; gives the answers."""
    said = []
    for turn in _TURNS:
        memory.observe(turn)
        said.append(memory.generate("What was it?", max_new_tokens=8))
    return said


class ModelMemoryConformance:
    """Inherit from it in a class whose name begins with ``Test``."""

    @pytest.fixture
    def make(self) -> Make:
        """Makes an empty memory; all that it makes are of one model."""
        raise NotImplementedError("override the fixture `make`")

    def test_the_budget_holds_after_every_turn(self, make: Make) -> None:
        """Entries and bytes, however much is read."""
        memory = make()
        assert (memory.n_tokens, memory.nbytes, memory.seen) == (0, 0, 0)
        seen, per_entry = 0, 0.0
        for repeated in range(5):
            for turn in _TURNS:
                memory.observe(turn)
                assert 0 < memory.n_tokens <= memory.budget
                assert memory.seen > seen
                seen = memory.seen
                if not repeated:
                    per_entry = max(per_entry, memory.nbytes / memory.n_tokens)
                assert memory.nbytes <= per_entry * memory.budget

    def test_the_same_is_said_again(self, make: Make) -> None:
        """The same turns give the same answers."""
        assert _talk(make()) == _talk(make())

    def test_without_commit_nothing_is_left(self, make: Make) -> None:
        """An answer that is not committed can be given again."""
        memory = make()
        memory.observe(_TURNS[0])
        before = _content(memory)
        answers = [memory.generate("What?", max_new_tokens=9, commit=False) for _ in range(2)]
        assert answers[0] == answers[1]
        assert _content(memory) == before

    def test_a_failed_call_leaves_no_trace(self, make: Make) -> None:
        """Whatever fails, and wherever."""
        memory = make()
        memory.observe(_TURNS[0])
        before = _content(memory)

        def fail(_: str) -> None:
            raise RuntimeError("nobody listens")

        with pytest.raises(RuntimeError, match="nobody listens"):
            memory.generate("What?", stream=fail)
        for nothing in (None, 3, [[1], [2]], [-1], [10**9]):
            with pytest.raises(InputError):
                memory.observe(nothing)  # type: ignore[arg-type]
        with pytest.raises(InputError):
            memory.generate("What?", temperature=-1.0)
        assert _content(memory) == before

    def test_forks_go_their_own_way(self, make: Make) -> None:
        """What happens to one memory does not happen to another."""
        memory = make()
        memory.observe(_TURNS[0])
        fork = memory.fork()
        expected = memory.fork().generate("What?", max_new_tokens=8)
        fork.observe(_TURNS[2])
        assert memory.generate("What?", max_new_tokens=8) == expected
        memory.clear()
        assert (memory.n_tokens, memory.nbytes, memory.seen) == (0, 0, 0)
        assert fork.n_tokens > 0

    def test_what_is_loaded_goes_on(self, make: Make, tmp_path: Path) -> None:
        """A loaded memory answers as the saved one would have."""
        memory, other = make(), make()
        memory.observe(_TURNS[2])
        memory.generate("What?", max_new_tokens=3)
        memory.save(tmp_path / "state")
        other.load(tmp_path / "state")
        assert (other.n_tokens, other.nbytes, other.seen) == (
            memory.n_tokens,
            memory.nbytes,
            memory.seen,
        )
        assert _talk(other) == _talk(memory)

    def test_damaged_files_are_refused(self, make: Make, tmp_path: Path) -> None:
        """One bit is enough; the memory stays as it was."""
        memory = make()
        memory.observe(_TURNS[0])
        file = tmp_path / "state"
        memory.save(file)
        content = file.read_bytes()
        held = memory.n_tokens, memory.seen
        for place in range(0, len(content), len(content) // 40):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(StateError):
                memory.load(file)
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(StateError):
            memory.load(file)
        with pytest.raises(FileNotFoundError):
            memory.load(tmp_path / "nothing")
        assert (memory.n_tokens, memory.seen) == held

    def test_pieces_of_a_stream_join_to_the_answer(self, make: Make) -> None:
        """Nothing is lost or said twice."""
        memory, pieces = make(), list[str]()
        memory.observe(_TURNS[0])
        assert memory.generate("What?", max_new_tokens=12, stream=pieces.append) == "".join(pieces)

    def test_threads_say_what_they_say_in_turn(self, make: Make) -> None:
        """Memories of one model work side by side."""
        expected = _talk(make())
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: _talk(make()), range(4))) == [expected] * 4
