"""A training step's softmax over a sample of the vocabulary: the logits of all of a large one are most of its work."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from hf_lm.data.packing import Blocks

SMOOTHING = 0.75  # exponent of an entry's frequency, as for the negative samples of word2vec
COUNTED = 2**25  # tokens of a long text


class SampledSoftmax:
    """Next-token cross-entropy whose normaliser is estimated from some entries of the vocabulary, drawn in each step.

    An entry is in the draw with its probability p, all frequent ones with p = 1, and weighs 1 / p in the sum; a
    label counts exactly, drawn or not (Horvitz and Thompson 1952; Bengio and Senécal, "Adaptive importance sampling to
    accelerate training of a neural probabilistic language model", 2008). The sum is unbiased, its logarithm nearly so.
    """

    def __init__(self, counts: torch.Tensor, entries: int) -> None:
        """`counts`: (vocabulary,) of each entry in the training text; `entries`: drawn in a step, on average."""
        self.probabilities = inclusion_probabilities(counts.double().clamp(min=1.0) ** SMOOTHING, entries).float()

    def __call__(self, hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor) -> torch.Tensor:
        """The sum over labels, in nats; hidden (batch, time, width) at i predicts labels (batch, time) at i + 1.

        `head` is the output layer, with complete weights.
        """
        self.probabilities = self.probabilities.to(hidden.device)
        predicted = labels[:, 1:] != -100
        targets, states = labels[:, 1:][predicted], hidden[:, :-1][predicted]  # (n,), (n, width)
        drawn = (torch.rand_like(self.probabilities) < self.probabilities).nonzero()[:, 0]
        bias: torch.Tensor | None = head.bias
        own = (states * head.weight[targets]).sum(1).float() + (0.0 if bias is None else bias[targets].float())
        logits = F.linear(states, head.weight[drawn], None if bias is None else bias[drawn]).float()
        logits = logits - self.probabilities[drawn].log()
        column = torch.full_like(self.probabilities, -1, dtype=torch.long)
        column[drawn] = torch.arange(len(drawn), device=drawn.device)
        rows = (column[targets] >= 0).nonzero()[:, 0]  # whose label was drawn: it counts once
        logits = logits.index_put((rows, column[targets[rows]]), logits.new_tensor(-torch.inf))
        return (torch.logaddexp(logits.logsumexp(1), own) - own).sum()


def inclusion_probabilities(weights: torch.Tensor, entries: int) -> torch.Tensor:
    """Probabilities proportional to `weights`, at most 1, that add up to `entries`, or to all there are. Float64."""
    if entries >= len(weights):
        return torch.ones_like(weights)
    low, high = 0.0, float(entries / weights.min())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle * weights).clamp(max=1.0).sum() < entries else (low, middle)
    return (high * weights).clamp(max=1.0)


def sampled_softmax(dataset: Dataset | None, vocabulary: int, entries: int) -> SampledSoftmax:
    """The loss for a data set of blocks. Raises ValueError for another one: nothing counts its tokens."""
    if not isinstance(dataset, Blocks):
        raise ValueError(
            "--sampled_softmax is for pretraining on a local text, whose tokens are counted: leave it out."
        )
    tokens = torch.from_numpy(dataset.stream.tokens[:COUNTED].astype("int64"))
    return SampledSoftmax(torch.bincount(tokens, minlength=vocabulary), entries)
