"""One-line mutants of a file, each against the tests that are given, in a forked process; prints those that survive.

    python tests/mutation/mutate.py hf_lm/tasks/spans.py tests/test_spans.py
    python tests/mutation/mutate.py hf_lm/evaluation/calibration.py tests/test_self_training.py -k temperature

The tests are collected and run once; a mutant is then a fork in which the code of functions and the constants of the
file are replaced, so that it costs no import. Nothing is written. Not mutated: docstrings, annotations, errors, what a
progress bar shows. Defaults of dataclasses are not replaced. Needs os.fork.
"""

import ast
import functools
import importlib
import os
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

COMPARISONS = {
    **{ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE)},
    **{ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,)},
    **{ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)},
}
OPERATORS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Add, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.RShift: ast.LShift, ast.LShift: ast.RShift, ast.BitXor: ast.BitAnd},
}
NAMES = {"max": "min", "any": "all", "argmax": "argmin", "maximum": "minimum", "cumsum": "cumprod"}
NAMES |= {other: name for name, other in NAMES.items()} | {"ceil": "floor", "floor": "ceil", "lower": "upper"}
SHOWN = {"desc", "description", "unit", "unit_scale", "delay", "leave", "disable", "strict"}  # keywords


def left_alone(tree: ast.AST) -> set[int]:
    """The ids of nodes that no test has to notice."""
    parts: list[ast.AST | None] = []
    alone: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            parts += [one.value for one in body if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)]
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.keyword) and node.arg in SHOWN
        ):
            parts.append(node)
        parts += [
            getattr(node, "annotation", None),
            getattr(node, "returns", None),
            *getattr(node, "decorator_list", []),
        ]
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            alone.add(id(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("bar.update", "bar.close"):
            parts.append(node)
    return alone | {id(inner) for part in parts if part is not None for inner in ast.walk(part)}


def changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str, Any, Any, Any]]:
    """(node, what, holder, attribute or index, new value) of each mutant."""
    alone = left_alone(tree)
    places = {}
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            holders = enumerate(value) if isinstance(value, list) else ()
            places |= {id(child): (value, i) for i, child in holders if isinstance(child, ast.AST)}
            if isinstance(value, ast.AST):
                places[id(value)] = (parent, field)
    for node in ast.walk(tree):
        if id(node) in alone:
            continue
        if isinstance(node, ast.Compare):
            for i, operator in enumerate(node.ops):
                for new in COMPARISONS[type(operator)]:
                    yield node, f"{type(operator).__name__} -> {new.__name__}", node.ops, i, new()
        if isinstance(node, ast.BinOp | ast.AugAssign) and (new := OPERATORS.get(type(node.op))):
            yield node, f"{type(node.op).__name__} -> {new.__name__}", node, "op", new()
        if isinstance(node, ast.BoolOp):
            new = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield node, f"-> {new.__name__}", node, "op", new()
        if isinstance(node, ast.UnaryOp):
            yield node, f"{type(node.op).__name__} dropped", *places[id(node)], node.operand
        if isinstance(node, ast.Constant):
            value = node.value
            others = (
                [f"XX{value}XX"] if isinstance(value, str) else [value * 1.1 or 0.1] if type(value) is float else []
            )
            others += [value + 1, value - 1] if type(value) is int else [not value] if type(value) is bool else []
            for other in others:
                yield node, f"{value!r} -> {other!r}", node, "value", other
        name = "attr" if isinstance(node, ast.Attribute) else "id"
        if isinstance(node, ast.Attribute | ast.Name) and (other := NAMES.get(getattr(node, name))):
            yield node, f"{getattr(node, name)} -> {other}", node, name, other
        if isinstance(node, ast.Break | ast.Continue):
            new = ast.Continue if isinstance(node, ast.Break) else ast.Break
            yield node, f"-> {new.__name__}", *places[id(node)], new()
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            for value in (False,) if isinstance(node, ast.While) else (True, False):
                yield node, f"test -> {value}", node, "test", ast.Constant(value)
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and id(node.value) not in alone
        if call or isinstance(node, ast.AugAssign):
            yield node, "deleted", *places[id(node)], ast.Pass()
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg and id(keyword) not in alone:
                    kept = [other for other in node.keywords if other is not keyword]
                    yield keyword.value, f"{keyword.arg}= removed", node, "keywords", kept


