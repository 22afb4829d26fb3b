"""Checkpoints that are complete or absent, and runs that can be stopped at any moment."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_lm.training import dry_run

ASIDE = ".saving"  # where a checkpoint grows inside the output folder until it is complete
# What may differ between a run and the checkpoint it resumes: nothing that changes a number.
MAY_DIFFER = (
    *("output_dir", "logging_steps", "report_to", "run_name", "disable_tqdm", "save_steps", "save_total_limit"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "skip_proofs", "dataloader_num_workers", "log_level"),
    *("max_hours", "max_cost", "price_per_hour"),
)


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints of an output folder, oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    complete = [path for path in found if (path / "trainer_state.json").is_file()]
    return sorted(complete, key=lambda path: int(path.name.split("-")[1]))


def save_run(run: dict[str, Any], folder: str | Path) -> None:
    """Write run.yaml, aside and then renamed."""
    path = Path(folder) / "run.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".yaml.tmp")
    aside.write_text(yaml.safe_dump(run, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(aside, path)


def prepare_output(output_dir: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Make the output folder ready. Raises FileExistsError if it holds a run and neither was asked for.

    Raises ValueError in a dry run: `fit` and self-training end one before they come here.
    """
    dry_run.refuse()
    folder = Path(output_dir)
    held = [path.name for path in list_checkpoints(folder)]
    held += [name for name in ("report.json", "run.yaml", "config.json") if (folder / name).is_file()]
    if held and not resume:
        if not overwrite:
            raise FileExistsError(
                f"{folder} already holds a run ({', '.join(held[:3])}). Continue it with --resume_from_checkpoint "
                "latest, choose another --output_dir, or replace it with --overwrite_output_dir."
            )
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
        for name in ("report.json", "run.yaml", "config.json"):
            (folder / name).unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(f"cannot write to --output_dir {folder}: {error.strerror}. Choose another.") from None
    shutil.rmtree(folder / ASIDE, ignore_errors=True)  # what a killed run left half-written


def find_checkpoint(resume_from_checkpoint: str, output_dir: str | Path) -> Path:
    """The checkpoint that `--resume_from_checkpoint` names: `latest` or a path. Raises FileNotFoundError."""
    complete = list_checkpoints(output_dir)
    if resume_from_checkpoint.lower() in ("latest", "true"):
        if not complete:
            raise FileNotFoundError(f"--resume_from_checkpoint latest: {output_dir} holds no complete checkpoint.")
        return complete[-1]
    path = Path(resume_from_checkpoint)
    if not (path / "trainer_state.json").is_file():
        there = ", ".join(p.name for p in complete) or "none"
        raise FileNotFoundError(
            f"--resume_from_checkpoint: {path} is not a complete checkpoint. In {output_dir} there are: {there}."
        )
    return path


def check_same_run(checkpoint: Path, run: dict[str, Any]) -> None:
    """Raise ValueError, listing what differs, if a checkpoint was written by another configuration."""
    path = checkpoint / "run.yaml"
    if not path.is_file():
        raise ValueError(f"{checkpoint} has no run.yaml: it was not written by hf_lm. Use it with --model instead.")
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    keys = [key for key in {**before, **run} if key not in MAY_DIFFER and before.get(key) != run.get(key)]
    if keys:
        differences = ", ".join(f"{key} {before.get(key)!r} -> {run.get(key)!r}" for key in keys)
        raise ValueError(
            f"{checkpoint} was written by another configuration ({differences}). Restore these values, start afresh "
            "in another --output_dir, or take the change with --resume_with_changes."
        )


def save_aside(
    output_dir: str | Path, name: str, write: Callable[[Path], None], *, main: bool, wait: Callable
) -> None:
    """Let every process write a checkpoint into a folder aside; the main one renames it once all are done.

    On failure (a full disk) what was written is removed, and the checkpoints before it stay as they are.
    """
    folder, aside = Path(output_dir), Path(output_dir) / ASIDE
    if main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    wait()
    try:
        write(aside)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        kept = list_checkpoints(folder)
        raise OSError(
            f"{name} could not be saved ({' '.join(str(error).split())}). "
            + (f"{kept[-1]} is complete: free some space and continue" if kept else "Free some space and start again")
            + (" with --resume_from_checkpoint latest." if kept else ".")
        ) from error
    wait()
    if main:
        for path in (aside / name).iterdir():
            _sync(path)
        if (folder / name).exists():  # the same step saved twice, by a signal right after a regular save
            shutil.rmtree(folder / name)
        os.replace(aside / name, folder / name)
        _sync(folder)
        aside.rmdir()
    wait()


def _sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk, so that a renamed checkpoint survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StopOnSignal(TrainerCallback):
    """SIGTERM and Ctrl-C end training after the step in progress, with a checkpoint. A second one ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, number: int, frame: Any) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:  # all processes must stop after the same step, whichever received the signal
            received = torch.tensor(self.signal or 0, device=args.device)
            torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
            self.signal = int(received) or None
        if self.signal is not None:
            control.should_save = state.global_step < state.max_steps
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._restore()
