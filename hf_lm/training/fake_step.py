"""A training step run on fake tensors: its FLOPs, and its memory by kind.

The step is the model's own, with its batch, loss, precision and optimizer, on tensors that have a shape and no content
(torch's FakeTensorMode): every allocation and every matrix product is counted, none is made. Nothing here knows a
family of models.
"""

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

from hf_lm.models.adapters import base_of
from hf_lm.signals import end_afterwards

KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "batch")
PARTS = ("embedding", "attention", "mlp", "recurrent", "norm", "head")
ROWS_PROVED = 4  # rows of the batch that the proofs use


@dataclass
class Step:
    """An optimizer step: bytes alive at its peak by kind, and the FLOPs of one of its batches, forward and backward.

    `flops` has the parts `forward`, `backward`.
    """

    memory: dict[str, int]
    flops: dict[str, int]
    trainable: int  # bytes of what is trained
    rows: int

    @property
    def peak(self) -> int:
        return sum(self.memory.values())

    @property
    def proofs(self) -> int:
        """Bytes while the proofs run: weights and a copy of them, gradients, AdamW's two averages, few rows."""
        live = self.memory["activations"] + self.memory["logits"]
        return self.memory["weights"] + 4 * self.trainable + live * min(ROWS_PROVED, self.rows) // self.rows


