"""Maps the rooms at the top of the repository to the package `laconic`.

Wheel: `pyproject.toml` moves the rooms under ``laconic/``, this hook adds the front door, the
files of ``core/_root``. Editable install: both are links under ``.editable/laconic/``, so that a
new file is seen at once, by Python and by editors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOMS = ("core", "memory", "integrations")


class LinkRooms(BuildHookInterface):
    """The build hook; hatchling finds it by its base class."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Link or include the front door and the rooms."""
        root = Path(self.root)
        door = sorted(f for f in (root / "core" / "_root").iterdir() if f.is_file())
        if version != "editable":
            build_data["force_include"].update({str(f): f"laconic/{f.name}" for f in door})
            return
        package = root / ".editable" / "laconic"
        package.mkdir(parents=True, exist_ok=True)
        wanted = {room: root / room for room in ROOMS} | {f.name: f for f in door}
        for link in package.iterdir():
            if link.is_symlink() and link.name not in wanted:
                link.unlink()
        for name, target in wanted.items():
            link = package / name
            if not link.is_symlink():
                link.symlink_to(Path("..", "..", target.relative_to(root)))
