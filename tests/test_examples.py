"""The examples of the library are short, use public names only, and run one after the other."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
IMPORT = re.compile(r"\bfrom (hf_lm[\w.]*) import (\w+)")


def names_imported(path: Path) -> set[tuple[str, str]]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {(node.module, alias.name) for node in nodes for alias in node.names if node.module.startswith("hf_lm")}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_uses_public_names(path):
    public = set(IMPORT.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    assert names_imported(path) <= public
    lines = [line for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
    assert len([line for line in lines if not re.match(r"(from|import) ", line)]) <= 18


def test_the_page_lists_each_example():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d\d_\w+\.py)\)", page) == [path.name for path in EXAMPLES]


def test_the_examples_that_need_no_model_run(capsys):
    for name in ("07_intervals", "08_paired_test"):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "accuracy 72.5, 95 % interval 65.8 to 78.6" in shown
    assert "a or c: no difference (p 0.565, corrected)" in shown


@pytest.mark.slow
def test_the_examples_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = {}
    for path in EXAMPLES:
        runpy.run_path(str(path), run_name="__main__")
        shown[path.stem[3:]] = capsys.readouterr().out
    assert "a or b: b" in shown["paired_test"]
    assert "no difference" in shown["paired_test"]
    assert "the proof class_not_in_text failed: 1 texts" in shown["proof"]
    assert "cost per ticket: Interval" in shown["metric"]
    assert "nats per token" in shown["generate"]
    assert "nothing is wrong" in shown["adapter"]
    assert float(shown["callback"].split()[-1]) > 0
