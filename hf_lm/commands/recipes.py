"""list the recipes, each with its configurations"""

import argparse

EXAMPLE = "hf-lm recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> None:
    from hf_lm.launching import find_recipes
    from hf_lm.reporting.terminal import aligned

    rows = []
    for recipe in find_recipes().values():
        rows += [(recipe.name, recipe.said), *(("", f"configs/{path.name}") for path in recipe.configs)]
    print("\n".join(aligned(rows)))
    print("\nhf-lm run NAME --help shows a recipe's options, hf-lm copy NAME puts it here to change.")
