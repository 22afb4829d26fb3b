"""What a causal model writes is its likeliest text, or drawn from all of its distribution; likelihoods are exact."""

import math

import pytest
import torch

from hf_lm.evaluation import completions, likelihood
from hf_lm.evaluation.completions import generate_ids, log_probs, write


@pytest.fixture
def model(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return model


class Wrapped(torch.nn.Module):
    """As DDP does: a model that has no `generate`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def greedy(model, prompt, ends, count):
    """Token by token, without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count and not (len(ids) > len(prompt) and ids[-1] in ends):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_without_a_temperature_it_writes_the_likeliest_tokens_up_to_an_end_which_it_keeps(model):
    model.train()  # measured without dropout all the same
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    found = write(model, prompts, pad_id=1, ends={3}, max_new_tokens=8)
    assert model.training
    model.eval()
    assert found == [greedy(model, prompt, {3}, 8) for prompt in prompts]
    assert all(len(ids) == 8 for ids in found)  # an end that never came is missing
    ends = {found[0][2], found[2][4]}
    assert write(model, prompts, pad_id=1, ends=ends, max_new_tokens=8) == [
        greedy(model, prompt, ends, 8) for prompt in prompts
    ]
    assert not model.training
    assert write(Wrapped(model), prompts, pad_id=1, ends={3}, max_new_tokens=8) == found
    model.generation_config.suppress_tokens = [found[0][0]]  # what a checkpoint never writes
    assert found[0][0] not in write(model, prompts[:1], pad_id=1, ends={3}, max_new_tokens=8)[0]


def test_samples_are_drawn_from_the_whole_distribution_at_the_temperature_given(scripted, tokenizer):
    model, prompts = scripted("a"), [[tokenizer.eos_token_id]] * 800
    model.generation_config.update(top_k=1, top_p=0.1)  # of a checkpoint
    with torch.no_grad():
        model.lm_head.weight *= 0.002
        logits = model(torch.tensor(prompts[:1])).logits[0, -1]
    target, others = int(logits.argmax()), len(logits) - 1
    temperature = logits.max().item() / math.log(others)  # one token is then as likely as all others together
    assert (logits / temperature).softmax(-1).max() == pytest.approx(0.5, abs=0.02)
    assert temperature < 0.5  # at 1 it would hardly be drawn
    options = {"pad_id": 1, "ends": set(), "max_new_tokens": 1, "temperature": temperature}
    before = torch.get_rng_state()
    found = [ids[0] for ids in write(model, prompts, **options)]
    assert torch.equal(torch.get_rng_state(), before)
    assert found.count(target) / 800 == pytest.approx(0.5, abs=0.08)
    assert len(set(found)) > others / 2
    assert found == [ids[0] for ids in write(model, prompts, **options, seed=0)]
    assert found != [ids[0] for ids in write(model, prompts, **options, seed=1)]
    assert found[:64] != found[64:128]  # batches are drawn apart


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_settings_of_a_checkpoint_change_no_answer_but_for_the_tokens_it_never_writes(model, temperature):
    from hf_lm.models.adapters import add_lora

    options = {"pad_id": 1, "ends": {3}, "max_new_tokens": 8, "temperature": temperature}
    prompts = [[5, 6, 7], [8], [9, 10]]
    plain = write(model, prompts, **options)
    own = {"repetition_penalty": 1.9, "no_repeat_ngram_size": 1, "min_p": 0.9, "typical_p": 0.1, "num_beams": 2}
    model.generation_config.update(**own)
    assert write(model, prompts, **options) == plain
    assert write(add_lora(model, rank=2), prompts, **options) == plain
    assert model.generation_config.to_diff_dict().items() >= own.items()


def test_processes_share_the_work(model, monkeypatch):
    """Of samples whole batches, each of which is drawn from one random state."""
    given, whole = [], []

    def shared(*_, accelerator, **options):
        given.append(accelerator)
        whole.append(options["whole"])
        assert options["max_tokens"] == 4096
        return [[[5, 3, 4]]]

    monkeypatch.setattr(completions, "map_by_length", shared)
    monkeypatch.setattr(likelihood, "map_by_length", lambda *_, accelerator, **__: given.append(accelerator) or [])
    processes = object()
    log_probs(model, [{"input_ids": [5, 6], "labels": [5, 6]}], processes=processes)
    write(model, [[5]], pad_id=1, ends={3}, max_new_tokens=3, processes=processes)
    write(model, [[5]], pad_id=1, ends={3}, max_new_tokens=3, temperature=0.1)
    assert given == [processes, processes, None]
    assert whole == [False, True]


def test_a_seed_leaves_the_random_state_as_it_is_and_none_draws_from_it(model):
    options = lambda rows, inputs: {"do_sample": True, "max_new_tokens": 4}  # noqa: E731
    before = torch.get_rng_state()
    drawn = generate_ids(model, [[5, 6]], pad_id=1, options=options, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert generate_ids(model, [[5, 6]], pad_id=1, options=options) == drawn
    assert not torch.equal(torch.get_rng_state(), before)


def test_log_probabilities_are_those_of_the_model_without_dropout(model):
    features = [
        {"input_ids": list(range(5, 5 + size)), "labels": [-100] * 2 + list(range(7, 5 + size))} for size in (9, 3, 6)
    ]
    model.train()
    found = log_probs(model, features)
    assert model.training
    model.eval()
    assert log_probs(model, features) == found
    assert not model.training
    for feature, (nats, count) in zip(features, found, strict=True):
        ids = torch.tensor([feature["input_ids"]])
        with torch.no_grad():
            each = model(ids).logits[0, 1:-1].log_softmax(-1).gather(1, ids[0, 2:, None])
        assert count == len(each)
        assert nats == pytest.approx(each.sum().item(), rel=1e-5)
