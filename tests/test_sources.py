"""Any text in: every format and name, mended on purpose and said so, split without leaks, in bounded memory."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from loopback_hub import hub  # noqa: F401  (a fixture)

from hf_lm.data.cutting import cut
from hf_lm.data.hub_datasets import load_hub
from hf_lm.data.patterns import Pattern
from hf_lm.data.reading import read_documents
from hf_lm.data.sources import load_corpus
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import new_tokenizer


def rows(n: int, word: str = "document") -> list[str]:
    return [f"{word} {i}: " + " ".join(f"{word}{j}" for j in range(i % 9 + 3)) for i in range(n)]


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text, "id": i}) + "\n" for i, text in enumerate(texts)))
    return path


def everything(corpus) -> list[str]:
    return [text for split in corpus.splits for text in corpus.documents(split)]


def read(path: Path, **settings) -> tuple[list[str], Counter]:
    cleaned = Counter()
    settings = {"text_column": "", "document_start": None} | settings
    return list(read_documents(path, cleaned=cleaned, **settings)), cleaned


# Formats


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv"])
def test_a_column_that_is_a_number_is_of_a_table_without_a_header(name, tmp_path):
    mark = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_text("".join(f"label{mark}text {i}\n" for i in range(40)))
    corpus = load_corpus(str(tmp_path / name), text_column="1")
    assert sorted(text for split in corpus.splits for text in corpus.documents(split)) == sorted(
        f"text {i}" for i in range(40)
    )
    assert corpus.format.endswith("a document a row")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_format_gives_the_same_documents(tmp_path, name, packed):
    import pandas
    import zstandard
    from datasets import Dataset

    texts = [f'{text}, "quoted"\nsecond\tline' for text in rows(20)]
    path, frame = tmp_path / name, pandas.DataFrame({"text": texts, "id": range(20)})
    if name.endswith("jsonl"):
        write_jsonl(path, texts)
    elif name.endswith("json"):
        path.write_text(json.dumps({"data": [{"text": text} for text in texts], "version": 1}))
    elif name.endswith("csv"):
        frame.to_csv(path, index=False)
    elif name.endswith("tsv"):
        frame.to_csv(path, index=False, sep="\t")
    elif name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        Dataset.from_pandas(frame).save_to_disk(str(tmp_path / "saved"))
        path.write_bytes(next((tmp_path / "saved").glob("*.arrow")).read_bytes())
    if packed == ".gz":
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    elif packed == ".zst":
        (tmp_path / f"{name}.zst").write_bytes(zstandard.compress(path.read_bytes()))
    assert read(tmp_path / f"{name}{packed}")[0] == texts


def test_a_hub_dataset_saved_as_parquet_loads_by_the_librarys_own_reader(tmp_path, monkeypatch):
    found = datasets.DatasetDict(
        {split: datasets.Dataset.from_dict({"text": rows(20, split)}) for split in ("train", "validation", "test")}
    )
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or found)
    corpus = load_corpus("user/name:config@v1")
    assert asked == [(("user/name", "config"), {"revision": "v1", "streaming": False})]
    assert list(corpus.documents("test")) == rows(20, "test")


def test_a_column_of_lists_is_joined_by_line_ends(tmp_path):
    path = tmp_path / "poems.json"
    path.write_text(json.dumps([{"author": "和岘", "paragraphs": ["气和玉烛。", "缇管一阳生。"]}], ensure_ascii=False))
    assert read(path, text_column="paragraphs")[0] == ["气和玉烛。\n缇管一阳生。"]


# Mended on purpose


def test_bad_bytes_nul_and_foreign_line_ends_are_mended_and_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n" + b"caf\xe9 \x00 end. " + b"good text " * 20)
    documents, cleaned = read(path)
    assert documents == ["one\ntwo\nthree\ncaf� \ufffd end. ".replace("\ufffd end", " end") + "good text " * 20]
    assert cleaned == {"nul_characters": 1, "carriage_returns": 2, "invalid_utf8": 1}


def test_a_line_end_that_falls_between_two_chunks_stays_one(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lm.data.reading.CHUNK", 4)
    path = tmp_path / "a.txt"
    path.write_bytes("abc\r\nd€f\r\n\r\n".encode())
    assert read(path)[0] == ["abc\nd€f\n\n"]


def test_empty_rows_and_files_are_counted_and_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": ""}\n\n{"text": null}\n{"text": "  \\n"}\n{"text": "two"}\n')
    assert read(path) == (["one", "two"], {"empty_rows": 3})
    (tmp_path / "b.txt").write_text("")
    assert read(tmp_path / "b.txt") == ([], {"empty_files": 1})


def test_binary_and_utf16_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(os.urandom(5000))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes("hello".encode("utf-16"))
    with pytest.raises(ValueError, match=r"b\.txt is UTF-16"):
        read(tmp_path / "b.txt")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_line_of_200_megabytes_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"0123456789abcdef" * 65536)
    code = (
        "import sys\nfrom collections import Counter\nfrom pathlib import Path\n"
        "from hf_lm.data.reading import read_documents\n"
        "documents = read_documents(Path(sys.argv[1]), text_column='', document_start=None, cleaned=Counter())\n"
        "sizes = [len(document) for document in documents]\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(sum(sizes), max(sizes), peak.split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    total, longest, kilobytes = map(int, done.stdout.split())
    assert total == 200 * 2**20
    assert longest <= 2**16
    assert kilobytes < 100_000
    path.unlink()


# Documents


@given(st.lists(st.text(alphabet="ab \n", max_size=40), max_size=20), st.integers(2, 30))
def test_cut_pieces_joined_are_the_text_and_none_is_too_long(chunks, longest):
    pieces = list(cut(chunks, None, longest))
    assert "".join(pieces) == "".join(chunks)
    assert all(0 < len(piece) <= 2 * longest for piece in pieces)


def test_document_start_parts_lines_into_documents(tmp_path):
    text = " = One = \n\n first \n = = Part = = \n more \n = Two = \n\n second \n"
    expected = [" = One = \n\n first \n = = Part = = \n more \n", " = Two = \n\n second \n"]
    (tmp_path / "a.txt").write_text(text)
    start = Pattern(r"^ = [^=].* = $", option="--document_start", flags=regex.MULTILINE)
    assert read(tmp_path / "a.txt", document_start=start)[0] == expected
    write_jsonl(tmp_path / "a.jsonl", text.splitlines())  # a row a line, as WikiText stands on the Hub
    assert read(tmp_path / "a.jsonl", document_start=start)[0] == expected


# Splits


def test_splits_are_taken_from_file_names_and_folders(tmp_path):
    for name, word in (("train.jsonl", "a"), ("valid/x.jsonl", "b"), ("corpus_test.jsonl", "c"), ("more.jsonl", "d")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, rows(5, word))
    (tmp_path / "README.txt").write_text("not data")
    corpus = load_corpus(str(tmp_path))
    found = {split: {text[0] for text in corpus.documents(split)} for split in corpus.splits}
    assert found == {"train": {"a", "d"}, "validation": {"b"}, "test": {"c"}}
    assert corpus.notes == ["no split is in the name of more.jsonl: read as train"]
    (tmp_path / "train.jsonl").rename(tmp_path / "text.jsonl")  # no name says train: all these are
    assert load_corpus(str(tmp_path)).notes == []


@pytest.mark.parametrize("n", [3, 40, 3000])
def test_missing_splits_are_cut_from_train_whole_and_disjoint(tmp_path, n):
    texts = rows(n)
    corpus = load_corpus(str(write_jsonl(tmp_path / "a.jsonl", texts)))
    parts = {split: list(corpus.documents(split)) for split in corpus.splits}
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    assert set(parts) == {"train", "validation", "test"}
    assert all(parts.values())
    if n == 3000:
        assert 0.03 < len(parts["validation"]) / n < 0.07
    assert "cut from train" in corpus.notes[0]


@pytest.mark.parametrize("n", [60, 600])
def test_the_cut_knows_neither_the_order_of_documents_nor_lets_copies_cross(tmp_path, n):
    texts = rows(n)
    held = []
    for number, order in enumerate((texts, texts[::-1], texts + texts[: n // 2])):
        corpus = load_corpus(str(write_jsonl(tmp_path / f"{number}.jsonl", order)))
        held.append(set(corpus.documents("validation")))
        assert not held[-1] & set(corpus.documents("train"))
    assert held[0] == held[1] == held[2]


def test_reading_twice_gives_the_same_and_the_fingerprint_names_content_and_options(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows(50))
    corpus = load_corpus(str(path))
    assert everything(corpus) == everything(corpus)
    moved = tmp_path / "elsewhere" / "a.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert load_corpus(str(moved)).fingerprint == corpus.fingerprint
    assert load_corpus(str(path), document_start="^document").fingerprint != corpus.fingerprint
    write_jsonl(path, rows(51))
    assert load_corpus(str(path)).fingerprint != corpus.fingerprint


def test_a_mixture_keeps_its_weights_within_a_document(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", rows(400, "aaaa"))
    b = write_jsonl(tmp_path / "b.jsonl", rows(2000, "bb"))
    corpus = load_corpus(f"{a}=0.7,{b}=0.3")
    sizes = Counter()
    longest = 0
    for text in corpus.documents("train"):
        sizes[text[0]] += len(text)
        longest = max(longest, len(text))
    assert abs(sizes["a"] - (sizes["a"] + sizes["b"]) * 0.7) <= longest
    assert {text[0] for text in corpus.documents("validation")} == {"a", "b"}
    assert corpus.source == "70% a.jsonl, 30% b.jsonl"
    assert corpus.source in corpus.notes[0]


def test_what_was_mended_is_counted_once_however_often_the_text_is_read(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, [*rows(20, name), "nul\0 here", " "])
    corpus = load_corpus(str(tmp_path))
    for _ in range(3):
        for split in corpus.splits:
            list(corpus.documents(split))
    assert sum(corpus.cleaned.values(), Counter()) == {"nul_characters": 2, "empty_rows": 2}
    assert [next(iter(read())).split()[0] for read in corpus.groups.values()] == [
        next(iter(rows(1, name))).split()[0] for name in corpus.groups
    ]


def test_the_demo_is_real_text_split_by_module():
    corpus = load_corpus("demo")
    texts = {split: list(corpus.documents(split)) for split in corpus.splits}
    assert sum(len(text.encode()) for text in texts["train"]) > 3_000_000
    assert any("json.dumps(" in text for part in texts.values() for text in part)
    docstrings = {
        split: {entry.split("\n\n", 1)[-1] for text in part for entry in text.split("\n\n\n")}
        for split, part in texts.items()
    }
    shared = docstrings["train"] & docstrings["test"]
    assert len(shared) < 0.005 * len(docstrings["test"]), "docstrings cross from train to test"
    held_out = f"{len(texts['validation'])} are validation and {len(texts['test'])} test, by the module's name"
    assert held_out in corpus.notes[0]


# The beginning of much text


@pytest.mark.parametrize("most", [2_000, 5_001, 10**9])
def test_of_a_split_no_more_is_read_than_asked_but_one_document(tmp_path, most):
    texts = rows(300)
    whole, part = (load_corpus(str(write_jsonl(tmp_path / "a.jsonl", texts)), max_bytes=n) for n in (0, most))
    fits = [text for i, text in enumerate(texts) if sum(len(t.encode()) for t in texts[: i + 1]) <= most]
    assert sorted(everything(part)) == sorted(fits)
    assert len(fits) > 20
    assert part.fingerprint != whole.fingerprint
    assert any(f"{most:,} bytes" in note for note in part.notes)


def test_one_document_is_read_where_it_is_longer_than_all_that_may_be(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", rows(3))
    corpus = load_corpus(str(folder), max_bytes=1)
    assert [list(corpus.documents(split)) for split in corpus.splits] == [rows(1)] * 3


COMMIT = "0123456789" * 4


def test_of_a_dataset_of_the_hub_only_what_is_read_is_streamed_and_once(tmp_path, monkeypatch):
    """The rows come from the library's own stream, over a file here."""
    write_jsonl(tmp_path / "a.jsonl", rows(400), column="body")
    taken, load = [], datasets.load_dataset

    def load_dataset(path, config, revision, streaming):
        assert (path, config, revision, streaming) == ("user/name", "small", COMMIT, True)
        found = load("json", data_files={"train": str(tmp_path / "a.jsonl")}, streaming=True)
        found["train"] = found["train"].map(lambda row: taken.append(row["id"]) or row)
        return found

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("hf_lm.data.hub_datasets.default_cache", lambda: tmp_path / "cache")
    most = sum(len(text.encode()) for text in rows(250))
    read = load_corpus(f"user/name:small@{COMMIT}", text_column="body", max_bytes=most)
    assert sorted(everything(read)) == sorted(rows(250))
    assert (read.source, read.commit) == (f"user/name:small@{COMMIT}", COMMIT)
    assert taken == list(range(251))
    again = load_corpus(f"user/name:small@{COMMIT}", text_column="body", max_bytes=most)
    assert len(taken) == 251
    assert again.fingerprint == read.fingerprint
    with pytest.raises(ValueError, match="no file or folder here and was not loaded from the Hub"):
        load_corpus("user/name", max_bytes=most)  # without its commit the Hub is asked
    with pytest.raises(ValueError, match="--max_bytes 5 is for text, and --dataset tokens:x is tokenized"):
        load_corpus("tokens:x", max_bytes=5)


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """A Hub dataset of 400 rows in two files, and the rows that were read of it."""
    texts, taken, load = rows(400), [], datasets.load_dataset
    files = [str(write_jsonl(tmp_path / f"{i}.jsonl", texts[200 * i : 200 * (i + 1)])) for i in range(2)]

    def load_dataset(path, config, revision, streaming):
        found = load("json", data_files={"train": files}, streaming=True)
        found["train"] = found["train"].map(lambda row: taken.append(row["text"]) or row)
        return found

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("hf_lm.data.hub_datasets.default_cache", lambda: tmp_path / "cache")
    return texts, taken


