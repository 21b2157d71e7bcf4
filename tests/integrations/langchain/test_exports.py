from __future__ import annotations

import subprocess
import sys

import pytest

import laconic.integrations.langchain as face


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", face.__all__)
def test_every_name_is_there(name) -> None:
    assert getattr(face, name).__name__ == name
    assert name in dir(face)


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = face.Nothing


def test_importing_it_imports_no_langchain() -> None:
    loaded = run(
        "import sys, laconic.integrations.langchain\n"
        "print(sorted(m for m in sys.modules if m.partition('.')[0].startswith('langchain')))"
    )
    assert loaded == "[]"


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("langchain_core", "LaconicDocumentCompressor"),
        ("langchain_core", "LaconicDocumentTransformer"),
        ("langchain_core", "LaconicEmbeddings"),
        ("langchain_classic", "EmbeddingsFilterBaseline"),
    ],
)
def test_without_langchain_it_says_at_use_what_to_install(missing, name) -> None:
    told = run(
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "import laconic.integrations.langchain\n"
        "from laconic.errors import MissingExtraError\n"
        "try:\n"
        f"    from laconic.integrations.langchain import {name}\n"
        "except MissingExtraError as error:\n"
        "    print(error)"
    )
    assert told == f'{name} needs an extra package: pip install "laconic[langchain]"'


def test_a_fault_of_another_module_is_not_blamed_on_langchain() -> None:
    told = run(
        "import sys\n"
        "sys.modules['laconic.integrations._settings'] = None\n"
        "import laconic.integrations.langchain as face\n"
        "try:\n"
        "    face.LaconicDocumentCompressor\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error.name)"
    )
    assert told == "ModuleNotFoundError laconic.integrations._settings"
