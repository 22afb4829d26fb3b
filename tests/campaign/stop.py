"""Send SIGTERM, SIGINT or SIGHUP to runs at random moments: the exit code, one line, and the same run once resumed.

    python tests/campaign/stop.py --trials 48

A trial holds where the run ends with the exit code of its signal (143, 130, 129), or had ended already, without a
traceback, and `--resume_from_checkpoint latest` ends with what a run left alone has.
"""

import os
import random
import signal
from functools import partial
from pathlib import Path

import runs

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def trial(reference: runs.Reference, draw: random.Random, folder: Path) -> str:
    setting, out, log = reference.setting, folder / "out", folder / "log"
    number = draw.choice(SIGNALS)
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
    args = runs.parse(__doc__, trials=48)
    draw, failed = random.Random(args.seed), 0
    for reference, folder, share in runs.each_setting(args):
        failures = runs.trials_in(folder, share(args.trials), partial(trial, reference, draw))
        runs.report(f"SIGTERM, SIGINT, SIGHUP, {reference.setting.name}", failures)
        failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
