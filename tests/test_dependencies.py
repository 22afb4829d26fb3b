"""What is imported is declared: a recipe without arguments runs in an environment that has only `pip install -e .`."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BESIDE = {
    "demo": {"gradio", "starlette"},
    "export": {"llama_cpp"},  # of llama-cpp-python
    "corpus": {"datatrove"},
    "recipes": {"datatrove"},
    "training": {"deepspeed"},  # where it is the engine
}  # only where their extra is


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> dict[str, str]:
    """{distribution: its lowest version}."""
    return {
        normal(name): low for name, low in (re.match(r"([\w.-]+).*?>=([\d.]+)", one).groups() for one in requirements)
    }


def imported(path: Path) -> tuple[set[str], set[str]]:
    """(packages that a file imports, those it may lack: imported within `try` before `except ImportError`)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    optional = {
        node
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try)
        and any("ImportError" in ast.unparse(handler.type) for handler in attempt.handlers if handler.type)
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    names: tuple[set[str], set[str]] = (set(), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names[node in optional].update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names[node in optional].add(node.module.split(".")[0])
    return names


def test_every_import_is_declared():
    there, dependencies = packages_distributions(), declared(PROJECT["dependencies"])
    extras = {normal(re.split(r"[>=<\[]", one)[0]) for one in chain(*PROJECT["optional-dependencies"].values())}
    for path in [*(ROOT / "hf_lm").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        always, optional = imported(path)
        for name in (
            (always | optional) - set(sys.stdlib_module_names) - {"hf_lm"} - BESIDE.get(path.parent.name, set())
        ):
            distributions = {normal(one) for one in there.get(name, [name])}
            if not distributions & dependencies.keys():
                assert name in optional, f"{path.name} imports {name}, which pyproject.toml does not declare"
                assert distributions & extras, f"{path.name} offers {name}, which no extra installs"


def test_a_recipe_says_what_it_needs_to_run_alone():
    """PEP 723, for `uv run` and `hf jobs uv run`: this package, whose own bounds hold, of the same minor version."""
    from hf_lm.version import __version__

    major, minor = __version__.split(".")[:2]
    above = f"{major}.{int(minor) + 1}"
    for path in (ROOT / "recipes").glob("*.py"):
        header = re.search(r"^# /// script\n((?:#.*\n)*?)# ///$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert header, f"{path.name} has no PEP 723 header"
        said = tomllib.loads(re.sub(r"(?m)^# ?", "", header[1]))
        assert said.keys() == {"requires-python", "dependencies"}
        assert said["requires-python"] == PROJECT["requires-python"]
        (needed,) = said["dependencies"]
        name, extra = re.fullmatch(rf"([\w-]+?)(?:\[(\w+)\])?>={major}\.{minor}\.0,<{above}", needed).groups()
        assert name == PROJECT["name"]
        assert extra is None or extra in PROJECT["optional-dependencies"]


def test_the_published_metadata_is_complete_and_names_no_private_host():
    topics = PROJECT["classifiers"]
    assert any(topic.startswith("Development Status") for topic in topics)
    for minor in (11, 12, 13):  # those that .github/workflows/tests.yml runs
        assert f"Programming Language :: Python :: 3.{minor}" in topics
    for url in PROJECT.get("urls", {}).values():
        assert re.match(r"https://(github\.com|huggingface\.co)/", url), url


def test_the_lowest_versions_are_those_that_were_tried():
    lines = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name, low in declared(PROJECT["dependencies"]).items():
        if name != "torch":  # which build of it is for the machine to say
            assert (tried[name] + ".").startswith(low + "."), f"{name}>={low} is declared, {tried[name]} was tried"


def test_the_package_is_what_hf_extensions_install_looks_for():
    """A console script `hf-NAME`, and no file of that name at the root, which would be taken for a shell script."""
    assert PROJECT["scripts"] == {"hf-lm": "hf_lm.cli:main"}
    assert not (ROOT / "hf-lm").exists()
    assert PROJECT["description"]  # shown by `hf extensions list`
