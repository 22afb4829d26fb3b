"""The softmax over a sample of the vocabulary: exact where all is drawn, unbiased where not, and only in training."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_trainer import make_trainer  # noqa: F401  (a fixture)

from hf_lm.models.recurrent import new_recurrent
from hf_lm.tasks import proofs
from hf_lm.training.monitor import flops_per_token
from hf_lm.training.sampled_softmax import SampledSoftmax, inclusion_probabilities, sampled_softmax


def example(vocabulary=50, width=8):
    torch.manual_seed(0)
    head = torch.nn.Linear(width, vocabulary).double()
    hidden = torch.randn(3, 6, width, dtype=torch.float64)
    labels = torch.randint(vocabulary, (3, 6))
    labels[0, 2:4] = -100
    return head, hidden, labels


def complete(head, hidden, labels):
    logits = head(hidden)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def test_all_of_the_vocabulary_drawn_is_the_softmax_with_its_gradients():
    head, hidden, labels = example()
    expected = torch.autograd.grad(complete(head, hidden, labels), [head.weight, head.bias])
    loss = SampledSoftmax(torch.ones(50), 50)(hidden, head, labels)
    assert loss.item() == pytest.approx(complete(head, hidden, labels).item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(loss, [head.weight, head.bias]), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_estimated_normaliser_is_unbiased():
    head, hidden, _ = example()
    hidden, labels = hidden[:1, :2], torch.tensor([[0, 7]])  # one label
    loss = SampledSoftmax(torch.arange(50.0), 20)
    own = head(hidden)[0, 0, 7]
    with torch.no_grad():
        sums = torch.stack([(loss(hidden, head, labels) + own).exp() for _ in range(4000)])
    expected = head(hidden)[0, 0].exp().sum()
    assert abs(sums.mean() - expected) < 4 * sums.std() / len(sums) ** 0.5
    assert sums.std() / expected > 0.02  # the draws do differ


def test_probabilities_follow_the_weights_up_to_one_and_add_up():
    found = inclusion_probabilities(torch.tensor([100.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64), 3)
    assert found.sum().item() == pytest.approx(3)
    assert found.tolist() == pytest.approx([1, 1, 0.5, 0.25, 0.25])
    assert inclusion_probabilities(torch.ones(4), 9).tolist() == [1, 1, 1, 1]


def test_a_head_without_bias_and_padded_labels():
    head, hidden, labels = example()
    head.bias = None
    loss = SampledSoftmax(torch.ones(50), 50)
    assert loss(hidden, head, labels).item() == pytest.approx(complete(head, hidden, labels).item(), rel=1e-5)
    assert loss(hidden, head, torch.full_like(labels, -100)).item() == 0


@pytest.mark.parametrize("kind", ["gpt2", "lstm"])
def test_a_run_trains_on_the_sample_and_proves_and_measures_the_whole(make_trainer, model, tokenizer, kind):  # noqa: F811
    own = model if kind == "gpt2" else new_recurrent(tokenizer, n_embd=16, dropout=0.0)
    trainer, complete = make_trainer(own, sampled_softmax=40, max_steps=20), make_trainer(own)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    own.eval()
    assert trainer.compute_loss(own, batch) == complete.compute_loss(own, batch)
    assert proofs.loss_invariance(trainer, [trainer.train_dataset[i] for i in range(4)]).passed
    own.train()
    torch.manual_seed(1)
    drawn = torch.stack([trainer.compute_loss(own, batch).detach() for _ in range(20)])
    expected = complete.compute_loss(own, batch).item()
    assert len(set(drawn.tolist())) > 10
    assert drawn.mean().item() == pytest.approx(expected, rel=0.05)
    trainer.train()
    own.eval()
    assert complete.compute_loss(own, batch).item() < expected - 0.1


def test_another_data_set_and_other_recipes_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"--sampled_softmax is for pretraining"):
        sampled_softmax([{"input_ids": [1]}], 10, 5)


def test_the_sample_counts_as_flops(model):
    rows, width = model.lm_head.weight.shape
    less = flops_per_token(model, 32) - flops_per_token(model, 32, 40)
    assert less == 6 * (rows - 40) * width
    assert flops_per_token(model, 32, rows + 1) == flops_per_token(model, 32)


def test_frequent_entries_are_always_drawn(stream):
    from hf_lm.data.packing import Blocks

    loss = sampled_softmax(Blocks(stream, block_size=32, isolate=True), 300, 40)
    counts = torch.bincount(torch.from_numpy(stream.tokens.astype("int64")), minlength=300)
    order = counts.argsort(descending=True)
    assert loss.probabilities[order[0]] == 1
    assert all(a >= b for a, b in itertools.pairwise(loss.probabilities[order].tolist()))
    assert loss.probabilities.sum().item() == pytest.approx(40, rel=1e-4)
