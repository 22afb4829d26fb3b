"""Kill runs with SIGKILL at random moments, go on with the documented command, and compare with a run left alone.

    python tests/campaign/kill.py --trials 160 --saves 40

A trial holds where `--resume_from_checkpoint latest` alone, however often the run was killed, ends with the weights,
the optimizer's state, the random state, the log history, the metrics, the predictions and the files of a run that was
left alone. `--trials` are killed at a moment drawn from the run's CPU time; `--saves` before a file operation (open,
rename, remove) drawn from those inside the output folder.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import runs

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir")


def is_write(event: str, args: tuple, inside: str) -> bool:
    """Whether an audit event is an operation that changes a file or folder below `inside`."""
    if event not in OPERATIONS or not args or inside not in str(args[0]):
        return False
    return event != "open" or (isinstance(args[1], str) and bool(set(args[1]) & set("wax+")))


def watch_files(folder: Path, at: int, count: Path | None = None) -> Callable[[], None]:
    """For the fork: SIGKILL to itself before the operation of number `at` on a path in `folder`; or count them all."""

    def install() -> None:
        number, inside = 0, str(folder)

        def hook(event: str, args: tuple) -> None:
            nonlocal number
            if not is_write(event, args, inside):
                return
            number += 1
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if count is not None:
                descriptor = os.open(count, os.O_WRONLY | os.O_CREAT)
                os.write(descriptor, str(number).encode())
                os.close(descriptor)

        sys.addaudithook(hook)

    return install


def count_operations(setting: runs.Setting, folder: Path) -> tuple[int, Path]:
    """How many operations on files a run makes in its output folder, and that folder."""
    counted, out = folder / "count", folder / "counted"
    runs.start(setting.command(out), folder / "counted.log", before=watch_files(out, 0, counted)).wait()
    return int(counted.read_text()), out


def go_on(setting: runs.Setting, out: Path, log: Path, draw: random.Random, seconds: float) -> tuple[str, int]:
    """Resume until the run ends, killed again one time in four; returns what failed, and the number of kills."""
    kills = 1
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


def trial(reference: runs.Reference, draw: random.Random, operations: int, kills: list[int], folder: Path) -> str:
    """Kill one run before a file operation (`operations` of them) or, with 0, at a moment; then go on and compare.

    Appends the number of kills to `kills`.
    """
    setting, out, log = reference.setting, folder / "out", folder / "out.log"
    if operations:
        runs.start(setting.command(out), log, before=watch_files(out, draw.randint(1, operations))).wait()
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
    kills.append(number)
    return failure


def main() -> None:
    saves = {"type": int, "default": 40, "help": "runs killed before a file operation (default 40)"}
    args = runs.parse(__doc__, trials=160, saves=saves)
    draw, total, failed = random.Random(args.seed), 0, 0
    for reference, folder, share in runs.each_setting(args.only):
        operations, _ = count_operations(reference.setting, folder)
        for kind, trials, number in (
            ("at a moment", args.trials, 0),
            ("before a file operation", args.saves, operations),
        ):
            kills: list[int] = []
            failures = runs.trials_in(folder, share(trials), partial(trial, reference, draw, number, kills))
            runs.report(f"SIGKILL {kind}, {reference.setting.name} ({sum(kills)} kills)", failures)
            total, failed = total + sum(kills), failed + sum(map(bool, failures))
    print(f"{total} kills, {failed} runs that did not hold")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
