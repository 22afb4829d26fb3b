"""The loss is the mean over all label tokens of a step, speed is measured, and a NaN stops the run."""

import contextlib
import copy
import itertools
import json
import math
import os
import pickle
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import TrainerCallback, TrainerState

from hf_lm.arguments import TrainingArguments
from hf_lm.data.packing import Blocks, collate_blocks
from hf_lm.evaluation.intervals import mean
from hf_lm.tasks.losses import label_loss, next_token_loss, span_loss
from hf_lm.training.budget import StopAtBudget
from hf_lm.training.checkpoints import OnTrainBegin
from hf_lm.training.monitor import Progress, flops_per_token
from hf_lm.training.selection import EarlyStopping
from hf_lm.training.trainer import Trainer


@pytest.fixture
def make_trainer(model, stream, tmp_path):
    def make(own=model, **arguments):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "disable_tqdm": True,
            "report_to": "none",
            "save_strategy": "no",
        }
        blocks = Blocks(stream, block_size=32, isolate=True)
        return Trainer(
            own,
            TrainingArguments(**settings | arguments),
            loss=next_token_loss,
            shifts_labels=True,
            measure=lambda model: {"loss": 1.0},
            context=32,
            train_dataset=blocks,
            data_collator=collate_blocks,
        )

    return make


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def outputs(**logits):
    return SimpleNamespace(**logits)


def test_next_token_loss_is_the_summed_shifted_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[0, 2] = -100
    expected = sum(
        -torch.log_softmax(logits[row, i].double(), -1)[labels[row, i + 1]].item()
        for row in range(2)
        for i in range(4)
        if labels[row, i + 1] != -100
    )
    assert next_token_loss(outputs(logits=logits), {"labels": labels}).item() == pytest.approx(expected, rel=1e-6)


def test_label_and_span_losses_are_summed_cross_entropies_over_what_is_labelled():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5), torch.tensor([4, -100, 0])
    chosen = torch.log_softmax(logits.double(), -1)
    assert label_loss(outputs(logits=logits), {"labels": labels}).item() == pytest.approx(
        -(chosen[0, 4] + chosen[2, 0]).item()
    )
    start, end = torch.randn(2, 7), torch.randn(2, 7)
    expected = -(start.double().log_softmax(-1)[[0, 1], [2, 0]] + end.double().log_softmax(-1)[[0, 1], [3, 0]]).sum()
    batch = {"labels": torch.tensor([[2, 3], [0, 0]]), "attention_mask": torch.ones(2, 7)}
    assert span_loss(outputs(start_logits=start, end_logits=end), batch).item() == pytest.approx(expected.item())
    padded = outputs(start_logits=F.pad(start, (0, 3), value=9.0), end_logits=F.pad(end, (0, 3), value=9.0))
    batch["attention_mask"] = F.pad(batch["attention_mask"], (0, 3))
    assert span_loss(padded, batch).item() == pytest.approx(expected.item())


def test_accumulated_batches_train_like_one_large_batch(make_trainer, model):
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    together = losses(make_trainer(per_device_train_batch_size=8, seed=3))
    trained = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])
    accumulated = losses(make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=4, seed=3))
    assert together == pytest.approx(accumulated, rel=1e-5)
    assert max((a - b).abs().max().item() for a, b in zip(trained, model.parameters(), strict=True)) < 1e-4


@pytest.mark.parametrize("muon_learning_rate", [0.0, 1e-2])
def test_training_lowers_the_loss_and_measures_speed(make_trainer, muon_learning_rate):
    trainer = make_trainer(max_steps=30, muon_learning_rate=muon_learning_rate, per_device_train_batch_size=8)
    history = losses(trainer)
    assert history[0] == pytest.approx(math.log(320), rel=0.05)
    assert history[-1] < 0.85 * history[0]
    assert trainer.speedometer.speed["tokens_per_second"] > 0
    assert 0 < trainer.speedometer.speed["utilisation"] < 1.5


def test_a_schedule_decays_both_rates(make_trainer):
    trainer = make_trainer(
        max_steps=20, muon_learning_rate=2e-2, lr_scheduler_type="warmup_stable_decay", decay_share=0.5, warmup_steps=5
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[5:11] == pytest.approx([1e-2] * 6)
    assert rates[-1] == pytest.approx(1e-3)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.0}


