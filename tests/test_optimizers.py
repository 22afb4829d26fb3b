"""Muon on real matrices: orthogonality, fused parts, transposition, and a pair that resumes exactly."""

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_lm.training import optimizers
from hf_lm.training.optimizers import Muon, OptimizerPair, muon_groups, orthogonalise


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_layer=2, n_head=2, n_embd=16, n_positions=16))


def published(matrices):
    """Keller Jordan's iteration in float64: five times x -> 3.4445 x - 4.775 x^3 + 2.0315 x^5 of each singular value
    over the norm of the matrix; the singular vectors stay."""
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    assert 0.5 < values.min() < values.max() < 1.3
    return left @ torch.diag_embed(values) @ right


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
@pytest.mark.parametrize("fast", [False, True])
def test_orthogonalise_moves_singular_values_by_the_published_quintic_and_turns_no_vector(shape, fast, monkeypatch):
    monkeypatch.setattr(optimizers, "bf16_is_fast", lambda: fast)
    torch.manual_seed(0)
    matrices = 5 * torch.randn(3, *shape)
    found = orthogonalise(matrices)
    assert found.dtype == matrices.dtype
    error = (found.double() - published(matrices)).abs().max().item()
    assert (1e-4 < error < 0.03) if fast else error < 1e-5


def test_three_steps_are_those_of_the_formula(monkeypatch):
    """Nesterov's momentum, decoupled weight decay, and 0.2 sqrt(max(rows, columns)) (arXiv 2502.16982)."""
    monkeypatch.setattr(optimizers, "bf16_is_fast", lambda: False)
    torch.manual_seed(0)
    weight, frozen = torch.nn.Parameter(torch.randn(6, 10)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [weight, frozen], "parts": (0, 2)}], lr=0.05, weight_decay=0.3, momentum=0.9)
    expected, average = weight.detach().double(), torch.zeros(6, 10, dtype=torch.float64)
    target = torch.randn(6, 10)

    def closure():
        optimizer.zero_grad()
        loss = ((weight - target) ** 4).sum()
        loss.backward()
        return loss

    for _ in range(3):
        gradient = 4 * (expected - target) ** 3
        average = 0.9 * average + 0.1 * gradient
        update = 0.1 * gradient + 0.9 * average
        loss = ((expected - target) ** 4).sum()
        expected = expected * (1 - 0.05 * 0.3)
        steps = torch.cat([published(update[:3]), published(update[3:])])  # two matrices of 3 x 10
        expected = expected - 0.05 * 0.2 * 10**0.5 * steps
        assert optimizer.step(closure).item() == pytest.approx(loss.item(), rel=1e-4)
    assert torch.allclose(weight.double(), expected, atol=1e-4)
    assert torch.equal(frozen, torch.ones(2, 2))  # without a gradient it stays, weight decay or not
    weight.grad = torch.zeros_like(weight)
    assert optimizer.step() is None
    default = Muon([{"params": [torch.nn.Parameter(torch.ones(2, 2))], "parts": (0, 1)}], lr=1.0).param_groups[0]
    assert (default["weight_decay"], default["momentum"]) == (0.0, 0.95)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.lstm, self.gru, self.rnn = nn.LSTM(4, 4), nn.GRU(4, 4), nn.RNN(4, 4)
        self.frozen, self.linear = nn.Linear(4, 8).requires_grad_(False), nn.Linear(4, 8)
        self.convolution = nn.Conv1d(4, 4, 1)

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head


def test_the_gates_of_recurrent_layers_are_matrices_of_their_own():
    model = Recurrent()
    groups = {group["parts"]: {id(p) for p in group["params"]} for group in muon_groups(model)}
    expected = {(0, 4): [model.lstm], (0, 3): [model.gru], (0, 1): [model.rnn]}
    expected = {
        parts: {id(p) for m in some for p in m.parameters() if p.ndim == 2} for parts, some in expected.items()
    }
    assert groups == expected | {(1, 1): {id(model.linear.weight)}}
    model.head = None
    model.get_output_embeddings = lambda: None
    assert len(muon_groups(model)) == 4


