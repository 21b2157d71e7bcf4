"""Without LlamaIndex the package imports, and says at use what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

import laconic.integrations.llama_index as face


@pytest.mark.parametrize("name", face.__all__)
def test_a_missing_llama_index_is_reported_at_use_with_the_pip_command(name: str) -> None:
    code = f"""
import sys
sys.modules["llama_index"] = None
import laconic.integrations.llama_index as face
from laconic.errors import MissingExtraError
try:
    face.{name}
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        f'{name} needs an extra package: pip install "laconic[llama-index]"'
    )


def test_importing_the_package_imports_no_llama_index() -> None:
    code = (
        "import sys, laconic.integrations.llama_index as face\n"
        "print(sorted(dir(face)) == sorted(face.__all__))\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'llama_index'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "[]"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = face.Nothing
