"""A checkpoint is complete or absent, and a run is continued or replaced only when that was asked for."""

import errno
import hashlib
import json
from pathlib import Path

import pytest

from hf_lm.files import fingerprints
from hf_lm.output_folder import (
    ASIDE,
    check_output,
    is_run,
    list_checkpoints,
    prepare_output,
    remove_results,
    save_run,
)
from hf_lm.training.checkpoints import check_same_run, find_checkpoint, save_aside


def make_checkpoint(folder: Path, step: int, run: dict | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    save_run(run or {"learning_rate": 1e-3}, checkpoint)
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
    assert files(tmp_path) == kept | {"checkpoint-10/trainer_state.json", "checkpoint-10/run.yaml"}
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
