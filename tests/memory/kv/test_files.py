"""Files of a memory: they go on where it stood, survive a crash, and nothing else is believed."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from laconic.core.evaluation.random_models import build_model
from laconic.errors import InputError, StateError
from laconic.memory.kv import POLICIES, KVMemory
from laconic.memory.kv.policies.infinipot import InfiniPot

from .conftest import Family

Llama = tuple[Any, Any]

TEXT = Path(__file__).parents[3].joinpath("LICENSE").read_text(encoding="utf-8")
QUESTION = " What does each Contributor grant?"


def make_memory(
    llama: Llama, policy: Any = "infinipot", budget: Any = 128, **options: Any
) -> KVMemory:
    return KVMemory(*llama, policy, budget, **{"keep": 32, **options})


def ids_of(llama: Llama, count: int, start: int = 0) -> list[int]:
    """Tokens of a text; with `start`, of what stands elsewhere in it."""
    ids: list[int] = llama[1].encode(TEXT[3 * start : 3 * start + 9 * count + 40])
    return ids[:count]


def written(file: Path) -> tuple[Any, dict[str, Any]]:
    """What stands in a file of a memory, in a form that tells any two bits apart."""
    with safe_open(file, framework="pt") as opened:
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = opened.metadata()
    return about, {
        name: (t.dtype, tuple(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in held.items()
    }


def snapshot(memory: KVMemory) -> Any:
    with TemporaryDirectory() as folder:
        memory.save(Path(folder, "state"))
        return written(Path(folder, "state")), memory.n_tokens, memory.nbytes, memory.seen


@pytest.fixture
def memory(llama: Llama) -> KVMemory:
    """A memory that has read more than it holds."""
    made = make_memory(llama)
    made.observe(ids_of(llama, 200))
    return made


@pytest.fixture
def file(memory: KVMemory, tmp_path: Path) -> Path:
    """The file of that memory."""
    memory.save(tmp_path / "memory")
    return tmp_path / "memory"


@pytest.fixture
def running(llama: Llama) -> KVMemory:
    """Another memory of the same kind, which has read something else."""
    made = make_memory(llama)
    made.observe(ids_of(llama, 90, start=700))
    return made


class TestGoingOn:
    @pytest.mark.parametrize(
        ("name", "policy"),
        [("llama", policy) for policy in POLICIES]
        + [(name, "snapkv") for name in ("gemma3", "mistral", "qwen3", "gpt_neox")],
    )
    def test_a_loaded_memory_is_the_saved_one(
        self, family: Family, llama: Llama, tmp_path: Path, name: str, policy: str
    ) -> None:
        pair = llama if name == "llama" else (family(name), llama[1])
        memory, other = make_memory(pair, policy), make_memory(pair, policy)
        memory.observe([*range(9, 109)] * 2)
        other.observe(range(50, 100))
        memory.save(tmp_path / "memory")
        other.load(str(tmp_path / "memory"))
        for _ in range(2):
            assert snapshot(other) == snapshot(memory)
            layer = 5 if name == "gemma3" else 1
            assert name == "mistral" or torch.equal(other.places(layer), memory.places(layer))
            answers = []
            for each in (memory, other):
                each.observe(range(30, 90))
                answers.append(each.generate([60, 50, 40], max_new_tokens=8))
            assert answers[0] == answers[1]

    def test_an_empty_memory_is_one_too(
        self, llama: Llama, running: KVMemory, tmp_path: Path
    ) -> None:
        new = make_memory(llama)
        new.save(tmp_path / "memory")
        running.load(tmp_path / "memory")
        assert snapshot(running) == snapshot(new)
        assert (running.n_tokens, running.nbytes, running.seen) == (0, 0, 0)
        with pytest.raises(InputError, match="prompt is empty"):
            running.generate([])
        running.observe(ids_of(llama, 90))
        assert running.generate([], max_new_tokens=2)

    def test_what_is_loaded_is_no_longer_bound_to_the_file(
        self, memory: KVMemory, running: KVMemory, file: Path
    ) -> None:
        running.load(file)
        with file.open("r+b") as stream:
            stream.write(bytes(file.stat().st_size))
        assert snapshot(running) == snapshot(memory)


_ELSEWHERE = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch, transformers as hf
from laconic.memory.kv import KVMemory

torch.set_num_threads(1)
folder, model = Path(sys.argv[1]), sys.argv[2]
llama = hf.AutoModelForCausalLM.from_pretrained(model).eval()
tokenizer = hf.AutoTokenizer.from_pretrained(model)
memory = KVMemory(llama, tokenizer, "infinipot", 128, keep=32)
memory.load(folder / "start")
ids, question = json.loads((folder / "turns").read_text())
memory.observe(ids)
(folder / "answer").write_text(memory.generate(question, max_new_tokens=16), encoding="utf-8")
memory.save(folder / "end")

saved = []
for i in range(2):
    memory = KVMemory(llama, tokenizer, "truncation", 1000)
    memory.observe(list(range(9, 509 + i)) * 2)
    memory.save(folder / f"state{i}")
    saved.append(memory)
dice = random.Random(0)
for i in range(30):
    path = folder / f"killed{i}" / "memory"
    path.parent.mkdir()
    saved[0].save(path)
    child = os.fork()
    while child == 0:
        saved[1].save(path)
        saved[0].save(path)
    time.sleep(dice.uniform(0.001, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


class TestOtherProcesses:
    @pytest.fixture(scope="class")
    def elsewhere(
        self, llama: Llama, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Path:
        """What another process has made of the file `start`, and where others were killed."""
        made = tmp_path_factory.mktemp("elsewhere")
        memory = make_memory(llama)
        memory.observe(ids_of(llama, 200))
        memory.save(made / "start")
        made.joinpath("turns").write_text(json.dumps([ids_of(llama, 60, 500), QUESTION]))
        command = [sys.executable, "-W", "ignore", "-c", _ELSEWHERE, str(made), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return made

    def test_another_process_goes_on_bit_for_bit(
        self, llama: Llama, memory: KVMemory, elsewhere: Path
    ) -> None:
        memory.observe(ids_of(llama, 60, 500))
        answer = memory.generate(QUESTION, max_new_tokens=16)
        assert elsewhere.joinpath("answer").read_text(encoding="utf-8") == answer
        memory.save(elsewhere / "here")
        assert written(elsewhere / "here") == written(elsewhere / "end")

    def test_one_that_is_killed_while_it_saves_leaves_a_whole_file(
        self, llama: Llama, elsewhere: Path
    ) -> None:
        memory = make_memory(llama, "truncation", 1000, keep=0.5)
        states = [written(elsewhere / "state0"), written(elsewhere / "state1")]
        assert states[0] != states[1]
        for i in range(30):
            path = elsewhere / f"killed{i}" / "memory"
            memory.load(path)
            assert snapshot(memory)[0] in states
            # What was left half written is taken for no memory, and is in nobody's way.
            assert all(p.name.startswith(".") for p in path.parent.iterdir() if p != path)
            memory.save(path)
            assert written(path) == snapshot(memory)[0]


class TestSaving:
    @pytest.mark.parametrize("place", ["missing/memory", "file/memory", "folder", "locked/memory"])
    def test_where_nothing_can_be_written_it_says_so(
        self, memory: KVMemory, tmp_path: Path, place: str
    ) -> None:
        if place.startswith("locked") and os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        tmp_path.joinpath("file").write_text("text")
        tmp_path.joinpath("folder").mkdir()
        tmp_path.joinpath("locked").mkdir(mode=0o500)
        before, files = snapshot(memory), sorted(tmp_path.rglob("*"))
        with pytest.raises(OSError, match="Errno"):
            memory.save(tmp_path / place)
        assert sorted(tmp_path.rglob("*")) == files
        assert tmp_path.joinpath("file").read_text() == "text"
        assert snapshot(memory) == before

    def test_a_full_disk_leaves_the_old_file(self, memory: KVMemory, file: Path) -> None:
        resource = pytest.importorskip("resource")
        old = file.read_bytes()
        memory.generate(QUESTION, max_new_tokens=4)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                memory.save(file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert file.read_bytes() == old
        assert list(file.parent.iterdir()) == [file]
        memory.save(str(file))
        assert written(file) == snapshot(memory)[0]
        assert list(file.parent.iterdir()) == [file]


class TestDamage:
    """Each is told, and what runs stays as it was."""

    def refused(self, running: KVMemory, file: Path, damaged: list[bytes]) -> None:
        before = snapshot(running)
        for content in damaged:
            file.write_bytes(content)
            with pytest.raises(StateError, match=file.name):
                running.load(file)
        assert snapshot(running) == before

    def test_a_file_cut_off_or_grown(self, running: KVMemory, file: Path) -> None:
        whole = file.read_bytes()
        lengths = {*range(0, len(whole), 97), *range(12), len(whole) - 1}
        self.refused(running, file, [*(whole[:n] for n in lengths), whole + b"\0", whole * 2])

    def test_any_byte_of_the_header(self, running: KVMemory, file: Path) -> None:
        whole = file.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        self.refused(running, file, [_flipped(whole, i, 1) for i in range(end)])

    def test_bytes_of_the_body(self, running: KVMemory, file: Path) -> None:
        whole, dice = file.read_bytes(), random.Random(0)
        start = 8 + int.from_bytes(whole[:8], "little")
        places = [start, len(whole) - 1, *(dice.randrange(start, len(whole)) for _ in range(200))]
        self.refused(running, file, [_flipped(whole, i, dice.randrange(1, 256)) for i in places])

    def test_other_files(self, running: KVMemory, file: Path) -> None:
        save_file({"keys": torch.zeros(3)}, file)
        foreign = [file.read_bytes()]
        save_file({"keys": torch.zeros(3)}, file, {"format": "pt", "header": "{}"})
        foreign += [file.read_bytes(), b"", b"{}", b"A text.\n" * 900, bytes(5000), b"\xff" * 5000]
        self.refused(running, file, foreign)

    def test_no_file_at_all(self, running: KVMemory, tmp_path: Path) -> None:
        before = snapshot(running)
        tmp_path.joinpath("link").symlink_to(tmp_path / "nothing")
        for name in ("missing", "missing/memory", ".", "link"):
            with pytest.raises((OSError, StateError)):
                running.load(tmp_path / name)
        assert snapshot(running) == before

    def test_another_version_or_anything_else_in_the_description(
        self, running: KVMemory, file: Path
    ) -> None:
        with safe_open(file, framework="pt") as opened:
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            about = opened.metadata()
        assert {"format", "version"} <= set(about)
        changed: list[dict[str, str]] = []
        for name, value in about.items():
            rest = {key: other for key, other in about.items() if key != name}
            changed += [rest, *({**rest, name: v} for v in ("", "{}", "null", value + "1", "9"))]
        contents = []
        for other in changed:
            save_file(held, file, other)
            contents.append(file.read_bytes())
        self.refused(running, file, contents)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_no_number(
        self, llama: Llama, running: KVMemory, tmp_path: Path, value: float
    ) -> None:
        """The model itself went wrong, and the file is what the memory held."""
        memory, model = make_memory(llama), llama[0]
        spoil = model.model.layers[1].self_attn.v_proj.register_forward_hook(
            lambda _, __, output: torch.cat([output[..., 1:], output[..., :1] * 0 + value], -1)
        )
        mend = model.lm_head.register_forward_hook(
            lambda _, __, output: torch.zeros_like(output) if value == value else None
        )
        memory.observe(ids_of(llama, 60))
        spoil.remove()
        mend.remove()
        memory.save(tmp_path / "memory")
        before = snapshot(running)
        with pytest.raises(StateError):
            running.load(tmp_path / "memory")
        assert snapshot(running) == before

    def test_nothing_is_ever_unpickled(
        self, running: KVMemory, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved, trap = file.read_bytes(), file.with_name("sprung")
        torch.save({"keys": torch.zeros(3)}, file)
        self.refused(running, file, [file.read_bytes(), f"cos\nmkdir\n(V{trap}\ntR.".encode()])
        assert not trap.exists()
        file.write_bytes(saved)
        for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("unpickled"))
        monkeypatch.setattr(pickle, "Unpickler", lambda *_, **__: pytest.fail("unpickled"))
        running.load(file)


def _flipped(content: bytes, place: int, bits: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


def _shifted(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.data += 0.01
    return model


def _other_rope(model: Any) -> Any:
    """The same weights with another base of the rotary embedding."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def _other_tokenizer(tokenizer: Any) -> Any:
    with TemporaryDirectory() as folder:
        build_model("llama", folder, ["Another text altogether. " * 9], vocabulary=len(tokenizer))
        return type(tokenizer).from_pretrained(folder)


