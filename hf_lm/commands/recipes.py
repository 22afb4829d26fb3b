"""list the recipes, each with its configurations, and the launch files"""

import argparse

EXAMPLE = "hf-lm recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> None:
    from hf_lm.launching import find_launch_files, find_recipes
    from hf_lm.reporting.terminal import aligned

    rows = []
    for recipe in find_recipes().values():
        rows += [(recipe.name, recipe.said), *(("", f"configs/{path.name}") for path in recipe.configs)]
    print("\n".join(aligned(rows)))
    print("\nhf-lm run NAME --help shows a recipe's options, hf-lm copy NAME puts it here to change.")
    print("\nHow to launch: hf-lm run NAME --config_file FILE, or hf-lm copy FILE to change it.\n")
    print("\n".join(aligned([(f"launch/{name}", what) for name, what in find_launch_files().items()])))
