"""The loss is the mean over all label tokens of a step, speed is measured, and a NaN stops the run."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hf_lm.arguments import TrainingArguments
from hf_lm.data.packing import Blocks, collate_blocks
from hf_lm.losses import label_loss, next_token_loss, span_loss
from hf_lm.training.monitor import flops_per_token
from hf_lm.training.trainer import Trainer


@pytest.fixture
def make_trainer(model, stream, tmp_path):
    def make(**arguments):
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
            model,
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


def test_flops_count_every_matrix_and_attention(model):
    width, layers, vocab = 16, 2, model.config.vocab_size
    per_layer = 12 * width * width  # Q, K, V, projection and an MLP four times as wide
    expected = 6 * (layers * per_layer + vocab * width) + 12 * layers * width * 32
    assert flops_per_token(model, 32) == expected
