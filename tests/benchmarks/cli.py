"""How long the command line takes to answer, in a fresh process each time.

python tests/benchmarks/cli.py --n 20
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = (["--help"], ["--version"], ["recipes"], ["run", "--help"], ["completion", "bash"])


def main(n: int) -> None:
    for command in ([sys.executable, "-c", "pass"], *([sys.executable, "-m", "hf_lm.cli", *c] for c in COMMANDS)):
        seconds = []
        for _ in range(n):
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            seconds.append(time.perf_counter() - started)
        shown = "python -c pass" if command[1] == "-c" else f"hf-lm {' '.join(command[3:])}"
        print(f"{shown:<24} median {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s of {n}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20, help="times each command is started")
    main(parser.parse_args().n)
