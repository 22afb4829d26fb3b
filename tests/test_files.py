"""Files are complete or absent, and what this program did not write stays."""

import os

import pytest

from hf_lm.files import refuse_foreign, write_whole


def test_a_failed_write_leaves_the_old_content_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_whole(path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_written_file_has_the_mode_of_an_ordinary_one(tmp_path):
    write_whole(tmp_path / "a", b"1")
    (tmp_path / "b").write_text("1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_what_this_program_did_not_write_is_refused(tmp_path):
    ours = lambda path: path.read_text().startswith("ours")  # noqa: E731
    refuse_foreign(tmp_path / "absent", ours=ours, option="--output")
    (tmp_path / "mine.txt").write_text("ours: 1")
    refuse_foreign(tmp_path / "mine.txt", ours=ours, option="--output")
    (tmp_path / "notes.txt").write_bytes(b"\xff notes")
    (tmp_path / "link").symlink_to(tmp_path / "mine.txt")
    for name in ("notes.txt", "link", "."):
        with pytest.raises(FileExistsError, match="give another --output"):
            refuse_foreign(tmp_path / name, ours=ours, option="--output")