def mutants(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, what, source) of each mutant of a file."""
    tree = ast.parse(path.read_text())
    for node, what, holder, key, new in list(changes(tree)):
        old = holder[key] if isinstance(holder, list) else getattr(holder, key)
        put = holder.__setitem__ if isinstance(holder, list) else functools.partial(setattr, holder)
        put(key, new)
        yield node.lineno, what, ast.unparse(ast.fix_missing_locations(tree))
        put(key, old)


def functions(value: Any, file: str) -> list[types.FunctionType]:
    """The functions of a file within a member: decorated, or a property."""
    found = []
    while value is not None:
        if isinstance(value, types.FunctionType):
            found.append(value)
        inner = (getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__"))
        value = next((one for one in inner if one is not None), None)
    return [one for one in found if one.__code__.co_filename == file]


def install(module: types.ModuleType, source: str) -> None:
    """Make the functions and constants of an imported module those of another source."""
    file, fresh, plain = module.__file__, types.ModuleType(module.__name__), types.ModuleType(module.__name__)
    exec(compile(source, file, "exec"), fresh.__dict__)
    exec(compile(Path(file).read_text(), file, "exec"), plain.__dict__)
    pairs = [(module, fresh, plain)]
    pairs += [
        (vars(module)[name], new, vars(plain)[name])
        for name, new in vars(fresh).items()
        if isinstance(new, type) and new.__module__ == module.__name__
    ]
    for old_holder, new_holder, plain_holder in pairs:
        for name, new in vars(new_holder).items():
            old = vars(old_holder).get(name)
            for one, other in zip(functions(old, file), functions(new, file), strict=True):
                one.__code__, one.__defaults__, one.__kwdefaults__ = (
                    other.__code__,
                    other.__defaults__,
                    other.__kwdefaults__,
                )
            constant = not name.startswith("__") and not isinstance(new, type) and not callable(new)
            if constant and repr(new) != repr(vars(plain_holder).get(name)):
                for holder in [old_holder, *(one for one in sys.modules.values() if hasattr(one, "__dict__"))]:
                    if vars(holder).get(name) is old:
                        setattr(holder, name, new)


class Mutation:
    """A plugin of pytest that runs the mutants in place of the tests."""

    def __init__(self, file: str) -> None:
        self.file = file

    def pytest_collection(self, session: pytest.Session) -> None:
        hypothesis.settings.load_profile("mutants")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork

    def passes(self, items: list[pytest.Item]) -> bool:
        return not any(
            report.failed
            for i, item in enumerate(items)
            for report in runtestprotocol(item, nextitem=items[(i + 1) % len(items)], log=False)
        )

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        module = importlib.import_module(self.file.removesuffix(".py").replace("/", "."))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if not self.passes(session.items):
            raise pytest.UsageError("the tests fail without a mutant")
        begun = time.monotonic()
        self.passes(session.items)
        limit, survived, lines = 15 + 6 * (time.monotonic() - begun), [], Path(self.file).read_text().splitlines()
        every = sorted(mutants(Path(self.file)), key=lambda mutant: mutant[0])
        for line, what, source in every:
            if self.killed(module, source, session.items, limit):
                continue
            survived.append(line)
            print(f"{self.file}:{line}  {what}  |  {lines[line - 1].strip()}", flush=True)
        print(f"{len(every)} mutants, {len(every) - len(survived)} killed")
        return True

    def killed(self, module: types.ModuleType, source: str, items: list[pytest.Item], limit: float) -> bool:
        child = os.fork()
        if not child:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            try:
                install(module, source)
                os._exit(0 if self.passes(items) else 1)
            except BaseException:  # it cannot even be imported
                os._exit(1)
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status != 0
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    os.chdir(root)
    sys.path[:0] = [str(root), str(root / "tests")]
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", deadline=None, database=None, derandomize=True, phases=phases)
    plain = ["-q", "-s", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:timeout"]
    sys.exit(pytest.main([*plain, *sys.argv[2:]], plugins=[Mutation(sys.argv[1])]))
