"""lm-evaluation-harness: its numbers are those of the model, and stand in the report and the card."""

import json
import math
import sys

import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from loopback_hub import hub  # noqa: F401

from hf_lm.hub.push import published
from hf_lm.output_folder import remove_results
from hf_lm.reporting.report import save_report
from hf_lm.scoring import harness
from hf_lm.scoring.benchmarks import write_benchmarks


def test_numbers_of_the_harness_are_kept_with_their_errors():
    found = harness._numbers(
        {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1_stderr,none": "N/A", "f1,x": 1}
    )
    assert found == {"acc": {"value": 0.5, "stderr": 0.1}, "f1 (x)": {"value": 1.0}}


def test_the_report_and_the_card_get_the_numbers_and_keep_those_of_other_tasks(tmp_path):
    save_report({"recipe": "pretrain", "seconds": 1.0, "data": {"source": "x"}, "history": []}, tmp_path)
    harness.add_to_card(str(tmp_path), {"version": "0.4", "tasks": {"one": {"acc": {"value": 0.25, "stderr": 0.02}}}})
    harness.add_to_card(str(tmp_path), {"version": "0.4", "tasks": {"two|three": {"acc": {"value": 0.75}}}})
    assert set(json.loads((tmp_path / "report.json").read_text())["harness"]["tasks"]) == {"one", "two|three"}
    card = (tmp_path / "README.md").read_text()
    assert "## Harness" in card
    assert "| one | acc | 0.25 ± 0.02 |" in card
    assert "| two\\|three | acc | 0.75 |" in card


def test_what_the_harness_cannot_do_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", type(sys)("lm_eval"))
    with pytest.raises(ValueError, match="behind an API"):
        harness.check_harness(["api:m"])
    with pytest.raises(ValueError, match=r"no report\.json"):
        harness.check_harness([str(tmp_path)], card=True)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-lm\[harness\]'"):
        harness.check_harness([str(tmp_path)])


# The Hub's leaderboards

NUMBERS = {
    "version": "0.4",
    "tasks": {
        "gsm8k": {
            "exact_match (strict-match)": {"value": 0.25, "stderr": 0.01},
            "exact_match (flexible)": {"value": 0.5},
        },
        "docs": {"bits_per_byte": {"value": 1.5}},
        "hard": {"acc": {"value": 0.5}},
    },
    "datasets": {
        "gsm8k": {"path": "openai/gsm8k", "name": "main", "shots": 5},
        "docs": {"path": "json", "name": None, "shots": 0},
        "hard": {"path": "someone/hard", "name": None, "shots": 0},
    },
}


@pytest.fixture
def online(hub, monkeypatch, tmp_path):  # noqa: F811
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.repos["datasets/openai/gsm8k"] = {"eval.yaml": b"name: GSM8K\ntasks:\n  - id: gsm8k\n    split: test\n"}
    hub.repos["datasets/someone/hard"] = {"rows.jsonl": b"{}"}
    return hub


def test_a_task_of_a_benchmark_of_the_hub_has_a_file_for_its_leaderboard(online, tmp_path):
    said = write_benchmarks(tmp_path, NUMBERS)
    assert [path.name for path in (tmp_path / ".eval_results").iterdir()] == ["gsm8k.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "gsm8k.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 25.0)
    assert entry.dataset_revision == online.oid("datasets/openai/gsm8k")
    assert entry.notes == "exact_match (strict-match), 5-shot, lm-evaluation-harness 0.4"
    assert said[0].startswith("gsm8k: 25.00 for the leaderboard of openai/gsm8k")
    assert said[1].endswith("the dataset someone/hard is no benchmark of the Hub: it has no eval.yaml.")
    assert len(said) == 2  # none about a local file


@pytest.mark.parametrize(
    ("benchmark", "said"),
    [
        (b"tasks: [{id: one}, {id: two}]", "has the tasks one, two, none of that name"),
        (b"tasks: 3", "has the tasks none"),
        (b"[", "no result for the Hub's leaderboard"),
    ],
)
def test_a_benchmark_without_that_task_is_one_line(online, tmp_path, benchmark, said):
    online.repos["datasets/openai/gsm8k"] = {"eval.yaml": benchmark}
    lines = write_benchmarks(tmp_path, NUMBERS)
    assert said in lines[0]
    assert "\n" not in lines[0]
    assert not (tmp_path / ".eval_results").exists()


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_nothing_is_written_and_this_is_said(tmp_path, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    lines = write_benchmarks(tmp_path, NUMBERS)
    assert [line.split(":")[0] for line in lines] == ["gsm8k", "hard"]
    assert all("no result for the Hub's leaderboard" in line for line in lines)
    assert not (tmp_path / ".eval_results").exists()


def test_a_push_uploads_the_file_and_a_new_run_removes_it(tmp_path):
    (tmp_path / ".eval_results").mkdir()
    for name in ("gsm8k.yaml", "notes.txt"):
        (tmp_path / ".eval_results" / name).write_text("[]")
    assert [path.name for path in published(tmp_path)] == ["gsm8k.yaml"]
    remove_results(tmp_path, checkpoints=False)
    assert [path.name for path in (tmp_path / ".eval_results").iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_the_harness_runs_offline_and_its_likelihood_is_that_of_the_model(model, tokenizer, texts, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'hf-lm[harness]'")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    short = [text[:10] for text in texts[:12]]  # the model has 32 positions, and a character up to 3 tokens
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in short))
    (tmp_path / "task.yaml").write_text(
        f"task: short_texts\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: bits_per_byte\n"
    )
    found = harness.run_harness(str(tmp_path / "model"), [str(tmp_path / "task.yaml")])
    nats = 0.0
    for text in short:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]])
        with torch.no_grad():
            log_probs = model.eval()(ids).logits.log_softmax(-1)[0, :-1]
        nats -= float(log_probs.gather(1, ids[0, 1:, None]).sum())
    expected = nats / math.log(2) / sum(len(text.encode()) for text in short)
    assert found["tasks"]["short_texts"]["bits_per_byte"]["value"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        harness.run_harness(str(tmp_path / "model"), [str(tmp_path / "other.yaml")])
