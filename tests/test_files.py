"""Files are complete or absent, and what this program did not write stays."""

import json
import os
import resource
import signal

import pytest
from test_writing import typed

from hf_lm import files
from hf_lm.cli import main
from hf_lm.commands.chat import talk
from hf_lm.commands.write import assist
from hf_lm.files import refuse_foreign, write_whole
from hf_lm.inference.chat import Conversation
from hf_lm.inference.predict import predict, write_lines
from hf_lm.inference.writing import Draft
from hf_lm.models.configuration import model_fingerprint


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


def row(given, model="m", **more):
    said = {"input": given, "prediction": "x", "score": 0.5, "model": model, "fingerprint": "f", "task": "sentiment"}
    return json.dumps(said | more) + "\n"


PREDICT = ["predict", "sentiment", "m", "in.txt", "--output"]
GENERATE = ["generate", "m", "--prompts", "in.txt", "--output"]
SCORE = ["score", "m", "--dataset", "in.txt", "--output"]
LOST = [  # command, file of the user, its content, what the command prints
    ([*PREDICT, "notes.txt"], "notes.txt", "my notes", "not written by this command: give another --output"),
    ([*PREDICT, "notes.txt"], "notes.txt", "line 1\nline 2", "not written by this command"),
    ([*PREDICT, "data.json"], "data.json", '{"input": "one", "label": 1}', "not written by this command"),
    ([*PREDICT, "in.txt"], "in.txt", "one\ntwo", "is the file that is read"),
    ([*PREDICT[:3], "in.jsonl", "--output", "in.jsonl"], "in.jsonl", row("one"), "is the file that is read"),
    ([*PREDICT, "crlf.txt"], "crlf.txt", "one\r\ntwo\r\nthr", "not written by this command"),
    ([*PREDICT, "run.jsonl"], "run.jsonl", '{"input": "one", "prediction": "x", "split": "test"}\n', "not written by"),
    ([*PREDICT, "p.jsonl"], "p.jsonl", row("one", "other"), "line 1: other model than now (other, not m)"),
    ([*PREDICT, "p.jsonl"], "p.jsonl", row("one", fingerprint="g"), "other fingerprint of the model than now (g,"),
    ([*PREDICT, "p.jsonl"], "p.jsonl", row("one", task="translation"), "line 1: other task than now"),
    ([*PREDICT, "p.jsonl"], "p.jsonl", row("one") + "my notes", "line 2: neither a complete line nor the beginning"),
    ([*PREDICT, "p.jsonl"], "p.jsonl", row("one") + row("two") + "my notes", "line 3: neither a complete line"),
    ([*PREDICT, "p.jsonl"], "p.jsonl", row("three") + '{"inp', "line 1: not the answer to this run's input"),
    ([*GENERATE, "notes.txt"], "notes.txt", "my notes", "not written by this command"),
    ([*GENERATE, "in.txt"], "in.txt", "one\ntwo", "is the file that is read"),
    (
        [*SCORE, "thesis.tex"],
        "thesis.tex",
        "\\documentclass{}",
        "thesis.tex exists and was not written by this command",
    ),
    ([*SCORE, "thesis.json"], "thesis.png", "picture", "thesis.png exists and was not written by this command"),
    ([*SCORE, "x.png"], "x.png", "picture", "x.png exists and was not written by this command"),
    ([*SCORE, "new.png"], "old.png", "picture", "is the name of the picture: give a file such as new.json"),
    ([*SCORE, "data.json"], "data.json", '{"task": "mine"}', "not written by this command"),
    ([*SCORE, "."], "mine.txt", "notes", ". is a folder: give another --output"),
    (["compare", "a", "b", "--output", "data.json"], "data.json", "[1]", "not written by this command"),
    (["plan", "pretrain", "--json", "mine.json"], "mine.json", '{"recipe": "cake"}', "give another --json"),
]


