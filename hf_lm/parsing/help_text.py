"""What a recipe prints for --help: its own options and those of every run; for --help_all the Trainer's too.

An option is described where it is declared: by its `help`, or by the comment that stands beside it in the dataclass.
"""

import inspect
import os
import re
import shutil
import sys
import textwrap
from argparse import Action
from collections.abc import Container, Iterable

from transformers import HfArgumentParser

COMMENT = re.compile(r"^ {4}(\w+): .*?  # (.+(?:\n {4}# .+)*)$", re.MULTILINE)  # and the lines of it that follow
INDENT = 30  # columns before a description
LONG = 50  # characters; more choices than that are not listed
GENERAL = {
    "--config FILE": "a YAML file with any of these names as keys",
    "--print_config": "print what the run would take, and end",
    "--allow_code": "let the YAML file name a function that the run imports",
    "--debug": "errors with a traceback",
}


def comments(owner: type) -> dict[str, str]:
    """Of each field of a dataclass and its bases, the comment that begins in its line; none without its source."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        try:
            texts = COMMENT.findall(inspect.getsource(base))
            found |= {name: text.replace("\n    #", "") for name, text in texts}
        except (OSError, TypeError):  # built in, or typed at a prompt
            continue
    return found


def end_with_help(
    parser: HfArgumentParser, argv: list[str], recipe: type, shared: Container[str], fresh: dict[str, object]
) -> None:
    """Print the help and exit, where argv asks for it.

    parser: has an option for each field of `recipe` and of the training arguments. shared: the training arguments that
    concern every run; the others are the Trainer's, without effect and never shown where `recipe` has `concerns`.
    fresh: defaults that hold where no --model is given.
    """
    if not {"-h", "--help", "--help_all"} & set(argv):
        return
    described = {name: text for owner in parser.dataclass_types for name, text in comments(owner).items()}
    options: dict[str, Action] = {}
    for action in parser._actions:
        options.setdefault(action.dest, action)  # the --no_ form of a boolean has the same and comes later
    del options["help"], options["config"]
    own = [name for base in recipe.__mro__ for name in getattr(base, "__annotations__", ()) if name in options]
    rest = [name for name in options if name not in own and name not in shared]

    def entries(names: Iterable[str]) -> list[str]:
        return [_entry(*_described(options[name], described.get(name, ""), fresh)) for name in names]

    text = [f"{parser.prog} [--option value ...]", "", (parser.description or "").strip(), "", "This recipe:"]
    text += entries(own)
    text += ["", "Every run:", *entries(name for name in options if name in shared)]
    text += [_entry(option, what) for option, what in GENERAL.items()]
    if not hasattr(recipe, "concerns"):
        trainer = ["The Trainer:", *entries(rest)]
        text += ["", *(trainer if "--help_all" in argv else [f"--help_all lists {len(rest)} more, of the Trainer."])]
    try:
        print("\n".join(text), flush=True)
    except BrokenPipeError:  # `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def _described(action: Action, comment: str, fresh: dict[str, object]) -> tuple[str, str]:
    """The option with the kind of its value, and what it is, with its default."""
    words = " ".join((action.help or comment).split()).replace("%%", "%")
    default = _shown(action.default)
    if action.dest in fresh and _shown(fresh[action.dest]) != default:
        default = f"{_shown(fresh[action.dest])}, with --model {default}"
    return f"--{action.dest} {_kind(action)}", f"{words} (default: {default})" if default else words


def _kind(action: Action) -> str:
    choices = "|".join(str(choice) for choice in action.choices or [])
    if choices:
        return choices if len(choices) <= LONG else "NAME"
    if action.nargs == "?":  # HfArgumentParser's booleans
        return "true|false"
    name = {int: "N", float: "X"}.get(action.type, "TEXT")  # type: ignore[arg-type]
    return f"{name} ..." if action.nargs else name


def _shown(value: object) -> str:
    value = getattr(value, "value", value)  # of an enum
    return "" if value in (None, "", []) else str(value)


def _entry(option: str, words: str) -> str:
    width = max(shutil.get_terminal_size().columns, 2 * INDENT)
    first, indent = f"  {option}".ljust(INDENT), " " * INDENT
    if len(first) > INDENT:
        return first + "\n" + textwrap.fill(words, width, initial_indent=indent, subsequent_indent=indent)
    return textwrap.fill(first + words, width, subsequent_indent=indent, break_on_hyphens=False)
