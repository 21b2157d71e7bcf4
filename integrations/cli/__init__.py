"""The command line: `laconic compress`, `laconic bench`, `laconic demo`."""

from .main import main

__all__ = ["main"]
