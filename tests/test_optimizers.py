"""Muon on real matrices: orthogonality, fused parts, transposition; with AdamW it resumes exactly."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_lm.models.parts import last_norm
from hf_lm.models.recurrent import RecurrentConfig, RecurrentLMHeadModel
from hf_lm.training import optimizers
from hf_lm.training.optimizers import MuonAdamW, muon_groups, new_muon_adamw, orthogonalise

ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}


def muon(params, *, lr, parts=(0, 1), weight_decay=0.0, momentum=0.95):
    group = {"params": params, "parts": parts, "lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    return MuonAdamW([group])


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_layer=2, n_head=2, n_embd=16, n_positions=16))


def polynomials(values):
    """The three quintics, one after the other; their coefficients are written here once more."""
    for a, b, c in (8.0934, -23.6204, 17.4462), (3.5905, -2.5907, 0.4913), (2.6831, -1.9414, 0.4265):
        values = a * values + b * values**3 + c * values**5
    return values


def moved(matrices):
    """In float64, the singular values over the fourth root of the sum of their fourth powers, by the polynomials; the
    singular vectors stay."""
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.pow(4).sum(dim=-1, keepdim=True) ** 0.25
    return left @ torch.diag_embed(polynomials(values)) @ right


def test_the_polynomials_bring_values_from_a_hundredth_to_one_near_one():
    """Each leaves as much above 1 as below, twice on either side: no quintic is nearer (Chebyshev)."""
    low, high = 0.01, 1.0
    for a, b, c in optimizers.POLAR:
        values = torch.linspace(low, high, 100_001, dtype=torch.float64)
        found = a * values + b * values**3 + c * values**5
        least, most = found.min().item(), found.max().item()
        assert 1 - least == pytest.approx(most - 1, abs=0.01)
        assert found[0].item() == pytest.approx(least, abs=0.01)
        assert found[-1].item() == pytest.approx(most, abs=0.01)
        low, high = least / 1.02, most * 1.02
    assert most < 1.305


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fast", [False, True])
def test_no_singular_value_ends_above_the_bound_whatever_the_matrix_is(decay, fast, monkeypatch):
    monkeypatch.setattr(optimizers, "bf16_is_fast", lambda: fast)
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(8, 96, 160), full_matrices=False)
    values = values * torch.arange(1, 97).float() ** -decay
    found = torch.linalg.svdvals(orthogonalise(left @ torch.diag_embed(values) @ right))
    assert found.max() < 1.32
    assert found.quantile(0.3) > (0.68 if decay < 1 else 0.3)


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
@pytest.mark.parametrize("fast", [False, True])
def test_orthogonalise_moves_singular_values_by_the_polynomials_and_turns_no_vector(shape, fast, monkeypatch):
    monkeypatch.setattr(optimizers, "bf16_is_fast", lambda: fast)
    torch.manual_seed(0)
    matrices = 5 * torch.randn(3, *shape)
    found = orthogonalise(matrices)
    assert found.dtype == matrices.dtype
    error = (found.double() - moved(matrices)).abs().max().item()
    assert (1e-4 < error < 0.06) if fast else error < 1e-5


def test_three_steps_are_those_of_the_formula(monkeypatch):
    """Nesterov's momentum, decoupled weight decay, and 0.2 sqrt(max(rows, columns)) (arXiv 2502.16982)."""
    monkeypatch.setattr(optimizers, "bf16_is_fast", lambda: False)
    torch.manual_seed(0)
    weight, frozen = torch.nn.Parameter(torch.randn(6, 10)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = muon([weight, frozen], parts=(0, 2), lr=0.05, weight_decay=0.3, momentum=0.9)
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
        steps = torch.cat([moved(update[:3]), moved(update[3:])])  # two matrices of 3 x 10
        expected = expected - 0.05 * 0.2 * 10**0.5 * steps
        assert optimizer.step(closure).item() == pytest.approx(loss.item(), rel=1e-4)
    assert torch.allclose(weight.double(), expected, atol=1e-4)
    assert torch.equal(frozen, torch.ones(2, 2))  # without a gradient it stays, weight decay or not
    weight.grad = torch.zeros_like(weight)
    assert optimizer.step() is None


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


def test_a_fused_matrix_of_unequal_parts_is_one_matrix():
    sizes = {"vocab_size": 16, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 4, "eos_token_id": 0}
    model = GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes))  # one key and value for all heads: (24, 16)
    [group] = muon_groups(model)
    assert group["parts"] == (1, 1)
    optimizer = muon(group["params"], lr=1e-2, parts=group["parts"])
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    before = model.transformer.h[0].attn.c_attn.weight.clone()
    optimizer.step()
    assert not torch.equal(before, model.transformer.h[0].attn.c_attn.weight)


def test_a_matrix_of_zeros_stays_one_and_the_scale_of_a_matrix_does_not_matter():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 6)
    assert torch.equal(orthogonalise(torch.zeros(1, 6, 6)), torch.zeros(1, 6, 6))
    assert torch.equal(orthogonalise(x), orthogonalise(x / 1024))  # a power of two rounds nothing


