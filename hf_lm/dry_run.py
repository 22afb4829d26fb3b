"""A dry run: a recipe up to the point where training would begin, its model, its task and its arguments.

What must behave differently in one asks this module. A dry run trains nothing, writes nothing into the output folder
and deletes nothing.
"""

import runpy
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_lm.launching import recipe_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sample = Callable[..., tuple[Iterable[str], Path]]  # see `sampled`


class FitCall(NamedTuple):
    """What a recipe hands to `fit`; `options` are its keywords. A task is known on a level above this one."""

    model: "PreTrainedModel"
    task: object
    training_args: Any
    options: dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """What a dry run asks of the library; the defaults are those outside of one."""

    recipe: str = ""
    arguments: Sequence[str] | None = None  # the tokens of the recipe's command line; None: the process' own
    bf16: bool | None = None  # whether the device it is for multiplies in bfloat16; None asks this machine
    sample: Sample | None = None
    tokens: int = 0  # of the training text that it is for; 0: the text that the recipe reads
    arguments_only: bool = False


class _Reached(BaseException):  # no `except Exception` of a recipe may go on to train
    pass


OUTSIDE = Mode()
_mode: ContextVar[Mode] = ContextVar("dry_run", default=OUTSIDE)
mode = _mode.get


def run_recipe(
    recipe: str,
    arguments: Sequence[str] = (),
    *,
    bf16: bool | None = None,
    sample: Sample | None = None,
    tokens: int = 0,
) -> FitCall:
    """Run a recipe, by its name or its file, until it calls `fit`; returns what it calls it with.

    `arguments` are the recipe's own, as on its command line. The recipe runs with its defaults and its
    `parse_arguments`, so that nothing here can disagree with training; the price is that the model is built.
    Self-training, which trains before it calls `fit`, ends where its first training would begin. `bf16` says whether
    the device multiplies in bfloat16; None asks this machine. `sample`: see `sampled`. `tokens`: those of the
    training text that the run is planned for, whatever the recipe reads here; 0 where that is the text itself. Raises
    what the recipe raises, and ValueError where it does not call `fit`.
    """
    return _run(Mode(recipe, [str(token) for token in arguments], bf16, sample, tokens))


def parse_recipe(recipe: str, arguments: Sequence[str] = ()) -> Any:
    """A recipe's own Arguments, resolved, without running its `main`. Raises what `parse_arguments` raises."""
    return _run(Mode(recipe, [str(token) for token in arguments], arguments_only=True))


def _run(asked: Mode) -> Any:
    path = recipe_path(asked.recipe)
    before = _mode.set(asked)
    try:
        runpy.run_path(str(path), run_name="__main__")
    except _Reached as end:
        return end.args[0]
    finally:
        _mode.reset(before)
    raise ValueError(f"{path} ended without calling fit, so there is nothing to look at.")


# What the library asks


def active() -> bool:
    """Whether this is a dry run."""
    return mode() is not OUTSIDE


def parsed(args: object) -> None:
    """`parse_arguments` has the recipe's Arguments: the end of a dry run that asked for no more."""
    if mode().arguments_only:
        raise _Reached(args)


def reached(model: "PreTrainedModel", task: object, training_args: object, **options: object) -> None:
    """Training would begin here: the end of a dry run. Does nothing outside of one."""
    if active():
        raise _Reached(FitCall(model, task, training_args, options))


def refuse() -> None:
    """Raise ValueError in a dry run: its recipe is about to train, or to write, before it calls `fit`."""
    if recipe := mode().recipe:
        raise ValueError(
            f"{Path(recipe).stem} trains or writes before it calls fit, and a plan or an inspection shows what a "
            "recipe hands to fit: there is nothing to look at. Nothing was trained or written. To run it: "
            f"hf-lm run {recipe}"
        )


def sampled(documents: Iterable[str], folder: Path, *, split: str, size: int) -> tuple[Iterable[str], Path]:
    """The documents of a split to tokenize and the folder for their tokens: both as given, or a dry run's sample.

    `size`: bytes of the corpus' training text, estimated.
    """
    sample = mode().sample
    return sample(documents, folder, split, size) if sample else (documents, folder)
