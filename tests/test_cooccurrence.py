"""The vectors that a new embedding starts from: exact, near for tokens of one use, and none for tokens unseen."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hf_lm.models import cooccurrence
from hf_lm.models.cooccurrence import cooccurrence_vectors, start_embedding


def text(length=4000, kinds=12, seed=0):
    """Ids 0 to 2 kinds - 1, in pairs (i, i + kinds) that are used alike: each stands after the same other kind."""
    random = np.random.default_rng(seed)
    follows = np.stack([random.permutation(kinds) for _ in range(3)], 1)
    kind, ids = 0, []
    for _ in range(length):
        kind = follows[kind, random.integers(3)]
        ids.append(kind + kinds * random.integers(2))
    return np.array(ids, np.uint16)


def reference(tokens, rows):
    """The inner products of the vectors in float64, by loops and a whole singular value decomposition."""
    counts = np.zeros((rows, rows))
    for i in range(len(tokens)):
        for k in (1, 2):
            if i + k < len(tokens):
                counts[tokens[i], tokens[i + k]] += 1 / k
    sides = []
    for side in (counts, counts.T):
        smoothed = side.sum(0) ** 0.75
        expected = np.outer(side.sum(1), smoothed / smoothed.sum())
        sides.append(np.log(np.divide(side, expected, out=np.ones_like(side), where=side > 0)).clip(min=0))
    left, values, _ = np.linalg.svd(np.hstack(sides), full_matrices=False)
    vectors = left * np.sqrt(values)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-9)
    return vectors @ vectors.T


@pytest.mark.parametrize("width", [30, 64])
def test_inner_products_are_those_of_a_float64_reference(width):
    set_seed(0)
    vectors = cooccurrence_vectors(text(), rows=30, width=width)
    assert vectors.shape == (30, width)
    assert torch.allclose(vectors @ vectors.T, torch.from_numpy(reference(text(), 30)).float(), atol=1e-4)


def test_tokens_of_one_use_are_near_each_other():
    set_seed(0)
    vectors = cooccurrence_vectors(text(20_000), rows=24, width=8)
    near = vectors @ vectors.T
    assert all(int(near[i].scatter(0, torch.tensor(i), -1.0).argmax()) == (i + 12) % 24 for i in range(24))


def test_a_token_that_the_text_has_not_keeps_its_row():
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=8, n_embd=16, n_layer=1, n_head=1))
    before = model.get_input_embeddings().weight.clone()
    start_embedding(model, text())
    after = model.get_input_embeddings().weight
    assert torch.equal(before[24:], after[24:])
    assert torch.allclose(after[:24].norm(dim=1), torch.tensor(cooccurrence.NORM))
    assert after is model.get_output_embeddings().weight  # still tied


@pytest.mark.parametrize("width", [16, 256])
def test_the_first_loss_is_near_that_of_a_uniform_guess(width):
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_positions=64, n_embd=width, n_layer=1, n_head=1)).eval()
    start_embedding(model, text())
    ids = torch.from_numpy(text(64).astype("int64"))[None]
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.max() < 1.5 * cooccurrence.LOGIT
    assert torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]) < 2.5 * np.log(24)


def test_on_the_meta_device_nothing_is_counted():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=8, n_embd=16, n_layer=1, n_head=1))
    start_embedding(model, text())
