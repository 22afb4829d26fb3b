"""Checkpoints that are complete or absent, and runs that can be stopped at any moment."""

import contextlib
import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_lm.files import damage, full_disk, hash_text, sync, write_manifest
from hf_lm.hub.records import read_run
from hf_lm.models.target_tokenizer import target_tokenizer
from hf_lm.output_folder import ASIDE, checkpoint_folders, list_checkpoints, remove_checkpoint, step_of
from hf_lm.signals import PATIENCE, endings, leave_closed_terminal
from hf_lm.tasks.task import Task
from hf_lm.tokenization.tokenizer import tokenizer_fingerprint

INPUTS, SWEPT = "inputs.json", "sweep"  # in a checkpoint: see `inputs_of`; a key in it

# What may differ between a run and the checkpoint it resumes: nothing that changes a number.
MAY_DIFFER = (
    "rows_per_step",  # kept by hf_lm.training.processes, or refused
    "output_dir",
    "logging_steps",
    "report_to",
    "run_name",
    "disable_tqdm",
    "save_steps",
    "save_total_limit",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "skip_proofs",
    "dataloader_num_workers",
    "log_level",
    "max_hours",
    "stop_after_steps",
    "max_cost",
    "price_per_hour",
)


def find_checkpoint(resume_from_checkpoint: str, output_dir: str | Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names: a path, or the newest for `latest`.

    Every file is compared with the checkpoint's manifest: `latest` passes over what is damaged and says so, and is
    None, with a line, where the folder holds no checkpoint yet. Raises FileNotFoundError for a path that is not a
    complete checkpoint, and FileExistsError for `latest` where a run is finished or no checkpoint is intact.
    """
    written = list_checkpoints(output_dir)
    if resume_from_checkpoint.lower() not in ("latest", "true"):
        path = Path(resume_from_checkpoint)
        if what := checkpoint_damage(path):
            there = ", ".join(p.name for p in written) or "none"
            raise FileNotFoundError(
                f"--resume_from_checkpoint: {path} is not a complete checkpoint ({what}). In {output_dir} there are: "
                f"{there}."
            )
        return path
    for path in reversed(checkpoint_folders(output_dir)):
        if not (what := checkpoint_damage(path)):
            return path
        print(f"{path} is passed over: {what}")
    if written or (Path(output_dir) / "report.json").exists():
        held = "only damaged checkpoints" if written else "a finished run and no checkpoint"
        raise FileExistsError(
            f"--resume_from_checkpoint latest: {output_dir} holds {held}. Start again with --overwrite_output_dir, "
            "or in another --output_dir."
        )
    print(f"{output_dir} holds no checkpoint yet: the run starts from the beginning")
    return None


def checkpoint_damage(checkpoint: Path) -> str:
    """Why a folder is not a complete checkpoint; "" where it is one. Reads every file."""
    if not (checkpoint / "trainer_state.json").is_file():
        return "trainer_state.json is missing"
    return damage(checkpoint)


def check_best(best: Path) -> None:
    """Raise ValueError where the best checkpoint of a run is damaged: the run would end with other weights."""
    if what := checkpoint_damage(best):
        raise ValueError(
            f"the best checkpoint so far, {best}, is damaged ({what}). To continue without it add "
            "--load_best_model_at_end false --resume_with_changes; or start again with --overwrite_output_dir."
        )


def rotate(newest: Path, *, keep: int | None, best: str | None, unscheduled: list[int]) -> None:
    """Remove the oldest checkpoints beside `newest`, which is complete, until `keep` are left; `best` stays.

    Those of the steps `unscheduled` exist only because a run was stopped: they go as soon as there is a newer one, so
    that the others are those of an uninterrupted run.
    """
    protected = {newest.name, Path(best).name if best else ""}
    older = [path for path in list_checkpoints(newest.parent) if path.name not in protected]
    superseded = [path for path in older if step_of(path) in unscheduled]
    regular = [path for path in older if path not in superseded]
    if keep:
        others = len(list_checkpoints(newest.parent)) - len(superseded)
        superseded += regular[: max(0, others - keep)]
    for path in superseded:
        remove_checkpoint(path)


def check_same_run(checkpoint: Path, run: dict[str, Any], chosen: Collection[str] = ()) -> None:
    """Raise ValueError, listing what differs, if a checkpoint was written by another configuration.

    What was `chosen` because of other arguments is listed only where nothing else differs.
    """
    before = read_run(checkpoint)
    if before is None:
        raise ValueError(f"{checkpoint} has no run.yaml: it was not written by hf_lm. Use it with --model instead.")
    keys = [key for key in {**before, **run} if key not in MAY_DIFFER and before.get(key) != run.get(key)]
    keys = [key for key in keys if key not in chosen] or keys
    if keys:
        differences = ", ".join(f"{key} {before.get(key)!r} -> {run.get(key)!r}" for key in keys)
        raise ValueError(
            f"{checkpoint} was written by another configuration ({differences}). Restore these values, start afresh "
            "in another --output_dir, or take the change with --resume_with_changes."
        )


def searched_learning_rate(folder: Path) -> float | None:
    """The rate that `--sweep` found for the run of a folder or a checkpoint; None where it is still to search."""
    run = read_run(folder) or {}
    return None if run.get("sweep") else run.get("learning_rate")


def inputs_of(task: Task) -> dict[str, str]:
    """What a checkpoint records of what a run reads, beside its arguments and the models that it does not hold."""
    tokenizer, used = task.tokenizer, []
    for half in {id(half): half for half in (tokenizer, target_tokenizer(tokenizer))}.values():
        rules = tokenizer_fingerprint(half) if half.is_fast else half.get_vocab()
        used.append([rules, half.all_special_tokens, half.chat_template])
    return {"text": task.fingerprint, "tokenizer": hash_text(json.dumps(used, sort_keys=True)).hex()}


def rates_tried(checkpoint: Path | None) -> list[dict[str, float]]:
    """What --sweep tried before the run of a checkpoint: best first, empty where it tried nothing."""
    if checkpoint is None or not (checkpoint / INPUTS).is_file():  # which --resume_with_changes does not ask for
        return []
    return json.loads((checkpoint / INPUTS).read_bytes()).get(SWEPT, [])


def check_same_inputs(checkpoint: Path, inputs: dict[str, str]) -> None:
    """Raise ValueError if a checkpoint was trained on another text, tokenizer or model than `inputs_of`."""
    before = json.loads((checkpoint / INPUTS).read_bytes())
    if changed := [key for key in inputs if inputs[key] != before.get(key)]:
        raise ValueError(
            f"{checkpoint} cannot be continued: since the run began, what changed is the {' and the '.join(changed)}. "
            "Restore it, start afresh in another --output_dir, or take the change with --resume_with_changes."
        )


def save_aside(
    output_dir: str | Path, name: str, write: Callable[[Path], None], *, main: bool, wait: Callable
) -> list[str]:
    """Let every process write into a folder aside; the main one moves what is there into place once all are done.

    config.json, without which nothing loads a folder, comes last. `name` is what errors call it; a folder of that name
    is a checkpoint and gets a manifest. All is synced before and after the renaming. On failure (a full disk) what was
    written is removed, and what the output folder held before stays as it is. Returns, on the main process, the files
    by their paths in the output folder. Raises OSError.
    """
    folder, aside, files = Path(output_dir), Path(output_dir) / ASIDE, []
    if main:
        shutil.rmtree(aside, ignore_errors=True)
        with disk_errors(name, folder):
            aside.mkdir()
    wait()
    try:
        with disk_errors(name, folder):
            write(aside)
            wait()
            if main:
                files = _move_into_place(aside, folder, name)
    except Exception:
        if main:  # which another process may still write into
            shutil.rmtree(aside, ignore_errors=True)
        raise
    wait()
    return files


def _move_into_place(aside: Path, folder: Path, name: str) -> list[str]:
    """Move what `aside` holds into `folder`; returns the files by their paths there."""
    if (aside / name).is_dir():  # a checkpoint
        write_manifest(aside / name)
    files = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
    for path in (*aside.rglob("*"), aside):
        sync(path)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        if path.name == name and (folder / name).exists():  # of a step that is saved twice
            remove_checkpoint(folder / name)
        _move(path, folder / path.name)
    sync(folder)
    shutil.rmtree(aside)
    return files


@contextlib.contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Raise what a disk refuses while `what` is written into an output folder as OSError in one line.

    It says where, why, and how to continue, whatever library met the error. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        reason = full_disk(error) or (isinstance(error, OSError) and error.strerror)
        if not reason:
            raise
        kept = list_checkpoints(folder)
        locked = getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM)
        raise OSError(
            f"{what} could not be saved in {folder} ({reason}). {'Make it writable' if locked else 'Free some space'} "
            "and continue with the same command and --resume_from_checkpoint latest: "
            + (f"{kept[-1].name} is complete." if kept else "there is no checkpoint yet, so that it starts again.")
        ) from error


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

    UNSCHEDULED = "unscheduled"  # in the state's `stateful_callbacks`: steps saved only because of a stop
    stopped = False
    _scheduled = False  # whether a checkpoint was due after the last step anyway

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """End training after this step; at the last step of all nothing is left to stop."""
        if state.global_step >= state.max_steps:
            return
        self.stopped = control.should_training_stop = True
        self._scheduled = control.should_save
        if _within_epoch(state):  # else on_epoch_end saves, after its evaluation
            self._save(state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if self.stopped and _within_epoch(state):
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.stopped:
            self._save(state, control)

    def _save(self, state: TrainerState, control: TrainerControl) -> None:
        if not (control.should_save or self._scheduled):
            kept_by_callbacks(state).setdefault(self.UNSCHEDULED, []).append(state.global_step)
        control.should_save = True


class OnTrainBegin(TrainerCallback):
    """Calls `action` once the Trainer has set up its state, before the first step."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.action()


def kept_by_callbacks(state: TrainerState) -> dict[str, Any]:
    """What callbacks keep in the state, by name; it is annotated as the list that it is made from."""
    return cast(dict[str, Any], state.stateful_callbacks)


def unscheduled_steps(state: TrainerState) -> list[int]:
    """The steps of checkpoints that exist only because a run was stopped."""
    return kept_by_callbacks(state).get(StopWithCheckpoint.UNSCHEDULED, [])


def over_processes(args: TrainingArguments, number: int) -> int:
    """The largest number that a process gives; each must ask."""
    if args.world_size == 1:
        return number
    largest = torch.tensor(int(number), device=args.device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return int(largest)


def _within_epoch(state: TrainerState) -> bool:
    return state.epoch % 1 != 0


class SaveBeforeWaiting(StopWithCheckpoint):
    """A checkpoint at the end of an epoch whose next text is still being read: that may take long, and fail."""

    def __init__(self, waits: Callable[[], bool]) -> None:
        self.waits = waits
        self._saved = False  # after the last step, as scheduled

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._saved = control.should_save

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        waits = over_processes(args, self.waits())  # one process of each machine reads
        if waits and not self._saved:
            self._save(state, control)


class StopOnSignal(StopWithCheckpoint):
    """SIGTERM, SIGHUP and Ctrl-C end training after the step in progress, with a checkpoint; a second one at once.

    One that comes within PATIENCE seconds is the first once more, but for Ctrl-C: Slurm sends SIGTERM to every process
    of a job, and a launcher, which received it too, sends it to its own.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received = 0.0  # when the first arrived, by time.monotonic()
        self._previous: dict[int, Any] = {}
        self._wakeup: int | None = None

    def _receive(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._received = number, now
            leave_closed_terminal()
        elif number == signal.SIGINT or now - self._received > PATIENCE:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_begin(self, *_: object, **__: object) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in endings()}
            self._wakeup = signal.set_wakeup_fd(-1)  # a step may take longer than hf_lm.signals waits

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.signal = over_processes(args, self.signal or 0) or None  # all stop after the same step
        if self.signal is not None:
            self.stop(state, control)

    def on_train_end(self, *_: object, **__: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the signals back to the program, if that was not done."""
        self._restore()
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._wakeup = None