def test_windows_of_a_stream_are_the_rows_one_after_another_and_none_is_read_twice(streamed):
    texts, taken = streamed
    most = sum(len(text.encode()) for text in texts) // 6
    corpus = load_corpus(f"user/name@{COMMIT}", max_bytes=most, streaming=True)
    held_out = {text for split in ("validation", "test") for text in corpus.documents(split)}
    assert held_out
    read = list(corpus.documents("train"))
    assert list(corpus.window(0)) == read
    for number in range(1, 5):
        window = list(corpus.window(number))
        assert sum(len(text.encode()) for text in window) <= most
        read += window
    through = texts.index(read[-1]) + 1
    assert read == [text for text in texts[:through] if text in set(read)]
    assert not held_out & set(read)
    assert len(taken) == through + 5  # and the one that did not fit into each window


def test_after_the_last_row_of_a_stream_the_first_one_follows(streamed):
    texts, _ = streamed
    size = sum(len(text.encode()) for text in texts)
    corpus = load_corpus(f"user/name@{COMMIT}", max_bytes=size * 3 // 4, streaming=True)
    second = list(corpus.window(1))
    assert second[-1] not in second[:-1]
    assert texts.index(second[0]) > 250 > texts.index(second[-1])


def test_a_window_whose_predecessor_is_gone_is_streamed_again(streamed, tmp_path):
    corpus = load_corpus(f"user/name@{COMMIT}", max_bytes=5_000, streaming=True)
    windows = [list(corpus.window(number)) for number in range(6)]
    assert len(list((tmp_path / "cache" / "beginnings").glob("[!.]*"))) == 4  # the first and the last three
    assert list(corpus.window(3)) == windows[3]
    shutil.rmtree(tmp_path / "cache")
    assert list(corpus.window(4)) == windows[4]


def test_the_next_window_is_read_while_one_is_trained_on_and_no_more_than_the_training_needs(
    streamed, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_lm.tasks.language_modelling.cache_folder", lambda name, *_: tmp_path / name.split()[-1])
    corpus = load_corpus(f"user/name@{COMMIT}", max_bytes=5_000, streaming=True)
    corpus.fingerprint = "text"
    tokenizer = new_tokenizer(corpus.documents("train"), vocab_size=300)
    task = LanguageModelling(corpus, tokenizer, block_size=16)
    task.training_tokens = 3 * 16 * len(task.train_dataset)  # three epochs
    for epoch, there in ((0, {"1"}), (1, {"1", "2"}), (2, {"1", "2"})):
        task.train_dataset.start_epoch(epoch, seed=0)
        if task._reading is not None:
            task._reading.join()
        assert {path.name for path in tmp_path.iterdir() if path.name.isdigit()} == there
    ahead = task.train_dataset.stream.tokens.tolist()
    shutil.rmtree(tmp_path / "2")
    task.train_dataset.start_epoch(2, seed=0)
    assert task.train_dataset.stream.tokens.tolist() == ahead


def test_reading_ahead_ends_with_the_process():
    code = (
        "import atexit, itertools, threading, time\n"
        "from hf_lm.data.reading import until_exit\n"
        "rows = until_exit(time.sleep(0.01) for _ in itertools.count())\n"
        "thread = threading.Thread(target=lambda: sum(1 for _ in rows), daemon=True)\n"
        "thread.start()\n"
        "atexit.register(thread.join, 5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "the process ends" in done.stderr


@pytest.mark.parametrize("dataset", ["demo", "a=0.5,b=0.5", "tokens:x", "here.jsonl"])
def test_only_a_dataset_of_the_hub_is_streamed(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "here.jsonl", rows(20))
    with pytest.raises(ValueError, match="--streaming is for"):
        load_corpus(dataset, streaming=True)


@pytest.mark.slow
def test_the_beginning_of_a_dataset_comes_over_the_protocol_of_the_hub(hub, tmp_path):  # noqa: F811
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n---\n"
    content = write_jsonl(tmp_path / "train.jsonl", rows(4000)).read_bytes()
    hub.repos["datasets/user/name"] = {"train.jsonl": content, "README.md": card.encode()}
    code = (
        "from hf_lm.data.sources import load_corpus; corpus = load_corpus('user/name', max_bytes=30_000); "
        "print(corpus.commit, sum(len(list(corpus.documents(split))) for split in corpus.splits))"
    )
    environment = os.environ | hub.environment() | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    read = [i for i in range(1, 4001) if sum(len(text.encode()) for text in rows(i)) <= 30_000][-1]
    assert done.stdout.split() == [hub.oid("datasets/user/name"), str(read)], done.stderr


# Bad input


def test_a_dataset_that_is_a_script_is_refused_with_the_revision_that_may_have_its_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "scripted").mkdir(parents=True)
    (tmp_path / "user" / "scripted" / "scripted.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ValueError, match=r"found scripted\.py\..*--dataset user/scripted@refs/convert/parquet\.$"):
        load_hub("user/scripted:en")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: "no/such/folder/x.txt", "no file or folder"),
        (lambda path: write_jsonl(path / "a.jsonl", ["", " "]), "holds no text"),
        (lambda path: write_jsonl(path / "a.jsonl", ["only one"]), "too few to hold out"),
        (
            lambda path: (path / "a.txt").write_text("x" * 2**25) and path / "a.txt",
            "1 different documents, too few to hold out",
        ),
        (lambda path: (path / "a.xml").write_text("<a/>") and path / "a.xml", "cannot read"),
        (lambda path: (path / "a.jsonl").write_text('{"text": 1}\n{"text') and path / "a.jsonl", "line 2: not JSON"),
        (lambda path: (path / "a.jsonl").write_text('{"titel": "x", "body": "y"}\n') and path / "a.jsonl", "titel"),
        (lambda path: (path / "a.txt.gz").write_bytes(b"no gzip") and path / "a.txt.gz", "damaged"),
        (lambda path: path, "holds no file"),
        (lambda path: "someone/nothing", "offline"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_do(tmp_path, make, expected):
    dataset = make(tmp_path)
    with pytest.raises((ValueError, OSError), match=expected) as caught:
        everything(load_corpus(str(dataset)))
    assert "\n" not in str(caught.value)


def test_a_wrong_column_lists_those_there_are(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows(5), column="review")
    with pytest.raises(ValueError, match=r"no column 'reviews'.*'review', 'id'.*Did you mean 'review'"):
        load_corpus(str(path), text_column="reviews")
    assert list(load_corpus(str(path)).documents("train"))  # the only column with text is taken


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows(5))
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"a\.jsonl"):
        load_corpus(str(path))


@pytest.mark.parametrize("size", [3_000, 120_000, 1_100_000])
def test_one_text_file_has_several_held_out_documents(size, tmp_path):
    lines = [f"Line {i} of a novel, in which nothing much happens.\n" for i in range(size // 48)]
    (tmp_path / "novel.txt").write_text("".join(lines))
    corpus = load_corpus(str(tmp_path / "novel.txt"))
    documents = {split: list(corpus.documents(split)) for split in corpus.splits}
    assert sorted("".join(map("".join, documents.values()))) == sorted("".join(lines))  # nothing is lost
    if size > 10_000:
        assert len(documents["validation"]) >= 4
        assert len(documents["test"]) >= 4
        share = sum(map(len, documents["test"])) / size
        assert share == pytest.approx(0.05, abs=0.02)


def test_held_out_splits_that_are_far_too_large_are_said(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"A sentence of file {i}, once more. " * 300)
    corpus = load_corpus(str(tmp_path))
    tokenizer = new_tokenizer(corpus.documents("train"), vocab_size=300)
    task = LanguageModelling(corpus, tokenizer, block_size=16)
    assert len(task.warnings) == 2
    assert re.match(r"validation holds 3\d% of the text, in 1 of 3 documents: give files called", task.warnings[0])
