"""The house keeps its plan: imports go one way, recipes stay apart, and importing the package costs nothing."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# From the lowest floor up, as docs/architecture.md has it: a module imports only from floors below its own.
FLOORS = [
    {
        "arguments",
        "cache",
        "checking",
        "decoding",
        "files",
        "planning.devices",
        "fresh_load",
        "launching",
        "losses",
        "markdown",
        "models",
        "sampling",
        "target_tokenizer",
        "terminal",
        "data.reading",
        "data.batches",
        "data.overlap",
        "data.scripts",
    },
    {"data.demos", "data.opinions", "data.cldr", "data.dialogues"},
    {"data.sources"},
    {"data.tables", "data.conversations"},
    {"tokenizer", "chat_template"},
    {"data.packing"},
    {"evaluation", "proofs"},
    {"report", "hub", "card_metadata"},
    {"card", "plots"},
    {"tasks", "remote", "scoreboard"},
    {"rebuilding"},
    {"generation", "pipelines", "scoring", "comparing", "harness"},
    {"conversation", "writing", "predicting"},
    {"demo"},
    {"training", "self_training"},
    {"safety"},
    {"rehearsal"},
    {"inspection"},
    {"planning"},
    {"commands"},
    {"cli"},
]


def floor(module: str) -> int:
    name = module.removeprefix("hf_lm.")
    for number, members in enumerate(FLOORS):
        if any(name == member or name.startswith(f"{member}.") for member in members):
            return number
    raise AssertionError(f"{module} stands on no floor: give it one in docs/architecture.md and here")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "hf_lm").rglob("*.py"))
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in named.items() if not name.endswith("__init__")}


def test_imports_go_downwards_only():
    names = modules()
    for name, path in names.items():
        for imported in imports(path) & set(names):
            same_room = imported.rsplit(".", 1)[0] == name.rsplit(".", 1)[0] != "hf_lm"
            assert same_room or floor(imported) <= floor(name), f"{name} imports {imported}, which stands above it"


def test_the_library_imports_no_recipe_and_recipes_do_not_import_each_other():
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    for path in [*modules().values(), *(ROOT / "recipes").glob("*.py")]:
        assert not any(name.split(".")[0] in recipes | {"recipes"} for name in imports(path)), path


def test_recipes_are_short_and_shadow_no_library():
    for path in (ROOT / "recipes").glob("*.py"):
        assert len(path.read_text().splitlines()) < 100, path
        assert path.stem not in {"evaluate", "datasets", "tokenizers", "accelerate", "transformers"}


def test_importing_the_package_pulls_in_nothing_heavy():
    code = (
        "import sys, hf_lm, hf_lm.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_recipe_imports_bitsandbytes_without_its_warning():
    code = (
        "import logging, runpy; runpy.run_path('recipes/question_answering.py'); "
        "print(logging.getLogger('bitsandbytes').getEffectiveLevel())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == str(logging.ERROR)
    assert "gemm_4bit" not in done.stderr
