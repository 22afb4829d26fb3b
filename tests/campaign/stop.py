"""Send SIGTERM, SIGINT or SIGHUP to runs at random moments: the exit code, one line, and the same run once resumed.

    python tests/campaign/stop.py --trials 48

A trial holds where the run ends with the exit code of its signal (143, 130, 129), or had ended already, without a
traceback, and `--resume_from_checkpoint latest` ends with what a run left alone has.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import runs

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def trial(reference: runs.Reference, folder: Path, draw: random.Random, number: signal.Signals) -> str:
    setting, out, log = reference.setting, folder / "out", folder / "log"
    child, limit = (
        runs.start(setting.command(out), log, before=default_handlers),
        draw.uniform(0, reference.cpu_seconds),
    )
    if child.wait(lambda: child.cpu_seconds() >= limit) is None:
        os.kill(child.pid, number)
        child.wait()
    if child.status not in (0, 128 + number, -number):
        return f"exit code {child.status} after {number.name}: {child.error()}"
    if child.status:
        child = runs.start(setting.command(out, "--resume_from_checkpoint", "latest"), log)
        if child.wait():
            return f"not resumed after {number.name}: {child.error()}"
    if child.traceback():
        return f"a traceback after {number.name}"
    return ", ".join(reference.differences(out))


def default_handlers() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=48, help="over all settings and signals")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    runs.import_all()
    draw, failed = random.Random(args.seed), 0
    print("| what was tried | runs | held |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        runs.use_home(root / "home")
        settings = [setting for setting in runs.make_settings(root) if args.only in setting.name]
        for i, setting in enumerate(settings):
            folder = root / str(i)
            folder.mkdir()
            reference, failures = runs.reference(setting, folder), []
            for n in range(i, args.trials, len(settings)):
                place = folder / str(n)
                place.mkdir()
                failures.append(trial(reference, place, draw, SIGNALS[(n // len(settings)) % 3]))
                shutil.rmtree(place)
            runs.report(f"SIGTERM, SIGINT, SIGHUP, {setting.name}", failures)
            failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
