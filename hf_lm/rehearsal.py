"""A recipe up to the point where training would begin: its model, its task and its arguments, and no more."""

import runpy
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from hf_lm.launching import recipe_path


class Rehearsal(NamedTuple):
    """What a recipe hands to `fit`; `options` are its keywords."""

    model: Any
    task: Any
    training_args: Any
    options: dict[str, Any]


class _Reached(Exception):
    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal


def rehearse(recipe: str, arguments: Sequence[str] = (), *, use_cpu: bool = True) -> Rehearsal:
    """Run a recipe, by its name or its file, until it calls `fit`; returns what it calls it with.

    Self-training, which trains before that, ends where its first training would begin.

    `arguments` are the recipe's own, as on its command line. The recipe runs whole, its defaults and its
    `parse_arguments` included, so that nothing here can disagree with training; the price is that the model is built.
    On this process alone and, unless `use_cpu` is false, on the CPU. Raises what the recipe raises: ValueError or
    OSError in one line.
    """
    from hf_lm.self_training.learning import LABELS, SelfTraining
    from hf_lm.training import fit as last  # the module whose function a recipe ends in

    path = recipe_path(recipe)

    def reached(model: Any, task: Any, training_args: Any, **options: Any) -> None:
        raise _Reached(Rehearsal(model, task, training_args, options))

    def first(learned: SelfTraining) -> None:  # trains many times before `fit`
        reached(learned.initial_model(LABELS, learned.training_args.seed), learned.task, learned.training_args)

    # --debug: errors come here instead of ending the process. --use_cpu: what is only looked at needs no GPU.
    # --overwrite_output_dir: a finished run there is no obstacle, for nothing is written.
    options = [*(("--use_cpu", "True") if use_cpu else ()), "--overwrite_output_dir", "True", "--debug"]
    before = sys.argv, sys.excepthook, last.fit, SelfTraining.run
    try:
        sys.argv, last.fit, SelfTraining.run = [str(path), *map(str, arguments), *options], reached, first
        runpy.run_path(str(path), run_name="__main__")
    except _Reached as end:
        return end.rehearsal
    finally:
        sys.argv, sys.excepthook, last.fit, SelfTraining.run = before
    raise ValueError(f"{path} ended without calling fit, so there is nothing to look at.")
