"""Two processes on two cores against one process on one: tokens a second and core, as a ratio.

    python tests/benchmarks/processes.py --data wikitext-2 [--runs 2] [--rows 16 64] [--options "--bf16 false"]

Runs recipes/pretrain.py on the track's model (4 layers of 256, blocks of 128), one run of each in turn. Every process
has one thread and `--rows` rows a step. The figure of a run is the median of what its log says after the first lines.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "pretrain.py"
TRACK = "--n_layer 4 --n_head 4 --n_embd 256 --block_size 128 --vocab_size 4096 --document_start '^ = [^=].* = $'"
LOG = "--disable_tqdm true --eval_strategy no --save_strategy no --use_cpu"


def tokens_per_second(processes: int, options: list[str]) -> float:
    """Of all processes together, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))[:processes]
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, *launch, str(RECIPE), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--output_dir", f"{folder}/out"], check=True, capture_output=True, text=True, env=environment
        )
    logged = [float(value) for value in re.findall(r"'tokens_per_second': '([\d.e+]+)'", done.stdout)]
    return statistics.median(logged[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as --dataset of the recipe")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64], help="of a process and step")
    parser.add_argument("--tokens", type=int, default=245_760, help="that a process trains on")
    parser.add_argument("--options", default="", help="more options of the recipe")
    parser.add_argument("--runs", type=int, default=2)
    args = parser.parse_args()

    for rows in args.rows:
        steps = args.tokens // (128 * rows)
        options = [*shlex.split(f"{TRACK} {LOG} {args.options}"), "--dataset", args.data]
        options += ["--per_device_train_batch_size", str(rows), "--max_steps", str(steps)]
        options += ["--logging_steps", str(max(1, steps // 10))]
        speeds = [(tokens_per_second(1, options), tokens_per_second(2, options)) for _ in range(args.runs)]
        for one, two in speeds:
            ratio = round(two / 2 / one, 3)
            print(json.dumps({"rows": rows, "one": one, "two": two, "efficiency": ratio}), flush=True)


if __name__ == "__main__":
    main()
