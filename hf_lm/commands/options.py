"""Options of a command that may stand before or after those of a recipe."""

import argparse
from collections.abc import Callable


def split_options(
    args: argparse.Namespace, add_options: Callable[[argparse.ArgumentParser], None]
) -> tuple[argparse.Namespace, list[str]]:
    """A command's own options, wherever they stand, and the rest, which are the recipe's. Raises ValueError.

    Where help is asked for behind the recipe's name, that of the command stands before the recipe's.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser)
    parser.set_defaults(**vars(args))
    if {"-h", "--help", "--help_all"} & set(args.arguments):
        args.subparser.print_help()
        print()
    try:
        return parser.parse_known_args(args.arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
