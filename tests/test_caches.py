"""What a cache holds is what was written into it, or it is made again; and a killed run leaves nothing for ever."""

import errno
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_lm import files
from hf_lm.data.demos import documentation
from hf_lm.data.packing import tokenize_documents
from hf_lm.data.sources import Corpus
from hf_lm.tokenization.tokenizer import encode_documents, prepare_tokenizer

TEXTS = ["one two three", "four five", "one four"]


def token_cache(home, tokenizer):
    stream = tokenize_documents(TEXTS, tokenizer=tokenizer, folder=home / "tokens" / "key", count_words=True)
    return [getattr(stream, name).tolist() for name in ("tokens", "starts", "bytes", "words")]


def tokenizer_cache(home, tokenizer):
    corpus = Corpus("here", "of test_caches", 100, {"train": lambda: iter(TEXTS)})
    trained = prepare_tokenizer("bpe", corpus, vocab_size=270, min_frequency=2, max_bytes=10**6)
    return encode_documents(trained, TEXTS), trained.eos_token, trained.pad_token_id


def docstring_cache(home, tokenizer):
    return documentation.docstring_summaries()


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # a value: of an id, a length, a word
    path.write_bytes(content)


def append(path):
    path.write_bytes(path.read_bytes() + b"{}")


@pytest.mark.parametrize("damage", [empty, truncate, flip, append, Path.unlink])
@pytest.mark.parametrize("cache", [token_cache, tokenizer_cache, docstring_cache])
def test_a_damaged_file_of_a_cache_is_made_again_with_one_line(cache, damage, tokenizer, tmp_path, monkeypatch, capfd):
    for module in ("hf_lm.tokenization.tokenizer", "hf_lm.data.demos.documentation"):
        monkeypatch.setattr(f"{module}.default_cache", lambda: tmp_path)
    monkeypatch.setattr(documentation, "_modules", lambda: [("m", "m.f(x)", "Sum up the words.\n\n" + "body " * 20)])
    first = cache(tmp_path, tokenizer)
    (folder,) = (path for path in tmp_path.glob("*/*") if path.is_dir())
    names = sorted(path.name for path in folder.iterdir())
    assert files.MANIFEST in names
    assert capfd.readouterr().err == ""
    for name in names:
        damage(folder / name)
        assert cache(tmp_path, tokenizer) == first, name
        assert capfd.readouterr().err.count("made again") == 1, name
        assert sorted(path.name for path in folder.iterdir()) == names
    assert cache(tmp_path, tokenizer) == first
    assert capfd.readouterr().err == ""
    assert list(folder.parent.iterdir()) == [folder]


def test_a_cache_of_an_earlier_version_has_no_manifest_and_is_made_again(tmp_path, capsys):
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "data").write_text("old")
    files.fill_cache(tmp_path / "key", lambda folder: (folder / "data").write_text("new"))
    assert (tmp_path / "key" / "data").read_text() == "new"
    assert "manifest.json is missing" in capsys.readouterr().err


# What each of several processes does: fill one cache slowly, and print what it finds in it.
FILL = """
import sys, time
from pathlib import Path
from hf_lm.files import fill_cache

def write(folder):
    for name in ("a", "b"):
        (folder / name).write_text("content " * 1000)
        print("writing", flush=True)
        time.sleep(float(sys.argv[2]))

fill_cache(Path(sys.argv[1]), write)
print(*[len((Path(sys.argv[1]) / name).read_text()) for name in ("a", "b")], flush=True)
"""


def start(folder, seconds):
    return subprocess.Popen([sys.executable, "-c", FILL, folder, str(seconds)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("damaged", [False, True])
def test_four_processes_may_fill_one_cache_at_once(tmp_path, damaged):
    folder = tmp_path / "key"
    if damaged:
        files.fill_cache(folder, lambda aside: (aside / "a").write_text("x"))
        (folder / "a").write_text("y")
    outputs = [process.communicate(timeout=60)[0] for process in [start(folder, 0.3) for _ in range(4)]]
    assert [output.splitlines()[-1] for output in outputs] == ["8000 8000"] * 4
    assert "".join(outputs).count("writing") == 2  # two files, by one process: the others waited
    assert list(tmp_path.iterdir()) == [folder]


def test_who_waits_for_a_process_that_is_killed_writes_the_cache_itself(tmp_path):
    killed = start(tmp_path / "key", 60)
    assert killed.stdout.readline() == "writing\n"
    waiting = start(tmp_path / "key", 0)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert waiting.communicate(timeout=60)[0].splitlines()[-1] == "8000 8000"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_a_killed_run_left_is_removed_by_the_next_and_a_live_one_is_left_alone(tmp_path):
    killed, live = start(tmp_path / "killed", 60), start(tmp_path / "key", 1)
    for process in (killed, live):
        assert process.stdout.readline() == "writing\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / ".aside-old").mkdir()  # of an earlier version, without a manifest
    assert len(list(tmp_path.iterdir())) == 3
    files.fill_cache(tmp_path / "other", lambda aside: (aside / "a").write_text("x"))
    assert len(list(tmp_path.iterdir())) == 2  # what the live run writes, and ours
    assert live.communicate(timeout=60)[0].splitlines()[-1] == "8000 8000"
    killed.stdout.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "other"]


@pytest.mark.parametrize("cache", [token_cache, tokenizer_cache])
def test_a_disk_that_is_full_is_one_line_with_the_place_and_the_way_on(cache, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lm.tokenization.tokenizer.default_cache", lambda: tmp_path)
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))  # bytes: a write of more fails as on a full disk
    try:
        with pytest.raises(OSError, match="cannot write the cache") as caught:
            cache(tmp_path, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    (kind,) = tmp_path.iterdir()
    assert str(kind) in str(caught.value)
    assert "HF_HOME" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(kind.iterdir()) == []
    cache(tmp_path, tokenizer)  # with room again


def test_an_error_of_the_text_is_not_called_one_of_the_cache(tokenizer, tmp_path):
    def missing():
        yield "text"
        raise FileNotFoundError(errno.ENOENT, "there is no corpus")

    with pytest.raises(FileNotFoundError, match="there is no corpus"):
        tokenize_documents(missing(), tokenizer=tokenizer, folder=tmp_path / "s")


def test_a_home_that_cannot_be_written_costs_the_documentation_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(documentation, "default_cache", lambda: tmp_path / "file")
    monkeypatch.setattr(documentation, "_modules", lambda: [("m", "m.f(x)", "text")])
    assert documentation.documentation() == [{"module": "m", "text": "m.f(x)\n\ntext"}]


def test_all_that_a_rename_makes_durable_is_synced_the_folder_last(tmp_path, monkeypatch):
    steps, replace = [], files.os.replace
    monkeypatch.setattr(files, "sync", lambda path: steps.append(path.name))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (steps.append("renamed"), replace(a, b)))
    files.fill_cache(tmp_path / "key", lambda aside: (aside / "a").write_text("x"))
    assert sorted(steps[:2]) == ["a", files.MANIFEST]
    assert steps[2].startswith(".aside-")
    assert steps[3:] == ["renamed", tmp_path.name]
    steps.clear()
    files.write_whole(tmp_path / "file", "x")
    assert steps == ["renamed", tmp_path.name]


def test_a_system_without_locks_fills_caches_and_leaves_what_others_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".aside-other").mkdir()
    files.fill_cache(tmp_path / "key", lambda aside: (aside / "a").write_text("x"))
    assert files.damage(tmp_path / "key") == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [".aside-other", "key"]
