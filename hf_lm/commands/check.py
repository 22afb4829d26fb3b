"""check a model's or an adapter's folder, as a stranger would load it

Loads it in a fresh process, without hf_lm and without a network. Exit code 1, and a list, where anything is wrong.
"""

import argparse

EXAMPLE = "hf-lm check out/pretrain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="output folder of a run, or of anything that save_pretrained wrote")


def run(args: argparse.Namespace) -> None:
    from hf_lm.hub.check import check_folder
    from hf_lm.hub.credentials import printable

    checked = check_folder(args.folder)
    for fact in checked.facts:
        print(f"  ok     {printable(fact)}")
    for wrong in checked.wrong:
        print(f"  wrong  {printable(wrong)}")
    n = len(checked.wrong)
    found = f"{n} thing{'s are' if n > 1 else ' is'} wrong" if n else "as it should be"
    print(printable(f"{args.folder}: {found}"))
    if n:
        raise SystemExit(1)
