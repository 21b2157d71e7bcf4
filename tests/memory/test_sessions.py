from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from laconic.core import TokenCounter
from laconic.core.errors import InputError, StateError
from laconic.memory.sessions import Sessions
from laconic.memory.text import TextMemory

COUNTER = TokenCounter("words", lambda text: len(text.split()))


def make() -> TextMemory:
    return TextMemory(100, counter=COUNTER)


def said(memory: TextMemory, query: str | None = None) -> str:
    return " ".join(message["content"] for message in memory.read(query))


IDS = [
    "ann",
    "Ann",
    "ANN",
    "../ann",
    "a/b",
    "..",
    ".",
    " ",
    "漢字",
    "é",
    "e\u0301",
    "x" * 128,
    "\0",
]


def test_any_text_is_an_id_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "sessions"
    for limit in (0, 2**30):
        sessions = Sessions(make, folder, max_bytes=limit)
        for place, session_id in enumerate(IDS):
            with sessions.use(session_id) as memory:
                memory.observe(f"Canary{place} sings.")
        for place, session_id in enumerate(IDS):
            with sessions.use(session_id) as memory:
                assert set(said(memory).split()) == {f"Canary{place}", "sings."}
        sessions.close()
    assert sessions.ids() == sorted(IDS)
    files = list(tmp_path.rglob("*.*"))
    assert len(files) == len(IDS) == len({file.name.lower() for file in files})
    assert all(file.parent == folder for file in files)


@pytest.mark.parametrize("session_id", ["", None, 3, b"ann", "x" * 129, "漢" * 43, "\ud800"])
def test_other_ids_are_refused(tmp_path: Path, session_id: Any) -> None:
    sessions = Sessions(make, tmp_path)
    with pytest.raises(InputError, match="session id"), sessions.use(session_id):
        pass
    with pytest.raises(InputError, match="session id"):
        sessions.delete(session_id)
    assert list(tmp_path.iterdir()) == []


