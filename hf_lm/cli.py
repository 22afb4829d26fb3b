"""The command hf-lm. Nothing heavy is imported before a subcommand needs it."""

import argparse
import difflib
import sys
from collections.abc import Callable
from typing import NoReturn

from hf_lm import __version__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message:
            word = message.split("'")[1]
            near = difflib.get_close_matches(word, COMMANDS, n=1)
            message = f"there is no command {word!r}; there are {', '.join(COMMANDS)}."
            message += f" Did you mean {near[0]!r}?" if near else ""
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


def push(args: argparse.Namespace) -> None:
    from hf_lm.hub import push_to_hub

    print(push_to_hub(args.folder, args.repo_id, private=args.private))


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def predict(args: argparse.Namespace) -> None:
    from hf_lm.predicting import predict

    lines = predict(args.task, args.model, args.input, args.output, column=args.column)
    print(f"{lines:,} predictions in {args.output}")


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="sentiment, question_answering, summarization or translation")
    parser.add_argument("model", help="a folder or a Hub id")
    parser.add_argument("input", help="a .txt file with an input a line, or a table (.jsonl .csv .tsv .parquet ...)")
    parser.add_argument("--output", default="predictions.jsonl", help="kept and continued if it is there")
    parser.add_argument("--column", default="", help="column of the table that is read; guessed if not given")


COMMANDS: dict[str, tuple[Callable, Callable, str, str]] = {
    "push": (
        push,
        _push_arguments,
        "upload a finished run to the Hub, in one commit",
        "hf-lm push out/pretrain me/gpt2",
    ),
    "predict": (
        predict,
        _predict_arguments,
        "run a model over a file, from where it was stopped",
        "hf-lm predict sentiment out/sentiment reviews.txt --output predictions.jsonl",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run a subcommand. An error is one line on stderr and exit code 1; a wrong usage has exit code 2."""
    parser = _Parser(prog="hf-lm", description="From text to a published language model.")
    parser.add_argument("--version", action="version", version=f"hf-lm {__version__}")
    parser.add_argument("--debug", action="store_true", help="errors with a traceback")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, add_arguments, said, example) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=said, description=said, epilog=f"example: {example}"))
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command][0](args)
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
