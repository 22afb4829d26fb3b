"""add an adapter's updates to its base model: a folder that loads without peft"""

import argparse

EXAMPLE = "hf-lm merge out/sentiment/adapter out/merged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="folder of the adapter")
    parser.add_argument("output", nargs="?", help="folder of the merged model; `merged` beside the adapter by default")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from hf_lm.models.adapters import merge_adapter
    from hf_lm.reporting.terminal import quiet

    quiet()
    output = args.output or str(Path(args.adapter).resolve().parent / "merged")
    merge_adapter(args.adapter, output)
    print(f"merged into {output}; hf-lm check {output} checks it")
