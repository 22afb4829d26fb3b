"""Summed cross-entropies in nats, from a model's outputs and its batch: labels of -100 are ignored.

Heads of transformers divide by different things, and some drop `num_items_in_batch`; a sum is the same for all, and
the Trainer divides it by the labels of the whole optimizer step.
"""

from typing import Protocol

import torch
import torch.nn.functional as F

Batch = dict[str, torch.Tensor]


class WithLogits(Protocol):
    logits: torch.Tensor


class WithSpanLogits(Protocol):
    start_logits: torch.Tensor  # (batch, time), as the next
    end_logits: torch.Tensor


def next_token_loss(outputs: WithLogits, batch: Batch) -> torch.Tensor:
    """Causal models: logits (batch, time, vocab) at i predict labels (batch, time) at i + 1."""
    shifted = batch.get("shift_labels")  # of the parts of rows that a process of context parallelism holds
    if shifted is None:
        shifted = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)  # moving the labels spares a copy of the logits
    return label_loss(outputs, {"labels": shifted})


def label_loss(outputs: WithLogits, batch: Batch) -> torch.Tensor:
    """Logits (..., classes) predict labels (...): a class per text, or a token per place of a decoder."""
    logits = outputs.logits.float().flatten(0, -2)
    return F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100, reduction="sum")


def span_loss(outputs: WithSpanLogits, batch: Batch) -> torch.Tensor:
    """Start and end logits, (batch, time) each, predict labels (batch, 2): the first and the last token of a span.

    Padding cannot be chosen: with it, as transformers' heads have it, the loss of a row would depend on its batch.
    """
    logits = span_logits(outputs, batch)
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum")


def span_logits(outputs: WithSpanLogits, batch: Batch) -> torch.Tensor:
    """Start and end logits, (batch, 2, time), with padding out of reach."""
    logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1).float()
    return logits.masked_fill(batch["attention_mask"][:, None] == 0, -1e30)
