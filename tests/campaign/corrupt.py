"""Damage the newest checkpoint, or a cache, of a run that was killed, and go on with the documented command.

    python tests/campaign/corrupt.py --trials 200

A trial holds where the run passes over what is damaged, says which and why, and ends with what a run left alone has;
or, for a checkpoint that is named, where it is refused in one line that names it. Damages: a file cut in half,
emptied, removed, with one bit flipped, replaced by another file of its folder. Of the trials 6 in 10 damage a
checkpoint, 3 a cache of tokens or of a tokenizer, 1 the prepared text of the demo.
"""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable
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


def damaged_home(home: Path, draw: random.Random, folder: Path) -> tuple[Path, str]:
    """A copy of the caches with one file damaged, and what was done."""
    copy = folder / "home"
    shutil.copytree(home, copy)
    path, kind = draw.choice(files_of(copy / "hf_lm")), draw.choice(DAMAGES)
    damage(path, kind, draw)
    return copy, f"{path.relative_to(copy)} {kind}"


def cache_trial(reference: runs.Reference, draw: random.Random, home: Path, folder: Path) -> str:
    """A damaged file of the caches: the run says so, makes it again, and ends as one that was left alone."""
    copy, what = damaged_home(home, draw, folder)
    child = runs.start(reference.setting.command(folder / "out"), folder / "log", HF_HOME=str(copy))
    if child.wait() or child.traceback():
        return f"{what}: {child.error()}"
    if "is damaged" not in child.log.read_text(errors="replace"):
        return f"{what}: not said"
    differences = ", ".join(reference.differences(folder / "out"))
    return differences and f"{what}: {differences}"


# The demo's text, with that of Python alone: the packages' would take most of a trial.
PREPARED = """import hashlib, json
from hf_lm.data.demos import documentation
documentation.PACKAGES = ()
print(hashlib.sha256(json.dumps(documentation.documentation()).encode()).hexdigest())
"""


def prepared_trial(expected: str, draw: random.Random, home: Path, folder: Path) -> str:
    """A damaged file of the demo's prepared text: it is made again, and is the same text."""
    copy, what = damaged_home(home, draw, folder)
    child = runs.start([str(home.parent / "prepared.py")], folder / "log", HF_HOME=str(copy))
    if child.wait():
        return f"{what}: {child.error()}"
    lines = child.log.read_text(errors="replace").splitlines()
    if not any("is damaged" in line for line in lines):
        return f"{what}: not said"
    return "" if lines[-1] == expected else f"{what}: another text"


def cache_trials(
    first: runs.Setting, draw: random.Random, folder: Path
) -> dict[str, tuple[float, Callable[[Path], str]]]:
    """Caches of the pretraining, shortened, and of the demo: (share of all trials, one trial) by what is damaged."""
    place, demo = folder / "caches", folder / "demo"
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(demo, ignore_errors=True)
    place.mkdir()
    demo.mkdir()
    short = runs.Setting(
        "pretrain, 2 steps", first.recipe, [*first.options, "--max_steps", "2", "--warmup_steps", "0"]
    )
    filled = runs.start(short.command(place / "filled"), place / "filled.log", HF_HOME=str(place / "home"))
    filled.wait()
    (demo / "prepared.py").write_text(PREPARED)
    prepared = runs.start([str(demo / "prepared.py")], demo / "log", HF_HOME=str(demo / "home"))
    if prepared.wait() or filled.status:
        raise SystemExit(f"{filled.error()}; {prepared.error()}")
    expected = (demo / "log").read_text().splitlines()[-1]
    return {
        "a cache of tokens or of a tokenizer damaged": (
            0.3,
            partial(cache_trial, runs.reference(short, place), draw, place / "home"),
        ),
        "prepared text of the demo damaged": (0.1, partial(prepared_trial, expected, draw, demo / "home")),
    }


def main() -> None:
    kinds = {"nargs": "+", "choices": ("checkpoint", "cache"), "default": ["checkpoint", "cache"]}
    args = runs.parse(__doc__, trials=200, kinds=kinds)
    draw, failed = random.Random(args.seed), 0

    def tried(title: str, folder: Path, numbers: Iterable[int], trial: Callable[[Path], str]) -> None:
        nonlocal failed
        failures = runs.trials_in(folder, numbers, trial)
        runs.report(title, failures)
        failed += sum(map(bool, failures))

    for reference, folder, share in runs.each_setting(args):
        setting = reference.setting
        if "cache" in args.kinds and setting.name == "pretrain":
            for title, (part, trial) in cache_trials(setting, draw, folder).items():
                tried(title, folder, share(round(args.trials * part), all_here=True), trial)
        if "checkpoint" in args.kinds:
            stopped = folder / "stopped"
            if not stopped.exists() and not stopped_run(setting, stopped, folder / "stopped.log"):
                raise SystemExit(f"{setting.name}: the run ended before it had two checkpoints")
            trial = partial(checkpoint_trial, reference, draw, stopped)
            tried(f"a checkpoint damaged, {setting.name}", folder, share(round(args.trials * 0.6)), trial)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
