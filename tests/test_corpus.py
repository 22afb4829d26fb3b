"""recipes/corpus.py end to end on datatrove: what is kept and what is dropped, and what pretraining then reads."""

import gzip
import json
import random
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from running import here

from hf_lm.arguments import TrainingArguments
from hf_lm.data.packing import tokenize_documents
from hf_lm.data.sources import load_corpus
from hf_lm.evaluation.leakage import leaked_share
from hf_lm.files import hash_text
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import load_tokenizer, train_bpe

pytest.importorskip("datatrove")
pytestmark = pytest.mark.slow

SPELLED = "It spells <|endoftext|> in the middle of a sentence, and it is no end."


VOCABULARY = """the of and that have with house river stone window garden letter morning doctor winter captain silver
village corner answer family market bridge shadow soldier music paper island question mountain kitchen ordinary
remember walked carried opened wanted listened because under between another against small green narrow quiet"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Forty documents of sentences in which no five words are repeated but by chance."""
    draw = random.Random(0)
    sentences = [" ".join(draw.choices(VOCABULARY.split(), k=12)).capitalize() + "." for _ in range(40 * 25)]
    return ["\n".join(sentences[i * 25 : (i + 1) * 25]) for i in range(40)]


@pytest.fixture(scope="module")
def written(texts, tmp_path_factory):
    """The texts with copies, another script, a short text, a spelled marker and evaluation text: input and output."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in").mkdir()
    in_train = next(text for text in texts[4:] if int.from_bytes(hash_text(text), "big") / 2**128 > 0.2)
    evaluated = in_train[200:1400]
    rows = [*texts, texts[0], texts[0], f"{texts[1]} Two words more.", "春眠不觉晓，处处闻啼鸟。" * 40, "short"]
    rows[3] = f"{SPELLED} {rows[3]}"
    for i in range(3):
        lines = [json.dumps({"text": text}) for text in rows[i::3]]
        (folder / "in" / f"{i}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "evaluation.jsonl").write_text(json.dumps({"text": evaluated}) + "\n")
    arguments = {
        "dataset": folder / "in",
        "scripts": "Latin",
        "evaluation": folder / "evaluation.jsonl",
        "filters": "gopher",
        "vocab_size": 400,
        "held_out": 0.1,
        "tokens_per_file": 9000,
        "workers": 1,
        "output_dir": folder / "out",
    }
    here("corpus.py", **arguments)
    return folder, arguments, rows


def train_texts(folder: Path) -> list[str]:
    return list(load_corpus(f"tokens:{folder}").documents("train"))


def test_each_document_is_kept_held_out_or_counted_as_dropped(written, texts):
    folder, _, rows = written
    report = json.loads((folder / "out" / "report.json").read_bytes())
    steps = {step["step"]: step["documents"] for step in report["steps"]}
    assert steps["read"] == len(rows) == 45
    assert steps["after language"] == 44
    assert report["dropped"]["script_Han"] == 1
    assert report["dropped"]["gopher_short_doc"] >= 1
    assert report["duplicates"]["removed"] == 3 == steps["after gopher"] - steps["deduplicated"]
    assert report["dropped"]["held_out_text"] == 1
    assert report["scripts"] == {"Latin": 44}
    held_out = [
        text for split in ("validation", "test") for text in load_corpus(f"tokens:{folder / 'out'}").documents(split)
    ]
    kept = train_texts(folder / "out")
    assert len(held_out) == report["validation"]["documents"] + report["test"]["documents"] > 0
    assert len(kept) == steps["train"] == report["tokens"]["documents"]
    assert steps["train"] + len(held_out) + report["dropped"]["held_out_text"] == steps["deduplicated"]
    assert set(kept) | set(held_out) <= set(rows)
    assert not set(kept) & set(held_out)
    assert sum(text.startswith(texts[0][:500]) for text in kept + held_out) <= 1
    assert any(SPELLED in text for text in kept + held_out)
    assert sum(len(text.encode()) for text in kept) == report["steps"][-1]["bytes"]
    assert "| train |" in (folder / "out" / "README.md").read_text()


def write_rows(folder: Path, lines: list[bytes], name: str = "a.jsonl") -> dict:
    """A folder of one file of such lines, and arguments that read it."""
    (folder / "in").mkdir()
    (folder / "in" / name).write_bytes(b"\n".join(lines) + b"\n")
    options = {"filters": "none", "deduplicate": "false", "vocab_size": 300, "workers": 1, "held_out": 0.1}
    return {"dataset": folder / "in", "output_dir": folder / "out"} | options


def as_rows(texts: list[str]) -> list[bytes]:
    return [json.dumps({"text": text}).encode() for text in texts]


def test_a_bad_byte_costs_one_character_and_what_is_left_out_is_counted(texts, tmp_path):
    lines = as_rows(texts * 2)
    lines[10] = lines[10].replace(b"the", b"th\xe9", 1)
    lines[20:21] = [b'{"text": "half a pair \\ud83d"}', b'{"text": null}', b'{"other": "text"}', b'{"text": 5}']
    report = here("corpus.py", **write_rows(tmp_path, lines))
    assert report["steps"][0]["documents"] == 81
    assert report["cleaned"] == {"empty_rows": 2, "invalid_utf8": 1, "lone_surrogates": 1}
    assert "Dropped or repaired: 2 empty rows, 1 invalid utf8" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": broken}', r"a\.jsonl, line 11: not JSON"),
        (b"[1]", r"a\.jsonl, row 11: expected named columns, got a list"),
        (b'{"text": {}}', r"a\.jsonl, row 11: 'text' holds an object"),
    ],
)
def test_a_row_that_no_recipe_reads_is_named(texts, tmp_path, line, message):
    lines = as_rows(texts)
    with pytest.raises(ValueError, match=message):
        here("corpus.py", **write_rows(tmp_path, [*lines[:10], line, *lines[10:]]))


def test_what_ends_a_corpus_is_one_line_without_a_traceback(texts, tmp_path, capfd):
    arguments = write_rows(tmp_path, [b""])
    with pytest.raises(ValueError, match=r"no document is left: --dataset holds no text, or --filters"):
        here("corpus.py", **arguments)
    (tmp_path / "in" / "a.jsonl").write_bytes(b"\n".join(as_rows(texts)))
    other = arguments | {"output_dir": tmp_path / "other"}
    with pytest.raises(ValueError, match=r"a\.jsonl has no column 'words'; it has \['text'\]"):
        here("corpus.py", **other | {"text_column": "words", "workers": 2})
    (tmp_path / "in" / "a.jsonl").rename(tmp_path / "in" / "a.jsonl.gz")
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is damaged"):
        here("corpus.py", **other | {"overwrite_output_dir": True})
    (tmp_path / "other" / "report.json").write_text("{}")
    for share in (0, 0.5):
        with pytest.raises(ValueError, match=rf"--held_out {share}.*: give a share above 0 and below 0\.5"):
            here("corpus.py", **other | {"held_out": share, "overwrite_output_dir": True})
    assert (tmp_path / "other" / "report.json").is_file()  # nothing was removed
    said = capfd.readouterr().err
    assert "a.jsonl.gz is damaged" in said
    assert "Traceback" not in said


def test_of_a_large_corpus_no_more_than_a_few_megabytes_are_held_out(tmp_path, monkeypatch):
    steps = pytest.importorskip("hf_lm.corpus.steps")
    texts = tmp_path / "filtered"
    texts.mkdir()
    (texts / "00000.jsonl.zst").write_bytes(bytes(1000))
    documents = [steps.Document(text=f"text {i}", id=str(i)) for i in range(2000)]
    for most, share in ((50, 0.05), (10**6, 0.2)):  # less than is asked for, and as much
        monkeypatch.setattr(steps, "HELD_OUT", most)
        kept = list(steps.HoldOut(tmp_path / str(most), 0.2, texts).run(documents))
        held_out = [
            len(gzip.decompress(next((tmp_path / str(most) / split).iterdir()).read_bytes()).splitlines())
            for split in ("validation", "test")
        ]
        assert len(kept) + sum(held_out) == 2000
        assert held_out == pytest.approx([2000 * share] * 2, rel=0.2)


def test_the_blocks_are_those_of_our_own_tokenization_and_the_leakage_proof_finds_nothing(written, tmp_path):
    folder, _, _ = written
    corpus = load_corpus(f"tokens:{folder / 'out'}")
    tokenizer = load_tokenizer(corpus.tokenizer)
    task = LanguageModelling(corpus, tokenizer, block_size=32)
    ours = tokenize_documents(train_texts(folder / "out"), tokenizer=tokenizer, folder=tmp_path / "ours")
    assert np.array_equal(task.streams["train"].tokens[:], ours.tokens)
    assert len(list((folder / "out").glob("*.ds"))) > 1
    evaluated = [json.loads((folder / "evaluation.jsonl").read_text())["text"]]
    streams = [task.streams["validation"], task.streams["test"]]
    streams.append(tokenize_documents(evaluated, tokenizer=tokenizer, folder=tmp_path / "evaluation"))
    assert [leaked_share(task.streams["train"], stream) for stream in streams] == [0, 0, 0]


def test_a_second_start_does_only_what_is_missing(written):
    folder, arguments, _ = written
    out = folder / "out"
    before = {path.name: path.read_bytes() for path in out.glob("*.ds*")}
    kept = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*.jsonl.zst")}
    assert kept
    for path in (out / "report.json", out / "README.md", out / "tokens.json", *out.glob("*.ds*")):
        path.unlink()
    for stage in ("merge", "report"):
        (out / "stages" / "logs" / stage / "completions" / "00000").unlink()
    (out / "stages" / "logs" / "tokenize" / "completions" / "00001").unlink()  # as if killed in its second task
    (out / "stages" / "tokens" / "00001_unshuffled.ds").write_bytes(b"half")
    here("corpus.py", **arguments)
    assert {path.name: path.read_bytes() for path in out.glob("*.ds*")} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert here("corpus.py", **arguments, resume_from_checkpoint="latest")["recipe"] == "corpus"  # finished
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    (out / "report.json").unlink()
    (out / "README.md").unlink()
    with pytest.raises(ValueError, match=r"was begun with another --vocab_size \(400, now 500\)"):
        here("corpus.py", **arguments | {"vocab_size": 500})


def test_a_corpus_is_continued_from_the_files_that_it_was_begun_with_and_by_one_run_at_a_time(tmp_path):
    from hf_lm.corpus.stages import Stages

    args = TrainingArguments(output_dir=str(tmp_path / "out"))
    made = {"executor": "local", "tasks": 0, "workers": 1}
    files = {"b.jsonl": 10, "c.jsonl": 20}
    first = Stages(args, inputs=files, **made)
    assert first.tasks == 2
    with pytest.raises(FileExistsError, match="is written by a run that has not ended"):
        Stages(args, inputs=files, **made)
    first.add("filter", [failing])
    with pytest.raises(ZeroDivisionError):
        first.run()
    for changed in (files | {"a.jsonl": 5}, files | {"c.jsonl": 21}, {"b.jsonl": 10}):
        with pytest.raises(ValueError, match=r"was begun with other files \(--dataset [ac]\.jsonl was changed"):
            Stages(args, inputs=changed, **made)
    assert Stages(args, inputs=files, **made).tasks == 2


@pytest.mark.parametrize("option", ["evaluation", "tokenizer"])
def test_a_corpus_is_not_continued_with_other_content_of_what_else_is_read(option, texts, tmp_path):
    path = tmp_path / "read.txt"

    def write(rows):
        train_bpe(rows, vocab_size=300).save_pretrained(path) if option == "tokenizer" else path.write_text(rows[-1])

    write(texts)
    arguments = write_rows(tmp_path, [b"[1]"]) | {option: path}
    with pytest.raises(ValueError, match="expected named columns"):
        here("corpus.py", **arguments)
    write(texts[:9])
    with pytest.raises(ValueError, match=rf"was begun with other files \(--{option} .*/read\.txt was changed, added"):
        here("corpus.py", **arguments)


def test_the_content_of_a_language_model_is_recorded(tmp_path):
    from hf_lm.corpus.stages import read_beside

    (tmp_path / "model.bin").write_text("one")
    before = read_beside([], "bpe", str(tmp_path / "model.bin"))
    (tmp_path / "model.bin").write_text("two")
    after = read_beside([], "bpe", str(tmp_path / "model.bin"))
    assert [*before] == [*after] == [f"--language_model {tmp_path / 'model.bin'}"]
    assert before != after


def failing(data, rank, world_size):
    raise ZeroDivisionError


def test_near_copies_of_a_text_without_spaces_share_most_of_their_signature(tmp_path):
    """MinHash estimates the Jaccard similarity by the share of equal hashes (Broder, 1997)."""
    poem = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少床前明月光疑是地上霜举头望明月低头思故乡"
    other = "白日依山尽黄河入海流欲穷千里目更上一层楼红豆生南国春来发几枝愿君多采撷此物最相思"
    from hf_lm.corpus.steps import signatures

    step = signatures(tmp_path)
    first, near, far = (
        np.concatenate(step.get_signature(step.get_shingles(t))) for t in (poem, poem[:-2] + "北方", other)
    )
    assert (first == near).mean() > 0.7
    assert (first == far).mean() < 0.1


def test_evaluation_text_of_a_glob_and_of_the_home_folder_is_removed(written, tmp_path, monkeypatch):
    from datatrove.data import Document

    from hf_lm.corpus.steps import LeakageFilter

    folder, arguments, _ = written
    out = arguments["output_dir"]
    monkeypatch.setenv("HOME", str(tmp_path))
    text = (folder / "evaluation.jsonl").read_text()
    (tmp_path / "evaluation.jsonl").write_text(text)
    document = Document(json.loads(text)["text"], "0")
    for name in (str(tmp_path / "eval*.jsonl"), "~/evaluation.jsonl"):
        assert LeakageFilter([], [name], out / "tokenizer", run=20).filter(document) == (False, "held_out_text")
    for name in ("~/none.jsonl", "none"):
        with pytest.raises(FileNotFoundError, match=f"--evaluation: there is no file or folder {name} that"):
            LeakageFilter([], [name], out / "tokenizer", run=20)


def test_slurm_gets_an_array_of_jobs_for_each_stage(written, tmp_path, monkeypatch):
    folder, _, _ = written
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho Submitted batch job 7\n')
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=":")
    options = {"dataset": folder / "in", "executor": "slurm", "output_dir": tmp_path / "out"}
    with pytest.raises(ValueError, match="--executor slurm needs --partition"):
        here("corpus.py", **options)
    with pytest.raises(FileNotFoundError, match=r"report\.json"):  # the last job writes it
        here("corpus.py", **options, partition="cpu")
    scripts = {path.parent.name: path.read_text() for path in tmp_path.rglob("launch_script.slurm")}
    assert set(scripts) == {
        *("filter", "signatures", "buckets", "clusters", "hold_out", "tokenizer", "tokenize", "merge", "report")
    }
    assert "#SBATCH --partition=cpu" in scripts["filter"]
    assert "#SBATCH --array=0-2" in scripts["filter"]
    assert "#SBATCH --array=0-13" in scripts["buckets"]
    assert "afterok:7" in (tmp_path / "calls").read_text()


def test_the_built_in_text_becomes_a_corpus_without_options(tmp_path):
    report = here("corpus.py", output_dir=tmp_path)
    assert [step["step"] for step in report["steps"]] == ["read", "after language", "deduplicated", "train"]
    assert report["tokens"]["tokens"] > 500_000


def test_ray_makes_the_same_files(written, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder, arguments, _ = written
    here("corpus.py", **arguments | {"executor": "ray", "workers": 0, "output_dir": folder / "ray"})
    files = sorted(path.name for path in (folder / "out").glob("*.ds*") if path.suffix != ".metadata")  # has its path
    assert len(files) > 3
    for name in files:
        assert (folder / "ray" / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_a_stage_that_failed_ends_the_run_in_one_line(tmp_path):
    from hf_lm.corpus.stages import Stages

    args = TrainingArguments(output_dir=str(tmp_path / "out"))
    stages = Stages(args, executor="ray", tasks=3, workers=0, inputs={})
    failed = SimpleNamespace(run=lambda: None, world_size=3, get_incomplete_ranks=lambda skip_completed: [1])
    stages.executors = {"filter": failed, "signatures": None}  # it is not reached
    with pytest.raises(RuntimeError, match=r"1 of 3 tasks of the stage filter failed: .*logs/filter/logs"):
        stages.run()


def test_the_language_filter_takes_a_model_of_a_file_and_downloads_nothing(tmp_path):
    from hf_lm.corpus.steps import Document, language_filter

    with pytest.raises(FileNotFoundError, match=r"--language_model: there is no file 'none\.bin'"):
        language_filter(["en"], "none.bin")
    fasttext = pytest.importorskip("fasttext")
    words = {"en": "the house is old and the tree is green", "de": "das Haus ist alt und der Baum ist grün"}
    (tmp_path / "train.txt").write_text("".join(f"__label__{code} {text}\n" for code, text in words.items()) * 200)
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), lr=0.1, dim=8, bucket=0, thread=1, verbose=0)
    model.save_model(str(tmp_path / "model.bin"))
    step = language_filter(["de"], str(tmp_path / "model.bin"))
    documents = [Document(text, code) for code, text in words.items()]
    assert [document.id for document in step.run(documents)] == ["de"]
    assert [document.metadata["language"] for document in documents] == ["en", "de"]
