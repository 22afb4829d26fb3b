"""A run that is run again gets a verdict: identical with its seed, by its interval with another; edits are refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import transformers
import yaml
from loopback_hub import hub  # noqa: F401
from running import ROOT, here

from hf_lm.cli import main
from hf_lm.data import packing
from hf_lm.data.demos.opinions import opinions
from hf_lm.hub.credentials import error_line
from hf_lm.models.bert import new_bert
from hf_lm.models.configuration import commit_of
from hf_lm.scoring.reproduce import (
    Verdict,
    check_weights,
    command,
    compare_losses,
    compare_metrics,
    fetch,
    other_data,
    overall,
    reproduce,
)
from hf_lm.tasks import language_modelling
from hf_lm.tokenization.tokenizer import new_tokenizer

FAST = {"use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 8, "max_length": 16}
FAST |= {"learning_rate": 1e-2, "max_steps": 6, "logging_steps": 1, "skip_proofs": "load_back"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, the same again, another seed, and the same stopped after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    rows = opinions(160)
    (folder / "opinions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    transformers.set_seed(0)
    tokenizer = new_tokenizer((row["text"] for row in rows), vocab_size=300)
    new_bert(tokenizer, model_class=transformers.BertForMaskedLM, n_embd=16).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    common = FAST | {"model": folder / "bert", "dataset": folder / "opinions.jsonl"}
    for name, options in (("first", {}), ("again", {}), ("seed", {"seed": 7})):
        here("sentiment.py", output_dir=folder / name, **common | options)
    with pytest.raises(SystemExit):
        here("sentiment.py", output_dir=folder / "stopped", **common | {"stop_after_steps": 2})
    return folder


def test_the_same_run_is_identical_and_another_seed_agrees_or_differs_by_its_interval(runs):
    published = fetch(str(runs / "first"))
    assert overall(compare_metrics(published, fetch(str(runs / "again")))) == "identical"
    other = compare_metrics(published, fetch(str(runs / "seed")))
    assert all(each.verdict != "identical" or each.published == each.here for each in other)
    accuracy = next(each for each in other if each.what == "test accuracy")
    assert accuracy.verdict == ("agrees" if accuracy.low <= 0 <= accuracy.high else "differs")


def test_the_loss_of_the_first_steps_is_compared_with_a_run_that_stopped_there(runs):
    verdicts = compare_losses(fetch(str(runs / "first")), runs / "stopped", 2)
    assert [each.what for each in verdicts] == ["loss at step 1", "loss at step 2"]
    assert overall(verdicts) == "identical"


def test_the_weights_of_a_run_that_scored_a_sample_are_checked_on_that_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(language_modelling, "LEAST", 300)
    monkeypatch.setattr(packing, "SAMPLED", 2)
    rows = [{"text": f"Number {i}.\n" + " ".join(str(i * n) for n in range(1, 30))} for i in range(80)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 32, "vocab_size": 300}
    fast = {name: value for name, value in FAST.items() if name != "max_length"} | {"max_steps": 2}
    report = here("pretrain.py", dataset=tmp_path / "texts.jsonl", output_dir=tmp_path / "out", **fast | size)
    assert 2 <= report["data"]["test"]["scored"] < report["data"]["test"]["documents"]
    verdicts = check_weights(str(tmp_path / "out"), say=lambda line: None)
    assert {each.what for each in verdicts} >= {"test bits_per_byte", "test perplexity"}
    assert overall(verdicts) != "differs"


def test_a_metric_edited_by_hand_is_refused(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["metrics"]["test"]["accuracy"]["value"] = 99.0
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"report.json says test accuracy 99, and its predictions.jsonl gives"):
        fetch(str(tmp_path / "run"))


def test_changed_weights_are_refused(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    fetch(str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"model.safetensors is not what the run wrote"):
        fetch(str(tmp_path / "run"), weights=True)


def test_data_of_the_hub_are_read_at_the_commit_of_the_run(runs, tmp_path):
    published = fetch(str(runs / "first"))
    published.report["data"]["commit"] = "0123abcd"
    command(published, tmp_path / "new", tmp_path / "run.yaml", seed=None, steps=0)
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["dataset"].endswith("opinions.jsonl@0123abcd")


def test_a_published_configuration_replaces_resumes_reports_and_authenticates_nothing(runs, tmp_path):
    published = fetch(str(runs / "first"))
    kept = published.run
    asked = {"overwrite_output_dir": True, "resume_from_checkpoint": "latest", "resume_with_changes": True}
    asked |= {"push_to_hub": True, "hub_token": "of nobody", "api_key": "of nobody", "hub_strategy": "end"}
    published.run = kept | asked | {"report_to": "wandb", "update_card": True}
    command(published, tmp_path / "new", tmp_path / "run.yaml", seed=None, steps=0)
    run = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert run == kept | {"output_dir": str(tmp_path / "new"), "report_to": "none"}


def test_the_records_of_a_stranger_are_inert_in_a_terminal(runs, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run\x1b[31m"
    shutil.copytree(runs / "first", folder)
    report = json.loads((folder / "report.json").read_text()) | {"device": "GPU\x1b]0;title\x07"}
    report["versions"]["torch"] = "0\x1b[2J"
    (folder / "report.json").write_text(json.dumps(report))
    verdicts = [Verdict("test accuracy", 1.0, 1.0, "identical")]
    monkeypatch.setattr("hf_lm.scoring.reproduce.compare_metrics", lambda *runs: verdicts)
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: SimpleNamespace(returncode=0))
    monkeypatch.setattr("hf_lm.scoring.reproduce.planned", lambda *args: "")
    monkeypatch.setattr("hf_lm.scoring.reproduce.fetch", lambda source: fetch(str(folder)))
    with pytest.raises(SystemExit):
        main(["reproduce", str(folder), "--output_dir", str(tmp_path / "new")])
    said = capsys.readouterr().out
    assert "torch 0\u241b[2J there" in said
    assert "on GPU\u241b]0;title" in said
    assert said.endswith("run\u241b[31m: identical\n")
    assert "\x1b" not in said


def changed(run, folder, **report):
    """A copy of a run with other entries in its report."""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | report))
    return str(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seconds", "x"), ("versions", ["x"]), ("data", 1), ("model", "x"), ("metrics", [])),
        *(("processes", "x"), ("processes", 1.5), ("processes", 0), ("processes", True)),
    ],
)
def test_a_report_with_odd_values_is_one_line(runs, tmp_path, monkeypatch, key, value):
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: SimpleNamespace(returncode=0))
    with pytest.raises(ValueError, match=r"report\.json or predictions\.jsonl is not what a run writes \("):
        reproduce(changed(runs / "first", tmp_path / "run", **{key: value}), tmp_path / "new")


def test_more_processes_on_cpus_than_this_machine_has_are_not_started(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("started"))
    with pytest.raises(ValueError, match=r"was a run of 100,000 processes; this machine has \d+ cores"):
        reproduce(changed(runs / "first", tmp_path / "run", processes=100_000), tmp_path / "new")


@pytest.mark.slow
def test_a_run_of_two_processes_on_cpus_is_started_on_two_and_stopped_at_its_steps(runs, tmp_path):
    words = ["run", "--num_processes", "2", "sentiment", "--use_cpu", "--config", str(runs / "first" / "run.yaml")]
    words = [sys.executable, "-m", "hf_lm.cli", *words, "--output_dir", str(tmp_path / "two")]
    words += ["--per_device_train_batch_size", "4"]  # of each of the two
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    verdicts = reproduce(str(tmp_path / "two"), tmp_path / "new", steps=2)
    assert [each.what for each in verdicts] == ["loss at step 1", "loss at step 2"]
    assert overall(verdicts) == "identical"


@pytest.mark.parametrize("row", ["1", '{"split": "test", "reference": []}', '{"split": "test"}'])
def test_predictions_with_odd_rows_are_one_line(runs, tmp_path, row):
    folder = changed(runs / "first", tmp_path / "run")
    with (tmp_path / "run" / "predictions.jsonl").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(ValueError, match=r"is not what a run writes \("):
        fetch(folder)


def test_a_run_that_fails_is_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: SimpleNamespace(returncode=1))
    with pytest.raises(OSError, match=r"exit code 1: .* was not reproduced") as failed:
        reproduce(str(runs / "first"), tmp_path / "new")
    assert "Error" not in error_line(failed.value)


def test_weights_without_published_metrics_are_one_line(runs, tmp_path):
    with pytest.raises(ValueError, match=r"is not what a run writes \(KeyError: 'validation'\)"):
        check_weights(changed(runs / "first", tmp_path / "run", metrics={}))


def test_data_that_moved_on_are_named(runs, tmp_path):
    rows = (runs / "opinions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "opinions.jsonl").write_text("".join(rows[:-8]))
    there, moved = {"model": runs / "bert"}, {"dataset": tmp_path / "opinions.jsonl"}
    here("sentiment.py", output_dir=tmp_path / "moved", **FAST | there | moved)
    published = fetch(str(runs / "first"))
    assert other_data(published, fetch(str(tmp_path / "moved"))) == ["the data have another content"]
    assert other_data(published, fetch(str(runs / "again"))) == []


@pytest.mark.slow  # of a folder they are tested above
def test_a_run_on_the_hub_is_fetched_by_its_name_and_its_edits_are_found_there_too(runs, hub, tmp_path):  # noqa: F811
    hub.repos["user/run"] = {
        path.name: path.read_bytes() for path in (runs / "first").iterdir() if path.is_file() and path.name[0] != "."
    }
    edited = json.loads(hub.repos["user/run"]["report.json"])
    edited["metrics"]["test"]["accuracy"]["value"] = 99.0
    hub.repos["user/edited"] = hub.repos["user/run"] | {"report.json": json.dumps(edited).encode()}
    code = f"""
