"""The pretraining recipe runs whole, on text made here: through `accelerate launch`, and within this process."""

import json
import os
import random
import re
import signal
from pathlib import Path

import datasets
import pytest
import running
import torch
import yaml
from running import run
from safetensors.torch import load_file

from hf_lm.arguments import bf16_is_fast
from hf_lm.training.trainer import Trainer

TINY = {
    "vocab_size": 320,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 32,
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "save_total_limit": 10,
    "warmup_steps": 2,
    "dropout": 0.1,
    "use_cpu": True,
    "bf16": False,
}


@pytest.fixture(scope="module")
def data(texts, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    # Short words in no order twice, or the proof of leakage stops the run.
    words, shuffled = re.findall(r"\S{1,8}", " ".join(texts)), random.Random(0)
    rows = [{"text": f"Number {i}.\n" + " ".join(shuffled.choices(words, k=40))} for i in range(6 * len(texts))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QUICK = TINY | {"report_to": "none", "skip_proofs": "load_back"}


def here(**arguments) -> dict:
    return running.here("pretrain.py", **QUICK | arguments)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """The output folder of an uninterrupted run in this process."""
    out = tmp_path_factory.mktemp("out") / "whole"
    here(dataset=data, output_dir=out)
    return out


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The output folder of a run through the launcher, with every proof."""
    out = tmp_path_factory.mktemp("out") / "pretrain"
    done = run("pretrain.py", dataset=data, output_dir=out, **TINY)
    assert done.returncode == 0, done.stderr
    assert "1 process (cpu" in done.stdout
    assert "bits" in done.stdout
    return out


def test_the_output_folder_is_complete_and_ordinary(finished):
    for name in (
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "report.json", "run.yaml", "plots/loss.png", "checkpoint-6/model.safetensors"),
    ):
        assert (finished / name).is_file(), name
    assert not list(finished.glob("*.bin"))
    config = json.loads((finished / "config.json").read_text())
    assert config["use_cache"] is True
    assert config["vocab_size"] % 64 == 0
    assert {config["bos_token_id"], config["eos_token_id"]} != {50256}


def test_the_report_has_numbers_with_intervals_baselines_and_proofs(finished, data):
    report = json.loads((finished / "report.json").read_text())
    for split in ("validation", "test"):
        for name in ("bits_per_byte", "perplexity", "word_perplexity"):
            metric = report["metrics"][split][name]
            assert metric["low"] < metric["value"] < metric["high"]
            assert metric["baseline"]["name"] == "unigram"
        assert report["data"][split]["documents"] > 0
    before = ("leakage", "tokenizer_round_trip", "label_coverage", "packing_isolation", "loss_invariance", "learnable")
    passed = {name: proof["passed"] for name, proof in report["proofs"].items()}
    assert passed == dict.fromkeys((*before, "load_back"), True)
    assert report["processes"] == 1
    assert report["speed"]["tokens_per_second"] > 0
    assert report["seconds"] > report["plan"]["took"] > 0  # reading, the tokenizer and the model come before
    assert len(report["samples"]) == 2
    assert set(report["yardsticks"]) >= {"lzma", "lzma_with_train"}
    assert str(data.parent.parent) not in (finished / "README.md").read_text()


def test_run_yaml_repeats_the_run_exactly(whole, tmp_path):
    again = tmp_path / "again"
    running.here("pretrain.py", config=whole / "run.yaml", output_dir=again)
    first, second = load_file(whole / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = (yaml.safe_load((folder / "run.yaml").read_text()) for folder in (whole, again))
    assert {key for key in first if first[key] != second[key]} == {"output_dir"}


def test_a_terminated_run_resumes_to_the_same_bits(whole, data, tmp_path, monkeypatch, capsys):
    step = Trainer.training_step

    def terminated(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", terminated)
        with pytest.raises(SystemExit) as stopped:
            here(dataset=data, output_dir=tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM
    printed = capsys.readouterr().out
    assert "stopped by a signal after step 4" in printed
    assert "--resume_from_checkpoint latest" in printed

    here(dataset=data, output_dir=tmp_path, resume_from_checkpoint="latest")
    printed, card = capsys.readouterr().out, (tmp_path / "README.md").read_text()
    assert f"resuming from {tmp_path}/checkpoint-4" in printed
    assert all(" since checkpoint-4 was resumed" in said for said in (printed, card))  # "in all" was of this part
    first, resumed = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path))
    assert all(torch.equal(first[name], resumed[name]) for name in first)


def test_a_streamed_run_reads_window_after_window_and_resumes_to_the_same_bits(data, tmp_path, monkeypatch, capsys):
    load, step, embedded = datasets.load_dataset, Trainer.training_step, []

    def load_dataset(path, config, revision, streaming):
        return load("json", data_files={"train": str(data)}, streaming=streaming)

    def training_step(self, model, inputs, *args, **kwargs):
        embedded.append(inputs["input_ids"].clone())
        if self.state.global_step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(Trainer, "training_step", training_step)
    stream = {"dataset": f"user/name@{'0123456789' * 4}", "streaming": True, "max_bytes": 6_000, "max_steps": 18}
    stream |= {"per_device_train_batch_size": 16, "save_steps": 4}
    stop_at = 99
    report = here(**stream, output_dir=tmp_path / "whole")
    windows = report["data"]["windows"]
    assert [window["window"] for window in windows] == [1, 2]
    assert all(window["leakage"] < 0.1 for window in windows)
    rows_seen = torch.cat(embedded)
    assert len(rows_seen.unique(dim=0)) > 0.98 * len(rows_seen)  # no window is the one before
    stop_at = 9
    with pytest.raises(SystemExit):
        here(**stream, output_dir=tmp_path / "stopped")
    stop_at = 99
    here(**stream, output_dir=tmp_path / "stopped", resume_from_checkpoint="latest")
    assert "resuming from" in capsys.readouterr().out
    first, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(first[name], resumed[name]) for name in first)


@pytest.mark.slow  # test_processes has it without the launcher
def test_two_processes_give_the_loss_curve_of_one_with_twice_the_batch(finished, data, tmp_path):
    out = tmp_path / "two"
    settings = TINY | {"per_device_train_batch_size": 2, "dropout": 0.0, "skip_proofs": "learnable"}
    two = run("pretrain.py", "--multi_gpu", "--num_processes", "2", dataset=data, output_dir=out, **settings)
    assert two.returncode == 0, two.stderr
    assert "2 processes (cpu" in two.stdout
    one_out = tmp_path / "one"
    one = run("pretrain.py", dataset=data, output_dir=one_out, **settings | {"per_device_train_batch_size": 4})
    assert one.returncode == 0, one.stderr

    def curve(folder, key):
        history = json.loads((folder / "report.json").read_text())["history"]
        return [entry[key] for entry in history if key in entry]

    assert curve(out, "loss") == pytest.approx(curve(one_out, "loss"), rel=1e-4)
    assert curve(out, "eval_bits_per_byte") == pytest.approx(curve(one_out, "eval_bits_per_byte"), rel=1e-4)
    assert json.loads((out / "report.json").read_text())["proofs"]["learnable"]["passed"] is None


def test_the_recurrent_model_goes_through_the_same_recipe(data, tmp_path):
    settings = TINY | {"architecture": "lstm", "tokenizer": "word", "packing": "concatenate", "max_steps": 2}
    settings |= {"bf16": bf16_is_fast()}  # through the recurrent cell and the load-back too
    report = running.here("pretrain.py", dataset=data, output_dir=tmp_path, report_to="none", **settings)
    assert report["proofs"]["load_back"]["passed"]
    assert report["model"]["architecture"] == "RecurrentLMHeadModel"


def test_a_finished_model_is_trained_further_with_its_own_tokenizer(finished, data, tmp_path):
    before = json.loads((finished / "report.json").read_text())["history"]
    report = here(dataset=data, output_dir=tmp_path, model=finished, max_steps=1, muon_learning_rate=0.0)
    assert report["model"]["base"] == str(finished)
    first_loss = lambda history: next(entry["loss"] for entry in history if "loss" in entry)  # noqa: E731
    assert first_loss(report["history"]) < first_loss(before)
    assert (tmp_path / "tokenizer.json").read_bytes() == (finished / "tokenizer.json").read_bytes()


def test_a_rate_that_is_too_high_ends_in_one_line_with_the_last_checkpoint_kept(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+, learning rate .* lower --learning_rate"):
        here(dataset=data, output_dir=tmp_path, learning_rate=1000, muon_learning_rate=0.0, max_steps=50, save_steps=1)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / ".saving").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dataset": "no/such/file.txt"}, "no/such/file.txt"),
        ({"block_size": 100_000}, "block"),
        ({"n_embd": 15}, "n_head"),
        ({"text_column": "txt"}, "text"),
        ({"eval_stride": 33}, "--eval_stride"),
        ({"output_dir": "/proc/nowhere"}, "cannot write to --output_dir"),
    ],
)
def test_bad_input_ends_in_one_line(data, tmp_path, arguments, expected, capsys):
    from hf_lm.hub.credentials import _one_line

    with pytest.raises((ValueError, OSError)) as caught:
        here(**{"dataset": data, "output_dir": tmp_path / "out"} | arguments)
    _one_line(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert expected in printed


def test_an_existing_run_is_kept_and_a_change_refused_on_resume(whole, data, capsys):
    with pytest.raises(SystemExit) as refused:
        here(dataset=data, output_dir=whole)
    assert refused.value.code == 2
    printed = capsys.readouterr().err
    assert "already holds a run" in printed
    assert printed.count("\n") == 1
    with pytest.raises(ValueError, match=r"dropout 0\.1 -> 0\.2"):
        here(dataset=data, output_dir=whole, resume_from_checkpoint="latest", dropout=0.2)
    assert (whole / "model.safetensors").is_file()


def test_a_student_learns_from_a_finished_run_which_it_may_not_replace(data, whole, tmp_path):
    report = here(dataset=data, output_dir=tmp_path / "student", teachers=whole, seed=1)
    plain = here(dataset=data, output_dir=tmp_path / "plain", seed=1)
    assert yaml.safe_load((tmp_path / "student" / "run.yaml").read_text())["teachers"] == [str(whole)]
    assert report["metrics"] != plain["metrics"]
    with pytest.raises(FileExistsError, match=r"this run reads .*whole and would replace it"):
        here(dataset=data, output_dir=whole, teachers=whole, overwrite_output_dir=True)
    assert (whole / "model.safetensors").is_file()
