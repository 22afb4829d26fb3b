"""Damage the newest checkpoint, or a cache, of a run that was killed, and go on with the documented command.

    python tests/campaign/corrupt.py --trials 200

A trial holds where the run passes over what is damaged, says which and why, and ends with what a run left alone has;
or, for a checkpoint that is named, where it is refused in one line that names it. Damages: a file cut in half,
emptied, removed, with one bit flipped, replaced by another file of the checkpoint.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
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


def checkpoint_trial(reference: runs.Reference, stopped: Path, folder: Path, draw: random.Random) -> tuple[str, str]:
    """What was damaged how, and what failed."""
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
        return what, "a traceback"
    if named:
        refused = status not in (0, None) and newest.name in child.error()
        return what, "" if refused else f"not refused: {child.error()}"
    if status:
        return what, child.error()
    if f"{newest.name} is passed over" not in text:
        return what, "not said"
    return what, ", ".join(reference.differences(out))


def cache_trial(reference: runs.Reference, home: Path, folder: Path, draw: random.Random) -> tuple[str, str]:
    """A damaged file of the caches: the run makes it again and ends as one that was left alone."""
    copy = folder / "home"
    shutil.copytree(home, copy, symlinks=True)
    paths = [p for p in files_of(copy) if "hf_lm" in p.parts and p.suffix != ".lock"]
    path, kind = draw.choice(paths), draw.choice(DAMAGES)
    what = f"{path.relative_to(copy)} {kind}"
    damage(path, kind, draw)
    child = runs.start(reference.setting.command(folder / "out"), folder / "log", HF_HOME=str(copy))
    if child.wait():
        return what, child.error()
    if "Traceback (most" in (folder / "log").read_text(errors="replace"):
        return what, "a traceback"
    return what, ", ".join(reference.differences(folder / "out"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="over all settings; a fifth of them on caches")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--kinds", nargs="+", choices=("checkpoint", "cache"), default=["checkpoint", "cache"])
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
            reference = runs.reference(setting, folder)
            stopped = folder / "stopped"
            while not stopped_run(setting, stopped, folder / "stopped.log"):
                shutil.rmtree(stopped)
            kinds = [kind for kind in args.kinds if kind == "checkpoint" or setting.recipe == "pretrain.py"]
            for kind in kinds:
                failures = []
                for n in range(i, args.trials // 5 if kind == "cache" else args.trials * 4 // 5, len(settings)):
                    place = folder / f"{kind}-{n}"
                    place.mkdir()
                    if kind == "cache":
                        what, failure = cache_trial(reference, root / "home", place, draw)
                    else:
                        what, failure = checkpoint_trial(reference, stopped, place, draw)
                    failures.append(failure and f"{what}: {failure}")
                    shutil.rmtree(place)
                runs.report(f"a {kind} damaged, {setting.name}", failures)
                failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
