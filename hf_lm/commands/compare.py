"""test whether finished runs differ beyond noise, from their predictions on the same examples"""

import argparse

EXAMPLE = "hf-lm compare out/a out/b"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="output folders of two or more runs")
    parser.add_argument("--metrics", nargs="+", default=[], help="some of the task's; perplexity and rouge are groups")
    parser.add_argument("--split", default="", help="validation or test (default: test where all have it)")
    parser.add_argument("--output", default="", help="a file such as scores.json; a picture of the same name is drawn")


def run(args: argparse.Namespace) -> None:
    from hf_lm.scoring.compare_runs import compare_runs
    from hf_lm.scoring.scoreboard import announce_output, save_scores, show_scores

    if args.output:
        announce_output(args.output)
    result = compare_runs(args.runs, metrics=args.metrics, split=args.split)
    show_scores(result)
    if args.output:
        print("\nIn " + " and ".join(map(str, save_scores(result, args.output))))
