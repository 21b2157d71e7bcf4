"""`laconic chat` as a user types to it, with a small model."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from laconic.core.evaluation.random_models import build_model
from laconic.integrations.cli import main
from laconic.integrations.cli.chat import _bytes_of_full_cache, _readable
from laconic.memory.kv import POLICIES, KVMemory
from laconic.memory.kv.engine import Engine

LICENSE = Path(__file__).parents[3] / "LICENSE"
BUDGET = 128
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

Talk = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "llama"
    text = LICENSE.read_text(encoding="utf-8")
    size = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 600, "positions": 8192}
    return build_model("llama", made, [text], **size)


@pytest.fixture(scope="module")
def chat_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(folder, made)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def talk(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Types lines into a chat; gives its exit code, its output, and its messages."""

    def run(lines: list[str], *options: str, model: Path = folder) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        size = ["--budget", str(BUDGET), "--max-new-tokens", "12", "--device", "cpu"]
        code = main(["chat", "--model", str(model), *size, *options])
        out, err = capsys.readouterr()
        # Without the progress bars of transformers.
        return code, out, [line for line in err.splitlines() if line and "it/s]" not in line]

    return run


def statuses(messages: list[str]) -> list[tuple[int, int]]:
    """Tokens seen and entries held, of each status line."""
    found = re.findall(rf"([\d,]+) tokens seen, (\d+) of {BUDGET} entries", "\n".join(messages))
    return [(int(seen.replace(",", "")), int(held)) for seen, held in found]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_chat_stays_within_the_budget(talk: Talk, policy: str) -> None:
    turns = ["What does the licensor grant?", "", "And which warranties are there?"] * 10
    code, out, messages = talk(turns, "--memory", policy)
    assert code == 0
    assert ">" not in out.splitlines()[0]
    found = statuses(messages)
    assert len(found) == 20  # an empty line is no turn
    assert all(held <= BUDGET for _, held in found)
    seen = [tokens for tokens, _ in found]
    assert seen == sorted(seen)
    assert seen[-1] > 3 * BUDGET
    assert re.search(r"[\d.]+ KiB held; a full cache would take [\d.]+ KiB$", messages[-1])


def test_answers_are_those_of_the_memory_and_come_in_pieces(
    talk: Talk, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Terminal())
    talk(["What is granted?"])
    memory = KVMemory(
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
        budget=BUDGET,
    )
    answer = memory.generate("What is granted?\n", max_new_tokens=12)
    assert answer
    assert "".join(written) == f"{answer}\n"
    assert sum(bool(piece.strip()) for piece in written) > 1


def test_a_saved_chat_goes_on_in_a_new_one(talk: Talk, tmp_path: Path) -> None:
    file = str(tmp_path / "with space.state")
    first, question = "Read this: contributions are licensed.", "What are they?"
    _, out, messages = talk([first, f"/save {file}", question])
    assert f"saved in {file}" in messages
    rest = out.splitlines()[1:]
    code, again, loaded = talk([question], "--load", file)
    assert (code, again.splitlines()) == (0, rest)
    assert statuses(loaded)[-1] == statuses(messages)[-1]
    _, again, _ = talk(["Something else.", f"/load {file}", question])
    assert again.splitlines()[1:] == rest


def test_a_file_of_any_length_is_read(talk: Talk) -> None:
    code, out, messages = talk([f"/read {LICENSE}", "What is granted?"])
    assert code == 0
    assert len(out.splitlines()) == 1
    (seen, held), (more, still_held) = statuses(messages)
    assert seen > 20 * BUDGET
    assert more > seen
    assert max(held, still_held) <= BUDGET


def test_stats_and_clear(talk: Talk) -> None:
    code, out, messages = talk(["/stats", "Hello", "/stats", "/clear", "Hello"])
    assert code == 0
    nothing, turn, same, cleared, again = statuses(messages)
    assert nothing == cleared == (0, 0)
    assert turn == same == again
    one, other = out.splitlines()
    assert one == other
    assert "0 B held; a full cache would take 0 B" in messages[0]


def test_help_and_quit(talk: Talk) -> None:
    code, out, messages = talk(["/help", "/quit", "Hello"])
    assert (code, out) == (0, "")
    for name in ("/read FILE", "/save FILE", "/load FILE", "/stats", "/clear", "/help", "/quit"):
        assert sum(line.startswith(name) for line in messages) == 1


def test_mistakes_are_one_line_and_the_chat_goes_on(talk: Talk, tmp_path: Path) -> None:
    binary, latin = tmp_path / "binary", tmp_path / "latin"
    binary.write_bytes(b"a\0b")
    latin.write_bytes(b"caf\xe9")
    damaged = tmp_path / "damaged.state"
    damaged.write_bytes(b"nothing")
    lines = {
        "/nope": "no command '/nope'; /help",
        "/read": "/read needs a file",
        "/read /no/such.txt": "/no/such.txt",
        f"/read {tmp_path}": str(tmp_path),
        f"/read {binary}": "binary",
        f"/read {latin}": "not UTF-8",
        "/load /no/such.state": "/no/such.state",
        f"/load {damaged}": "damaged",
        "/save /no/such/folder/x.state": "/no/such/folder",
        "word " * 200: "/read FILE reads what is long",
    }
    code, out, messages = talk([*lines, "/stats", "Hello"])
    assert code == 0
    for line, (typed, expected) in zip(messages, lines.items(), strict=False):
        assert expected in line, typed
    assert len(messages) == len(lines) + 2
    assert statuses(messages)[0] == (0, 0)
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "nope"], "no policy 'nope'; there are infinipot"),
        (["--model", "no/such-model"], "cannot load 'no/such-model'"),
        (["--model", "/no/such/folder"], "cannot load '/no/such/folder'"),
        (["--budget", "8"], "raise the budget"),
        (["--keep", "2"], "keep less"),
        (["--dtype", "nope"], "nope"),
        (["--load", "/no/such.state"], "/no/such.state"),
    ],
)
def test_a_chat_that_cannot_begin_says_why(talk: Talk, options: list[str], message: str) -> None:
    code, out, messages = talk(["Hello"], *options)
    assert (code, out, len(messages)) == (1, "", 1)
    assert messages[0].startswith("laconic chat: ")
    assert message in messages[0]


