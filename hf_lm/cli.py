"""The command hf-lm. Nothing heavy is imported before a subcommand needs it."""

import argparse
import difflib
import sys
from importlib import import_module
from typing import NoReturn

from hf_lm import __version__

COMMANDS = ("push", "predict", "score", "compare")  # as `hf-lm --help` lists them; each is a module of hf_lm.commands


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if "argument COMMAND: invalid choice" in message:
            word = message.split("'")[1]
            near = difflib.get_close_matches(word, COMMANDS, n=1)
            message = f"there is no command {word!r}; there are {', '.join(COMMANDS)}."
            message += f" Did you mean {near[0]!r}?" if near else ""
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-lm", description="From text to a published language model.")
    parser.add_argument("--version", action="version", version=f"hf-lm {__version__}")
    parser.add_argument("--debug", action="store_true", help="errors with a traceback")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"hf_lm.commands.{name}")
        added = commands.add_parser(
            name, help=command.__doc__, description=command.__doc__, epilog=f"example: {command.EXAMPLE}"
        )
        command.add_arguments(added)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a subcommand. An error is one line on stderr and exit code 1; a wrong usage has exit code 2."""
    args = build_parser().parse_args(argv)
    try:
        import_module(f"hf_lm.commands.{args.command}").run(args)
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
