"""The documentation is true to the code: what it quotes, what it links to and what it says to type."""

import ast
import dataclasses
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest

from hf_lm.cli import COMMANDS, build_parser

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("README*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(first line without its fence, text) of each fenced block in a language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(info, text) for info, text in found if info.split(" ")[0] == language]


def commands(page: Path) -> list[str]:
    """The lines that a page says to type: of its bash blocks, and after `$` in others; continued lines are joined."""
    lines = []
    for info, text in FENCE.findall(page.read_text(encoding="utf-8")):
        typed = text.replace("\\\n", " ").splitlines()
        if info != "bash":
            typed = [line.removeprefix("$ ") for line in typed if line.startswith("$ ")]
        lines += typed
    return [part.strip() for line in lines for part in line.split(" && ")]


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            path, _, anchor = unquote(link).partition("#")
            target = page.parent / path if path else page
            assert target.is_file(), f"{page.name} links to {link}"
            assert DOCS not in page.parents or target.resolve().is_relative_to(DOCS), f"{link} leaves the site"
            assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_is_in_the_nav():
    config = (DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- .*: ([\w/]+\.md)$", config.split("\nnav:")[1], re.MULTILINE)
    assert len(listed) == len(set(listed))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert there == set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_code_stands_in_its_file(page):
    for info, text in blocks(page, "python"):
        if titled := re.search(r'title="([^"]+)"', info):
            assert text in (ROOT / titled[1]).read_text(encoding="utf-8"), f"{page.name} quotes {titled[1]}:\n{text}"


def test_concepts_quotes_every_step():
    quoted = {re.search(r'title="([^"]+)"', info)[1] for info, _ in blocks(DOCS / "concepts.md", "python")}
    assert {"hf_lm/tasks/losses.py", "hf_lm/evaluation/perplexity.py", "hf_lm/evaluation/intervals.py"} <= quoted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_hf_lm_are_accepted(page):
    parser = build_parser()
    for line in commands(page):
        if line.startswith("hf-lm ") and "..." not in line:
            words = shlex.split(re.split(r" [>|] | ; ", line)[0], comments=True)[1:]
            if words and words[0] in COMMANDS and words[0] != "run" and "--help" not in words:
                try:
                    _, unknown = parser.parse_known_args(words)
                except SystemExit:
                    pytest.fail(f"{page.name}: {line}")
                assert not unknown, f"{page.name}: {line}"


def fields_of(path: Path) -> set[str]:
    """Names of the dataclass fields that a file declares."""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return {item.target.id for node in classes for item in node.body if isinstance(item, ast.AnnAssign)}


def check_options(recipe: str, typed: str) -> int:
    """Fail where there is no such recipe, or it has no such option; returns how many options were typed."""
    from transformers import TrainingArguments

    path = ROOT / "recipes" / f"{recipe}.py"
    assert path.is_file(), f"there is no recipe {recipe}"
    known = {field.name for field in dataclasses.fields(TrainingArguments)} | fields_of(ROOT / "hf_lm/arguments.py")
    known |= fields_of(ROOT / "hf_lm/self_training/experiment.py")
    known |= {"config", "print_config", "help", "debug"} | fields_of(path)
    options = re.findall(r"(?<= )--(\w+)", typed.split("  #")[0])
    assert set(options) <= known, f"{recipe}{typed}: {set(options) - known}"
    return len(options)


def test_options_of_recipes_exist():
    started = re.compile(r"(?:accelerate launch|python|torchrun) .*?recipes/(\w+)\.py(.*)")
    found = [started.search(line) for page in PAGES for line in commands(page)]
    assert sum(check_options(run[1], run[2]) for run in found if run) > 20


def test_upstream_findings_name_files_and_tests_that_exist():
    page = (DOCS / "upstream.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"`((?:hf_lm|tests)/[\w/]+\.py)", page)):
        assert (ROOT / path).is_file(), path
    guards = set(re.findall(r"`(tests/\w+\.py)::(\w+)`", page))
    assert len(guards) > 40
    for path, name in guards:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_a_cell_of_the_support_matrix_is_one_of_five():
    page = (DOCS / "scale.md").read_text(encoding="utf-8").split("## What was tried")[1]
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()[2:]]
    cells = [cell.strip() for line in lines for cell in line.strip("|").split("|")[1:]]
    engines = {"one", "DDP"}  # the first table's second column
    assert len(tables) == 3
    assert {cell for cell in cells if not re.fullmatch(r"\d+ process(es)?|GPU|refused|not tried|-", cell)} == engines


def test_no_command_of_the_readme_writes_where_another_did():
    english, chinese = (
        [" ".join(line.split("#")[0].split()) for line in commands(ROOT / name)]
        for name in ("README.md", "README.zh-CN.md")
    )
    assert english == chinese
    written = []
    for line in english:
        run = re.match(r"(?:accelerate launch recipes/(\w+)\.py|hf-lm run (\w+))", line)
        if run and "--resume_from_checkpoint" not in line:
            config = re.search(r"--config (\S+)", line)
            configured = (ROOT / config[1]).read_text(encoding="utf-8") if config else ""
            given = re.search(r"--output_dir (\S+)", line) or re.search(r"(?m)^output_dir: (\S+)$", configured)
            written.append(given[1] if given else f"out/{run[1] or run[2]}")
    assert len(written) == len(set(written)) > 8, written


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build").build
    from mkdocs.config import load_config

    build(load_config(str(DOCS / "site" / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link rel="stylesheet" href="([^"]+)"', page.read_text()
        )
        assert loaded
        assert not [url for pair in loaded for url in pair if url.startswith(("http", "//"))]
