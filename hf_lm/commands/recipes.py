"""list the recipes, each with its configurations"""

import argparse

EXAMPLE = "hf-lm recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> None:
    from hf_lm.launching import find_recipes

    recipes = find_recipes()
    width = max(map(len, recipes)) + 2
    for recipe in recipes.values():
        print(f"{recipe.name:<{width}}{recipe.said}")
        for path in recipe.configs:
            print(f"{'':<{width}}configs/{path.name}")
    print("\nhf-lm run NAME --help shows a recipe's options, hf-lm copy NAME puts it here to change.")
