"""Text that every installation carries: the documentation inside Python and inside the packages hf_lm depends on."""

import ast
import importlib.util
import inspect
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from hf_lm.files import default_cache, fill_cache, hash_text

PACKAGES = ("numpy", "datasets", "huggingface_hub")
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "_vendor", "_generated"}


def documentation() -> list[dict[str, str]]:
    """Rows of {"module", "text"}: a module's docstrings, each under its heading, and the reference manual's topics."""
    rows: dict[str, list[str]] = {}
    for row in _docstrings():
        rows.setdefault(row["module"], []).append("\n\n".join(part for part in (row["heading"], row["text"]) if part))
    return [{"module": module, "text": "\n\n\n".join(texts)} for module, texts in rows.items()]


def docstring_summaries() -> list[dict[str, str]]:
    """Rows of {"module", "document", "summary"}: the heading and body of a docstring, and the line that sums it up.

    Above the heading stands the name in words, as a reader of `setReadLimits` has it in mind. Only docstrings whose
    first paragraph is one line of words. What is held out has a body of at least 80 characters to sum up; training
    text may have less, down to the heading alone: from these a fresh model learns to take names over.
    """
    rows = []
    for row in _docstrings():
        summary, _, body = row["text"].partition("\n\n")
        enough = len(body.strip()) >= 80 or demo_split(row["module"]) == "train"
        if row["heading"] and "\n" not in summary and 3 <= len(summary.split()) <= 30 and enough:
            document = f"{_in_words(row['heading'])}\n{row['heading']}\n\n{body.strip()}".strip()
            rows.append({"module": row["module"], "document": document, "summary": summary.strip()})
    return rows


def _in_words(heading: str) -> str:
    """`http.client.HTTPMessage.getAllHeaders(self)` is `get all headers`."""
    name = heading.split("(")[0].split(".")[-1]
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower() or name


def demo_split(module: str) -> str:
    """The split of a module, by its name, the same for every demo that reads documentation: 4 % each are held out.

    The reference manual's topics quote each other at length: all of them are training text.
    """
    place = 1.0 if module.startswith("topics.") else hash_text(module)[0] / 256
    return "validation" if place < 0.04 else "test" if place < 0.08 else "train"


def _docstrings() -> list[dict[str, str]]:
    """Rows of {"module", "heading", "text"}: docstrings read with `ast`, their modules never imported.

    Cached after the first read, which takes seconds, under Hugging Face's home.
    """
    versions = [platform.python_version(), *(f"{name}-{version(name)}" for name in PACKAGES)]
    folder = default_cache() / "docstrings" / hash_text(" ".join([*versions, *sorted(LEFT_OUT)])).hex()
    try:
        fill_cache(folder, lambda aside: (aside / "rows.json").write_text(json.dumps(list(_modules()))))
        rows = json.loads((folder / "rows.json").read_text())
    except OSError:  # a home that cannot be written costs the seconds again
        rows = _modules()
    return [{"module": module, "heading": heading, "text": text} for module, heading, text in rows]


def docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """(heading, docstring) of a source file: the module's name, then each class and function with its signature."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    waiting = [(tree, module, module)]
    while waiting:
        node, heading, name = waiting.pop()
        if text := ast.get_docstring(node):
            yield heading, text
        inner = []
        for child in node.body:
            if isinstance(child, definitions):
                signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
                inner.append((child, f"{name}.{child.name}{signature}", f"{name}.{child.name}"))
        waiting += reversed(inner)


def _modules() -> Iterator[tuple[str, str, str]]:
    """(module, heading, text). A docstring that an earlier module has word for word is left out."""
    from pydoc_data import topics

    for topic, text in sorted(topics.topics.items()):
        yield f"topics.{topic}", "", inspect.cleandoc(text)
    seen: set[str] = set()
    roots = [(Path(sysconfig.get_path("stdlib")), "")]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            roots.append((Path(spec.origin).parent, package))
    for root, package in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if LEFT_OUT.intersection(parts):
                continue
            module = ".".join(part for part in (package, *parts) if part and part != "__init__")
            for heading, text in docstrings(path, module):
                if text not in seen:
                    seen.add(text)
                    yield module, heading, text
