"""The plan of five short runs on this machine against what the runs then take: peak memory and seconds.

    python tests/benchmarks/plan.py [--device auto] [--only N] [--keep FOLDER]

Each configuration is planned twice, from assumptions and with --calibrate, and then run, each in a process of its own;
seconds and peak memory of a run are those of its report.json. On a GPU the memory is that of the tensors: what the
plan adds for the context and the allocator is left out, as `torch.cuda.max_memory_allocated` leaves it out. Start it
on a quiet machine: what else runs between the calibration and the run shows as an error of the time alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent

EVERY = ("--logging_steps", "10", "--save_total_limit", "1", "--disable_tqdm", "true")
SHORT = (*EVERY, "--max_steps", "60", "--eval_steps", "30", "--save_steps", "30")
RUNS = {
    "GPT-2 tiny, 16 x 128, Muon": ["pretrain", *SHORT],
    "GPT-2 mini, 4 x 256, AdamW, checkpointing": [
        *("pretrain", "--size", "mini", "--block_size", "256", "--per_device_train_batch_size", "4", *SHORT),
        *("--muon_learning_rate", "0", "--learning_rate", "1e-3", "--activation_checkpointing", "true"),
    ],
    "LSTM, 16 x 128": ["pretrain", "--architecture", "lstm", *SHORT],
    "BERT, 32 rows, sentiment": ["sentiment", *EVERY],
    "BART, 32 rows, translation": ["translation", "--num_train_epochs", "1", *EVERY],
}


def run(command: list[str], log: Path) -> None:
    with log.open("w") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{log.read_text()[-2000:]}")


def memory(plan: dict) -> int:
    """Bytes to compare with a run's: of the process on a CPU, of the tensors on a GPU."""
    if plan["device"]["name"] == "cpu":
        return plan["needed"]
    return sum(size for kind, size in plan["memory"].items() if kind != "context and allocator")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, help="number of one configuration, from 0")
    parser.add_argument("--device", choices=("cpu", "auto"), default="cpu", help="auto: this machine's GPU, if any")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works; no result")
    parser.add_argument("--keep", type=Path, help="folder to leave plans, runs and logs in")
    args = parser.parse_args()
    device = ["--device", "cpu"] if args.device == "cpu" or not torch.cuda.is_available() else []
    with tempfile.TemporaryDirectory() as aside:
        folder = (args.keep or Path(aside)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        print(
            "| run | | planned | calibrated | measured | error of the calibrated |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for number, (name, (recipe, *options)) in enumerate(RUNS.items()):
            if args.only not in (None, number):
                continue
            options += ["--max_steps", "6"] if args.quick else []
            plans, out = [], folder / f"run-{number}"
            for calibrate in ([], ["--calibrate"]):
                path = folder / f"plan-{number}{''.join(calibrate)}.json"
                command = [sys.executable, "-m", "hf_lm.cli", "plan", recipe, *options, *device, *calibrate]
                run([*command, "--json", str(path)], path.with_suffix(".log"))
                plans.append(json.loads(path.read_text()))
            command = [sys.executable, f"recipes/{recipe}.py", *options, *(["--use_cpu", "true"] if device else [])]
            run([*command, "--output_dir", str(out), "--overwrite_output_dir", "true"], folder / f"run-{number}.log")
            report = json.loads((out / "report.json").read_text())
            for what, planned, measured, unit in (
                (
                    "memory",
                    [memory(plan) / 2**20 for plan in plans],
                    report["speed"]["peak_memory_bytes"] / 2**20,
                    "MiB",
                ),
                ("time", [plan["seconds"] for plan in plans], report["plan"]["took"], "s"),
            ):
                first, second = planned
                error = f"{second / measured - 1:+.0%}"
                row = (
                    name if what == "memory" else "",
                    what,
                    *(f"{x:,.0f} {unit}" for x in (first, second, measured)),
                    error,
                )
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
