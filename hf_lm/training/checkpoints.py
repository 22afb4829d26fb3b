"""Checkpoints that are complete or absent, and runs that can be stopped at any moment."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_lm.files import sync
from hf_lm.output_folder import ASIDE, list_checkpoints

# What may differ between a run and the checkpoint it resumes: nothing that changes a number.
MAY_DIFFER = (
    *("output_dir", "logging_steps", "report_to", "run_name", "disable_tqdm", "save_steps", "save_total_limit"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "skip_proofs", "dataloader_num_workers", "log_level"),
    *("max_hours", "max_cost", "price_per_hour"),
)


def find_checkpoint(resume_from_checkpoint: str, output_dir: str | Path) -> Path:
    """The checkpoint that `--resume_from_checkpoint` names: `latest` or a path. Raises FileNotFoundError."""
    complete = list_checkpoints(output_dir)
    if resume_from_checkpoint.lower() in ("latest", "true"):
        if not complete:
            raise FileNotFoundError(
                f"--resume_from_checkpoint latest: {output_dir} holds no complete checkpoint. "
                "Start the run without --resume_from_checkpoint."
            )
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
) -> list[str]:
    """Let every process write into a folder aside; the main one moves what is there into place once all are done.

    config.json, without which nothing loads a folder, comes last. `name` is what errors call it. On failure (a full
    disk) what was written is removed, and what the output folder held before stays as it is. Returns, on the main
    process, the files by their paths in the output folder. Raises OSError.
    """
    folder, aside, files = Path(output_dir), Path(output_dir) / ASIDE, []
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
        for path in aside.rglob("*"):
            sync(path)
            if path.is_file():
                files.append(path.relative_to(aside).as_posix())
        for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
            if path.name == name:  # a checkpoint, perhaps of a step that is saved twice
                shutil.rmtree(folder / name, ignore_errors=True)
            _move(path, folder / path.name)
        sync(folder)
        shutil.rmtree(aside)
    wait()
    return files


def _move(path: Path, target: Path) -> None:
    """Rename a file or a folder; where a folder is there already, what it holds beside stays."""
    if path.is_dir() and target.is_dir():
        for inside in path.iterdir():
            _move(inside, target / inside.name)
    else:
        os.replace(path, target)


class StopWithCheckpoint(TrainerCallback):
    """Ends training after a step, with a checkpoint from which the rest is the same run.

    What is due after that step is done before the checkpoint is saved, an evaluation too: a resumed run does not come
    back to it. The Trainer takes a stop for the end of an epoch: what only an epoch's end brings happens where one is.
    """

    stopped = False

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """End training after this step; at the last step of all nothing is left to stop."""
        if state.global_step >= state.max_steps:
            return
        self.stopped = control.should_training_stop = True
        control.should_save |= _within_epoch(state)  # else on_epoch_end saves, after its evaluation

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stopped and _within_epoch(state):
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.stopped:
            control.should_save = True


def _within_epoch(state: TrainerState) -> bool:
    return state.epoch % 1 != 0


class StopOnSignal(StopWithCheckpoint):
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
            self.stop(state, control)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._restore()