def test_a_nan_stops_the_run_and_says_where(make_trainer, model):
    trainer = make_trainer(max_steps=3)

    def poison(*args):
        if trainer.state.global_step == 1:
            with torch.no_grad():
                model.transformer.wpe.weight.fill_(float("nan"))

    model.register_forward_pre_hook(lambda *_: poison())
    with pytest.raises(FloatingPointError, match=r"loss became nan at step 2, learning rate"):
        trainer.train()


def test_an_infinite_gradient_stops_before_the_weights_take_it_in(make_trainer, model):
    trainer = make_trainer(max_steps=3)
    model.transformer.h[0].mlp.c_fc.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(FloatingPointError, match="gradient norm became"):
        trainer.train()
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_file_gets_the_bar_twice_a_minute_and_not_with_each_step(monkeypatch, capsys):
    seconds = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))  # a second passes whenever the bar asks
    bar, state = Progress(), TrainerState(max_steps=90)
    bar.on_train_begin(None, state, None)
    for state.global_step in range(1, 91):
        bar.on_step_end(None, state, None)
        bar.on_prediction_step(None, state, None, eval_dataloader=[None])
        bar.on_log(None, state, None, {"loss": 1.0})
    bar.on_train_end(None, state, None)
    written = capsys.readouterr().err.count("\r")
    assert 3 <= written <= 12, written


def test_flops_count_every_matrix_and_attention(model):
    width, layers, vocab = 16, 2, model.config.vocab_size
    per_layer = 12 * width * width  # Q, K, V, projection and an MLP four times as wide
    expected = 6 * (layers * per_layer + vocab * width) + 12 * layers * width * 32
    assert flops_per_token(model, 32) == expected


# Resuming


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def resumable(make_trainer, model, tmp_path):
    """Makes trainers of copies of one model, in folders of their own."""

    def make(folder="out", **arguments):
        transformers.set_seed(0)
        settings = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
        return make_trainer(copy.deepcopy(model), output_dir=str(tmp_path / folder), **settings | arguments)

    return make


def history(trainer):
    timed = ("_runtime", "_per_second", "utilisation")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timed)} for entry in trainer.state.log_history
    ]


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_is_resumed_at_its_end_trains_no_further_step(resumable, tmp_path, times):
    whole = resumable(lr_scheduler_type="constant")
    whole.train()
    trained, log = weights(whole), history(whole)
    for _ in range(times):
        resumed = resumable(lr_scheduler_type="constant")
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
        assert resumed.state.global_step == 4
        assert same(weights(resumed), trained)
        assert history(resumed) == log
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def measured_by_step(trainer, values):
    trainer.measure = lambda model: {"loss": values[trainer.state.global_step]}
    return trainer


def stop_after(trainer, step):
    """Deliver a signal while that step is in progress."""
    work = trainer.training_step

    def signalled(*arguments, **keywords):
        if trainer.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(*arguments, **keywords)

    trainer.training_step = signalled
    return trainer


BEST = {
    "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 3,
    "metric_for_best_model": "loss", "greater_is_better": False, "max_steps": -1, "save_total_limit": 9,
}  # fmt: skip


def test_a_training_that_ends_in_an_error_gives_the_signals_back(make_trainer, model):
    before = signal.getsignal(signal.SIGTERM)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with torch.no_grad():
        model.transformer.wte.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        make_trainer().train()
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(wakeup) == wakeup


def test_workers_that_would_keep_the_order_of_the_first_epoch_are_refused(make_trainer):
    with pytest.raises(ValueError, match="--dataloader_persistent_workers"):
        make_trainer(dataloader_num_workers=1, dataloader_persistent_workers=True)


def test_a_schedule_of_another_length_may_share_the_arguments(make_trainer):
    trainer = make_trainer(lr_scheduler_type="warmup_stable_decay", decay_share=0.5)
    trainer.create_optimizer()
    for steps in (10, 100):
        trainer.lr_scheduler = None
        trainer.create_scheduler(steps, trainer.optimizer)
        factors = [trainer.lr_scheduler.lr_lambdas[0](step) for step in range(steps)]
        assert sum(factor < 1 for factor in factors) == pytest.approx(steps / 2, abs=1)


