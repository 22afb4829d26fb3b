"""Start the embedding of a new model from which tokens stand beside which in the training text.

In a short run the embedding is what learns least: a row is trained where its token occurs, and most tokens are rare.
Counting neighbours takes seconds and places every token near those that are used like it: positive pointwise mutual
information, factorised (Levy and Goldberg, "Neural word embedding as implicit matrix factorization", 2014; smoothing
and symmetric weights from Levy, Goldberg and Dagan, "Improving distributional similarity", 2015).
"""

import numpy as np
import torch
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedModel

READ = 2**25  # tokens of a long text
CONTEXTS = 2048  # neighbours that are counted: the most frequent tokens
ENTRIES = 2**26  # of a matrix of counts, 268 MB
WINDOW = 2  # tokens on each side; one at distance k counts 1/k
SMOOTHING = 0.75  # exponent of a context's frequency: without it rare contexts weigh most
SPARE = 32  # singular vectors found beyond those used, for exactness
NORM = 2.25  # of a row, at every width
LOGIT = 8.0  # the largest at the start, that of a token after itself: with a gain of 1 it would grow with the width


@torch.no_grad()
def start_embedding(model: PreTrainedModel, tokens: np.ndarray) -> None:
    """Write the vectors of the tokens of a text, (tokens,) ids, into the input embedding of a model.

    A token that the text has not keeps its row. The gain of GPT-2's last norm is lowered, so that the first loss is
    near that of a uniform guess. Of a model on the meta device there is nothing to write.
    """
    layer = model.get_input_embeddings()
    assert isinstance(layer, nn.Embedding), "the new models here have one"
    embedding = layer.weight
    if embedding.device.type == "meta":
        return
    rows, width = embedding.shape
    vectors = cooccurrence_vectors(tokens[:READ], rows=rows, width=width)
    seen = vectors.any(1)
    embedding[seen] = (NORM * vectors[seen]).to(embedding)
    if isinstance(model, GPT2LMHeadModel):
        model.transformer.ln_f.weight.fill_(LOGIT / (NORM * width**0.5))


def cooccurrence_vectors(tokens: np.ndarray, *, rows: int, width: int) -> torch.Tensor:
    """A vector of norm 1 for each id that has neighbours, (rows, width); zeros for the others.

    With M the mutual information of each token with those after it and those before it, (rows, 2 contexts), and its
    singular values S and left vectors U, a row is that of U S^(1/2), divided by its norm. Which direction is which
    says nothing, so they are rotated at random: no coordinate then has the entries of the largest singular value.
    """
    ids = torch.from_numpy(tokens.astype(np.int64))
    contexts = torch.bincount(ids, minlength=rows).topk(min(rows, CONTEXTS, ENTRIES // rows)).indices
    column = torch.full((rows,), -1).scatter(0, contexts, torch.arange(len(contexts)))
    after, before = (torch.zeros(rows, len(contexts)) for _ in range(2))
    for k in range(1, WINDOW + 1):
        _count(after, ids[:-k], column[ids[k:]], 1 / k)
        _count(before, ids[k:], column[ids[:-k]], 1 / k)
    both = torch.cat([_positive_information(after), _positive_information(before)], 1)
    found = min(width + SPARE, *both.shape)
    left, values, _ = torch.svd_lowrank(both, q=found, niter=2)
    used = min(width, found)
    vectors = torch.zeros(rows, width)
    vectors[:, :used] = left[:, :used] * values[:used].sqrt()
    rotation, _ = torch.linalg.qr(torch.randn(width, width))
    norms = vectors.norm(dim=1, keepdim=True)
    return torch.where(norms > 1e-6 * norms.max(), vectors / norms.clamp(min=1e-12), 0.0) @ rotation


def _count(counts: torch.Tensor, tokens: torch.Tensor, columns: torch.Tensor, weight: float) -> None:
    """Add the weight to the entry of each token and its neighbour's column; of no column: -1."""
    places = (tokens * counts.shape[1] + columns)[columns >= 0]
    counts.view(-1).index_add_(0, places, torch.full((len(places),), weight))


def _positive_information(counts: torch.Tensor) -> torch.Tensor:
    """log p(context | token) / p(context) where it is positive, else 0, with smoothed p(context). Same shape."""
    smoothed = counts.sum(0) ** SMOOTHING
    expected = counts.sum(1, keepdim=True).clamp(min=1e-9) * (smoothed / smoothed.sum())
    return (counts / expected.clamp(min=1e-30)).clamp(min=1.0).log()
