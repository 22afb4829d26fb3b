"""Muon for the hidden matrices and AdamW for the rest, in one optimizer, on complete and on sharded parameters."""

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim.adamw import adamw
from transformers import PreTrainedModel

from hf_lm.arguments import bf16_is_fast
from hf_lm.models.parts import last_norm

# a, b and c of a x + b x^3 + c x^5, applied to the singular values one after the other: of all such polynomials those
# that bring 0.01 to 1 nearest to 1 (Amsel et al., "The Polar Express", arXiv 2505.16932, for three steps). The second
# and third are for 2 % more than the step before leaves, because bfloat16 rounds: beyond it they would diverge.
POLAR = ((8.0934, -23.6204, 17.4462), (3.5905, -2.5907, 0.4913), (2.6831, -1.9414, 0.4265))


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) and AdamW, each for groups of its own.

    A group with `parts` is Muon's: {"params": matrices, "parts": (dim, n), "lr", "weight_decay", "momentum"}; each of
    its matrices is orthogonalised as n matrices along `dim`, since a fused matrix (Q, K and V; the gates of an LSTM)
    is to be treated as the matrices it holds. Its rate is scaled by 0.2 sqrt(max(rows, columns)) (Moonshot, arXiv
    2502.16982): one rate serves every shape, and transposing a matrix, as GPT-2's Conv1D does, changes nothing. Any
    other group is AdamW's: {"params", "lr", "betas", "eps", "weight_decay", "fused" (or None)}.

    The state is {"state", "param_groups"} as of every optimizer of torch, so that accelerate and
    `torch.distributed.checkpoint` save and load it. Of parameters sharded by FSDP2 (DTensor) each matrix is iterated
    on one process, its owner; the update is that of complete parameters. Where n processes train complete copies on
    equal gradients (DDP), `copies` is n: each iterates its share of the matrices, and the updates are gathered.
    """

    def __init__(self, params: list[dict[str, Any]], *, copies: int = 1) -> None:
        super().__init__(params, {})
        self._copies = copies

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                (self._muon if "parts" in group else self._adamw)(params, group)
        return loss

    def _muon(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        batches = defaultdict(list)  # shape and sharding -> [(the parameter, its momentum-averaged gradient)]
        for param in params:
            state, gradient = self.state[param], param.grad
            assert gradient is not None, "step passes on what has one"
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param)
            average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(average, group["momentum"])  # Nesterov
            param.mul_(1 - group["lr"] * group["weight_decay"])
            sharding = (param.device_mesh, param.placements) if isinstance(param, DTensor) else ()
            batches[param.shape, sharding].append((param, update))
        dim, n = group["parts"]
        for (shape, _), batch in batches.items():
            stack = torch.stack([update for _, update in batch])
            updates = orthogonalise_parts(stack, dim=dim, n=n, copies=self._copies)
            rate = group["lr"] * 0.2 * max(size // n if i == dim else size for i, size in enumerate(shape)) ** 0.5
            # Never a chunk of the parameter: that of a DTensor is a copy, and what is added to it is lost.
            for (param, _), update in zip(batch, updates, strict=True):
                param.add_(update, alpha=-rate)

    def _adamw(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        for param in params:
            if not self.state[param]:
                device = param.device if group["fused"] else "cpu"
                self.state[param]["step"] = torch.zeros((), dtype=torch.float32, device=device)
                self.state[param]["exp_avg"] = torch.zeros_like(param)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
        states = [self.state[param] for param in params]
        adamw(
            params,
            [param.grad for param in params if param.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],  # the maxima of AMSGrad
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise_parts(matrices: torch.Tensor, *, dim: int, n: int, copies: int = 1) -> torch.Tensor:
    """Orthogonalise each of a stack of matrices, (count, rows, columns), as n matrices along its dimension `dim`.

    A sharded stack is dealt out so that each process of its mesh holds some of the matrices and all of their entries,
    and is handed back as it was sharded: two collectives a stack, and a matrix is iterated once. Of a complete stack
    that all of `copies` processes hold each iterates a share, zeros filling the last ones: one collective a stack.
    """
    if isinstance(matrices, DTensor):
        owned = matrices.redistribute(
            placements=[Shard(0) if placement.is_shard() else placement for placement in matrices.placements]
        )
        local = orthogonalise_parts(owned.to_local(), dim=dim, n=n)
        done = DTensor.from_local(
            local, owned.device_mesh, owned.placements, run_check=False, shape=owned.shape, stride=owned.stride()
        )
        return done.redistribute(placements=matrices.placements)
    if copies > 1:
        share = -(-len(matrices) // copies)
        filled = torch.cat([matrices, matrices.new_zeros(share * copies - len(matrices), *matrices.shape[1:])])
        own = orthogonalise_parts(filled.unflatten(0, (copies, share))[dist.get_rank()], dim=dim, n=n)
        gathered = [torch.empty_like(own) for _ in range(copies)]
        dist.all_gather(gathered, own)
        return torch.cat(gathered)[: len(matrices)]
    parts = torch.stack(matrices.chunk(n, dim + 1), 1).flatten(0, 1)
    return torch.cat(orthogonalise(parts).unflatten(0, (len(matrices), n)).unbind(1), dim + 1)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of each matrix, (n, rows, columns), near 1 by the three quintics of POLAR.

    Before them a matrix is divided by the fourth root of the sum of the fourth powers of its singular values, so that
    none is above 1: the root of the norm of x x^T, which the first step needs anyway. Those from 0.01 end between 0.70
    and 1.30, smaller ones below, much as after five steps with Jordan's coefficients (docs/experiments.md). It runs in
    bfloat16 only where the machine multiplies in it: most CPUs emulate it.
    """
    x = matrices.bfloat16() if bf16_is_fast() else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for step, (a, b, c) in enumerate(POLAR):
        gram = x @ x.mT
        if not step:
            norm = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
            x, gram = x / norm.sqrt(), gram / norm
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def new_muon_adamw(
    model: PreTrainedModel,
    *,
    adamw: dict[str, Any],  # its "lr", "betas", "eps", and "fused" where it is set
    embedding_rate_scale: float = 1.0,  # times "lr", for the input embedding and the output layer
    last_norm_rate_scale: float = 1.0,  # and for the norm between the last layer and the output layer
    weight_decay: float,
    decayed: Collection[str],  # the names of the parameters of AdamW that decay
    muon_learning_rate: float,
    muon_weight_decay: float,
    copies: int = 1,  # processes that train complete copies of the model
) -> MuonAdamW:
    """The optimizer of a model: Muon for its hidden matrices (`muon_groups`), AdamW for what else is trained."""
    matrices = muon_groups(model)
    scales = dict.fromkeys(map(id, last_norm(model)), last_norm_rate_scale)
    scales |= dict.fromkeys(_ends(model), embedding_rate_scale)
    by_muon = {id(param) for group in matrices for param in group["params"]}
    rest = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in by_muon]
    adamw_groups = [
        {
            "params": [p for name, p in rest if (name in decayed) == decays and scales.get(id(p), 1.0) == scale],
            "weight_decay": weight_decay if decays else 0.0,
            "lr": adamw["lr"] * scale,
        }
        for scale in dict.fromkeys((1.0, embedding_rate_scale, last_norm_rate_scale))
        for decays in (True, False)
    ]
    muon = {"lr": muon_learning_rate, "weight_decay": muon_weight_decay, "momentum": 0.95}
    # AdamW's stand first: the rate of the first group is the one that the logs call learning_rate.
    groups = [{"fused": None, **adamw, **group} for group in adamw_groups] + [muon | group for group in matrices]
    return MuonAdamW([group for group in groups if group["params"]], copies=copies)


def muon_groups(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The hidden matrices of a model as Muon's groups: trained, two-dimensional, neither embedding nor head."""
    from transformers.pytorch_utils import Conv1D

    ends = _ends(model)
    groups = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            rows, columns = module.weight.shape
            # GPT-2's (in, 3 in) holds Q, K and V; those of GPTBigCode have unequal sizes, and stay one matrix.
            fused = columns // rows if name.endswith("c_attn") and columns > rows else 1
            members, parts = [module.weight], (1, fused)
        elif isinstance(module, nn.RNNBase):
            gates = 4 if isinstance(module, nn.LSTM) else 3 if isinstance(module, nn.GRU) else 1
            members, parts = list(module.parameters(recurse=False)), (0, gates)
        else:
            continue
        groups[parts] += [p for p in members if p.ndim == 2 and p.requires_grad and id(p) not in ends]
    return [{"params": params, "parts": parts} for parts, params in groups.items() if params]


def _ends(model: PreTrainedModel) -> set[int]:
    """The ids of the weights of the input embedding and the output layer, which may be one."""
    return {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
