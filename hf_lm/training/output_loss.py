"""Next-token cross-entropy from the states before the output layer: on a CPU its passes over the logits stay in cache.

Of a small model on a CPU the float32 copies, softmax and gradient of all logits take as long as half of its matrix
products. Here the logits are in the precision of the products, and some rows at a time become their gradient in place.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ROWS = 128  # of which the float32 logits are held at a time: 2 MB for 4,096 entries
PLAIN = ("gpt2", "hf_lm_recurrent")  # whose logits are those of the output layer, not capped or scaled


def output_loss(hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    """The sum over labels, in nats; hidden (batch, time, width) at i predicts labels (batch, time) at i + 1.

    `head` is the output layer, with complete weights. Products are in the precision of autocast, sums in float32; of
    a label whose probability float32 cannot hold the loss is 87. The loss can be differentiated once.
    """
    return _OutputLoss.apply(hidden, head.weight, head.bias, F.pad(labels[:, 1:], (0, 1), value=-100))


class _OutputLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
    ) -> torch.Tensor:
        rows = (labels.flatten() != -100).nonzero().squeeze(1)
        states, targets = hidden.flatten(0, 1)[rows], labels.flatten()[rows]
        logits = F.linear(states, weight, bias)  # (n, vocabulary), and row after row their gradient
        total = torch.zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        for start in range(0, len(logits), ROWS):
            part, at = logits[start : start + ROWS], targets[start : start + ROWS, None]
            chances = torch.softmax(part, 1, dtype=total.dtype)
            total -= chances.gather(1, at).clamp_(min=torch.finfo(total.dtype).tiny).log_().sum()
            part.copy_(chances.scatter_add_(1, at, chances.new_full((), -1.0).expand_as(at)))
        ctx.with_bias, ctx.shape = bias is not None, hidden.shape
        if any(ctx.needs_input_grad):
            gradients = (F.linear(logits, weight.t()), F.linear(logits.t(), states.t()))
            ctx.save_for_backward(rows, *gradients, *((logits.sum(0),) if bias is not None else ()))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        states, weight, *bias = (each.to(gradients[0].dtype) * gradients[0] for each in saved)
        hidden = states.new_zeros(ctx.shape)
        hidden.flatten(0, 1).index_copy_(0, rows, states)
        return hidden, weight, bias[0] if ctx.with_bias else None, None
