"""What the site needs beside its pages.

The pages link to files at the root of the repository, which MkDocs does not know: those become
pages of the site. And Griffe reads some docstrings otherwise than they are meant: it gives all
names above one description the default of the first, and takes a sentence below the last parameter
for another one.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

__all__ = ["Docstrings", "on_files", "on_page_markdown", "spelled_out"]

ROOT = Path(__file__).resolve().parents[1]
AT_ROOT = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
FOLDER = "project"
"""Where the site has them."""

_LINK = re.compile(r"(?<=\]\()[^)\s:#]+")
_SECTION = re.compile(
    r"^(?P<head>(?:Parameters|Attributes)\n-+\n)(?P<body>.*?)(?=^\w[\w ]*\n---|\Z)",
    re.MULTILINE | re.DOTALL,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of `AT_ROOT`."""
    for name in AT_ROOT:
        path = str(ROOT / name)
        files.append(File.generated(config, f"{FOLDER}/{name}", abs_src_path=path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where the site has what they name."""
    del config, files
    source = Path(str(page.file.abs_src_path)).resolve()
    start = posixpath.dirname(page.file.src_uri)

    def target(link: re.Match[str]) -> str:
        path = (source.parent / link.group()).resolve()
        if path.parent == ROOT and path.name in AT_ROOT:
            return posixpath.relpath(f"{FOLDER}/{path.name}", start)
        return link.group()

    return _LINK.sub(target, markdown)


class Docstrings(griffe.Extension):
    """Hands docstrings to Griffe as it reads them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Spell out the docstring of one object."""
        del kwargs
        if obj.docstring:
            obj.docstring.value = spelled_out(obj.docstring.value)


def spelled_out(docstring: str) -> str:
    """A docstring with one name above each description, and sentences in front of the section."""
    return _SECTION.sub(_section, docstring)


def _section(section: re.Match[str]) -> str:
    sentences: list[str] = []
    items: list[str] = []
    for part in re.split(r"\n+(?=\S)", section["body"].strip()):
        first, _, description = part.partition("\n")
        if description:
            items += [f"{name}\n{description}" for name in first.split(", ")]
        else:
            sentences.append(first)
    above = "\n".join(sentences) + "\n\n" if sentences else ""
    return above + section["head"] + "\n".join(items) + "\n\n"
