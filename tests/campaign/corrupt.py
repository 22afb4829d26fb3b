"""Damage the newest checkpoint, or a cache, of a run that was killed, and go on with the documented command.

    python tests/campaign/corrupt.py --trials 200

A trial holds where the run passes over what is damaged, says which and why, and ends with what a run left alone has;
or, for a checkpoint that is named, where it is refused in one line that names it. Damages: a file cut in half,
emptied, removed, with one bit flipped, replaced by another file of the checkpoint.
"""

import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import runs

DAMAGES = ("cut", "emptied", "removed", "one bit flipped", "another file's content")


def damage(path: Path, kind: str, draw: random.Random) -> None:
    content = path.read_bytes()
    if kind == "removed":
        path.unlink()
    elif kind == "one bit flipped":
        where = draw.randrange(len(content))
        path.write_bytes(content[:where] + bytes([content[where] ^ 1 << draw.randrange(8)]) + content[where + 1 :])
    elif kind == "another file's content":
        others = [p for p in path.parent.iterdir() if p.is_file() and p.read_bytes() != content]
        path.write_bytes(draw.choice(others).read_bytes())
    else:
        path.write_bytes(content[: len(content) // 2] if kind == "cut" else b"")


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def stopped_run(setting: runs.Setting, out: Path, log: Path) -> bool:
    """A run killed once it has at least two checkpoints; False where it ended before."""
    from hf_lm.output_folder import list_checkpoints

    child = runs.start(setting.command(out), log)
    if child.wait(lambda: len(list_checkpoints(out)) > 1) is not None:
        return False
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return True


def checkpoint_trial(reference: runs.Reference, draw: random.Random, stopped: Path, folder: Path) -> str:
    """What was damaged how and what then failed; "" where it held."""
    from hf_lm.output_folder import list_checkpoints

    setting, out, log = reference.setting, folder / "out", folder / "log"
    shutil.copytree(stopped, out)
    newest = list_checkpoints(out)[-1]
    path, kind, named = draw.choice(files_of(newest)), draw.choice(DAMAGES), draw.random() < 0.2
    damage(path, kind, draw)
    what = f"{path.relative_to(newest)} {kind}{', checkpoint named' if named else ''}"
    child = runs.start(setting.command(out, "--resume_from_checkpoint", str(newest) if named else "latest"), log)
    status, text = child.wait(), log.read_text(errors="replace")
    if "Traceback (most" in text:
        return f"{what}: a traceback"
    if named:
        refused = status not in (0, None) and newest.name in child.error()
        return "" if refused else f"{what}: not refused: {child.error()}"
    if status:
        return f"{what}: {child.error()}"
    if f"{newest.name} is passed over" not in text:
        return f"{what}: not said"
    differences = ", ".join(reference.differences(out))
    return differences and f"{what}: {differences}"


def cache_trial(reference: runs.Reference, draw: random.Random, home: Path, folder: Path) -> str:
    """A damaged file of the caches: the run makes it again and ends as one that was left alone."""
    copy = folder / "home"
    shutil.copytree(home, copy, symlinks=True)
    paths = [p for p in files_of(copy) if "hf_lm" in p.parts and p.suffix != ".lock"]
    path, kind = draw.choice(paths), draw.choice(DAMAGES)
    what = f"{path.relative_to(copy)} {kind}"
    damage(path, kind, draw)
    child = runs.start(reference.setting.command(folder / "out"), folder / "log", HF_HOME=str(copy))
    if child.wait():
        return f"{what}: {child.error()}"
    if "Traceback (most" in (folder / "log").read_text(errors="replace"):
        return f"{what}: a traceback"
    differences = ", ".join(reference.differences(folder / "out"))
    return differences and f"{what}: {differences}"


def main() -> None:
    kinds = {"nargs": "+", "choices": ("checkpoint", "cache"), "default": ["checkpoint", "cache"]}
    args = runs.parse(__doc__, trials=200, kinds=kinds)
    draw, failed = random.Random(args.seed), 0
    for reference, folder, share in runs.each_setting(args.only):
        wanted = {}
        if "checkpoint" in args.kinds:
            stopped = folder / "stopped"
            while not stopped_run(reference.setting, stopped, folder / "stopped.log"):
                shutil.rmtree(stopped)
            wanted["checkpoint"] = partial(checkpoint_trial, reference, draw, stopped), args.trials * 4 // 5
        if "cache" in args.kinds and reference.setting.recipe == "pretrain.py":
            wanted["cache"] = partial(cache_trial, reference, draw, Path(os.environ["HF_HOME"])), args.trials // 5
        for kind, (trial, trials) in wanted.items():
            failures = runs.trials_in(folder, share(trials), trial)
            runs.report(f"a {kind} damaged, {reference.setting.name}", failures)
            failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
