"""Every test runs offline: an attempt to open a network connection fails the test."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models are tiny: threads of two test workers would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import socket
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "laconic",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# pytest --hypothesis-profile=thorough
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("laconic"), derandomize=False, max_examples=1000
)
hypothesis.settings.load_profile("laconic")

_attempts: list[str] = []


def _refuse(what: str, target: object) -> None:
    _attempts.append(f"{what}({target!r})")
    # Not an Exception: code under test that survives a lost network must not survive this.
    pytest.fail(f"tests run offline, but something called {what}({target!r})", pytrace=True)


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Refuse connections and name look-ups for the whole session."""
    patch = pytest.MonkeyPatch()
    for method in ("connect", "connect_ex"):
        real = getattr(socket.socket, method)

        def guarded(self: socket.socket, address: Any, real: Any = real, name: str = method) -> Any:
            if self.family != getattr(socket, "AF_UNIX", None):
                _refuse(f"socket.{name}", address)
            return real(self, address)

        patch.setattr(socket.socket, method, guarded)

    def look_up(host: Any, *_: Any, **__: Any) -> Any:
        _refuse("socket.getaddrinfo", host)

    patch.setattr(socket, "getaddrinfo", look_up)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def network_attempts() -> Iterator[list[str]]:
    """What tried to reach the network: fails the test even if its thread swallowed the error."""
    _attempts.clear()
    yield _attempts
    if _attempts:
        pytest.fail(f"tests run offline, but the test called {', '.join(_attempts)}")
