"""Push to a Hub that fails: from the recipe and with `hf-lm push`, half of the trials each.

    python tests/campaign/push.py --trials 100

The Hub is the tests' own, on this machine. A trial holds where the push is complete at once, or ends in one line with
another exit code than 0, the folder unchanged (after a recipe: a finished run) and no part of a commit visible; where
`hf-lm push` afterwards completes it, public or private as was asked first; and where no output holds the token.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import runs

sys.path.insert(0, str(Path(__file__).parent.parent))

PLACES = ("create", "preupload", "/commit/", "objects/batch", "lfs-object", "whoami", "validate-yaml", "/api/models/")
ANSWERS = (401, 403, 404, 409, 413, 429, 500, 503, "drop")
TIMES = (1, 2, 50)


def without_waiting() -> None:
    """For the fork: the client's pauses between two attempts take no time; those of other threads stay."""
    from huggingface_hub.utils import _http

    _http.time = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})


def command_line(argv: list[str], log: Path) -> runs.Child:
    """`hf-lm push ...` in a fork."""
    script = log.parent / "hf-lm.py"
    script.write_text("from hf_lm.cli import main\nraise SystemExit(main())\n")
    return runs.start([str(script), *argv], log, before=without_waiting)


def names_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def complete(hub, name: str, folder: Path) -> bool:
    files = hub.repos.get(name, {})
    weights = folder / "model.safetensors"
    return files.get("model.safetensors") == weights.read_bytes() and {"config.json", "README.md"} <= set(files)


def trial(hub, setting: runs.Setting, finished: Path, folder: Path, draw: random.Random, recipe: bool) -> str:
    from loopback_hub import TOKEN

    out, name, private, log = folder / "out", f"user/{folder.name}", draw.random() < 0.5, folder / "log"
    place, answer, times = draw.choice(PLACES), draw.choice(ANSWERS), draw.choice(TIMES)
    what = f"{answer} x{times} at {place}{', private' if private else ''}"
    if recipe:
        more = ["--push_to_hub", "true", "--hub_model_id", name, "--hub_private_repo", str(private)]
        argv = setting.command(out, *more)
        hub.fail = {place: [answer] * times}
        child = runs.start(argv, log, before=without_waiting)
    else:
        shutil.copytree(finished, out)
        before = names_of(out)
        hub.fail = {place: [answer] * times}
        child = command_line(["push", str(out), name, *(["--private"] if private else [])], log)
    child.wait()
    hub.fail = {}
    text = log.read_text(errors="replace")
    if child.traceback() or TOKEN in text:
        return f"{what}: a traceback or the token"
    if not recipe and names_of(out) != before:
        return f"{what}: the folder changed"
    if child.status == 0:
        return "" if complete(hub, name, out) else f"{what}: exit code 0 and not complete"
    if "model.safetensors" in hub.repos.get(name, {}) and not complete(hub, name, out):
        return f"{what}: a part was published"
    if recipe and not out.exists():  # refused before training: nothing to push yet
        child = runs.start(argv, folder / "again", before=without_waiting)
    elif recipe and not (out / "report.json").exists():
        return f"{what}: the run has no report: {child.error()}"
    else:
        child = command_line(["push", str(out), name, *(["--private"] if private else [])], folder / "again")
    if child.wait() or not complete(hub, name, out):
        return f"{what}: the retry failed: {child.error()}"
    return "" if (name in hub.private) == private else f"{what}: public and private confused"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no trial after that many")
    args = parser.parse_args()
    from loopback_hub import LoopbackHub

    hub, begun = LoopbackHub(), time.monotonic()
    hub.start()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ |= hub.environment()
        runs.import_all()
        runs.use_home(root / "home")
        setting = runs.make_settings(root)[0]
        setting.options += runs.options(max_steps=2, warmup_steps=0)
        finished = root / "finished"
        child = runs.start(setting.command(finished), root / "finished.log")
        if child.wait():
            raise SystemExit(child.error())
        print("| what was tried | runs | held |\n|---|---|---|")
        failed = 0
        for recipe in (False, True):
            failures = []
            for n in range(recipe, args.trials, 2):
                if time.monotonic() > begun + 60 * args.minutes:
                    break
                place = root / f"push-{n}"
                place.mkdir()
                failures.append(trial(hub, setting, finished, place, draw, recipe))
                shutil.rmtree(place)
            runs.report("push from the recipe, the Hub fails" if recipe else "hf-lm push, the Hub fails", failures)
            failed += sum(map(bool, failures))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