class _Counter(TorchDispatchMode):
    """Counts the bytes that are alive, their peak, and what each was; and the FLOPs of matrix products.

    `shares` of a kind: the part that is counted, which one of several devices holds; 1 where it is not named.
    """

    def __init__(self, vocabulary: int, shares: Mapping[str, float]) -> None:
        super().__init__()
        self.vocabulary = vocabulary  # size of a row of logits; 0: there are none
        self.shares = dict(shares)
        self.live: dict[int, tuple[float, str]] = {}  # storage -> (bytes counted, kind)
        self.now = self.peak = 0.0
        self.flops = 0
        self.at_peak: dict[str, float] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                is_logits = self.vocabulary > 0 and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
                self.see(tensor, "logits" if is_logits else "activations")
        packet = getattr(func, "_overloadpacket", None)
        if packet in _FLOPS:
            self.flops += _FLOPS[packet](*args, **kwargs)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        return out

    def see(self, tensor: torch.Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return
        self._count(storage, kind)
        weakref.finalize(storage, self._gone, key).atexit = False
        self._keep_peak()

    def mark(self, tensor: torch.Tensor, kind: str) -> None:
        """Say what a tensor that was seen is."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.live:
            self._gone(storage._cdata)
            self._count(storage, kind)

    def _count(self, storage: torch.UntypedStorage, kind: str) -> None:
        size = storage.nbytes() * self.shares.get(kind, 1.0)
        self.live[storage._cdata] = (size, kind)
        self.now += size

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key)[0]

    def _keep_peak(self) -> None:
        if self.now > self.peak:
            self.peak = self.now
            self.at_peak = defaultdict(float)
            for size, kind in self.live.values():
                self.at_peak[kind] += size

    def start(self) -> None:
        """Forget the peak so far."""
        self.peak = 0.0
        self._keep_peak()


def _lstm_flops(read: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor, *_: object, **__: object) -> int:
    return 2 * (weight.numel() + hidden.numel()) * read.shape[0] * read.shape[1]


# What torch's own counter has no formula for: attention on a CPU, and its LSTM.
_aten = torch.ops.aten
_FLOPS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
    ),
    _aten.mkldnn_rnn_layer: _lstm_flops,
    _aten.mkldnn_rnn_layer_backward: lambda *args, **kwargs: 2 * _lstm_flops(*args, **kwargs),
}


def filled(model: PreTrainedModel, fill: Callable[[torch.Tensor], torch.Tensor]) -> PreTrainedModel:
    """A copy of a model whose parameters and buffers are what `fill` makes of them; what is tied stays tied."""
    memo: dict[int, Any] = {}
    for param in model.parameters():
        memo[id(param)] = nn.Parameter(fill(param), requires_grad=param.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = fill(buffer)
    return copy.deepcopy(model, memo)


def fake(model: PreTrainedModel, mode: FakeTensorMode) -> PreTrainedModel:
    """A copy of a model that takes no memory, whatever device the model is on."""
    with mode:
        return filled(model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


def measure_step(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    *,
    loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
    optimizer: Callable[[PreTrainedModel], torch.optim.Optimizer],
    dtype: torch.dtype = torch.float32,  # of the matrix products, by autocast
    checkpointing: bool = False,
    accumulation: int = 1,
    shares: Mapping[str, float] | None = None,
) -> Step:
    """Run a training step of a model on fake tensors. The model may be real, fake, or on the meta device.

    `shares`: of which kinds of memory ("weights", "gradients", "optimizer") only a part is counted, because several
    devices share it; what the optimizer allocates while it works is shared as its state is.
    The optimizer's state is what its own first step makes. Raises what the model raises where its path depends on the
    values of a tensor; a recurrent network is then run as over one document a row, which takes about the same.
    """
    shares = shares or {}
    with end_afterwards():
        try:
            return _measure_step(model, batch, loss, optimizer, dtype, checkpointing, accumulation, shares)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
            whole = {key: value for key, value in batch.items() if key not in ("position_ids", "attention_mask")}
            if len(whole) == len(batch):
                raise
            return _measure_step(model, whole, loss, optimizer, dtype, checkpointing, accumulation, shares)


def _measure_step(model, batch, loss, optimizer, dtype, checkpointing, accumulation, shares) -> Step:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake(model, mode).train()
    model.config.use_cache = False
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "preserve_rng_state": False})  # fake tensors have no random state
        if hasattr(model, "enable_input_require_grads") and not all(p.requires_grad for p in model.parameters()):
            model.enable_input_require_grads()
    head = model.get_output_embeddings()
    counter = _Counter(0 if head is None else head.weight.shape[0], shares)
    trained = [param for param in model.parameters() if param.requires_grad]
    for param in trained:
        param.register_post_accumulate_grad_hook(lambda param: counter.mark(param.grad, "gradients"))
    with mode:
        inputs = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in batch.items()}
        stepper = optimizer(model)
        for param in trained:
            param.grad = torch.empty_like(param)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        with counter:
            for tensor in (*model.parameters(), *model.buffers()):
                counter.see(tensor, "weights")
            for tensor in tree_leaves(list(stepper.state.values())):
                if isinstance(tensor, torch.Tensor):
                    counter.see(tensor, "optimizer")
            for tensor in inputs.values():
                counter.see(tensor, "batch")
            counter.start()
            for _ in range(min(2, accumulation)):  # from the second batch on, gradients stand there in the forward
                counter.flops = 0
                with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
                    outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
                    value = loss(outputs, inputs)
                del outputs
                forward = counter.flops
                value.backward()
                del value
                backward = counter.flops - forward
            counter.shares["activations"] = shares.get("optimizer", 1.0)
            stepper.step()
    memory = {kind: int(counter.at_peak.get(kind, 0)) for kind in KINDS}
    trainable = sum(param.numel() * param.element_size() for param in trained)
    return Step(memory, {"forward": forward, "backward": backward}, trainable, len(next(iter(batch.values()))))


def parameters_by_part(model: PreTrainedModel) -> dict[str, dict[str, int]]:
    """{"parameters", "trainable"} of each of PARTS that a model has; what is tied counts once, as its first use."""
    plain = base_of(model)
    head = plain.get_output_embeddings()
    body = getattr(plain, plain.base_model_prefix, plain)
    inside = {id(param) for param in body.parameters()}
    found: dict[str, dict[str, int]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for param in module.parameters(recurse=False):
            if id(param) in seen:
                continue
            seen.add(id(param))
            words = path.lower()
            if isinstance(module, nn.Embedding):
                part = "embedding"
            elif "norm" in type(module).__name__.lower():
                part = "norm"
            elif module is head or id(param) not in inside or "pooler" in words:
                part = "head"
            elif isinstance(module, nn.RNNBase):
                part = "recurrent"
            elif "attn" in words or "attention" in words:
                part = "attention"
            else:
                part = "mlp"
            counts = found.setdefault(part, {"parameters": 0, "trainable": 0})
            counts["parameters"] += param.numel()
            counts["trainable"] += param.numel() * param.requires_grad
    return {part: found[part] for part in PARTS if part in found}