_OTHERS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "weights": ("model", lambda m, t: make_memory((_shifted(m), t))),
    "type": ("model", lambda m, t: make_memory((m.to(torch.bfloat16), t))),
    "positions": ("model", lambda m, t: make_memory((_other_rope(m), t))),
    "vocabulary": ("tokenizer", lambda m, t: make_memory((m, _other_tokenizer(t)))),
    "policy": ("policy", lambda *pair: make_memory(pair, "snapkv")),
    "share of novelty": ("policy", lambda *pair: make_memory(pair, InfiniPot(alpha=0.4))),
    "catalyst": ("policy", lambda *pair: make_memory(pair, InfiniPot(catalyst="Sum up."))),
    "budget": ("budget", lambda *pair: make_memory(pair, budget=129)),
    "keep": ("budget", lambda *pair: make_memory(pair, keep=33)),
    "rerotate": ("budget", lambda *pair: make_memory(pair, rerotate=False)),
}


class TestOthers:
    @pytest.mark.parametrize("what", _OTHERS)
    def test_a_memory_of_another_kind_refuses_the_file(
        self, llama: Llama, file: Path, what: str
    ) -> None:
        part, make_other = _OTHERS[what]
        other = make_other(*copy.deepcopy(llama))
        other.observe(ids_of(llama, 90))
        before = snapshot(other)
        with pytest.raises(StateError, match=f"another {part}"):
            other.load(file)
        assert snapshot(other) == before

    def test_one_of_the_same_kind_takes_it(self, llama: Llama, file: Path) -> None:
        other = make_memory(copy.deepcopy(llama), InfiniPot(), keep=0.25, chunk=17)
        other.load(file)
        assert written(file) == snapshot(other)[0]