def test_parameters_are_checked(tmp_path: Path) -> None:
    for options in (
        {"max_bytes": -1},
        {"max_bytes": 0.5},
        {"ttl": 0},
        {"ttl": float("nan")},
        {"max_loaded": -1},
    ):
        with pytest.raises(InputError):
            Sessions(make, tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_loaded"):
        Sessions(make, tmp_path, max_loaded=-1)


def test_the_limit_holds_after_every_use(tmp_path: Path) -> None:
    made: list[TextMemory] = []

    def counted() -> TextMemory:
        made.append(make())
        return made[-1]

    one = make()
    one.open(tmp_path / "one")
    one.observe("Number 0 is here.")
    limit = 3 * one.nbytes + one.nbytes // 2
    sessions = Sessions(counted, tmp_path, max_bytes=limit)
    for i in range(10):
        with sessions.use(f"s{i}") as memory:
            memory.observe(f"Number {i} is here.")
        assert 0 < sessions.nbytes <= limit
    for i, is_in_ram in ((9, True), (8, True), (7, True), (0, False), (8, True), (7, False)):
        before = len(made)
        with sessions.use(f"s{i}") as memory:
            assert said(memory) == f"Number {i} is here."
        assert (len(made) == before) is is_in_ram
        if i == 0:  # 9 was not used for longest; 7 makes room for the next
            with sessions.use("s9"):
                pass
            with sessions.use("s8"):
                pass
            with sessions.use("s1"):
                pass


def test_no_more_memories_are_loaded_than_said(tmp_path: Path) -> None:
    made: list[TextMemory] = []

    def counted() -> TextMemory:
        made.append(make())
        return made[-1]

    sessions = Sessions(counted, tmp_path, max_loaded=2)
    for name, loads in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        with sessions.use(name) as memory:
            memory.observe(f"{name} was here.")
        assert len(made) == loads
    sessions.close()
    assert sessions.nbytes == 0
    with sessions.use("a") as memory:
        assert memory.turns == 3


def test_another_process_finds_a_text_memory_locked(tmp_path: Path) -> None:
    sessions = Sessions(make, tmp_path)
    with sessions.use("a") as memory:
        memory.observe("Hello.")
    with pytest.raises(StateError, match="in use"), Sessions(make, tmp_path).use("a"):
        pass
    sessions.close()
    with Sessions(make, tmp_path).use("a") as memory:
        assert said(memory) == "Hello."


def test_what_an_error_interrupts_keeps_what_was_observed(tmp_path: Path) -> None:
    sessions = Sessions(make, tmp_path)
    with pytest.raises(RuntimeError), sessions.use("ann") as memory:
        memory.observe("Before.")
        raise RuntimeError
    sessions.close()
    with Sessions(make, tmp_path).use("ann") as memory:
        assert said(memory) == "Before."


def test_delete_touches_one_session(tmp_path: Path) -> None:
    for limit in (0, 2**30):
        sessions = Sessions(make, tmp_path, max_bytes=limit)
        for session_id in ("a", "aa", "aaa"):
            with sessions.use(session_id) as memory:
                memory.observe(f"I am {session_id}.")
        (tmp_path / "mfqq.memory-journal").touch()
        assert sessions.delete("aa")
        assert not sessions.delete("aa")
        assert "aa" not in sessions
        assert sessions.ids() == ["a", "aaa"]
        assert not list(tmp_path.glob("mfqq.*"))
        with sessions.use("aa") as memory:
            assert said(memory) == ""
        with sessions.use("aaa") as memory:
            assert "I am aaa." in said(memory)


def test_time_takes_one_session(tmp_path: Path) -> None:
    now = [1e9]
    sessions = Sessions(make, tmp_path, ttl=60, clock=lambda: now[0])
    for session_id in ("old", "new"):
        with sessions.use(session_id) as memory:
            memory.observe(f"I am {session_id}.")
    now[0] += 50
    with sessions.use("new"):
        pass
    now[0] += 20
    assert "old" not in sessions
    assert "new" in sessions
    assert sessions.expire() == ["old"]
    assert sessions.ids() == ["new"]
    now[0] += 100
    with sessions.use("new") as memory:
        assert said(memory) == ""
    with sessions.use("new") as memory:
        memory.observe("Again.")
    assert sessions.expire() == []


def test_files_of_others_are_no_sessions(tmp_path: Path) -> None:
    for name in ("0189.memory", "7777.memory", "notes.txt", ".me.memory"):
        (tmp_path / name).touch()
    assert Sessions(make, tmp_path).ids() == []


def test_damaged_files_are_reported_and_others_work(tmp_path: Path) -> None:
    sessions = Sessions(make, tmp_path, max_bytes=0)
    for session_id in ("a", "b"):
        with sessions.use(session_id) as memory:
            memory.observe(f"I am {session_id}.")
    file = next(tmp_path.glob("me.*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StateError), sessions.use("a"):
        pass
    with sessions.use("b") as memory:
        assert said(memory) == "I am b."
    assert sessions.delete("a")
    with sessions.use("a") as memory:
        assert said(memory) == ""


@pytest.mark.parametrize("limit", [0, 300_000])
def test_threads_see_their_own_sessions(tmp_path: Path, limit: int) -> None:
    sessions = Sessions(make, tmp_path, max_bytes=limit)
    names = [f"session{i}" for i in range(6)]

    def talk(seed: int) -> None:
        drawn = random.Random(seed)
        for turn in range(25):
            name = drawn.choice(names)
            with sessions.use(name) as memory:
                memory.observe(f"canary-{name} by {seed} at {turn}.")
                for text in (said(memory), said(memory, f"canary-{drawn.choice(names)}")):
                    assert all(f"canary-{other}" not in text for other in names if other != name)
                assert memory.n_tokens <= 100

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(talk, range(4)))
    total = 0
    for name in names:
        with sessions.use(name) as memory:
            total += memory.turns
    assert total == 100
    assert sessions.nbytes <= limit


def test_uses_of_one_session_wait_and_of_others_do_not(tmp_path: Path) -> None:
    sessions, events = Sessions(make, tmp_path), list[str]()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with sessions.use("a"):
            inside.set()
            leave.wait(10)
            events.append("left")

    def follow() -> None:
        with sessions.use("a"):
            events.append("entered")

    first, second = threading.Thread(target=hold), threading.Thread(target=follow)
    first.start()
    assert inside.wait(10)
    second.start()
    with sessions.use("b"):
        events.append("b")
    leave.set()
    first.join()
    second.join()
    assert events == ["b", "left", "entered"]


def test_a_thread_that_would_wait_for_itself_is_told(tmp_path: Path) -> None:
    sessions = Sessions(make, tmp_path)
    with sessions.use("a") as memory:
        memory.observe("Hello.")
        with pytest.raises(InputError, match="uses the session 'a' already"), sessions.use("a"):
            pass
        with pytest.raises(InputError, match="already"):
            sessions.delete("a")
        with pytest.raises(InputError, match="already"):
            sessions.close()
        with sessions.use("b"):
            pass
    with sessions.use("a") as memory:
        assert said(memory) == "Hello."


_KILLED = """
import sys
from laconic.core import TokenCounter
from laconic.memory.sessions import Sessions
from laconic.memory.text import TextMemory
counter = TokenCounter("words", lambda text: len(text.split()))
sessions = Sessions(lambda: TextMemory(100, counter=counter), sys.argv[1], max_bytes=100_000)
for turn in range(100_000):
    for name in ("a", "b", "c"):
        with sessions.use(name) as memory:
            memory.observe(f"{name} says {memory.turns} here.")
        print(name, flush=True)
"""


def test_kill_loses_at_most_the_turn_in_flight(tmp_path: Path) -> None:
    held = dict.fromkeys("abc", 0)
    for wait in (0.0, 0.013, 0.029):
        arguments = [sys.executable, "-c", _KILLED, str(tmp_path)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(5)]
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        sessions = Sessions(make, tmp_path)
        for name in held:
            held[name] += lines.count(f"{name}\n")
            with sessions.use(name) as memory:
                assert held[name] <= memory.turns <= held[name] + 1
                held[name] = memory.turns
                assert f"{name} says {memory.turns - 1} here." in said(memory)


def test_memories_of_local_models_are_sessions_too(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from laconic.core.evaluation.random_models import build_model
    from laconic.memory.kv import KVMemory
    from laconic.memory.latent.ccm import CCM
    from laconic.memory.latent.conditional_lora import ConditionalLora
    from laconic.memory.latent.memory import CCMMemory
    from laconic.memory.latent.plan import Spec

    folder = tmp_path / "llama"
    text = "The cat sat on the mat and looked at the rain. " * 20
    build_model("llama", folder, [text], layers=1, width=32, heads=2, vocabulary=300)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def kv() -> KVMemory:
        return KVMemory(model, tokenizer, budget=128, keep=16)

    assert_sessions(Sessions(kv, tmp_path / "kv", max_bytes=0), kv())
    with torch.no_grad():
        ccm = CCM(model, Spec("merge", 2), ConditionalLora(model, 2))

    def latent() -> CCMMemory:
        return CCMMemory(ccm, tokenizer, chunk=32)

    assert_sessions(Sessions(latent, tmp_path / "ccm", max_bytes=0), latent())


def assert_sessions(sessions: Sessions[Any], alone: Any) -> None:
    """Two sessions that take turns say what each would alone."""
    for text in ("The cat sat.", "It rained on the mat. " * 9, "And then?"):
        with sessions.use("a") as memory:
            memory.observe(text)
        with sessions.use("b") as memory:
            memory.observe("The mat looked at the rain.")
        alone.observe(text)
        assert sessions.nbytes == 0
    with sessions.use("a") as memory:
        assert memory.seen == alone.seen
        expected = alone.generate("The cat", max_new_tokens=8)
        assert memory.generate("The cat", max_new_tokens=8) == expected