@pytest.mark.parametrize(("command", "file", "content", "says"), LOST)
def test_the_table_of_what_was_lost_is_empty(command, file, content, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_lm.models.configuration.model_fingerprint", lambda name: "f")
    (tmp_path / "in.txt").write_bytes(b"one\ntwo\n")
    (tmp_path / file).write_bytes(content.encode())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as ended:
        main(command)
    [line] = capsys.readouterr().err.strip().split("\n")
    assert ended.value.code == 1
    assert line.startswith("error: ")
    assert says in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_in_write_replaces_only_what_the_session_knows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_bytes(b"other\r\n")
    (tmp_path / "draft.txt").write_bytes(b"one\r\ntwo")
    (tmp_path / "draft.txt.unsaved").write_bytes(b"older")
    draft = Draft("one\r\ntwo")
    assist(None, None, draft, file="draft.txt", read=typed("three", "/save other.txt", "/save", "four"))
    assert (tmp_path / "other.txt").read_bytes() == b"other\r\n"
    assert (tmp_path / "draft.txt").read_bytes() == b"one\r\ntwo three"
    assert (tmp_path / "draft.txt.unsaved").read_bytes() == b"older"
    assert (tmp_path / "draft.txt.unsaved-2").read_bytes() == b"one\r\ntwo three four"
    assert (
        "other.txt exists and was not written by this command: give another file to /save" in capsys.readouterr().out
    )

    (tmp_path / "draft.txt").write_bytes(b"changed by an editor")
    assist(
        None, None, Draft("one"), file="draft.txt", read=typed("two", "/save", "/save new.txt", "3", "/save", "/quit")
    )
    assert (tmp_path / "draft.txt").read_bytes() == b"changed by an editor"
    assert (tmp_path / "new.txt").read_bytes() == b"one two 3"


@pytest.mark.parametrize("content", [b"notes\n\nmore\n", b'{"messages": 3}\n', b"\xff", b'{"messages": []}\nnotes'])
def test_save_in_chat_adds_to_conversations_only(content, model, tokenizer, tmp_path, capsys):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(content)
    conversation = Conversation(model, tokenizer, template="plain", messages=[{"role": "user", "content": "a"}])
    talk(conversation, read=typed(f"/save {path}"))
    assert path.read_bytes() == content
    assert "not written by this command: give another file to /save" in capsys.readouterr().out

    mine = b'{"id": 7, "messages": [{"role": "user", "content": "a"}]}\r\n\n'
    path.write_bytes(mine)
    conversation.save(path)
    conversation.messages.append({"role": "assistant", "content": "b"})
    conversation.save(path)  # in place of its earlier state alone
    assert path.read_bytes() == mine + json.dumps({"messages": conversation.messages}).encode() + b"\n"


def test_a_cache_that_cannot_be_made_and_a_lock_that_is_a_folder_are_said_with_what_helps(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make the cache .*file/hf_lm \(Not a directory\): set HF_HOME"):
        files.fill_cache(tmp_path / "file" / "hf_lm" / "x", lambda folder: None)
    lock = files.held(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder, and this program needs a file of that name"), lock:
        pass


def test_a_pipe_is_written_to(tmp_path):
    read, write = os.pipe()
    refuse_foreign(f"/dev/fd/{write}", ours=lambda path: False, option="--json")
    write_whole(f"/dev/fd/{write}", "text")
    assert os.read(read, 10) == b"text"
    os.close(read)
    os.close(write)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere for a\.json"):
        write_whole(tmp_path / "nowhere" / "a.json", "1")


def test_a_stopped_file_of_predictions_is_continued_by_the_same_model_alone(tmp_path, monkeypatch):
    def pipeline(kind, model, **options):
        return lambda piece, **options: [{"label": text.upper(), "score": 0.5} for text in piece]

    monkeypatch.setattr("hf_lm.inference.pipelines.pipeline", pipeline)
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("one\ntwo 春\nthree\n")
    assert predict("sentiment", str(tmp_path), str(source), str(output)) == 3
    complete = output.read_bytes()
    rows = [json.loads(line) for line in complete.decode().splitlines()]
    said = {"input": "two 春", "prediction": "TWO 春", "score": 0.5}
    told = {"model": str(tmp_path), "fingerprint": model_fingerprint(str(tmp_path)), "task": "sentiment"}
    assert rows[1] == said | told
    first = complete.index(b"\n") + 1
    for size in range(len(complete)):  # stopped anywhere, also within a character
        output.write_bytes(complete[:size])
        predict("sentiment", str(tmp_path), str(source), str(output))
        assert output.read_bytes() == complete
    windows = complete[:first].replace(b"\n", b"\r\n")
    output.write_bytes(windows)
    predict("sentiment", str(tmp_path), str(source), str(output))
    assert output.read_bytes() == windows + complete[first:]
    output.write_bytes(b"")  # nothing that could be lost
    predict("sentiment", str(tmp_path), str(source), str(output))
    assert output.read_bytes() == complete


def test_a_file_of_predictions_is_written_by_one_command_at_once(tmp_path):
    output = tmp_path / "out.jsonl"

    def start():
        with pytest.raises(FileExistsError, match=r"out\.jsonl is being written \(process \d+ on .*\): give another"):
            write_lines(["a"], str(output), start, model=str(tmp_path), shared={}, description="")
        return lambda piece: [{"prediction": text} for text in piece]

    assert write_lines(["a"], str(output), start, model=str(tmp_path), shared={}, description="") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_full_disk_is_named_by_the_file_that_is_written(tmp_path):
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    answers = lambda: lambda piece: [{"prediction": text} for text in piece]  # noqa: E731
    same = {"model": str(tmp_path), "shared": {}, "description": ""}
    resource.setrlimit(resource.RLIMIT_FSIZE, (80, limits[1]))  # bytes: the lock of predictions fits
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/out\.jsonl'$"):
            write_lines(["a" * 90], str(tmp_path / "out.jsonl"), answers, **same)
        with pytest.raises(OSError, match=r"File too large: '.*/a\.json'$"):
            write_whole(tmp_path / "a.json", "1" * 90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert write_lines(["a" * 90], str(tmp_path / "out.jsonl"), answers, **same) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_the_hash_of_much_text_is_kept_until_a_file_changes_and_not_of_one_just_written(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(files, "MUCH", 0)
    monkeypatch.setattr(files, "default_cache", lambda: tmp_path / "cache")
    hash_contents = files.hash_contents
    monkeypatch.setattr(files, "hash_contents", lambda names: read.append(1) or hash_contents(names))
    names = [(f"train {i}", tmp_path / f"{i}.txt") for i in range(2)]
    for _, path in names:
        path.write_text(f"text of {path.name}")
    expected = hash_contents(names)
    for _ in range(2):  # written a moment ago
        assert files.hash_contents_once(names) == expected
    assert len(read) == 2
    for _, path in names:
        os.utime(path, ns=(10**18, 10**18))
    for _ in range(2):
        assert files.hash_contents_once(names) == expected
    assert len(read) == 3
    names[1][1].write_text("text of 1.tx!")  # as many bytes
    os.utime(names[1][1], ns=(10**18 + 1, 10**18 + 1))
    assert files.hash_contents_once(names) == hash_contents(names) != expected
    assert files.hash_contents_once([("validation 0", names[0][1])]) == hash_contents([("validation 0", names[0][1])])
    assert len(read) == 5
