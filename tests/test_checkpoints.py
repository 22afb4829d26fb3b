"""A checkpoint is complete or absent, and a run is continued or replaced only when that was asked for."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from transformers import AutoTokenizer
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_lm.arguments import TrainingArguments
from hf_lm.files import fingerprints, write_manifest, write_whole
from hf_lm.output_folder import (
    ASIDE,
    LOCK,
    REMOVED,
    check_output,
    is_run,
    list_checkpoints,
    prepare_output,
    remove_results,
    save_run,
)
from hf_lm.reporting.report import save_predictions
from hf_lm.tokenization.tokenizer import train_bpe
from hf_lm.training import checkpoints
from hf_lm.training.checkpoints import (
    INPUTS,
    SWEPT,
    SaveBeforeWaiting,
    check_same_inputs,
    check_same_run,
    disk_errors,
    find_checkpoint,
    inputs_of,
    rates_tried,
    rotate,
    save_aside,
    unscheduled_steps,
)
from hf_lm.training.fit import open_output
from hf_lm.training.outcome import models_of


def make_checkpoint(folder: Path, step: int, run: dict | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    save_run(run or {"learning_rate": 1e-3}, checkpoint)
    write_manifest(checkpoint)
    return checkpoint


def write_one(aside: Path) -> None:
    make_checkpoint(aside, 30)


def test_latest_is_the_newest_complete_checkpoint_by_step_not_by_name(tmp_path, capsys):
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    assert find_checkpoint("true", tmp_path).name == "checkpoint-100"
    assert find_checkpoint(str(tmp_path / "checkpoint-9"), tmp_path).name == "checkpoint-9"
    assert capsys.readouterr().out == ""
    (tmp_path / "checkpoint-200").mkdir()  # half-written by something else
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-100"
    assert capsys.readouterr().out.endswith("checkpoint-200 is passed over: trainer_state.json is missing\n")
    with pytest.raises(FileNotFoundError, match=r"checkpoint-200 is not a complete checkpoint.*checkpoint-9"):
        find_checkpoint(str(tmp_path / "checkpoint-200"), tmp_path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "rng_state_1.pth", "target/tokenizer.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_with_one_line_and_refused_where_it_is_named(
    tmp_path, name, damage, capsys
):
    def write(aside: Path) -> None:
        checkpoint = make_checkpoint(aside, 30)
        (checkpoint / "target").mkdir()
        for file in ("model.safetensors", "rng_state_1.pth", "target/tokenizer.json"):
            (checkpoint / file).write_text("content of a file")

    make_checkpoint(tmp_path, 20)
    save_aside(tmp_path, "checkpoint-30", write, main=True, wait=lambda: None)
    newest = tmp_path / "checkpoint-30"
    assert find_checkpoint("latest", tmp_path) == newest
    DAMAGES[damage](newest / name)
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-20"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{newest} is passed over: ")
    with pytest.raises(FileNotFoundError, match="checkpoint-30 is not a complete checkpoint") as refused:
        find_checkpoint(str(newest), tmp_path)
    assert line.split(": ")[1] in str(refused.value)  # the same reason
    DAMAGES[damage](tmp_path / "checkpoint-20" / "trainer_state.json")
    with pytest.raises(FileExistsError, match=r"holds only damaged checkpoints.*--overwrite_output_dir"):
        find_checkpoint("latest", tmp_path)


def test_latest_without_a_checkpoint_starts_from_the_beginning_unless_the_run_is_finished(tmp_path, capsys):
    assert find_checkpoint("latest", tmp_path / "new") is None
    assert "holds no checkpoint yet: the run starts from the beginning" in capsys.readouterr().out
    save_run({"seed": 1}, tmp_path)
    assert find_checkpoint("latest", tmp_path) is None
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(FileExistsError, match="a finished run and no checkpoint"):
        find_checkpoint("latest", tmp_path)


def test_latest_without_a_checkpoint_refuses_the_folder_of_another_configuration(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="latest", use_cpu=True, report_to="none")
    args.run = {"learning_rate": 1e-3}
    save_run(args.run, tmp_path)  # all that a run left that was killed before its first checkpoint
    assert open_output(args, inputs=[], lock=ExitStack()) is None
    args.run = {"learning_rate": 2e-3}
    with pytest.raises(ValueError, match=r"another configuration \(learning_rate 0.001 -> 0.002\)"):
        open_output(args, inputs=[], lock=ExitStack())


def test_a_run_that_was_stopped_after_its_search_continues_at_the_rate_that_was_found(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="latest", use_cpu=True, sweep=3)
    args.run = {"learning_rate": 1e-3, "sweep": 3}
    make_checkpoint(tmp_path, 4, {"learning_rate": 4e-4, "sweep": 0})
    save_run({"learning_rate": 4e-4, "sweep": 0}, tmp_path)
    assert open_output(args, inputs=[], lock=ExitStack()).name == "checkpoint-4"
    assert (args.learning_rate, args.sweep) == (4e-4, 0)


def test_a_checkpoint_appears_whole(tmp_path):
    seen = []

    def write(aside: Path) -> None:
        write_one(aside)
        seen.append(list_checkpoints(tmp_path))

    save_aside(tmp_path, "checkpoint-30", write, main=True, wait=lambda: None)
    assert seen == [[]]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-30"]
    assert not (tmp_path / ASIDE).exists()
    save_aside(tmp_path, "checkpoint-30", write_one, main=True, wait=lambda: None)  # the same step again


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(tmp_path):
    make_checkpoint(tmp_path, 20)

    def write(aside: Path) -> None:
        (aside / "checkpoint-30").mkdir()
        (aside / "checkpoint-30" / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"checkpoint-30 could not be saved.*No space left.*checkpoint-20 is complete"):
        save_aside(tmp_path, "checkpoint-30", write, main=True, wait=lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]


@pytest.fixture
def killed_while_removing(monkeypatch):
    """A kill inside the removal of a folder: what is left has lost one file."""

    def remove_one_file(path, *arguments, **keywords):
        if Path(path).exists():
            (Path(path) / "trainer_state.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", remove_one_file)
    yield
    monkeypatch.undo()


def test_a_checkpoint_is_removed_under_another_name_and_the_next_run_cleans_up(tmp_path, killed_while_removing):
    for step in (10, 20):
        make_checkpoint(tmp_path, step)
    with pytest.raises(KeyboardInterrupt):
        rotate(tmp_path / "checkpoint-20", keep=1, best=None, unscheduled=[])
    assert sorted(path.name for path in tmp_path.iterdir()) == [REMOVED, "checkpoint-20"]


def test_the_next_run_cleans_up_what_a_removal_left(tmp_path):
    (tmp_path / REMOVED).mkdir()
    prepare_output(tmp_path, resume=True, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_rotation_keeps_the_newest_the_best_and_as_many_as_asked(tmp_path):
    def left(steps, newest, **options):
        for step in steps:
            make_checkpoint(tmp_path, step)
        rotate(tmp_path / f"checkpoint-{newest}", **{"best": None, "unscheduled": []} | options)
        names = {int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path)}
        remove_results(tmp_path, checkpoints=True)
        return names

    assert left([2, 4, 6, 8], 8, keep=2) == {6, 8}
    assert left([2, 4, 6, 8], 8, keep=2, best=str(tmp_path / "checkpoint-2")) == {2, 8}
    assert left([2, 4, 6, 8], 8, keep=None) == {2, 4, 6, 8}
    assert left([4, 8, 10, 12], 12, keep=2, unscheduled=[10]) == {8, 12}
    assert left([4, 8], 8, keep=1, unscheduled=[8]) == {8}
    assert left([2, 4, 3], 3, keep=1) == {3}  # a run that was resumed from an earlier checkpoint


def test_a_checkpoint_that_was_complete_before_its_renaming_is_not_lost(tmp_path):
    make_checkpoint(tmp_path / ASIDE, 8)
    prepare_output(tmp_path, resume=True, overwrite=False)
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-8"
    make_checkpoint(tmp_path / ASIDE, 9)
    (tmp_path / ASIDE / "checkpoint-9" / "run.yaml").write_text("half")
    prepare_output(tmp_path, resume=True, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


def test_all_that_makes_a_checkpoint_durable_is_synced_before_and_after_its_renaming(tmp_path, monkeypatch):
    steps, replace = [], os.replace
    monkeypatch.setattr(checkpoints, "sync", lambda path: steps.append(path.name))
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("renamed"), replace(a, b)))
    save_aside(tmp_path, "checkpoint-30", write_one, main=True, wait=lambda: None)
    at = steps.index("renamed", steps.index("manifest.json"))
    assert {"checkpoint-30", "trainer_state.json", "manifest.json", ASIDE} <= set(steps[:at])
    assert steps[at + 1 :] == [tmp_path.name]


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 10, {"learning_rate": 1e-3, "block_size": 64, "logging_steps": 10})
    check_same_run(checkpoint, {"learning_rate": 1e-3, "block_size": 64, "logging_steps": 1})  # changes no number
    with pytest.raises(ValueError, match=r"learning_rate 0.001 -> 0.002, seed None -> 7"):
        check_same_run(checkpoint, {"learning_rate": 2e-3, "block_size": 64, "seed": 7})
    with pytest.raises(ValueError, match=r"by another configuration \(seed None -> 7\)"):
        check_same_run(checkpoint, {"learning_rate": 2e-3, "block_size": 64, "seed": 7}, {"learning_rate"})


def make_result(folder: Path) -> Path:
    """A folder as a finished run leaves it, with files of the user's in each of its folders."""
    save_run({"output_dir": str(folder)}, folder)
    make_checkpoint(folder, 10)
    for name in (
        *("config.json", "model.safetensors", "tokenizer.json", "README.md", "report.json", "predictions.jsonl"),
        *("plots/loss.png", "adapter/adapter_config.json", "target_tokenizer/tokenizer.json"),
        *("notes.txt", "plots/mine.png", "adapter/mine.txt"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_not_overwritten_unasked_and_then_only_what_a_run_writes(tmp_path):
    before = files(make_result(tmp_path))
    with pytest.raises(FileExistsError, match=r"already holds a run.*--overwrite_output_dir"):
        prepare_output(tmp_path, resume=False, overwrite=False)
    prepare_output(tmp_path, resume=True, overwrite=False)
    prepare_output(tmp_path, resume=False, overwrite=True)
    assert files(tmp_path) == before  # nothing goes before the new run trains
    remove_results(tmp_path, checkpoints=False)
    kept = {"notes.txt", "plots/mine.png", "adapter/mine.txt", "run.yaml"}
    saved = {f"checkpoint-10/{name}" for name in ("trainer_state.json", "run.yaml", "manifest.json")}
    assert files(tmp_path) == kept | saved
    assert not (tmp_path / "target_tokenizer").exists()
    remove_results(tmp_path, checkpoints=True)
    assert files(tmp_path) == kept


def test_a_run_that_left_nothing_but_run_yaml_blocks_no_other(tmp_path):
    save_run({"output_dir": "out"}, tmp_path)
    assert is_run(tmp_path)
    check_output(tmp_path, resume=False, overwrite=False)


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "tokenizer.json", "plots/loss.png", "run.yaml"])
def test_a_file_that_no_run_wrote_is_never_replaced(tmp_path, name):
    (tmp_path / "train.py").write_text("mine")
    check_output(tmp_path, resume=False, overwrite=False)  # a run writes no such file
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("learning_rate: 1.0")
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(FileExistsError, match=f"no run of hf_lm wrote.*{Path(name).name}") as caught:
            prepare_output(tmp_path, resume=resume, overwrite=overwrite)
        assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_text() == "learning_rate: 1.0"


