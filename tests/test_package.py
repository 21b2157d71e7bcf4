"""The package as it installs: what it imports, what it holds, how its rooms depend."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import laconic
import laconic.errors

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "memory", "integrations")
HEAVY = ("torch", "transformers", "sentence_transformers", "langchain_core", "llama_index")


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "laconic",
        "laconic.core",
        "laconic.memory",
        "laconic.integrations.langchain",
        "laconic.integrations.llama_index",
        "laconic.integrations.cli",
        "laconic.core.methods.extractive",
    ],
)
def test_importing_brings_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_importing_the_front_door_does_not_even_bring_numpy() -> None:
    assert run_python("import sys, laconic; print('numpy' in sys.modules)") == "False"


def test_every_public_name_is_there() -> None:
    for name in laconic.__all__:
        assert getattr(laconic, name) is not None
    assert set(dir(laconic)) == set(laconic.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        laconic.no_such_name  # noqa: B018


def test_errors_share_a_base_and_a_builtin() -> None:
    for name in laconic.errors.__all__:
        error = getattr(laconic.errors, name)
        assert issubclass(error, laconic.errors.LaconicError)
    assert issubclass(laconic.errors.BudgetError, ValueError)
    assert issubclass(laconic.errors.MissingExtraError, ImportError)


def test_a_missing_extra_names_the_command() -> None:
    code = (
        "import sys; sys.modules['sentence_transformers'] = None\n"
        "import laconic\n"
        "try: laconic.compress('Aa. Bb.', query='a', budget=1, method='extractive')\n"
        "except laconic.core.errors.MissingExtraError as e: print(e)\n"
    )
    assert 'pip install "laconic[embedded]"' in run_python(code)


def test_auto_falls_back_to_what_can_run() -> None:
    code = (
        "import sys, importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name.startswith(('sentence_', 'gt_')) else "
        "real(name, *a)\n"
        "import laconic\n"
        "print(laconic.compress('Aa aa. Bb bb.', query='bb', budget=4).method)\n"
    )
    assert run_python(code) == "lexical"


def _imports(file: Path) -> set[str]:
    """The rooms, and the outside packages, that a file imports anywhere in it."""
    found = set()
    depth = len(file.relative_to(ROOT).parts) - 1
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level == 0 or node.level == depth + 1:
                found.add(parts[0])
    return found


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("core", {"memory", "integrations", "langchain_core", "llama_index", "laconic"}),
        ("memory", {"integrations", "langchain_core", "llama_index", "laconic"}),
        ("integrations", {"laconic"}),
    ],
)
def test_rooms_depend_in_one_direction(room: str, forbidden: set[str]) -> None:
    files = [f for f in (ROOT / room).rglob("*.py") if "_root" not in f.parts]
    assert files
    for file in files:
        assert not _imports(file) & forbidden, file


def test_files_are_short() -> None:
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file
