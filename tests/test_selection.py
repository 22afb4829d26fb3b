"""Which checkpoint and which learning rate: chosen on validation, and by more than its noise."""

import copy
import json
import os
import random
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from running import here
from transformers import TrainerControl, TrainerState

from hf_lm.arguments import TrainingArguments
from hf_lm.data.demos.opinions import opinions
from hf_lm.evaluation.intervals import mean
from hf_lm.hub.push import check_finished
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.training.budget import StopAtBudget
from hf_lm.training.selection import EarlyStopping, search_learning_rate

FAST = {"per_device_train_batch_size": 8, "use_cpu": True, "bf16": False, "report_to": "none"}
FAST |= {"skip_proofs": "load_back", "logging_steps": 4}


def test_only_a_gain_beyond_noise_keeps_a_run_alive():
    examples = np.random.default_rng(0).random(200)
    series = [examples, examples, np.roll(examples, 1), examples + 0.5, examples + 0.5]
    estimates = iter([mean(values) for values in series])
    stopping, stopped = EarlyStopping(2, lambda: next(estimates)), []
    for _ in series:
        control = TrainerControl()
        stopping.on_evaluate(None, TrainerState(), control)
        stopped.append(control.should_training_stop)
    # The second is the first, the third the same examples in another order: two without a gain. Then a real one.
    assert stopped == [False, False, True, False, False]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "opinions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in opinions(120)))
    return path


def test_the_numbers_on_validation_are_those_of_the_best_checkpoint(data, tmp_path):
    # A rate at which the model is thrown about, so that the last evaluation is not the best one.
    report = here("sentiment.py", dataset=data, output_dir=tmp_path, num_train_epochs=4, learning_rate=0.03, **FAST)
    evaluated = [entry["eval_accuracy"] for entry in report["history"] if "eval_accuracy" in entry]
    assert len(evaluated) == 4
    assert report["metrics"]["validation"]["accuracy"]["value"] == pytest.approx(max(evaluated))


def test_the_best_checkpoint_is_the_one_with_the_least_calibration_error_where_that_is_named(data, tmp_path):
    settings = FAST | {"num_train_epochs": 4, "learning_rate": 0.03, "metric_for_best_model": "calibration_error"}
    report = here("sentiment.py", dataset=data, output_dir=tmp_path / "out", **settings)
    evaluated = [entry["eval_calibration_error"] for entry in report["history"] if "eval_calibration_error" in entry]
    assert report["metrics"]["validation"]["calibration_error"]["value"] == pytest.approx(min(evaluated))
    assert min(evaluated) < max(evaluated)
    settings["metric_for_best_model"] = "accuracies"
    with pytest.raises(ValueError, match="--metric_for_best_model accuracies: the task measures loss, accuracy, "):
        here("sentiment.py", dataset=data, output_dir=tmp_path / "other", **settings)


def test_a_signal_in_the_last_evaluation_of_a_run_without_checkpoints_does_not_lose_the_model(
    data, tmp_path, monkeypatch, capsys
):
    measure = Sentiment.measure

    def signalled(self, *arguments):
        if not (tmp_path / "model.safetensors").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(Sentiment, "measure", measure)
        return measure(self, *arguments)

    monkeypatch.setattr(Sentiment, "measure", signalled)
    settings = FAST | {"num_train_epochs": 1, "save_strategy": "no", "load_best_model_at_end": False}
    report = here("sentiment.py", dataset=data, output_dir=tmp_path, **settings)
    assert "a signal arrived after the last step" in capsys.readouterr().out
    assert "model.safetensors" in report["files"]


def test_a_sweep_takes_the_best_rate_and_run_yaml_repeats_it(data, tmp_path):
    pytest.importorskip("optuna", reason="--sweep needs the extra sweep")
    options = FAST | {"dataset": data, "output_dir": tmp_path, "num_train_epochs": 1, "learning_rate": 1e-3}
    report = here("sentiment.py", sweep=2, **options)
    tried = report["sweep"]
    assert len(tried) == 2
    assert all(1e-4 <= trial["learning_rate"] <= 1e-2 for trial in tried)
    assert tried[0]["accuracy"] >= tried[1]["accuracy"]
    run = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert run["learning_rate"] == pytest.approx(tried[0]["learning_rate"])
    assert run["sweep"] == 0
    assert "sweep" not in report["arguments"]
    rate = report["arguments"]["learning_rate"]  # which the command of the card gives, beside the default rate
    assert rate == pytest.approx(run["learning_rate"])
    assert f"--learning_rate {rate}" in (tmp_path / "README.md").read_text()
    assert check_finished(tmp_path) is None  # it can be pushed
    assert here("sentiment.py", sweep=2, resume_from_checkpoint="latest", **options)["sweep"] == tried


def test_a_sweep_measures_each_rate_at_its_end_where_nothing_is_evaluated_before(tmp_path, capsys):
    pytest.importorskip("optuna", reason="--sweep needs the extra sweep")
    trained = []

    class Fake:
        stop = SimpleNamespace(signal=None)

        def __init__(self, model, args):
            self.model, self.args = model, args
            assert not args.load_best_model_at_end

        def add_callback(self, callback):
            assert isinstance(callback, StopAtBudget)

        def train(self):
            torch.rand(()), random.random(), np.random.rand()
            self.model.weight.data += self.args.learning_rate
            trained.append(self.model)
            if len(trained) == 2:
                raise FloatingPointError("the loss is not a number")

        def evaluate(self):
            return {"eval_accuracy": 1 - self.args.learning_rate}

    model, task = torch.nn.Linear(1, 1), SimpleNamespace(main_metric="accuracy", greater_is_better=True)
    before = model.weight.detach().clone()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, sweep=4, learning_rate=0.01, eval_strategy="no")
    short = copy.copy(args)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    tried = search_learning_rate(Fake, model, args, task, started=time.monotonic())
    assert torch.equal(torch.get_rng_state(), state[0])  # the run begins as it would without the search
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]
    assert len({id(each) for each in [model, *trained]}) == 5  # each trial trains a copy of its own
    assert torch.equal(model.weight, before)
    assert [trial["accuracy"] for trial in tried] == sorted((1 - t["learning_rate"] for t in tried), reverse=True)
    assert len(tried) == 3  # without the one that diverged
    assert capsys.readouterr().out.count("diverges") == 1
    assert (args.learning_rate, args.sweep) == (tried[0]["learning_rate"], 0)
    short.max_hours = 1e-9  # the fake trainer does not stop within a trial
    assert len(search_learning_rate(Fake, model, short, task, started=time.monotonic())) == 1
    assert capsys.readouterr().out.endswith("  sweep: the budget leaves no time for more than 1 of 4 rates\n")


def test_a_budget_that_ends_within_a_trial_ends_the_run_without_a_checkpoint(data, tmp_path, capsys):
    pytest.importorskip("optuna", reason="--sweep needs the extra sweep")
    with pytest.raises(SystemExit) as ended:
        here("sentiment.py", dataset=data, output_dir=tmp_path / "out", sweep=2, max_hours=1e-6, **FAST)
    assert ended.value.code == 75
    assert "is spent within a trial of --sweep" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("checkpoint-*"))