from hf_lm.scoring.reproduce import compare_metrics, fetch, overall
print(overall(compare_metrics(fetch("user/run"), fetch({str(runs / "again")!r}))))
fetch("user/edited")
"""
    environment = os.environ | hub.environment() | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "identical\n"
    assert "user/edited: report.json says test accuracy 99" in done.stderr


def test_the_commit_of_a_checkpoint_is_what_the_cache_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--user--bert" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--user--bert" / "refs").mkdir()
    (tmp_path / "models--user--bert" / "refs" / "main").write_text(commit)
    assert commit_of("user/bert") == commit
    assert commit_of("user/other") == commit_of(str(tmp_path)) == commit_of("") == ""


def test_the_base_is_given_to_the_recipe_as_the_folder_of_its_commit(runs, tmp_path):
    published = fetch(str(runs / "first"))
    command(published, tmp_path / "new", tmp_path / "run.yaml", seed=None, steps=0, base="snapshots/0123")
    assert published.report["model"]["base"] == str(runs / "bert")
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["model"] == "snapshots/0123"


@pytest.mark.slow
def test_the_base_is_read_at_the_commit_of_the_run(runs, hub, tmp_path):  # noqa: F811
    """A base on the Hub that was replaced since: the run starts from what it was, and is identical."""
    bert = {path.name: path.read_bytes() for path in (runs / "bert").iterdir()}
    hub.repos["user/bert"] = bert
    data = tmp_path / "opinions.jsonl"
    shutil.copy(runs / "opinions.jsonl", data)
    options = FAST | {"model": "user/bert", "dataset": data, "output_dir": tmp_path / "first"}
    words = [f"--{name}={value}" for name, value in options.items()]
    recipe = [sys.executable, str(ROOT / "recipes" / "sentiment.py"), *words]
    environment = os.environ | hub.environment() | {"HF_HOME": str(tmp_path / "home")}
    subprocess.run(recipe, env=environment, check=True, capture_output=True, timeout=120)
    transformers.set_seed(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs / "bert")
    new_bert(tokenizer, model_class=transformers.BertForMaskedLM, n_embd=16).save_pretrained(tmp_path / "bert")
    before = hub.move_on("user/bert", bert | {"model.safetensors": (tmp_path / "bert/model.safetensors").read_bytes()})
    report = json.loads((tmp_path / "first" / "report.json").read_text())
    assert report["model"]["base_commit"] == before

    again = [sys.executable, "-m", "hf_lm.cli", "reproduce", str(tmp_path / "first"), "--output_dir"]
    environment["HF_HOME"] = str(tmp_path / "another_home")  # a stranger's
    done = subprocess.run([*again, tmp_path / "new"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("identical")
    assert re.search(r"^planned here: \d+ s and [\d,]+ MiB for the whole run$", done.stdout, re.MULTILINE)

    del hub.past["user/bert", before]
    done = subprocess.run([*again, tmp_path / "gone"], env=environment | {"HF_HOME": str(tmp_path / "third_home")},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert before[:8] in done.stderr


@pytest.mark.slow
def test_the_command_runs_it_again_and_marks_the_card(runs, capfd, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", str(runs / "first"), "--output_dir", str(tmp_path / "new"), "--update_card"])
    assert stop.value.code == 0
    assert "test accuracy" in capfd.readouterr().out
    assert json.loads((tmp_path / "new" / "reproduction.json").read_text())["verdict"] == "identical"
    assert "**Reproduced** on" in (runs / "first" / "README.md").read_text()
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", str(runs / "first"), "--check"])
    assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", str(runs / "first"), "--steps", "3", "--output_dir", str(tmp_path / "steps")])
    assert stop.value.code == 0
