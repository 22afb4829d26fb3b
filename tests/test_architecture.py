"""The house keeps its plan: imports go one way, recipes stay apart, and importing the package costs nothing."""

import ast
import graphlib
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up, as docs/architecture.md has them: a folder, or a file at the root, imports from those before it.
LEVELS = [
    {"version", "files", "signals"},
    {"parsing"},
    {"hub", "models"},
    {"launching"},
    {"dry_run"},
    {"output_folder"},
    {"arguments"},
    {"tokenization", "reporting"},
    {"data"},
    {"evaluation"},
    {"tasks"},
    {"inference"},
    {"scoring", "demo", "corpus", "export"},
    {"training"},
    {"self_training"},
    {"planning", "inspection", "safety"},
    {"commands"},
    {"cli"},
]


def place(module: str) -> str:
    """The folder of hf_lm that a module is in, or its own name at the root."""
    return module.split(".")[1]


def level(module: str) -> int:
    numbers = [number for number, members in enumerate(LEVELS) if place(module) in members]
    assert numbers, f"{module} has no level: give its folder one in docs/architecture.md and here"
    return numbers[0]


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


def test_no_import_goes_up():
    names = modules()
    upwards = {
        (name, imported)
        for name, path in names.items()
        for imported in imports(path) & set(names)
        if place(imported) != place(name) and level(imported) >= level(name)
    }
    assert upwards == set()


def test_no_file_imports_itself_by_way_of_others():
    names = modules()
    assert list(
        graphlib.TopologicalSorter({name: imports(path) & set(names) for name, path in names.items()}).static_order()
    )


# What is not yet as it should be. Each list only gets shorter: what has become right is taken out of it.
OPEN_TYPES = 61  # occurrences of ": Any" in hf_lm: this number only gets smaller


def texts() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


def test_functions_have_at_most_sixty_lines():
    long = {
        f"{name}.{node.name}"
        for name, text in texts().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    }
    assert long == set()


def test_recipes_have_at_most_seventy_five_lines_and_shadow_no_library():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.py")}
    header = re.compile(r"^# /// script\n(?:#.*\n)*# ///\n\n", re.MULTILINE)  # PEP 723: not read by people
    lines = {name: len(header.sub("", text).splitlines()) for name, text in texts.items()}
    assert {name for name, number in lines.items() if number > 75} == set()
    assert not lines.keys() & {"evaluate", "datasets", "tokenizers", "accelerate", "transformers"}


def test_a_task_has_a_type_and_few_others_are_open():
    guessed = r"\btask: Any\b|\b(?:has|get)attr\((?:self\.)?task\b"
    assert {name for name, text in texts().items() if re.search(guessed, text)} == set()
    assert sum(len(re.findall(r": Any\b", text)) for text in texts().values()) <= OPEN_TYPES


def test_the_library_imports_no_recipe_and_recipes_do_not_import_each_other():
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    for path in [*modules().values(), *(ROOT / "recipes").glob("*.py")]:
        assert not any(name.split(".")[0] in recipes | {"recipes"} for name in imports(path)), path


# What replaces a name of another module: the file, and the name.
REPLACED = {
    ("launching.py", "accelerate_launch.simple_launcher"),  # signals and exit codes: see there
    ("credentials.py", "sys.excepthook"),  # Python offers it for assignment: an error of a recipe is one line
    ("cli.py", "sys.excepthook"),  # a traceback of --debug without secrets
    ("signals.py", "sys.unraisablehook"),  # offered for assignment too: a finalizer must not swallow a signal
    ("fresh_load.py", "sys.modules['peft']"),  # a program of its own, for a process that has no peft
}


def replaced_names(code: str) -> set[str]:
    """Attributes of imported names that a file assigns to, deletes or sets: `module.name = ...` and its like."""
    tree = ast.parse(code)
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }

    def root(node: ast.AST, through: tuple[type, ...] = (ast.Attribute,)) -> str:
        while isinstance(node, through):
            node = node.func if isinstance(node, ast.Call) else node.value
        return node.id if isinstance(node, ast.Name) else ""

    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and root(node) in imported:
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            found |= {ast.unparse(node)} if ast.unparse(node.value) == "sys.modules" else set()
        elif isinstance(node, ast.Call) and root(node.func) in ("setattr", "delattr"):
            target = root(node.args[0], (ast.Attribute, ast.Subscript, ast.Call))
            found |= {ast.unparse(node)} if target in imported else set()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found |= {ast.unparse(node)} if ast.unparse(node.func.value) in ("sys.meta_path", "sys.argv") else set()
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.argv = []",
        "import sys\nsys.meta_path.insert(0, None)",
        "import sys\ndel sys.modules['json']",
        "import sys\nsetattr(sys.modules['json'], 'load', None)",
        "from importlib import import_module\nsetattr(import_module('json'), 'load', None)",
        "from hf_lm.training import fit as last\na, last.fit = 1, None",
        "from hf_lm.self_training.experiment import SelfTraining\nSelfTraining.run = None",
        "import torch.nn\ntorch.nn.Linear.forward = None",
    ],
)
def test_a_replaced_name_is_seen(code):
    assert replaced_names(code)


def test_the_library_replaces_no_name_of_another_module():
    found = {
        (path.name, name)
        for path in (ROOT / "hf_lm").rglob("*.py")
        for name in replaced_names(path.read_text(encoding="utf-8"))
    }
    assert found == REPLACED


def test_importing_the_package_pulls_in_nothing_heavy():
    code = (
        "import sys, hf_lm, hf_lm.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow  # imports everything twice
def test_a_recipe_imports_bitsandbytes_without_its_warning_and_nothing_that_measures_imports_evaluate():
    code = (
        "import logging, runpy, sys; runpy.run_path('recipes/question_answering.py'); "
        "import hf_lm.scoring.compare_runs, hf_lm.evaluation.metrics; "
        "print(logging.getLogger('bitsandbytes').getEffectiveLevel(), 'evaluate' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == f"{logging.ERROR} False"
    assert "gemm_4bit" not in done.stderr
