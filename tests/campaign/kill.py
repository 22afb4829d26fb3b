"""Kill runs with SIGKILL at random moments, go on with the documented command, and compare with a run left alone.

    python tests/campaign/kill.py --trials 160 --saves 40

A trial holds where `--resume_from_checkpoint latest` alone, however often the run was killed, ends with the weights,
the optimizer's state, the random state, the log history, the metrics, the predictions and the files of a run that was
left alone. `--trials` are killed at a moment drawn from the run's CPU time; `--saves` before a file operation (open,
rename, remove) drawn from those inside the output folder.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import runs

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir")


def watch_files(folder: Path, at: int, count: Path | None = None) -> Callable[[], None]:
    """For the fork: SIGKILL to itself before the operation of number `at` on a path in `folder`; or count them all."""

    def install() -> None:
        number, inside = 0, str(folder)

        def hook(event: str, args: tuple) -> None:
            nonlocal number
            if event not in OPERATIONS or not args or inside not in str(args[0]):
                return
            if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
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


def trial(reference: runs.Reference, folder: Path, draw: random.Random, operations: int) -> tuple[str, int]:
    """Kill one run before a file operation (`operations` of them) or, with 0, at a moment; then go on and compare."""
    setting, out, log = reference.setting, folder / "out", folder / "out.log"
    if operations:
        runs.start(setting.command(out), log, before=watch_files(out, draw.randint(1, operations))).wait()
    else:
        child, limit = runs.start(setting.command(out), log), draw.uniform(0, reference.cpu_seconds)
        if child.wait(lambda: child.cpu_seconds() >= limit) is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    failure, kills = go_on(setting, out, log, draw, reference.cpu_seconds)
    if not failure:
        failure = ", ".join(reference.differences(out))
    if not failure and log.exists() and "Traceback (most" in log.read_text(errors="replace"):
        failure = "a traceback"
    return failure, kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=160, help="runs killed at a moment, over all settings")
    parser.add_argument("--saves", type=int, default=40, help="runs killed before a file operation")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runs.import_all()
    draw, total, failed = random.Random(args.seed), 0, 0
    print("| what was tried | runs | held |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        runs.use_home(root / "home")
        settings = [setting for setting in runs.make_settings(root) if args.only in setting.name]
        for i, setting in enumerate(settings):
            folder = root / str(i)
            folder.mkdir()
            reference = runs.reference(setting, folder)
            counted, out = folder / "count", folder / "counted"
            runs.start(setting.command(out), folder / "counted.log", before=watch_files(out, 0, counted)).wait()
            for kind, trials, operations in (
                ("at a moment", args.trials, 0),
                ("before a file operation", args.saves, int(counted.read_text())),
            ):
                failures, kills = [], 0
                for n in range(i, trials, len(settings)):
                    place = folder / f"{bool(operations)}-{n}"
                    place.mkdir()
                    failure, count = trial(reference, place, draw, operations)
                    failures.append(failure)
                    kills += count
                    if not failure:
                        shutil.rmtree(place)
                runs.report(f"SIGKILL {kind}, {setting.name} ({kills} kills)", failures)
                total, failed = total + kills, failed + sum(map(bool, failures))
    print(f"{total} kills, {failed} runs that did not hold")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
