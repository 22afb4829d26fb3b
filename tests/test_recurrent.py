"""The recurrent language model: its arithmetic, its state, and the ways it loads."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from hf_lm.models.recurrent import RecurrentConfig, RecurrentLMHeadModel, new_recurrent

ROOT = Path(__file__).parent.parent
VOCAB = 40


def tiny(cell: str = "lstm", **settings) -> RecurrentLMHeadModel:
    set_seed(0)
    shape = {"vocab_size": VOCAB, "n_embd": 12, "hidden_size": 12, "n_layer": 2, "eos_token_id": 0, "pad_token_id": 1}
    return RecurrentLMHeadModel(RecurrentConfig(cell=cell, **shape | settings)).eval()


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(2, VOCAB, shape, generator=torch.Generator().manual_seed(1))


def reference_step(cell: str, weights: dict, layer: int, x, h, c):
    """One step of one layer as the textbook has it, for a single row. Gate order as in PyTorch's documentation."""
    from_input = weights[f"rnn.weight_ih_l{layer}"] @ x + weights[f"rnn.bias_ih_l{layer}"]
    from_state = weights[f"rnn.weight_hh_l{layer}"] @ h + weights[f"rnn.bias_hh_l{layer}"]
    if cell == "rnn":
        return torch.tanh(from_input + from_state), c
    if cell == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = from_input.chunk(3), from_state.chunk(3)
        z = torch.sigmoid(z_x + z_h)
        new = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return (1 - z) * new + z * h, c
    i, f, g, o = (from_input + from_state).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def reference_logits(model: RecurrentLMHeadModel, ids: list[int]) -> torch.Tensor:
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    zeros = torch.zeros(model.config.hidden_size, dtype=torch.double)
    state = [(zeros, zeros)] * model.config.n_layer
    logits = []
    for token in ids:
        x = weights["embedding.weight"][token]
        for layer, (h, c) in enumerate(state):
            state[layer] = reference_step(model.config.cell, weights, layer, x, h, c)
            x = state[layer][0]
        logits.append(weights["lm_head.weight"] @ x + weights["lm_head.bias"])
    return torch.stack(logits)  # (time, vocab)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("hidden_size", [12, 20])
def test_logits_equal_a_plain_float64_loop(cell, hidden_size):
    model = tiny(cell, hidden_size=hidden_size, tie_word_embeddings=hidden_size == 12)
    ids = random_ids(3, 9)
    for row, logits in zip(ids, model(ids).logits, strict=True):
        torch.testing.assert_close(logits.double(), reference_logits(model, row.tolist()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_untrained_loss_is_that_of_a_uniform_guess(cell):
    ids = random_ids(8, 30)
    assert math.isclose(tiny(cell)(ids, labels=ids).loss.item(), math.log(VOCAB), rel_tol=0.05)


def test_loss_is_the_mean_or_the_sum_over_num_items_in_batch():
    model, ids = tiny(), random_ids(2, 7)
    labels = ids.clone()
    labels[1, 4:] = -100
    labels[:, 0] = -100  # nothing predicts the first token anyway
    log_probs = model(ids).logits[:, :-1].log_softmax(-1)
    per_token = -log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)[labels[:, 1:] != -100]
    assert len(per_token) == 9
    torch.testing.assert_close(model(ids, labels=labels).loss, per_token.mean())
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=50).loss, per_token.sum() / 50)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("how", [{}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}])
def test_generating_with_the_carried_state_equals_recomputing_the_prefix(cell, how, monkeypatch):
    model, ids = tiny(cell), random_ids(2, 5)
    set_seed(3)
    recomputed = model.generate(ids, max_new_tokens=12, use_cache=False, **how)
    read, forward = [], model.forward  # tokens read per step
    monkeypatch.setattr(model, "forward", lambda *a, **k: read.append(k["input_ids"].shape[1]) or forward(*a, **k))
    set_seed(3)
    carried = model.generate(ids, max_new_tokens=12, **how)
    assert torch.equal(carried, recomputed)
    assert read[0] == 5
    assert set(read[1:]) == {1}


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_padding_on_either_side_leaves_the_state_alone(cell):
    model = tiny(cell)
    rows = [random_ids(1, length)[0] for length in (6, 3, 1)]
    alone = [model(row[None]) for row in rows]
    for side in ("left", "right"):
        ids = torch.ones(3, 6, dtype=torch.long)
        mask = torch.zeros(3, 6, dtype=torch.long)
        for i, row in enumerate(rows):
            place = slice(6 - len(row), None) if side == "left" else slice(len(row))
            ids[i, place], mask[i, place] = row, 1
        padded = model(ids, attention_mask=mask)
        for i, single in enumerate(alone):
            torch.testing.assert_close(padded.logits[i, mask[i] == 1], single.logits[0])
            for part, single_part in zip(padded.past_key_values, single.past_key_values, strict=True):
                torch.testing.assert_close(part[:, i], single_part[:, 0])


