"""A checkpoint is complete or absent, and a run is continued or replaced only when that was asked for."""

import errno
import json
from pathlib import Path

import pytest
import yaml

from hf_lm.training.checkpoints import (
    ASIDE,
    check_same_run,
    find_checkpoint,
    list_checkpoints,
    prepare_output,
    save_aside,
)


def make_checkpoint(folder: Path, step: int, run: dict | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (checkpoint / "run.yaml").write_text(yaml.safe_dump(run or {"learning_rate": 1e-3}))
    return checkpoint


def write_one(aside: Path) -> None:
    make_checkpoint(aside, 30)


def test_latest_is_the_newest_complete_checkpoint_by_step_not_by_name(tmp_path):
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-200").mkdir()  # half-written by something else
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-100"
    assert find_checkpoint("true", tmp_path).name == "checkpoint-100"
    assert find_checkpoint(str(tmp_path / "checkpoint-9"), tmp_path).name == "checkpoint-9"
    with pytest.raises(FileNotFoundError, match=r"checkpoint-200 is not a complete checkpoint.*checkpoint-9"):
        find_checkpoint(str(tmp_path / "checkpoint-200"), tmp_path)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        find_checkpoint("latest", tmp_path / "elsewhere")


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


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 10, {"learning_rate": 1e-3, "block_size": 64, "logging_steps": 10})
    check_same_run(checkpoint, {"learning_rate": 1e-3, "block_size": 64, "logging_steps": 1})  # changes no number
    with pytest.raises(ValueError, match=r"learning_rate 0.001 -> 0.002, seed None -> 7"):
        check_same_run(checkpoint, {"learning_rate": 2e-3, "block_size": 64, "seed": 7})


def test_a_run_is_not_overwritten_unasked(tmp_path):
    make_checkpoint(tmp_path, 10)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds a run"):
        prepare_output(tmp_path, resume=False, overwrite=False)
    prepare_output(tmp_path, resume=True, overwrite=False)
    assert list_checkpoints(tmp_path)
    prepare_output(tmp_path, resume=False, overwrite=True)
    assert not list_checkpoints(tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / ASIDE / "checkpoint-7").mkdir(parents=True)
    prepare_output(tmp_path, resume=False, overwrite=False)
    assert not (tmp_path / ASIDE).exists()


def test_an_output_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to --output_dir"):
        prepare_output(tmp_path / "file" / "out", resume=False, overwrite=False)
