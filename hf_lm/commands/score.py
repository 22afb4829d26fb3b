"""measure any number of models on the same examples, and test which differ beyond noise"""

import argparse

from hf_lm.parsing.ranges import Count, number

EXAMPLE = "hf-lm score out/pretrain gpt2 --dataset texts/ --metrics perplexity"

COLUMNS = ("text_column", "label_column", "source", "target", "question", "context", "answers")
LENGTHS = (
    *("block_size", "eval_stride", "eval_tokens"),
    *("max_length", "stride", "max_source_length", "max_target_length", "num_beams"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder, a Hub id, an adapter, or api:NAME")
    parser.add_argument("--dataset", required=True, help="a demo, a file, a folder, a glob or a Hub id")
    parser.add_argument("--task", default="", help="perplexity, or the name of a recipe, such as sentiment")
    parser.add_argument("--metrics", nargs="+", default=[], help="some of the task's; perplexity and rouge are groups")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--limit", type=number(Count), default=0, help="examples, drawn at random, or the first documents; 0 is all"
    )
    parser.add_argument("--output", default="scores.json", help="a picture of the same name is drawn")
    parser.add_argument("--again", action="store_true", help="ignore the cache")
    columns = parser.add_argument_group("columns", "those of a model's own run on this data unless given")
    for name in COLUMNS:
        columns.add_argument(f"--{name}", default="", metavar="COLUMN")
    columns.add_argument("--document_start", default="", metavar="REGEX", help="the line that begins a document")
    columns.add_argument("--max_bytes", default=0, type=number(Count), metavar="N", help="text read of each split")
    lengths = parser.add_argument_group("settings", "each model is measured as its own run was unless given")
    for name in LENGTHS:
        lengths.add_argument(f"--{name}", type=number(Count), default=0, metavar="N")
    api = parser.add_argument_group("models behind an API", "the key is read from OPENAI_API_KEY")
    api.add_argument("--base_url", default="", help="an OpenAI-compatible address, such as http://127.0.0.1:8000/v1")
    api.add_argument("--few_shot", type=number(Count), default=0, metavar="N", help="examples of train in the prompt")
    api.add_argument("--instruction", default="", help="replaces the task's own in the prompt")
    harness = parser.add_argument_group("lm-evaluation-harness")
    harness.add_argument("--harness", default="", metavar="TASK,...", help="its tasks by name, or YAML files of tasks")
    harness.add_argument(
        "--card", action="store_true", help="put the harness' numbers into the card and .eval_results/"
    )


def run(args: argparse.Namespace) -> None:
    from hf_lm.scoring.score import score
    from hf_lm.scoring.scoreboard import announce_output, save_scores, show_scores

    announce_output(args.output)
    tasks = [task for task in args.harness.split(",") if task]
    if tasks:
        from hf_lm.scoring.harness import check_harness

        check_harness(args.models, card=args.card)
    elif args.card:
        raise ValueError("--card puts numbers of --harness into the card: name its tasks.")
    result = score(
        args.models,
        dataset=args.dataset,
        task=args.task,
        metrics=args.metrics,
        split=args.split,
        columns={name: getattr(args, name) for name in (*COLUMNS, "document_start", "max_bytes")},
        settings={name: getattr(args, name) for name in LENGTHS},
        limit=args.limit,
        base_url=args.base_url,
        few_shot=args.few_shot,
        instruction=args.instruction,
        again=args.again,
    )
    if tasks:
        from hf_lm.scoring.benchmarks import write_benchmarks
        from hf_lm.scoring.harness import add_to_card, run_harness

        for model, entry in result["models"].items():
            entry["harness"] = run_harness(model, tasks)
            if args.card:
                add_to_card(model, entry["harness"])
                for sentence in write_benchmarks(model, entry["harness"]):
                    print(sentence)
    show_scores(result)
    print("\nIn " + " and ".join(map(str, save_scores(result, args.output))))
