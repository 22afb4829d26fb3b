"""Muon for the hidden matrices, AdamW for the rest."""

from collections import defaultdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_lm.arguments import bf16_is_fast


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` that treats a fused matrix as the matrices it holds, and is not slow on a CPU.

    What differs from its parent (Keller Jordan, https://kellerjordan.github.io/posts/muon/): a group may carry
    `parts = (dim, n)`, and each of its matrices is then orthogonalised as n matrices along `dim`; matrices of one
    shape go through the Newton-Schulz iteration together; and the iteration runs in bfloat16 only where the machine
    multiplies in it: most CPUs emulate it (a step is then 15 times slower than AdamW's). The rate is scaled by
    0.2 sqrt(max(rows, columns)) (Moonshot, arXiv 2502.16982): one rate serves every shape, and transposing a matrix,
    as GPT-2's Conv1D does, changes nothing.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            matrices = defaultdict(list)  # shape -> [(the part of the parameter, its momentum-averaged gradient)]
            for param in params:
                state = self.state[param]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(param)
                average = state["momentum_buffer"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(average, group["momentum"])  # Nesterov
                param.mul_(1 - group["lr"] * group["weight_decay"])
                dim, n = group["parts"]
                for part, part_update in zip(param.chunk(n, dim), update.chunk(n, dim), strict=True):
                    matrices[part.shape].append((part, part_update))
            for shape, pairs in matrices.items():
                updates = orthogonalise(torch.stack([update for _, update in pairs]), steps=group["ns_steps"])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for (part, _), update in zip(pairs, updates, strict=True):
                    part.add_(update, alpha=-rate)
        return loss


def orthogonalise(matrices: torch.Tensor, *, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of each matrix, (n, rows, columns), near 1 by the quintic Newton-Schulz iteration.

    They end between about 0.7 and 1.2, not at 1: the coefficients trade exactness for fewer steps.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if bf16_is_fast() else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class OptimizerPair(torch.optim.Optimizer):
    """Two optimizers behind one face, so that the Trainer, a schedule and a checkpoint see a single one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.pair = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        loss = self.pair[0].step(closure)
        self.pair[1].step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"pair": [optimizer.state_dict() for optimizer in self.pair]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.pair, state_dict["pair"], strict=True):
            optimizer.load_state_dict(state)
        # Loading gives each optimizer new groups: share them again, or a schedule would change copies.
        self.param_groups[:] = [group for optimizer in self.pair for group in optimizer.param_groups]


def muon_groups(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The hidden matrices of a model as Muon's groups: trained, two-dimensional, neither embedding nor head."""
    from transformers.pytorch_utils import Conv1D

    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    groups = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            rows, columns = module.weight.shape
            fused = columns // rows if name.endswith("c_attn") else 1  # GPT-2: (in, 3 in) holds Q, K and V
            members = [("weight", module.weight, (1, fused))]
        elif isinstance(module, nn.RNNBase):
            gates = {"LSTM": 4, "GRU": 3}.get(type(module).__name__, 1)
            members = [(key, weight, (0, gates)) for key, weight in module.named_parameters(recurse=False)]
        else:
            continue
        for _, weight, parts in members:
            if weight.ndim == 2 and weight.requires_grad and id(weight) not in ends:
                groups[parts].append(weight)
    return [{"params": params, "parts": parts} for parts, params in groups.items()]
