"""see what a recipe would train on: tokens, lengths, padding, labels, copies"""

import argparse

from hf_lm.commands.options import split_options
from hf_lm.parsing.ranges import Count, number

EXAMPLE = "hf-lm inspect summarization --dataset data/ --model out/pretrain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="pretrain, sentiment, question_answering, ... or a file")
    _add_own(parser)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="those of the recipe; `hf-lm inspect RECIPE --help` lists them"
    )


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--examples", type=number(Count), default=5, help="rows shown token by token, at most 5")
    parser.add_argument("--plots", default="", metavar="FOLDER", help="also draw the lengths, as PNG")


def run(args: argparse.Namespace) -> None:
    import shutil

    from hf_lm.inspection.recipe import inspect_recipe
    from hf_lm.inspection.terminal import in_colour, show_inspection
    from hf_lm.reporting.terminal import quiet

    quiet()
    args, rest = split_options(args, _add_own)
    inspection = inspect_recipe(args.recipe, rest, examples=args.examples)
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    print(show_inspection(inspection, colour=in_colour(), width=width))
    if args.plots:
        from hf_lm.reporting.plots import draw_lengths

        print(f"\nIn {draw_lengths(inspection['lengths'], args.plots)}")