def test_left_padded_prompts_go_on_as_each_does_alone():
    model = tiny()
    prompts = [random_ids(1, length) for length in (2, 6, 4)]
    padded = torch.cat([torch.nn.functional.pad(p, (6 - p.shape[1], 0), value=1) for p in prompts])
    together = model.generate(padded, attention_mask=(padded != 1).long(), max_new_tokens=8, eos_token_id=None)
    for prompt, row in zip(prompts, together, strict=True):
        alone = model.generate(prompt, max_new_tokens=8, eos_token_id=None)[0]
        assert row[6:].tolist() == alone[prompt.shape[1] :].tolist()


def test_a_state_goes_on_through_padding_and_ends_at_position_0():
    model, ids = tiny(), random_ids(3, 8)
    whole = model(ids)
    state = model(ids[:, :3]).past_key_values
    torch.testing.assert_close(model(ids[:, 3:], past_key_values=state).logits, whole.logits[:, 3:])
    mask = torch.tensor([[1] * 8, [1, 1, 1, 0, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0]])  # may cover the past as well
    masked = model(ids[:, 3:], past_key_values=state, attention_mask=mask)
    torch.testing.assert_close(masked.logits[0], whole.logits[0, 3:])
    skipped = model(torch.cat([ids[1, :3], ids[1, 6:]])[None])
    torch.testing.assert_close(masked.logits[1, 3:], skipped.logits[0, 3:])
    for part, before, after in zip(masked.past_key_values, state, skipped.past_key_values, strict=True):
        torch.testing.assert_close(part[:, 1], after[:, 0])
        assert torch.equal(part[:, 2], before[:, 2])  # nothing but padding was read
    restarted = model(ids[:, 3:], past_key_values=state, position_ids=torch.arange(5)[None])
    torch.testing.assert_close(restarted.logits, model(ids[:, 3:]).logits)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_documents_that_start_at_position_0_do_not_see_each_other(cell):
    model, ids = tiny(cell), random_ids(2, 10)
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 2, 3, 4, 0, 0, 1]])
    logits = model(ids, position_ids=position_ids).logits
    for row, (start, end) in [(0, (0, 4)), (0, (4, 10)), (1, (0, 2)), (1, (2, 7)), (1, (7, 8)), (1, (8, 10))]:
        torch.testing.assert_close(logits[row, start:end], model(ids[row : row + 1, start:end]).logits[0])
    edited = ids.clone()
    edited[:, 1] = (edited[:, 1] - 1) % VOCAB
    changed = (model(edited, position_ids=position_ids).logits != logits).any(-1)
    assert changed.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]
    assert (model(edited).logits != model(ids).logits).any(-1)[:, -1].all()  # without them the state runs through


def test_gradients_stay_inside_a_document():
    model, ids = tiny(), random_ids(1, 8)
    embedded = model.embedding(ids).detach().requires_grad_()
    model.embedding.forward = lambda _: embedded
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    model(ids, position_ids=position_ids).logits[0, 5].sum().backward()
    assert embedded.grad[0].abs().sum(-1).ne(0).tolist() == [False] * 3 + [True] * 3 + [False] * 2


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_dropout_at_a_rate_of_almost_0_changes_nothing(cell):
    model, ids = tiny(cell, dropout=1e-9, weight_dropout=1e-9, embd_dropout=1e-9), random_ids(3, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8, 9, 10]])
    mask = torch.tensor([[1] * 8, [0, 0] + [1] * 6, [1] * 5 + [0] * 3])
    state = model(random_ids(3, 4).flip(1)).past_key_values
    inputs = [{}, {"past_key_values": state}]
    inputs += [{"position_ids": positions}, {"position_ids": positions, "attention_mask": mask}]
    inputs += [{**inputs[-1], "past_key_values": state}]
    for each in inputs:
        expected, trained = model.eval()(ids, **each), model.train()(ids, **each)
        torch.testing.assert_close(trained.logits, expected.logits)
        for part, other in zip(trained.past_key_values, expected.past_key_values, strict=True):
            torch.testing.assert_close(part, other)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_document_has_one_mask_for_all_its_steps(cell):
    model, ids = tiny(cell, dropout=0.5, hidden_size=60, n_embd=60).train(), random_ids(2, 9)
    read = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0] == 0))
    model(ids)
    model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8]]))
    whole, parted = read
    rows = [whole[0], whole[1], parted[0, :4], parted[0, 4:], parted[1]]
    for row in rows:
        assert (row == row[:1]).all()
        assert 0.2 < row[0].float().mean() < 0.8
    assert len({tuple(row[0].tolist()) for row in rows}) == len(rows)


