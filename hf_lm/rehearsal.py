"""A recipe up to the point where training would begin: its model, its task and its arguments, and no more."""

import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Rehearsal(NamedTuple):
    """What a recipe hands to `fit`; `options` are its keywords."""

    model: Any
    task: Any
    training_args: Any
    options: dict[str, Any]


class _Reached(Exception):
    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal


def rehearse(recipe: str, arguments: Sequence[str] = ()) -> Rehearsal:
    """Run a recipe, by its name or its file, until it calls `fit`; returns what it calls it with.

    `arguments` are the recipe's own, as on its command line. The recipe runs whole, its defaults and its
    `parse_arguments` included, so that nothing here can disagree with training; the price is that the model is built.
    On this process alone and on the CPU. Raises what the recipe raises: ValueError or OSError in one line.
    """
    from hf_lm.training import fit as last  # the module whose function a recipe ends in

    path = recipe_path(recipe)

    def reached(model: Any, task: Any, training_args: Any, **options: Any) -> None:
        raise _Reached(Rehearsal(model, task, training_args, options))

    # --debug: errors come here instead of ending the process. --use_cpu: what is only looked at needs no GPU.
    before = sys.argv, sys.excepthook, last.fit
    try:
        sys.argv, last.fit = [str(path), *map(str, arguments), "--use_cpu", "True", "--debug"], reached
        runpy.run_path(str(path), run_name="__main__")
    except _Reached as end:
        return end.rehearsal
    finally:
        sys.argv, sys.excepthook, last.fit = before
    raise ValueError(f"{path} ended without calling fit, so there is nothing to look at.")


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with hf_lm. Raises ValueError that lists them."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no recipe {name}.")
        return Path(name)
    package = Path(__file__).parent
    folder = next((f for f in (package / "recipes", package.parent / "recipes") if f.is_dir()), package / "recipes")
    known = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no recipe {name!r}; there are {', '.join(known)}, or give a file.{hint}")