def test_its_step_has_the_direction_and_the_size_of_torch_muon():
    torch.manual_seed(0)
    start, gradient = torch.randn(16, 32), torch.randn(16, 32)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    muon([ours], lr=0.01, weight_decay=0.1).step()
    torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    own, their = ours.detach() - start, theirs.detach() - start  # theirs by five steps of other polynomials
    assert torch.cosine_similarity(own.flatten(), their.flatten(), dim=0) > 0.95
    assert own.norm() == pytest.approx(their.norm().item(), rel=0.1)


def test_a_fused_matrix_is_trained_as_its_parts():
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 24), torch.randn(8, 24)
    fused = torch.nn.Parameter(start.clone())
    fused.grad = gradient.clone()
    parts = [torch.nn.Parameter(part.clone()) for part in start.chunk(3, 1)]
    for part, part_gradient in zip(parts, gradient.chunk(3, 1), strict=True):
        part.grad = part_gradient.clone()
    muon([fused], parts=(1, 3), lr=0.01).step()
    muon(parts, lr=0.01).step()
    assert torch.allclose(fused, torch.cat(parts, 1), atol=1e-6)


def test_transposing_a_matrix_changes_nothing():
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 24), torch.randn(8, 24)
    a, b = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.clone())
    a.grad, b.grad = gradient.clone(), gradient.T.clone()
    muon([a], lr=0.01).step()
    muon([b], lr=0.01).step()
    assert torch.allclose(a, b.T, atol=1e-6)


def test_muon_gets_the_hidden_matrices_of_gpt2_and_nothing_else(gpt2):
    groups = {group["parts"]: group["params"] for group in muon_groups(gpt2)}
    assert len(groups[(1, 3)]) == 2  # c_attn of two layers, each Q, K and V
    assert len(groups[(1, 1)]) == 6  # c_proj, c_fc and the MLP's c_proj
    chosen = {id(param) for params in groups.values() for param in params}
    assert id(gpt2.transformer.wte.weight) not in chosen
    assert id(gpt2.transformer.wpe.weight) not in chosen


@pytest.mark.parametrize("fused", [None, True])
def test_adamw_is_torch_adamw_bit_by_bit(gpt2, fused):
    def train(model, optimizer):
        torch.manual_seed(1)
        for _ in range(3):
            ids = torch.randint(0, 64, (2, 16))
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().clone() for parameter in model.parameters()]

    other = copy.deepcopy(gpt2)
    group = ADAMW | {"params": list(gpt2.parameters()), "weight_decay": 0.1, "fused": fused}
    ours = train(gpt2, MuonAdamW([group]))
    theirs = train(other, torch.optim.AdamW(other.parameters(), **ADAMW, weight_decay=0.1, fused=fused))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_decays_is_what_was_named_and_the_ends_have_rates_of_their_own(gpt2):
    names = [name for name, parameter in gpt2.named_parameters() if parameter.ndim == 2]
    settings = {"muon_learning_rate": 2e-2, "muon_weight_decay": 0.3}
    settings |= {"embedding_rate_scale": 3.0, "last_norm_rate_scale": 0.5}
    groups = new_muon_adamw(gpt2, adamw=ADAMW, weight_decay=0.1, decayed=names, **settings).param_groups
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups] == [
        (1, 1e-2, 0.1),  # the embedding of positions
        (16, 1e-2, 0.0),  # the other norms and the biases
        (1, pytest.approx(3e-2), 0.1),  # the embedding of tokens, which is the output layer
        (2, pytest.approx(5e-3), 0.0),  # the gain and the bias of the last norm
        (2, 2e-2, 0.3),  # c_attn
        (6, 2e-2, 0.3),
    ]
    assert groups[3]["params"] == [gpt2.transformer.ln_f.weight, gpt2.transformer.ln_f.bias]


def test_the_last_norm_is_that_before_the_output_layer():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape))
    assert last_norm(llama) == [llama.model.norm.weight]
    assert last_norm(RecurrentLMHeadModel(RecurrentConfig(vocab_size=64, n_embd=16, hidden_size=16))) == []


def test_it_saves_and_resumes_exactly_and_follows_a_schedule(gpt2):
    def make(model):
        settings = {"decayed": [], "muon_learning_rate": 1e-2, "muon_weight_decay": 0.0}
        optimizer = new_muon_adamw(model, adamw=ADAMW, weight_decay=0.0, **settings)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(model, optimizer, schedule):
        torch.manual_seed(int(schedule.last_epoch))
        ids = torch.randint(0, 64, (2, 16))

        def closure():
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            return loss

        before = [parameter.detach().clone() for parameter in model.parameters()]
        assert optimizer.step(closure) > 0
        assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        schedule.step()
        optimizer.zero_grad()

    gpt2.eval()
    optimizer, schedule = make(gpt2)
    for _ in range(2):
        step(gpt2, optimizer, schedule)
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {round(1e-2 / 3, 9)}
    saved = copy.deepcopy((gpt2.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    for _ in range(2):
        step(gpt2, optimizer, schedule)

    other = GPT2LMHeadModel(gpt2.config).eval()
    other.load_state_dict(saved[0])
    optimizer_again, schedule_again = make(other)
    optimizer_again.load_state_dict(saved[1])
    schedule_again.load_state_dict(saved[2])
    for _ in range(2):
        step(other, optimizer_again, schedule_again)
    for a, b in zip(gpt2.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
