"""What a run leaves: a complete result or none, pushed at its end if asked, and nothing of the user's replaced."""

import errno
import hashlib
import json
import shlex
import shutil
import traceback
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from loopback_hub import TOKEN, hub  # noqa: F401  (a fixture)
from running import here
from safetensors.torch import load_file

from hf_lm import cli
from hf_lm.arguments import TrainingArguments
from hf_lm.data import packing
from hf_lm.data.demos.opinions import opinions
from hf_lm.data.sources import load_corpus
from hf_lm.models.adapters import add_lora
from hf_lm.models.bert import new_bert
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.output_folder import is_run, list_checkpoints, remove_results
from hf_lm.reporting.report import warnings
from hf_lm.tasks import language_modelling
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import new_tokenizer, train_bpe
from hf_lm.training import trainer as trainers
from hf_lm.training.fit import fit

FAST = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 8, "max_length": 16}
FAST |= {"learning_rate": 1e-2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps"}
FAST |= {"eval_steps": 2, "lr_scheduler_type": "constant", "skip_proofs": "load_back"}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny BERT and labelled rows, as arguments of the recipe."""
    folder = tmp_path_factory.mktemp("start")
    rows = opinions(80)
    (folder / "opinions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    transformers.set_seed(0)
    tokenizer = new_tokenizer((row["text"] for row in rows), vocab_size=300)
    new_bert(tokenizer, model_class=transformers.BertForMaskedLM, n_embd=16).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return {"model": folder / "bert", "dataset": folder / "opinions.jsonl"}


def sentiment(start, out: Path, **arguments) -> dict:
    return here("sentiment.py", output_dir=out, **FAST | start | arguments)


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    sentiment(start, out)
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Complete or absent


def test_the_report_names_the_files_of_the_run_with_their_sums(finished):
    files = json.loads((finished / "report.json").read_text())["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    for name, recorded in files.items():
        content = (finished / name).read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert not {"README.md", "report.json", "run.yaml", "training_args.bin"} & set(files)


def test_everything_that_a_run_writes_is_known_as_such(copied):
    remove_results(copied, checkpoints=True)
    assert set(contents(copied)) == {"run.yaml"}  # another name: add it to hf_lm.output_folder


@pytest.mark.parametrize("finished_before", [True, False])
def test_a_run_that_is_resumed_at_its_end_ends_the_same(start, finished, copied, finished_before):
    before = json.loads((finished / "report.json").read_text())
    if not finished_before:  # killed between training and the final files
        remove_results(copied, checkpoints=False)
    report = sentiment(start, copied, resume_from_checkpoint="latest")
    for name in ("model.safetensors", "predictions.jsonl"):
        assert (copied / name).read_bytes() == (finished / name).read_bytes()
    assert report["metrics"] == before["metrics"]
    assert len(report["history"]) == len(before["history"])
    assert [path.name for path in list_checkpoints(copied)] == [path.name for path in list_checkpoints(finished)]


def no_space(*arguments, **keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["the weights", "the card"])
def test_a_final_save_that_fails_leaves_nothing_that_passes_for_a_result(start, finished, copied, monkeypatch, where):
    save = trainers.Trainer._save

    def full(self, output_dir=None, state_dict=None):
        save(self, output_dir, state_dict)
        if "checkpoint-" not in output_dir:
            (Path(output_dir) / "model.safetensors").write_bytes(b"half")
            no_space()

    if where == "the weights":
        monkeypatch.setattr(trainers.Trainer, "_save", full)
    else:
        monkeypatch.setattr("hf_lm.training.fit.write_card", no_space)
    with pytest.raises(OSError, match="No space left on device") as caught:
        sentiment(start, copied, learning_rate=1e-3, overwrite_output_dir=True)
    assert "\n" not in str(caught.value)
    left = contents(copied)
    assert "report.json" not in left  # what makes a folder a result
    assert "README.md" not in left
    assert left["run.yaml"] != (finished / "run.yaml").read_bytes()
    if where == "the weights":
        assert "checkpoint-4 is complete" in str(caught.value)
        assert not [name for name in left if not name.startswith("checkpoint-") and name != "run.yaml"]
    monkeypatch.undo()
    sentiment(start, copied, learning_rate=1e-3, resume_from_checkpoint="latest")
    assert "README.md" in contents(copied)


# What is there already


def test_a_run_that_fails_before_it_trains_changes_nothing(start, copied, tmp_path):
    before = contents(copied)
    with pytest.raises(ValueError, match="no_such_tracker"):
        sentiment(start, copied, overwrite_output_dir=True, report_to="no_such_tracker")
    assert contents(copied) == before
    with pytest.raises(ValueError, match="no_such_tracker"):
        sentiment(start, tmp_path / "new", report_to="no_such_tracker")
    assert contents(tmp_path / "new") == {}
    sentiment(start, tmp_path / "new", max_steps=1)
    assert is_run(tmp_path / "new")


@pytest.mark.parametrize("there", ["a run", "the user's", "the model"])
def test_a_folder_that_may_not_be_used_is_refused_before_the_data_is_looked_at(start, copied, there, capsys):
    arguments = {"dataset": "no/such/file.jsonl"}
    if there == "the user's":
        (copied / "run.yaml").write_text("mine: true\n")
    before, out = contents(copied), copied
    if there == "the model":
        out, before = start["model"], contents(start["model"])
        arguments["overwrite_output_dir"] = True
    with pytest.raises(SystemExit) as ended:
        sentiment(start, out, **arguments)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert ("already holds a run" if there == "a run" else "no run of hf_lm wrote") in line
    assert contents(out) == before


# To the Hub


@pytest.fixture
def online(hub, monkeypatch):  # noqa: F811
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return hub


PUSH = {"push_to_hub": True, "hub_model_id": "user/name"}


def test_a_recipe_pushes_its_complete_folder_in_one_commit(start, tmp_path, online):
    sentiment(start, tmp_path / "out", **PUSH)
    assert len(online.commits) == 1
    published = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    published |= {"report.json", "run.yaml", "predictions.jsonl", "plots/loss.png", "plots/metric.png"}
    assert published <= set(online.commits[0]["files"])
    assert not [name for name in online.commits[0]["files"] if name.endswith(".bin") or "checkpoint-" in name]
    assert online.repos["user/name"]["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "fail", [{"/api/repos/create": [503] * 200}, {"/lfs-object/": ["drop"] * 200}, {"/commit/": [500] * 200}]
)
def test_a_push_that_fails_leaves_a_complete_folder_and_the_command_that_makes_it_good(
    start, tmp_path, online, fail, capsys
):
    out = tmp_path / "out"
    online.fail = fail
    with pytest.raises(ConnectionError) as caught:
        sentiment(start, out, **PUSH | {"hub_private_repo": True, "hub_token": TOKEN})
    assert "\n" not in str(caught.value)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))  # what --debug shows
    assert online.commits == []
    assert {"report.json", "README.md", "model.safetensors", "plots/loss.png"} <= set(contents(out))
    assert not [name for name, content in contents(out).items() if TOKEN.encode() in content]
    online.fail = {}
    command = shlex.split(str(caught.value).split("try again with: ")[1])
    assert command[:2] == ["hf-lm", "push"]
    assert "--private" in command
    cli.main(command[1:])
    assert len(online.commits) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hub_model_id": "../../etc"}, "cannot be a repository"),
        ({"hub_model_id": "name"}, "user/name"),
        ({"hub_model_id": "user/name"}, "no Hub token"),
    ],
)
def test_a_push_that_cannot_be_made_ends_the_run_before_training(
    start, tmp_path, online, monkeypatch, arguments, said
):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=said):
        sentiment(start, tmp_path / "out", push_to_hub=True, **arguments)
    assert not list(tmp_path.rglob("checkpoint-*"))
    assert online.requests == []


# What a language model is measured with


def test_a_run_that_reads_less_than_its_evaluation_would_is_measured_in_whole_blocks(tokenizer, tmp_path):
    rows = [{"text": f"Number {i}.\n" + " ".join(str(i * n) for n in range(1, 30))} for i in range(80)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def stride(**settings):
        corpus = load_corpus(str(tmp_path / "texts.jsonl"))
        return LanguageModelling(corpus, tokenizer, block_size=32, **settings)

    half = stride()
    read = sum(half.tokens_measured(split) for split in ("validation", "test"))
    assert half.eval_stride == stride(training_tokens=read).eval_stride == 16
    short = stride(training_tokens=read - 1)
    assert short.eval_stride == 32
    assert short.tokens_measured("test") == short.streams["test"].total  # each token is read once
    assert stride(training_tokens=1, eval_stride=8).eval_stride == 8


def test_a_short_run_scores_a_sample_of_the_held_out_documents_and_says_so(tokenizer, model, tmp_path, monkeypatch):
    monkeypatch.setattr(language_modelling, "LEAST", 300)
    monkeypatch.setattr(packing, "SAMPLED", 2)
    rows = [{"text": f"Number {i}.\n" + " ".join(str(i * n) for n in range(1, 30))} for i in range(80)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def task(**settings):
        return LanguageModelling(load_corpus(str(tmp_path / "texts.jsonl")), tokenizer, block_size=32, **settings)

    whole, short = task(eval_stride=16), task(eval_stride=16, training_tokens=1)
    assert short.tokens_measured("test") < whole.tokens_measured("test")
    every = [tuple(row.values()) for row in whole.measure(model, "test").examples()]
    some = [tuple(row.values()) for row in short.measure(model, "test").examples()]
    assert packing.SAMPLED == 2 <= len(some) < len(every) == len(whole.streams["test"])
    assert all(any(row == pytest.approx(other) for other in every) for row in some)
    assert len(short.baseline("test")[1].nll) == len(some)  # paired with the model's
    assert "scored" not in whole.report({})["data"]["test"]
    assert short.report({})["data"]["test"]["scored"] == len(some)
    assert short.report({})["data"]["eval_tokens"] == 300  # with which hf-lm reproduce --check scores the same
    said = warnings(short.report({}))
    assert f"{len(some)} of {len(every)} documents of test were scored, drawn at random" in " ".join(said)
    assert len(task(training_tokens=10**9).scored["test"]) == len(every)


def test_the_prompt_of_a_sample_ends_with_a_character(tmp_path):
    rows = [{"text": f"{i % 10}春眠不觉晓处处闻啼鸟夜来风雨声{i}"} for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_bpe([row["text"] for row in rows], vocab_size=258)  # three tokens a character
    task = LanguageModelling(load_corpus(str(tmp_path / "texts.jsonl")), tokenizer, block_size=32)
    samples = task.samples(new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=16, block_size=32))
    assert [sample["prompt"][1:] for sample in samples] == ["春眠不"] * 2  # 12 tokens end within 觉


# Adapters of language models


def test_an_adapter_of_a_language_model_is_trained_and_merged(tokenizer, model, tmp_path):
    rows = [{"text": f"Number {i}.\n" + " ".join(str(i * n) for n in range(1, 30))} for i in range(80)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model.save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    task = LanguageModelling(load_corpus(str(tmp_path / "texts.jsonl")), tokenizer, block_size=32)
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True,
        skip_proofs=["leakage", "tokenizer_round_trip", "load_back", "adapter_load_back"], save_strategy="no",
    )  # fmt: skip
    given = dict(vars(args))
    report = fit(add_lora(base, rank=2), task, args)
    assert vars(args) == given
    assert report["model"]["base"] == str(tmp_path / "base")
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["max_steps"] == 1
    assert report["proofs"]["merging"]["passed"]
    assert {"load_back", "adapter_load_back"} <= set(report["proofs"])
    assert {"adapter/adapter_model.safetensors", "model.safetensors"} <= set(report["files"])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    assert not torch.equal(*(weights["transformer.h.0.attn.c_attn.weight"] for weights in (before, after)))
