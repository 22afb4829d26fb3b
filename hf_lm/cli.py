"""The command hf-lm. Nothing heavy is imported before a subcommand needs it.

Exit codes: 0, 1 for an error, 2 for a wrong usage, 130 for Ctrl-C, 143 for SIGTERM; `hf-lm run` has its recipe's.
"""

import argparse
import atexit
import gc
import os
import sys
from importlib import import_module
from typing import NoReturn

from hf_lm.hub.credentials import error_line, masked_traceback
from hf_lm.parsing.suggestions import UsageError, did_you_mean
from hf_lm.version import __version__

COMMANDS = (  # as `hf-lm --help` lists them; each is a module of hf_lm.commands
    "recipes",
    "copy",
    "plan",
    "inspect",
    "run",
    "generate",
    "write",
    "chat",
    "demo",
    "predict",
    "score",
    "compare",
    "reproduce",
    "check",
    "merge",
    "export",
    "push",
    "completion",
)


class _Parser(argparse.ArgumentParser):
    """One that says a wrong usage in one line, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        if "argument COMMAND: invalid choice" in message:
            word = message.split("'")[1]
            message = f"there is no command {word!r}; there are {', '.join(COMMANDS)}.{did_you_mean(word, COMMANDS)}"
        elif "COMMAND" in message:
            message = f"give a command: {', '.join(COMMANDS)}. hf-lm --help says what each does."
        print(f"error: {error_line(ValueError(message))}", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-lm", description="From text to a published language model.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"hf-lm {__version__}")
    parser.add_argument("--debug", action="store_true", help="errors with a traceback")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"hf_lm.commands.{name}")
        help, _, more = (command.__doc__ or "").partition("\n")
        examples = command.EXAMPLE.splitlines()
        added = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.\n{more}".rstrip(),
            epilog=f"example: {examples[0]}" if len(examples) == 1 else "\n  ".join(["examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(parser=parser, subparser=added)
        command.add_arguments(added)
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser()
    at = next((i for i, token in enumerate(argv) if not token.startswith("-")), len(argv))
    if argv[at : at + 1] == ["run"] and argv[at + 1 :] and argv[at + 1] not in ("-h", "--help"):
        args = parser.parse_args([*argv[: at + 1], "recipe"])
        args.arguments = argv[at + 1 :]  # all of it for accelerate and the recipe, which look at it themselves
        return args
    args, unknown = parser.parse_known_args(argv)
    for token in unknown:
        option = token.split("=")[0]
        if option.startswith("-"):
            there = [option for action in args.subparser._actions for option in action.option_strings]
            hint = did_you_mean("--" + option.lstrip("-").replace("-", "_"), there)
            parser.error(f"hf-lm {args.command} has no option {option}.{hint}")
        parser.error(f"hf-lm {args.command} has no argument {token!r}.")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run a subcommand. An error is one line on stderr and exit code 1; a wrong usage has exit code 2."""
    args = _parse(list(sys.argv[1:] if argv is None else argv))
    atexit.register(gc.freeze)  # as of a recipe (hf_lm.arguments)
    try:
        import_module(f"hf_lm.commands.{args.command}").run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `hf-lm recipes | head`: whoever read is gone, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SystemExit:
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if args.debug:
            sys.excepthook = masked_traceback
            raise
        print(f"error: {error_line(error)}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


if __name__ == "__main__":
    main()
