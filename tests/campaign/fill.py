"""Let the disk fail under a run: full, over quota, read-only or broken, at a file operation drawn at random.

    python tests/campaign/fill.py --trials 60

A trial holds where the run ends in one line with another exit code than 0 and no traceback (or goes on, where what
failed is not needed), every checkpoint that was complete before still is, and `--resume_from_checkpoint latest` then
ends with what a run left alone has. Half of the trials raise the error inside Python; half limit the size of a file,
which also meets the writers of libraries.
"""

import errno
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import runs

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def failing_disk(folder: Path, at: int, number: int) -> Callable[[], None]:
    """For the fork: from the operation of number `at` on, each one that writes into `folder` fails."""

    def install() -> None:
        operations, inside = 0, str(folder)

        def hook(event: str, args: tuple) -> None:
            nonlocal operations
            if not runs.is_write(event, args, inside):
                return
            operations += 1
            if operations >= at and event in ("open", "os.mkdir", "os.rename"):
                raise OSError(number, os.strerror(number), str(args[0]))

        sys.addaudithook(hook)

    return install


def small_files(limit: int) -> Callable[[], None]:
    """For the fork: no file may be larger than `limit` bytes."""

    def install() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return install


def trial(reference: runs.Reference, draw: random.Random, folder: Path) -> str:
    from hf_lm.files import damage
    from hf_lm.output_folder import list_checkpoints

    setting, out, log = reference.setting, folder / "out", folder / "log"
    if draw.random() < 0.5:
        number = draw.choice(ERRORS)
        what, before = os.strerror(number), failing_disk(out, draw.randint(1, len(reference.writes)), number)
    else:
        largest = max(path.stat().st_size for path in reference.folder.rglob("*") if path.is_file())
        limit = draw.randint(2**15, largest)  # the log, which is shorter, is written
        what, before = f"files of at most {limit} bytes", small_files(limit)
    child = runs.start(setting.command(out), log, before=before)
    child.wait()
    if child.traceback():
        return f"{what}: a traceback"
    if child.status:
        if child.status < 0 or log.read_text(errors="replace").count("error: ") != 1:
            return f"{what}: {child.error()}"
        for checkpoint in list_checkpoints(out):
            if damaged := damage(checkpoint):
                return f"{what}: {checkpoint.name} is damaged: {damaged}"
        child = runs.start(setting.command(out, "--resume_from_checkpoint", "latest"), log)
        if child.wait():
            return f"{what}: not resumed: {child.error()}"
    missing = ", ".join(reference.differences(out))
    return missing and f"{what}: {missing}"


def main() -> None:
    args = runs.parse(__doc__, trials=60)
    draw, failed = random.Random(args.seed), 0
    for reference, folder, share in runs.each_setting(args):
        failures = runs.trials_in(folder, share(args.trials), partial(trial, reference, draw))
        runs.report(f"full, read-only or broken disk, {reference.setting.name}", failures)
        failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