def test_weights_and_words_are_dropped_once_a_batch():
    ids = random_ids(1, 30).expand(2, -1)
    model = tiny(dropout=0.0, weight_dropout=0.5)
    expected = model(ids).logits
    first, second = model.train()(ids).logits, model(ids).logits
    torch.testing.assert_close(first[0], first[1])
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first[:, 0], expected[:, 0])  # no state comes before the first token
    assert not torch.allclose(first[:, 1], expected[:, 1])

    model, read = tiny(dropout=0.0, embd_dropout=0.5).train(), []
    model.rnn.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model(ids)
    dropped = read[0].eq(0).all(-1)
    assert 0.2 < dropped.float().mean() < 0.8
    assert not set(ids[dropped].tolist()) & set(ids[~dropped].tolist())
    torch.testing.assert_close(read[0][~dropped], 2 * model.embedding(ids)[~dropped])


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_tied_and_trainable(tied, tmp_path):
    model, ids = tiny(tie_word_embeddings=tied), random_ids(2, 6)
    # cuDNN lays all weights of an RNN out in one buffer; safetensors must still tell them apart.
    weights = list(model.rnn.parameters())
    buffer = torch.cat([weight.data.flatten() for weight in weights]).split([weight.numel() for weight in weights])
    for weight, part in zip(weights, buffer, strict=True):
        weight.data = part.view_as(weight)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is RecurrentLMHeadModel
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert (loaded.lm_head.weight is loaded.embedding.weight) == tied
    loaded(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_new_recurrent_takes_ids_from_the_tokenizer(tokenizer):
    model = new_recurrent(tokenizer, n_embd=8)
    assert model.config.vocab_size == max(tokenizer.get_vocab().values()) + 1
    assert model.config.hidden_size == 8
    assert model.lm_head.weight is model.embedding.weight
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(model.generation_config, name) == getattr(tokenizer, name)
    assert new_recurrent(tokenizer, n_embd=8, hidden_size=6, tie_weights=False).lm_head.in_features == 6


def test_what_cannot_be_built_is_said_in_one_line(tokenizer):
    with pytest.raises(ValueError, match="'lstn' is not a recurrent cell; choose one of rnn, gru, lstm"):
        new_recurrent(tokenizer, cell="lstn")
    with pytest.raises(ValueError, match=r"n_embd=256 and hidden_size=300 differ, so .* cannot share weights"):
        new_recurrent(tokenizer, hidden_size=300)
    with pytest.raises(ValueError, match="n_layer=-1"):
        new_recurrent(tokenizer, n_layer=-1)


# Each way to load runs in a process of its own: what has been imported before decides what the auto classes know.
LOAD = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
folder, trust = sys.argv[1], None
if sys.modules["hf_lm"] is None:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        raise AssertionError("the folder's code ran unasked")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    trust = True
assert AutoConfig.from_pretrained(folder, trust_remote_code=trust).n_layer == 2
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
assert type(model).__name__ == "RecurrentLMHeadModel", type(model)
assert type(model).__module__.startswith("transformers_modules." if trust else "hf_lm."), type(model)
model.save_pretrained(folder + "-again")
again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=trust)
ids, expected = torch.load(folder + "/expected.pt")
for each in (model, again):
    torch.testing.assert_close(each(ids).logits, expected)  # another number of threads may round otherwise
    assert each.lm_head.weight is each.embedding.weight
assert len(model.generate(ids, max_new_tokens=3, eos_token_id=None)[0]) == ids.shape[1] + 3
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
print()  # ends the line of the question whether to trust the code
print(tokenizer("The lazy dog")["input_ids"])
"""


@pytest.mark.parametrize(
    "beginning",
    [
        "import sys; sys.modules['hf_lm'] = None",
        pytest.param(
            "from transformers import AutoModelForCausalLM, Trainer; import hf_lm.models", marks=pytest.mark.slow
        ),
        pytest.param(
            "import hf_lm.models; from transformers import PreTrainedModel, GenerationMixin", marks=pytest.mark.slow
        ),
        pytest.param("import hf_lm.models.configuration", marks=pytest.mark.slow),
    ],
    ids=["hf_lm not installed", "transformers first", "hf_lm first", "the project's loader"],
)
def test_it_loads_in_every_order_of_imports_and_without_hf_lm(beginning, tokenizer, tmp_path):
    model, folder = new_recurrent(tokenizer, n_embd=8).eval(), tmp_path / "model"
    ids = torch.tensor([tokenizer("The quick brown fox")["input_ids"]])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert [path.name for path in folder.glob("*.py")] == ["recurrent.py"]
    torch.save((ids, model(ids).logits.detach()), folder / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", beginning + LOAD, str(folder)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tokenizer("The lazy dog")["input_ids"])