def test_a_matrix_of_zeros_stays_one_and_the_scale_of_a_matrix_does_not_matter():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 6)
    assert torch.equal(orthogonalise(torch.zeros(1, 6, 6)), torch.zeros(1, 6, 6))
    assert torch.equal(orthogonalise(x), orthogonalise(x / 1024))  # a power of two rounds nothing


def test_it_agrees_with_torch_muon_up_to_bfloat16():
    torch.manual_seed(0)
    start, gradient = torch.randn(16, 32), torch.randn(16, 32)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    Muon([{"params": [ours], "parts": (0, 1)}], lr=0.01, weight_decay=0.1).step()
    torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    assert torch.allclose(ours, theirs, atol=0.02 * (ours - start).abs().max().item() + 1e-3)


def test_a_fused_matrix_is_trained_as_its_parts():
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 24), torch.randn(8, 24)
    fused = torch.nn.Parameter(start.clone())
    fused.grad = gradient.clone()
    parts = [torch.nn.Parameter(part.clone()) for part in start.chunk(3, 1)]
    for part, part_gradient in zip(parts, gradient.chunk(3, 1), strict=True):
        part.grad = part_gradient.clone()
    Muon([{"params": [fused], "parts": (1, 3)}], lr=0.01).step()
    Muon([{"params": parts, "parts": (0, 1)}], lr=0.01).step()
    assert torch.allclose(fused, torch.cat(parts, 1), atol=1e-6)


def test_transposing_a_matrix_changes_nothing():
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 24), torch.randn(8, 24)
    a, b = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.clone())
    a.grad, b.grad = gradient.clone(), gradient.T.clone()
    Muon([{"params": [a], "parts": (0, 1)}], lr=0.01).step()
    Muon([{"params": [b], "parts": (0, 1)}], lr=0.01).step()
    assert torch.allclose(a, b.T, atol=1e-6)


def test_muon_gets_the_hidden_matrices_of_gpt2_and_nothing_else(gpt2):
    groups = {group["parts"]: group["params"] for group in muon_groups(gpt2)}
    assert len(groups[(1, 3)]) == 2  # c_attn of two layers, each Q, K and V
    assert len(groups[(1, 1)]) == 6  # c_proj, c_fc and the MLP's c_proj
    chosen = {id(param) for params in groups.values() for param in params}
    assert id(gpt2.transformer.wte.weight) not in chosen
    assert id(gpt2.transformer.wpe.weight) not in chosen


def test_a_pair_saves_and_resumes_exactly_and_follows_a_schedule(gpt2):
    def make(model):
        matrices = muon_groups(model)
        by_muon = {id(p) for group in matrices for p in group["params"]}
        rest = [p for p in model.parameters() if id(p) not in by_muon]
        pair = OptimizerPair(torch.optim.AdamW(rest, lr=1e-2), Muon(matrices, lr=1e-2))
        return pair, torch.optim.lr_scheduler.LambdaLR(pair, lambda step: 1 / (1 + step))

    def step(model, pair, schedule):
        torch.manual_seed(int(schedule.last_epoch))
        ids = torch.randint(0, 64, (2, 16))

        def closure():
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            return loss

        before = [parameter.detach().clone() for parameter in model.parameters()]
        assert pair.step(closure) > 0
        assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        schedule.step()
        pair.zero_grad()

    gpt2.eval()
    pair, schedule = make(gpt2)
    for _ in range(2):
        step(gpt2, pair, schedule)
    assert {round(group["lr"], 9) for group in pair.param_groups} == {round(1e-2 / 3, 9)}
    saved = copy.deepcopy((gpt2.state_dict(), pair.state_dict(), schedule.state_dict()))
    for _ in range(2):
        step(gpt2, pair, schedule)

    other = GPT2LMHeadModel(gpt2.config).eval()
    other.load_state_dict(saved[0])
    pair_again, schedule_again = make(other)
    pair_again.load_state_dict(saved[1])
    schedule_again.load_state_dict(saved[2])
    for _ in range(2):
        step(other, pair_again, schedule_again)
    for a, b in zip(gpt2.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
