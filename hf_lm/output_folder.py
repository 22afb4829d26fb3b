"""The folder of a run: what a run writes there, whether one did, and what may be replaced."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hf_lm import dry_run
from hf_lm.files import BENCHMARKS, MODEL, damage, held, holder, sync, write_whole

ASIDE = ".saving"  # inside the output folder: where a checkpoint, or the final model, is written until it is complete
REMOVED = ".removing"  # beside it: a checkpoint while it is removed
LOCK = ".lock"  # held by the run that writes the folder
HEADER = "# hf_lm run\n"  # first line of each run.yaml that save_run writes

PLOTS = (
    *("loss", "learning_rate", "throughput", "metric", "learning_curve", "safety"),
    *("reward", "reward_margin", "kl", "entropy", "completion_length"),
)
# What a finished run has written beside run.yaml and its checkpoints.
RESULT = ("report.json", "README.md", "predictions.jsonl", *(f"plots/{name}.png" for name in PLOTS), *MODEL)
RESULT += (f"{BENCHMARKS}/*.yaml",)
NESTED = ("adapter/target_tokenizer", "adapter", "target_tokenizer")  # each holds some of MODEL


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints that runs wrote into an output folder, oldest first; whether they are intact is not asked."""
    return [path for path in checkpoint_folders(folder) if (path / "trainer_state.json").is_file() or is_run(path)]


def checkpoint_folders(folder: str | Path) -> list[Path]:
    """Every folder with the name of a checkpoint, whatever it holds, by step."""
    named = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(named, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.split("-")[1])


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint under another name, so that a kill leaves nothing that passes for one."""
    removed = checkpoint.with_name(REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    checkpoint.rename(removed)
    sync(checkpoint.parent)
    shutil.rmtree(removed, ignore_errors=True)


def save_run(run: dict[str, Any], folder: str | Path) -> None:
    """Write run.yaml."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = HEADER + yaml.safe_dump(run, sort_keys=False, allow_unicode=True)
    write_whole(Path(folder) / "run.yaml", text)


def is_run(folder: str | Path) -> bool:
    """Whether `save_run` wrote into a folder: a run's, or a checkpoint of one."""
    try:
        return (Path(folder) / "run.yaml").read_bytes().startswith(HEADER.encode())
    except OSError:
        return False


def check_output(output_dir: str | Path, *, resume: bool, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raise FileExistsError where a run would replace what it must not. Nothing changes on disk.

    That is, whatever was asked for: the root or the home folder, a file that has the name of one that a run writes
    and that no run wrote, and what the run itself reads: those of `inputs` that are paths. An earlier run is replaced
    where `overwrite` is set and continued where `resume` is. A folder that is absent, empty, or holds only files that
    no run writes is free.
    """
    folder = Path(output_dir)
    if folder.resolve() in (Path(folder.resolve().anchor), Path(os.path.expanduser("~")).resolve()):
        raise FileExistsError(f"--output_dir {folder} is no folder for one run: give one below it, such as out/run.")
    if os.environ.get("RANK", "0") == "0" and holder(folder / LOCK):  # other ranks: the first may be ahead
        raise _in_use(folder)
    checkpoints, results = checkpoint_folders(folder), _results(folder)
    run = [folder / "run.yaml"] if (folder / "run.yaml").exists() else []
    foreign = [] if is_run(folder) else [*run, *results, *(path for path in checkpoints if not is_run(path))]
    if foreign:
        raise FileExistsError(
            f"{folder} holds files that no run of hf_lm wrote and that this run would replace ({_names(foreign)}): "
            "choose another --output_dir."
        )
    held = [*list_checkpoints(folder), *results]
    replaced = {path.resolve() for path in (folder, *held, *(folder / name for name in NESTED)) if held}
    if read := [path for path in inputs if path and Path(path).resolve() in replaced]:
        raise FileExistsError(f"this run reads {read[0]} and would replace it: choose another --output_dir.")
    if held and not (resume or overwrite):
        raise FileExistsError(
            f"{folder} already holds a run ({_names(held)}). Continue it with --resume_from_checkpoint latest, choose "
            "another --output_dir, or replace it with --overwrite_output_dir."
        )


def prepare_output(
    output_dir: str | Path,
    *,
    resume: bool,
    overwrite: bool,
    inputs: Iterable[str | Path] = (),
    lock: contextlib.ExitStack | None = None,
) -> None:
    """`check_output`, and make the folder. Raises OSError where it cannot be written. An earlier run stays in it.

    Until `lock` is closed, or the process ends, every other run is refused. What a killed run left is removed.
    Raises ValueError in a dry run: `fit` and self-training end one before they come here.
    """
    dry_run.refuse()
    check_output(output_dir, resume=resume, overwrite=overwrite, inputs=inputs)
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(f"cannot write to --output_dir {folder}: {error.strerror}. Choose another.") from None
    if lock is not None:
        try:
            lock.enter_context(held(folder / LOCK))
        except BlockingIOError:
            raise _in_use(folder) from None
    for path in checkpoint_folders(folder / ASIDE) if resume else []:  # complete, where a kill preceded the renaming
        if not damage(path) and not (folder / path.name).exists():
            path.rename(folder / path.name)
    for name in (ASIDE, REMOVED):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob(".*.tmp"):  # of write_whole
        if path.name[1:].rsplit(".", 2)[0] in ("run.yaml", "report.json", "README.md", "predictions.jsonl"):
            path.unlink()


def _in_use(folder: Path) -> FileExistsError:
    return FileExistsError(
        f"{folder} is written by a run that has not ended ({holder(folder / LOCK)}): choose another --output_dir."
    )


def remove_results(folder: str | Path, *, checkpoints: bool) -> None:
    """Remove what would pass for the result of a run: its report first, and no file that a run does not write."""
    folder = Path(folder)
    for path in _results(folder):
        path.unlink()
    for name in (*NESTED, "plots", BENCHMARKS):
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    for path in list_checkpoints(folder) if checkpoints else []:
        remove_checkpoint(path)


def _results(folder: Path) -> list[Path]:
    nested = [f"{name}/{pattern}" for name in NESTED for pattern in (*MODEL, "README.md")]
    return [path for pattern in (*RESULT, *nested) for path in sorted(folder.glob(pattern))]


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
