"""From start and end logits to answers, for 10,000 questions: the recipe's way against a loop over the best spans.

    python tests/benchmarks/answers.py [--questions 10000] [--rounds 3]

The loop is the usual one: of each window the 20 best starts with the 20 best ends, the best pair kept. Both answer
from the same random logits and give the same spans, except where the best pair is not among these 400.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from hf_lm.tasks.spans import LONGEST_ANSWER, best_spans

WINDOW, QUESTION, AT_ONCE = 384, 16, 64  # tokens, tokens, windows that a model reads together


def ours(start: torch.Tensor, end: torch.Tensor) -> list[tuple[int, int]]:
    found = []
    for i in range(0, len(start), AT_ONCE):
        rows = min(AT_ONCE, len(start) - i)
        first, length = torch.full((rows,), QUESTION), torch.full((rows,), WINDOW - QUESTION - 1)
        _, begins, ends = best_spans(start[i : i + rows], end[i : i + rows], first=first, length=length)
        found += zip(begins.tolist(), ends.tolist(), strict=True)
    return found


def loop(start: torch.Tensor, end: torch.Tensor) -> list[tuple[int, int]]:
    found = []
    for starts, ends in zip(start.numpy(), end.numpy(), strict=True):
        best = (-np.inf, 0, 0)
        for begin in np.argsort(starts)[:-21:-1].tolist():
            for stop in np.argsort(ends)[:-21:-1].tolist():
                inside = QUESTION <= begin <= stop < min(begin + LONGEST_ANSWER, WINDOW - 1)
                if inside and starts[begin] + ends[stop] > best[0]:
                    best = (starts[begin] + ends[stop], begin, stop)
        found.append(best[1:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    start, end = torch.randn(2, args.questions, WINDOW)
    found = {}
    for _ in range(args.rounds):
        for name, answer in (("ours", ours), ("loop", loop)):
            began = time.perf_counter()
            spans = answer(start, end)
            found.setdefault(name, []).append(time.perf_counter() - began)
            print(f"{name}: {found[name][-1]:.2f} s for {args.questions:,} questions", flush=True)
            found[f"{name} spans"] = spans
    same = sum(a == b for a, b in zip(found["ours spans"], found["loop spans"], strict=True))
    ratio = statistics.median(a / b for a, b in zip(found["ours"], found["loop"], strict=True))
    print(f"{same:,} spans are the same; median {statistics.median(found['ours']):.2f} s (2 s is the aim)")
    print(f"median ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
