"""The public names are there: every import that a page of the documentation shows works."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORT = re.compile(r"\bfrom (hf_lm[\w.]*) import (\w+(?:, \w+)*)")
SHOWN = {
    (module, name)
    for page in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("README*.md")]
    for module, names in IMPORT.findall(page.read_text(encoding="utf-8"))
    for name in names.split(", ")
}


@pytest.mark.parametrize(("module", "name"), sorted(SHOWN))
def test_a_name_that_the_documentation_imports_is_there(module, name):
    assert hasattr(importlib.import_module(module), name)


def test_the_page_of_public_names_lists_them():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = [name for _, name in IMPORT.findall(page)]
    assert len(names) == len(set(names)) >= 25