@pytest.mark.parametrize("where", ["within an epoch", "at its end"])
def test_a_stop_by_a_signal_changes_neither_the_evaluations_nor_the_choice(resumable, tmp_path, where):
    whole = resumable("whole", **BEST)
    per_epoch = len(whole.get_train_dataloader())
    # Better in mid-epoch than at any epoch's end.
    values = dict.fromkeys(range(3 * per_epoch), 1.0) | {k * per_epoch: 2.0 + (k - 2) ** 2 for k in (1, 2, 3)}
    measured_by_step(whole, values).train()
    assert whole.state.best_global_step == 2 * per_epoch
    stop = 2 * per_epoch - (2 if where == "within an epoch" else 0)
    stopped = stop_after(measured_by_step(resumable("stopped", **BEST), values), stop)
    stopped.train()
    assert stopped.stop.stopped
    assert stopped.state.global_step == stop
    resumed = measured_by_step(resumable("stopped", **BEST), values)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{stop}"))
    evaluations = lambda trainer: [entry for entry in history(trainer) if "eval_loss" in entry]  # noqa: E731
    assert evaluations(resumed) == evaluations(whole)
    assert resumed.state.best_global_step == whole.state.best_global_step
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    ("first", "second", "seconds", "at_once"),
    [
        ("SIGTERM", "SIGTERM", 0, False),  # of Slurm, which signals every process of a job, and of the launcher
        ("SIGTERM", "SIGTERM", 60, True),
        ("SIGINT", "SIGINT", 0, True),
    ],
)
def test_a_signal_that_scheduler_and_launcher_both_send_is_one(
    first, second, seconds, at_once, resumable, tmp_path, monkeypatch
):
    def end(number, frame):
        raise SystemExit(128 + number)

    now, trainer = [1000.0], resumable(max_steps=4)
    monkeypatch.setattr("hf_lm.training.checkpoints.time", SimpleNamespace(monotonic=lambda: now[0]))
    work = trainer.training_step

    def signalled(*arguments, **keywords):
        if trainer.state.global_step == 1:
            signal.raise_signal(getattr(signal, first))
            now[0] += seconds
            signal.raise_signal(getattr(signal, second))
        return work(*arguments, **keywords)

    trainer.training_step = signalled
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) if at_once else contextlib.nullcontext():
            trainer.train()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (tmp_path / "out" / "checkpoint-2").is_dir() != at_once


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_a_resumed_run_reports_and_keeps_what_an_uninterrupted_one_does(resumable, tmp_path, stop):
    settings = {"max_steps": 7, "logging_steps": 4, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    settings |= {"save_total_limit": 2, "num_train_epochs": 1}
    whole = resumable("whole", **settings)
    whole.train()
    stop_after(resumable("out", **settings), stop).train()
    resumed = resumable("out", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{stop}"))
    assert history(resumed) == history(whole)
    files = lambda name: sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*"))  # noqa: E731
    assert files("out") == files("whole")
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("step", [4, 6])
def test_a_run_killed_before_the_oldest_checkpoint_was_removed_removes_it(resumable, tmp_path, step):
    settings = {"max_steps": 6, "save_steps": 2, "save_total_limit": 1}
    resumable("out", **settings | {"save_total_limit": 3}).train()
    for later in range(step + 2, 7, 2):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{later}")
    resumed = resumable("out", **settings)
    before = []
    resumed.add_callback(OnTrainBegin(lambda: before.extend((tmp_path / "out").glob("checkpoint-*"))))
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert [path.name for path in before] == [f"checkpoint-{step}"]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_checkpoint_of_a_stop_is_not_taken_for_the_best(resumable, tmp_path):
    """An evaluation between two checkpoints has no weights to go back to, whether a signal came there or not."""
    settings = BEST | {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "max_steps": 6}
    values = {1: 3.0, 2: 2.0, 3: 1.0, 4: 4.0, 5: 5.0, 6: 6.0}
    whole = measured_by_step(resumable("whole", **settings), values)
    whole.train()
    stop_after(measured_by_step(resumable("out", **settings), values), 3).train()
    resumed = measured_by_step(resumable("out", **settings), values)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert Path(whole.state.best_model_checkpoint).name == Path(resumed.state.best_model_checkpoint).name
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("when", ["resume", "end"])
def test_a_damaged_best_checkpoint_is_not_loaded(resumable, tmp_path, when):
    settings = BEST | {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "max_steps": 6}
    values = {2: 1.0, 4: 2.0, 6: 3.0}
    stop_after(measured_by_step(resumable("out", **settings), values), 3).train()
    resumed = measured_by_step(resumable("out", **settings), values)

    def damage_best():
        (tmp_path / "out" / "checkpoint-2" / "model.safetensors").write_bytes(b"half")

    if when == "resume":
        damage_best()
    else:
        resumed.add_callback(OnTrainBegin(damage_best))
    with pytest.raises(ValueError, match=r"checkpoint-2, is damaged \(model.safetensors .*--resume_with_changes"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))


def test_one_checkpoint_is_kept_beside_the_best(resumable, tmp_path):
    settings = BEST | {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "max_steps": 6}
    trainer = measured_by_step(resumable("out", **settings | {"save_total_limit": 1}), {2: 1.0, 4: 2.0, 6: 3.0})
    trainer.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_tied_weight_is_not_reported_as_missing_and_a_lost_one_is(resumable, monkeypatch):
    trainer, warnings = resumable(), []
    monkeypatch.setattr("transformers.trainer.logger.warning", warnings.append)
    state = trainer.model.state_dict()
    trainer._issue_warnings_after_load(
        trainer.model.load_state_dict({k: v for k, v in state.items() if k != "lm_head.weight"}, strict=False)
    )
    assert warnings == []
    lost = {k: v for k, v in state.items() if k not in ("lm_head.weight", "transformer.ln_f.weight")}
    trainer._issue_warnings_after_load(trainer.model.load_state_dict(lost, strict=False))
    assert "transformer.ln_f.weight" in warnings[0]
    assert "lm_head" not in warnings[0]


def test_a_stop_in_a_later_epoch_resumes_in_the_order_of_that_epoch(resumable, tmp_path):
    epoch = len(resumable().train_dataset) // 64  # steps
    settings = {"per_device_train_batch_size": 64, "dataloader_drop_last": True, "max_steps": 2 * epoch + 2}
    whole = resumable("whole", **settings)
    first = whole.train_dataset[0]["input_ids"]
    whole.train()
    assert not torch.equal(whole.train_dataset[0]["input_ids"], first)  # as it is in the last epoch
    stop_after(resumable("stopped", **settings), 2 * epoch + 1).train()
    resumed = resumable("stopped", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{2 * epoch + 1}"))
    assert torch.equal(resumed.train_dataset[0]["input_ids"], whole.train_dataset[0]["input_ids"])
    assert same(weights(resumed), weights(whole))


def test_a_stop_at_the_last_step_leaves_the_end_as_it_is(resumable, tmp_path):
    stopped = stop_after(resumable(), 4)
    stopped.train()
    assert not stopped.stop.stopped
    assert (tmp_path / "out" / "checkpoint-4").is_dir()


def test_a_stop_by_the_budget_keeps_the_evaluation_that_is_due(resumable, tmp_path):
    trainer, now = resumable(eval_strategy="steps", eval_steps=2, save_steps=100, max_steps=8), [0.0]
    work = trainer.training_step

    def slow_step(*arguments, **keywords):
        now[0] += 1
        return work(*arguments, **keywords)

    trainer.training_step = slow_step
    trainer.add_callback(StopAtBudget(5.0, started=0.0, checkpoint_bytes=0, clock=lambda: now[0]))
    trainer.train()
    saved = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in saved["log_history"] if "eval_loss" in entry] == [2, 4]


@pytest.mark.parametrize("step", [2, 3])
def test_early_stopping_ends_a_resumed_run_where_it_ends_the_uninterrupted_one(resumable, tmp_path, step):
    def make():
        trainer = resumable(eval_strategy="steps", eval_steps=1, save_steps=1, max_steps=8)
        values = {1: 0.5, 2: 0.4, 3: 0.45}  # the best is the first
        trainer.add_callback(EarlyStopping(2, lambda: mean(np.full(9, values.get(trainer.state.global_step, 1.0)))))
        return trainer

    whole = make()
    whole.train()
    assert whole.state.global_step == 3
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
    assert resumed.state.global_step == 3
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("moved", ["the folder", "the working directory"])
def test_the_best_checkpoint_is_found_where_the_folder_is_now(resumable, tmp_path, monkeypatch, moved):
    settings = BEST | {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "max_steps": 8}
    values = {2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0}
    whole = measured_by_step(resumable("whole", **settings), values)
    whole.train()
    monkeypatch.chdir(tmp_path)
    first = resumable("out", **settings)
    first.args.output_dir = "out"  # relative, as a user gives it
    stop_after(measured_by_step(first, values), 5).train()
    if moved == "the folder":
        (tmp_path / "out").rename(tmp_path / "moved")
        resumed, folder = resumable("moved", **settings | {"save_total_limit": 1}), tmp_path / "moved"
    else:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        resumed, folder = resumable("out", **settings | {"save_total_limit": 1}), Path("../out")
        resumed.args.output_dir = str(folder)
    measured_by_step(resumed, values).train(resume_from_checkpoint=str(folder / "checkpoint-5"))
    assert resumed.state.best_model_checkpoint == str(folder / "checkpoint-2")
    assert (folder / "checkpoint-2").is_dir()
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("muon", [0.0, 2e-2])
def test_changed_rates_and_decay_hold_after_a_resume(resumable, tmp_path, muon):
    settings = {"lr_scheduler_type": "cosine", "max_steps": 8, "muon_learning_rate": muon, "weight_decay": 0.1}
    first = stop_after(resumable("first", **settings), 4)
    first.train()
    checkpoint = str(tmp_path / "first" / "checkpoint-4")
    again = resumable("again", **settings)
    again.train(resume_from_checkpoint=checkpoint)
    same_arguments = resumable("same", **settings, resume_with_changes=True)
    same_arguments.train(resume_from_checkpoint=checkpoint)
    assert same(weights(same_arguments), weights(again))

    used = []

    def note(self, args, state, control, optimizer, **_):
        used.append([(group["lr"], group["weight_decay"], group.get("betas")) for group in optimizer.param_groups])

    changes = {"learning_rate": 1e-3, "weight_decay": 0.2, "adam_beta1": 0.8, "resume_with_changes": True}
    changes |= {"muon_learning_rate": muon / 4, "muon_weight_decay": 0.3}
    changed = resumable("changed", **settings | changes)
    changed.add_callback(type("Note", (TrainerCallback,), {"on_pre_optimizer_step": note}))
    changed.train(resume_from_checkpoint=checkpoint)
    assert not same(weights(changed), weights(again))
    assert len(used) == 4
    for step, groups in enumerate(used, start=4):
        factor = (1 + math.cos(math.pi * step / 8)) / 2
        assert groups[0] == (pytest.approx(1e-3 * factor), 0.2, (0.8, 0.999))
        if muon:
            assert groups[-1] == (pytest.approx(muon / 4 * factor), 0.3, None)


def test_another_optimizer_beside_muon_is_refused(make_trainer):
    with pytest.raises(ValueError, match="--optim sgd: where Muon trains the matrices, AdamW trains the rest"):
        make_trainer(muon_learning_rate=1e-2, optim="sgd").create_optimizer()


def test_no_token_and_nothing_pickled_is_left_by_a_checkpoint(resumable, tmp_path):
    resumable(hub_token="hf_secret_of_the_user", push_to_hub=True, hub_model_id="me/x").train()
    names = [path.name for path in (tmp_path / "out").rglob("*")]
    assert "optimizer.pt" in names
    assert "training_args.bin" not in names
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


def test_a_token_is_not_pickled(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), hub_token="hf_secret_of_the_user")
    assert b"hf_secret" not in pickle.dumps(args)
    assert args.hub_token == "hf_secret_of_the_user"
