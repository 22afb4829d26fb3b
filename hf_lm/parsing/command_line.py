"""Tokens of the command line and values of a YAML file, read by one parser; an error is a ValueError in one line."""

import json
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NoReturn

from accelerate.utils import gather_object
from transformers import HfArgumentParser

from hf_lm.parsing.config_file import check_kind, check_text
from hf_lm.parsing.ranges import check_ranges
from hf_lm.parsing.suggestions import closest, did_you_mean

CODE = "names a function"
OF_ONE_PROCESS = ("output_dir", "report_to", "run_name", "disable_tqdm", "log_level")  # may be others on a machine
Function = Annotated[str, CODE]  # a name of ours, a folder, or module:function, which --config alone may not give


class Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def take_flag(argv: list[str], flag: str) -> bool:
    """Remove a bare flag from argv. `--debug underflow_overflow`, the Trainer's own option, has a value and stays."""
    for i, token in enumerate(argv):
        if token == flag and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
            del argv[i]
            return True
    return False


def option_value(argv: list[str], name: str) -> str | None:
    for i, token in enumerate(argv):
        if token == name and i + 1 < len(argv):
            return argv[i + 1]
        if token.startswith(f"{name}="):
            return token.split("=", 1)[1]
    return None


def check_keys(keys: Iterable[str], own: set[str], where: str) -> None:
    for key in keys:
        if key not in own:
            raise ValueError(f"{where}: unknown key {key!r}.{did_you_mean(key, own)}")


def parse_value(parser: Parser, key: str, value: object, kind: object, where: str) -> Any:
    """Validate one YAML value as if it had been typed."""
    check_kind(f"{where}: {key}", value, kind)
    if value is None or value == []:
        return value
    if isinstance(value, list):
        tokens = [str(item) for item in value]
        if not any(action.dest == key and action.nargs for action in parser._actions):
            return tokens  # the Trainer takes a list here, and its command line does not
    else:
        tokens = [json.dumps(value) if isinstance(value, dict) else str(value)]
    try:
        # `--key=value` keeps a value that begins with a dash from being read as an option.
        arguments = [f"--{key}={tokens[0]}"] if len(tokens) == 1 else [f"--{key}", *tokens]
        return getattr(parser.parse_args(arguments), key)
    except ValueError as error:
        raise ValueError(f"{where}: {_plain(str(error))}") from None


def parse_command_line(parser: Parser, argv: list[str], own: set[str]) -> Namespace:
    if stray := next((token for token in argv if token == "--" or token.endswith("=--")), ""):  # argparse drops it
        raise ValueError(f"command line: unexpected {stray!r}; options are given as --key value.")
    try:
        namespace, unknown = parser.parse_known_args(argv)
    except ValueError as error:
        raise ValueError(f"command line: {_plain(str(error))}") from None
    for token in unknown:
        if token.startswith("--"):
            key = token[2:].split("=")[0].replace("-", "_")
            near = closest(key, own | {"config", "print_config", "allow_code", "debug", "help", "help_all"})
            hint = f" Did you mean --{near}?" if near else ""
            raise ValueError(f"command line: unknown option --{key}.{hint}")
    if unknown:
        raise ValueError(f"command line: unexpected argument {unknown[0]!r}; options are given as --key value.")
    return namespace


def _plain(message: str) -> str:
    """argparse's message with one spelling of the option and the closest choice."""
    message = re.sub(r"argument (--\w+)(?:/--[\w-]+)*: ", lambda m: f"{m[1]}: ", message)
    if match := re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
        choices = [choice.strip().strip("'") for choice in match[2].split(",")]
        message += f".{did_you_mean(match[1], choices)}"
    return message


def refuse_code(given: dict[str, Any], kinds: dict[str, Any], where: str) -> None:
    """Raise ValueError where a file, which may be a stranger's run.yaml, names a function that would be imported."""
    for key, value in given.items():
        if CODE in getattr(kinds[key], "__metadata__", ()) and re.fullmatch(r"[\w.]+:\w+", str(value)):
            raise ValueError(
                f"{where}: {key} is {value}, a function that the run would import: look at it, then give --allow_code."
            )


def check_values(resolved: dict[str, Any], kinds: dict[str, Any], origin: dict[str, str]) -> None:
    """Raise ValueError for a value that its argument cannot have, with where it was given."""
    if not resolved["output_dir"]:
        raise ValueError(f"{origin.get('output_dir', '--')}output_dir is empty: name a folder.")
    places = dict.fromkeys(kinds, "--") | origin
    for key, kind in kinds.items():
        check_text(f"{places[key]}{key}", resolved[key], kind)
    check_ranges(resolved, kinds, places)


def check_same_arguments(arguments: Mapping[str, object]) -> None:
    """Raise ValueError, on every process of a run, where one was started with others than the first; each must ask."""
    seen = gather_object([{key: value for key, value in arguments.items() if key not in OF_ONE_PROCESS}])
    first = seen[0]
    for process, own in enumerate(seen):
        if differ := [name for name in {**first, **own} if own.get(name) != first.get(name)]:
            details = ", ".join(f"{name} {first.get(name)!r} and {own.get(name)!r}" for name in differ)
            raise ValueError(
                f"process {process} was started with other arguments than process 0: {details}. Start the same "
                "command on each machine."
            )
