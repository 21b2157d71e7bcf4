from __future__ import annotations

import subprocess
import sys

import pytest

from laconic.memory import latent, training


@pytest.mark.parametrize("package", [latent, training])
def test_all_names_are_there_and_load_nothing_before_they_are_used(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018
    code = f"import sys, {package.__name__}; sys.exit('torch' in sys.modules)"  # type: ignore[attr-defined]
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", [latent, training])
def test_without_torch_the_extra_is_named(package: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.errors import MissingExtraError

    def missing(*_: object) -> object:
        raise ImportError("torch")

    monkeypatch.setattr(package, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"laconic\[memory\]"):
        getattr(package, package.__all__[0])  # type: ignore[attr-defined]
