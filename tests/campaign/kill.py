"""Kill runs with SIGKILL at random moments, go on with the documented command, and compare with a run left alone.

    python tests/campaign/kill.py --trials 160 --saves 40

A trial holds where `--resume_from_checkpoint latest` alone, however often the run was killed, ends with the weights,
the optimizer's state, the random state, the log history, the metrics, the predictions and the files of a run that was
left alone. `--trials` are killed at a moment drawn from the run's CPU time; `--saves` before an operation on a file
(open, rename, remove) drawn from those that save or remove a checkpoint, or save the model.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import runs


def kill_before(folder: Path, at: int) -> Callable[[], None]:
    """For the fork: SIGKILL to itself before the operation of number `at` on a path in `folder`."""

    def install() -> None:
        number, inside = 0, str(folder)

        def hook(event: str, args: tuple) -> None:
            nonlocal number
            if runs.is_write(event, args, inside):
                number += 1
                if number == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return install


def go_on(setting: runs.Setting, out: Path, log: Path, draw: random.Random, seconds: float) -> tuple[str, int]:
    """Resume until the run ends, killed again one time in four; returns what failed, and how often it was killed."""
    kills = 0
    for _ in range(6):
        child = runs.start(setting.command(out, "--resume_from_checkpoint", "latest"), log)
        limit = draw.uniform(0, seconds) if draw.random() < 0.25 else float("inf")
        if child.wait(lambda child=child, limit=limit: child.cpu_seconds() >= limit) is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
        elif child.status == 0:
            return "", kills
        elif child.status != -signal.SIGKILL:
            return child.error(), kills
    return "was killed six times", kills


def trial(reference: runs.Reference, draw: random.Random, saves: list[int], kills: list[int], folder: Path) -> str:
    """Kill one run before one of the operations `saves` or, without, at a moment; then go on and compare.

    Appends the number of kills to `kills`: one more than those of `go_on`, or none where the run ended before.
    """
    setting, out, log = reference.setting, folder / "out", folder / "out.log"
    if saves:
        child = runs.start(setting.command(out), log, before=kill_before(out, draw.choice(saves)))
        child.wait()
    else:
        child, limit = runs.start(setting.command(out), log), draw.uniform(0, reference.cpu_seconds)
        if child.wait(lambda: child.cpu_seconds() >= limit) is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    failure, number = go_on(setting, out, log, draw, reference.cpu_seconds)
    if not failure:
        failure = ", ".join(reference.differences(out))
    if not failure and log.exists() and "Traceback (most" in log.read_text(errors="replace"):
        failure = "a traceback"
    kills.append(number + (child.status == -signal.SIGKILL))
    return failure


def main() -> None:
    saves = {"type": int, "default": 40, "help": "runs killed within a save (default 40)"}
    args = runs.parse(__doc__, trials=160, saves=saves)
    draw, total, failed = random.Random(args.seed), 0, 0
    for reference, folder, share in runs.each_setting(args):
        for kind, trials, saves in (("within a save", args.saves, reference.saves), ("at a moment", args.trials, [])):
            kills: list[int] = []
            failures = runs.trials_in(folder, share(trials), partial(trial, reference, draw, saves, kills))
            runs.report(f"SIGKILL {kind}, {reference.setting.name} ({sum(kills)} kills)", failures)
            total, failed = total + sum(kills), failed + sum(map(bool, failures))
    print(f"{total} kills, {failed} runs that did not hold")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