def test_a_state_of_another_policy_is_refused(talk: Talk, tmp_path: Path) -> None:
    file = str(tmp_path / "a.state")
    talk(["Hello", f"/save {file}"])
    code, _, messages = talk(["Hello"], "--load", file, "--memory", "h2o")
    assert code == 1
    assert "another policy" in messages[-1]


def test_a_model_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["chat"])
    assert caught.value.code == 2
    assert "--model" in capsys.readouterr().err


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of everything that any memory reads."""
    found: list[list[int]] = []
    feed = Engine.feed

    def spy(self: Engine, state: Any, ids: torch.Tensor) -> None:
        found.append(ids.tolist())
        feed(self, state, ids)

    monkeypatch.setattr(Engine, "feed", spy)
    return found


def prompts(read: list[list[int]], folder: Path) -> list[str]:
    """What was read in more than one token, which answers are not."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.decode(ids) for ids in read if len(ids) > 1]


def test_with_a_chat_template_lines_are_messages(
    talk: Talk, chat_folder: Path, read: list[list[int]], tmp_path: Path
) -> None:
    file = tmp_path / "note.txt"
    file.write_text("A note.", encoding="utf-8")
    lines = ["Hello", f"/read {file}", "/clear", "Hello"]
    code, _, messages = talk(lines, "--system", "Be brief.", model=chat_folder)
    assert (code, len(statuses(messages))) == (0, 4)
    start = "<system>Be brief.</s>\n<user>Hello</s>\n<assistant>"
    # The answer was cut short, and is closed before the next message.
    assert prompts(read, chat_folder) == [start, "</s>\n<user>A note.</s>\n", start]


def test_without_a_chat_template_lines_are_text(
    talk: Talk, folder: Path, read: list[list[int]]
) -> None:
    talk(["Hello", "Bye"], "--system", "Be brief.")
    assert prompts(read, folder) == ["<s> Be brief.\nHello\n", "Bye\n"]


def test_sampling_differs_from_turn_to_turn_but_not_from_run_to_run(talk: Talk) -> None:
    _, out, _ = talk(["Hello", "Hello", "Hello"], "--temperature", "1")
    assert len(set(out.splitlines())) > 1
    assert talk(["Hello", "Hello", "Hello"], "--temperature", "1")[1] == out


@pytest.mark.parametrize("step", [0, 5])
def test_interrupting_an_answer_leaves_the_memory_as_it_was(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """While the line is read, or while the answer is written."""
    _, undisturbed, messages = talk(["Hello", "And then?"])
    feed, calls = Engine.feed, 0

    def interrupted(self: Engine, state: Any, ids: torch.Tensor) -> None:
        nonlocal calls
        feed(self, state, ids)
        calls += 1
        if calls == 1 + 12 + 1 + step:  # the first turn is a line and twelve tokens
            raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "feed", interrupted)
    code, out, disturbed = talk(["Hello", "Something else", "/stats", "And then?"])
    assert code == 0
    assert "stopped; the memory is as it was" in disturbed
    first, same, last = statuses(disturbed)
    assert first == same
    assert [first, last] == statuses(messages)
    one, *_, other = out.splitlines()
    assert [one, other] == undisturbed.splitlines()


class Typed(io.StringIO):
    """Standard input as a terminal; whoever sits there presses Ctrl-C at the end."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:
        line = super().readline(-1 if size is None else size)
        if not line:
            raise KeyboardInterrupt
        return line


def test_a_terminal_is_prompted_and_ctrl_c_at_the_prompt_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Typed("/stats\n"))
    assert main(["chat", "--model", str(folder), "--device", "cpu"]) == 130
    out, err = capsys.readouterr()
    assert out == "> > "
    assert "/help lists the commands" in err
    assert err.endswith("interrupted\n")


def test_a_stray_byte_does_not_end_the_chat(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nHello\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    options = ["--device", "cpu", "--max-new-tokens", "3"]
    assert main(["chat", "--model", str(folder), *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


_SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"num_hidden_layers": 3, "num_key_value_heads": 2}),
        ("qwen3", {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16}),
        ("gpt_neox", {"num_hidden_layers": 2}),
        ("mistral", {"num_hidden_layers": 2, "num_key_value_heads": 2, "sliding_window": 8}),
        (
            "gemma3_text",
            {
                "num_hidden_layers": 6,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "sliding_window": 8,
            },
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_cache_would_take_what_transformers_own_takes(
    kind: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    config = AutoConfig.for_model(kind, **_SIZE, **options)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    cache: Any = DynamicCache(config=config)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    ours = _bytes_of_full_cache(model, 20)
    windows = sum(hasattr(layer, "sliding_window") for layer in cache.layers)
    # Theirs holds one entry less than the window between two passes.
    assert ours - held == windows * cache.layers[0].keys[:, :, :1].nbytes * 2


def test_bytes_are_readable() -> None:
    sizes = [0, 1023, 1024, 1_500_000, 5 << 30, 3 << 40]
    expected = ["0 B", "1023 B", "1.0 KiB", "1.4 MiB", "5.0 GiB", "3,072.0 GiB"]
    assert list(map(_readable, sizes)) == expected
