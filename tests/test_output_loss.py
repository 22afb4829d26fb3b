"""The loss of training on a CPU, from the states before the output layer: the softmax of torch, and its gradients."""

import platform
import subprocess
import sys

import pytest
import torch
from test_sampled_softmax import complete, example
from test_trainer import make_trainer  # noqa: F401  (a fixture)

from hf_lm.models.parts import SHORT, attention, is_faster_plain
from hf_lm.models.recurrent import new_recurrent
from hf_lm.tasks.losses import next_token_loss
from hf_lm.training import output_loss as module
from hf_lm.training.output_loss import output_loss
from hf_lm.training.trainer import Trainer


@pytest.mark.parametrize("rows", [1, 4, 128])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_softmax_of_torch_with_its_gradients(rows, with_bias, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    head, hidden, labels = example()
    hidden = (30 * hidden).requires_grad_()  # far apart: an exponential without the largest would overflow in float32
    if not with_bias:
        head.bias = None
    variables = [hidden, *head.parameters()]
    expected, found = complete(head, hidden, labels), output_loss(hidden, head, labels)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(3 * x, variables) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert output_loss(hidden, head, labels) == found
    assert output_loss(hidden, head, torch.full_like(labels, -100)).item() == 0


def test_under_autocast_products_are_in_bfloat16_and_the_sum_is_not():
    head, hidden, labels = example(vocabulary=300, width=32)
    head, hidden = head.float(), hidden.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(hidden)
        found = output_loss(hidden, head, labels)
    assert found.dtype == torch.float32
    expected = next_token_loss(type("Outputs", (), {"logits": logits}), {"labels": labels})
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(*(torch.autograd.grad(x, [hidden, head.weight]) for x in (found, expected)), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("kind", ["gpt2", "lstm"])
def test_a_run_on_a_cpu_trains_by_it_and_has_the_loss_of_the_logits(make_trainer, model, tokenizer, kind):  # noqa: F811
    own = model if kind == "gpt2" else new_recurrent(tokenizer, n_embd=16, dropout=0.0)
    trainer = make_trainer(own)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    own.train()
    loss, outputs = trainer.compute_loss(own, batch, return_outputs=True)
    assert outputs.logits.shape[1] == 1
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in own.named_parameters()}
    own.zero_grad()
    trainer.loss = lambda *given: next_token_loss(*given)
    expected, outputs = trainer.compute_loss(own, batch, return_outputs=True)
    assert outputs.logits.shape[1] == batch["labels"].shape[1]
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_logits_that_the_model_changes_are_computed_by_it(make_trainer, model):  # noqa: F811
    model.config.model_type = "gemma2"  # which caps them
    trainer = make_trainer(model)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert trainer.compute_loss(model.train(), batch, return_outputs=True)[1].logits.shape[1] == 32


@pytest.mark.parametrize(("bf16", "expected"), [(True, "eager"), (False, "sdpa")])
def test_while_it_trains_in_bfloat16_short_rows_are_attended_by_plain_products(make_trainer, model, bf16, expected):  # noqa: F811
    options = {"bf16": bf16, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer, step, found = make_trainer(model, **options), Trainer.training_step, []

    def training_step(model, *given):
        found.append(model.config._attn_implementation)
        return step(trainer, model, *given)

    trainer.training_step = training_step
    trainer.measure = lambda model: found.append(model.config._attn_implementation) or {"loss": 1.0}
    trainer.train()
    assert (found, model.config._attn_implementation) == ([expected, "sdpa"], "sdpa")  # measured as after training


@pytest.mark.parametrize(
    ("before", "context", "within"),
    [("sdpa", SHORT, "eager"), ("sdpa", SHORT + 1, "sdpa"), ("flex_attention", SHORT, "flex_attention")],
)
def test_long_rows_and_another_choice_stay_and_documents_stay_apart(model, before, context, within):
    model.eval()
    model.set_attn_implementation("sdpa")
    ids = torch.randint(50, (2, 12))
    inputs = {"input_ids": ids, "position_ids": torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)}
    expected = model(**inputs).logits
    model.config._attn_implementation = before
    assert is_faster_plain(model, context=context) == (within == "eager")
    with attention(model, within):
        assert model.config._attn_implementation == within
        if before == "sdpa":
            torch.testing.assert_close(model(**inputs).logits, expected)
    assert model.config._attn_implementation == before


FAULTS = """
import resource, sys, torch
from hf_lm.training.allocator import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
def step():
    kept = [torch.ones(2**24) for _ in range(2)]  # 64 MB each, twice what glibc ever keeps by itself
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_a_step_frees_is_not_cleared_again_by_the_kernel():
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, *given], capture_output=True, text=True, check=True).stdout)
        for given in ([], ["keep"])
    )
    assert kept < plain / 2
