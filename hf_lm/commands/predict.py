"""run a model over a file, from where it was stopped"""

import argparse

EXAMPLE = "hf-lm predict sentiment out/sentiment reviews.txt --output predictions.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="the name of its recipe, such as sentiment")
    parser.add_argument("model", help="a folder or a Hub id")
    parser.add_argument("input", help="a .txt file with an input a line, or a table (.jsonl .csv .tsv .parquet ...)")
    parser.add_argument(
        "--output", default="predictions.jsonl", help="default predictions.jsonl; an existing one is continued"
    )
    parser.add_argument(
        "--column",
        default="",
        help="column that is read, guessed if not given; of question answering QUESTION,CONTEXT",
    )


def run(args: argparse.Namespace) -> None:
    from hf_lm.inference.predict import predict
    from hf_lm.reporting.terminal import quiet

    quiet()
    lines = predict(args.task, args.model, args.input, args.output, column=args.column)
    print(f"{lines:,} predictions in {args.output}")
