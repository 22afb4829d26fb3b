"""put a recipe and its configurations, or a launch file, into a folder, to change them"""

import argparse

EXAMPLE = """hf-lm copy sentiment
hf-lm copy slurm.sh
hf-lm copy pretrain experiments && hf-lm run experiments/pretrain.py --max_steps 100"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's or a launch file's name, as `hf-lm recipes` lists it")
    parser.add_argument("folder", nargs="?", default=".", help="made if it is not there; here by default")


def run(args: argparse.Namespace) -> None:
    from hf_lm.launching import copy_recipe

    written = copy_recipe(args.recipe, args.folder)
    print(f"wrote {', '.join(map(str, written))}")
    if written[0].suffix == ".py":
        print(f"run it with: hf-lm run {written[0]}")
