"""run a recipe with `accelerate launch`

Options before the recipe's name are accelerate's, those after it the recipe's, untouched. --num_processes,
--num_machines, --machine_rank, --main_process_ip, --main_process_port, --gpu_ids and --config_file are accelerate's
wherever they come; --config_file takes a path or the name of a launch file (hf-lm recipes lists them).
`hf-lm run NAME --help` lists the recipe's options.
"""

import argparse

EXAMPLE = """hf-lm run sentiment --dataset reviews.tsv --output_dir out/reviews
hf-lm run --mixed_precision bf16 summarization --num_processes 4 --lora_rank 16
hf-lm run pretrain --num_processes 2 --use_cpu
hf-lm run my_recipe.py --config my.yaml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="its name, or the path of a script")
    parser.add_argument("arguments", nargs="*", metavar="--OPTION VALUE", help="the recipe's options")


def run(args: argparse.Namespace) -> None:
    from hf_lm.launching import launch

    launch(args.arguments)