def test_a_checkpoint_of_another_program_is_not_removed(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    with pytest.raises(FileExistsError, match="checkpoint-5"):
        check_output(tmp_path, resume=False, overwrite=True)
    save_run({}, tmp_path / "checkpoint-5")  # a copy of ours in a new folder, to be resumed
    check_output(tmp_path, resume=True, overwrite=False)


def test_what_a_run_reads_is_not_replaced_by_it(tmp_path):
    base = make_result(tmp_path / "base")
    for name in ("", "../base", "checkpoint-10", "adapter", "predictions.jsonl"):
        with pytest.raises(FileExistsError, match=r"this run reads .* and would replace it"):
            check_output(base, resume=False, overwrite=True, inputs=["bert", base / name])
    check_output(base, resume=False, overwrite=True, inputs=["", base / "notes.txt"])
    check_output(tmp_path / "other", resume=False, overwrite=True, inputs=[base])


def test_the_root_and_the_home_folder_are_no_output_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("/", "/..", tmp_path):
        with pytest.raises(FileExistsError, match=r"--output_dir .* is no folder for one run: give one below it"):
            check_output(folder, resume=False, overwrite=False)
    check_output(tmp_path / "out", resume=False, overwrite=False)


def test_a_model_is_moved_into_place_beside_what_the_user_has_there(tmp_path):
    make_result(tmp_path)
    remove_results(tmp_path, checkpoints=False)

    def write(aside: Path) -> None:
        (aside / "adapter").mkdir()
        for name in ("adapter/adapter_config.json", "config.json", "model.safetensors"):
            (aside / name).write_text("new")
        assert not (tmp_path / "config.json").exists()

    saved = save_aside(tmp_path, "the model", write, main=True, wait=lambda: None)
    assert sorted(saved) == ["adapter/adapter_config.json", "config.json", "model.safetensors"]
    assert (tmp_path / "adapter" / "mine.txt").exists()
    assert not (tmp_path / ASIDE).exists()
    prints = fingerprints(tmp_path, saved)
    assert prints["config.json"] == {"bytes": 3, "sha256": hashlib.sha256(b"new").hexdigest()}


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / ASIDE / "checkpoint-7").mkdir(parents=True)
    prepare_output(tmp_path, resume=False, overwrite=False)
    assert not (tmp_path / ASIDE).exists()


def test_an_output_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to --output_dir"):
        prepare_output(tmp_path / "file" / "out", resume=False, overwrite=False)


# What holds a folder: a process that writes it, in words of its own.
HOLD = """
import os, sys, time
from pathlib import Path
from hf_lm.files import held
with held(Path(sys.argv[1])):
    read, write = os.pipe()
    if not os.fork():
        os.write(write, b"1")  # it has closed what it must not keep
        time.sleep(5)  # as a process that loads data, which outlives its parent
        os._exit(0)
    os.read(read, 1)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_folder_that_a_live_run_writes_is_refused_and_a_kill_releases_it(tmp_path):
    (tmp_path / ASIDE).mkdir()  # what it is writing
    run = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / LOCK], stdout=subprocess.PIPE, text=True)
    pid = run.stdout.readline().strip()
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(
            FileExistsError, match=f"a run that has not ended .process {pid} on {socket.gethostname()}"
        ):
            prepare_output(tmp_path, resume=resume, overwrite=overwrite, lock=ExitStack())
    assert (tmp_path / ASIDE).exists()
    run.kill()
    run.wait()
    with ExitStack() as lock:
        prepare_output(tmp_path, resume=True, overwrite=False, lock=lock)
        with pytest.raises(FileExistsError, match="a run that has not ended"):
            prepare_output(tmp_path, resume=True, overwrite=False, lock=ExitStack())
    assert list(tmp_path.iterdir()) == []
    run.stdout.close()


# What each library says of a disk that is full. Each writes more than a few bytes into a folder.
WRITERS = {
    "numpy": lambda folder, tokenizer: np.save(folder / "a.npy", np.zeros(9999)),
    "torch": lambda folder, tokenizer: torch.save({"a": torch.zeros(9999)}, folder / "a.pt"),
    "safetensors": lambda folder, tokenizer: save_file({"a": torch.zeros(9999)}, folder / "a.safetensors"),
    "tokenizer": lambda folder, tokenizer: tokenizer.save_pretrained(folder),
    "picture": lambda folder, tokenizer: Figure().savefig(folder / "a.png"),
    "report": lambda folder, tokenizer: write_whole(folder / "report.json", "x" * 9999),
    "predictions": lambda folder, tokenizer: save_predictions([{"text": "x" * 9999}], folder),
}


@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_one_line_with_the_place_and_the_way_on_whatever_library_meets_it(library, tokenizer, tmp_path):
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))  # bytes
        with (
            pytest.raises(OSError, match="the file could not be saved in") as caught,
            disk_errors("the file", tmp_path),
        ):
            WRITERS[library](tmp_path, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "Free some space and continue with the same command and --resume_from_checkpoint latest" in message
    assert not list(tmp_path.glob("*.tmp"))


def test_an_error_that_is_not_of_the_disk_is_not_called_one(tmp_path):
    with pytest.raises(RuntimeError, match=r"^out of memory$"), disk_errors("the file", tmp_path):
        raise RuntimeError("out of memory")
    make_checkpoint(tmp_path, 7)
    read_only = OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(OSError, match=r"Make it writable.*checkpoint-7 is complete"), disk_errors("a file", tmp_path):
        raise read_only


def test_another_text_or_tokenizer_is_refused_at_a_resume(tmp_path, tokenizer, texts):
    read = lambda text, tokenizer: inputs_of(SimpleNamespace(fingerprint=text, tokenizer=tokenizer))  # noqa: E731
    (tmp_path / INPUTS).write_text(json.dumps(read("a", tokenizer)))
    tokenizer(["a", "b c"], padding=True)
    tokenizer.save_pretrained(tmp_path / "saved")
    check_same_inputs(tmp_path, read("a", AutoTokenizer.from_pretrained(tmp_path / "saved")))
    other = train_bpe(texts[1:], vocab_size=320)
    for changed, words in ((read("b", tokenizer), "the text"), (read("b", other), "the text and the tokenizer")):
        with pytest.raises(ValueError, match=rf"what changed is {words}\. .*--resume_with_changes"):
            check_same_inputs(tmp_path, changed)


def test_another_base_or_teacher_of_the_same_name_is_refused_at_a_resume(model, tmp_path):
    base = tmp_path / "base"
    model.save_pretrained(base)
    (tmp_path / INPUTS).write_text(json.dumps(models_of([str(base)])))
    check_same_inputs(tmp_path, models_of([str(base)]))
    with torch.no_grad():
        model.transformer.wte.weight[3, 3] += 1e-3  # one number of all
    model.save_pretrained(base)
    with pytest.raises(ValueError, match=rf"what changed is the model {base}\."):
        check_same_inputs(tmp_path, models_of([str(base)]))


def test_a_checkpoint_that_records_no_inputs_has_no_rates(tmp_path):
    assert rates_tried(None) == rates_tried(tmp_path) == []
    (tmp_path / INPUTS).write_text(json.dumps({"text": "a"}))
    assert rates_tried(tmp_path) == []
    (tmp_path / INPUTS).write_text(json.dumps({"text": "a", SWEPT: [{"learning_rate": 0.1}]}))
    assert rates_tried(tmp_path) == [{"learning_rate": 0.1}]


@pytest.mark.parametrize(("waits", "due", "saves"), [(True, False, True), (True, True, False), (False, False, False)])
def test_a_checkpoint_is_saved_before_a_text_is_waited_for_unless_there_is_one(waits, due, saves):
    state, control = TrainerState(global_step=7, max_steps=20, epoch=1.0), TrainerControl(should_save=due)
    args, callback = SimpleNamespace(world_size=1, device="cpu"), SaveBeforeWaiting(lambda: waits)
    callback.on_step_end(args, state, control)
    control.should_save = False  # the Trainer has saved
    callback.on_epoch_end(args, state, control)
    assert control.should_save == saves
    assert unscheduled_steps(state) == [7] * saves
