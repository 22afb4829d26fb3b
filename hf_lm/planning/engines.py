"""What a device holds of a training step that an engine shares among several: DDP, FSDP2, DeepSpeed's ZeRO-2 and -3.

The step is counted on fake tensors with these shares (hf_lm.training.fake_step), and what an engine itself allocates
is added. Sources: Rajbhandari et al., ZeRO (arXiv 1910.02054), and the defaults of torch's fully_shard, of
DistributedDataParallel and of DeepSpeed. None of it was measured on GPUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from hf_lm.training.fake_step import Step

Name = Literal["ddp", "fsdp2", "zero2", "zero3"]
# Elements: DeepSpeed's reduce_bucket_size, and its stage3_max_live_parameters, by default.
BUCKET, LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Engine:
    """`devices` in `replicas` groups, each of which holds one copy of what is sharded; `offload` to the host's memory.

    FSDP2 offloads everything that it shards, ZeRO-2 gradients and optimizer state, ZeRO-3 the weights too.
    """

    name: Name = "ddp"
    devices: int = 1
    replicas: int = 1
    offload: bool = False

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"--devices is {self.devices}; it must be 1 or more.")
        if self.name == "ddp" and (self.replicas > 1 or self.offload):
            raise ValueError(
                "--offload needs --engine fsdp2, zero2 or zero3, which shard, and --replicas --engine fsdp2."
            )
        if self.replicas > 1 and self.name != "fsdp2":
            raise ValueError(f"--replicas {self.replicas} is FSDP2's hybrid sharding: --engine fsdp2.")
        if self.replicas < 1 or self.devices % self.replicas:
            raise ValueError(f"--replicas {self.replicas} does not divide --devices {self.devices}.")

    @property
    def said(self) -> str:
        """In words, for people; empty for one device."""
        if self.devices == 1 and self.name == "ddp":
            return ""
        name = {"ddp": "DDP", "fsdp2": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}[self.name]
        groups = f", {self.replicas} replicas of {self.devices // self.replicas}" if self.replicas > 1 else ""
        return f"{name} over {self.devices} devices{groups}{', offloaded' if self.offload else ''}"

    def shares(self, *, half: bool) -> Mapping[str, float]:
        """Of weights, gradients and optimizer state, as one device makes them alone, the part that each holds here.

        `half`: the products are in 16 bits. DeepSpeed then holds weights and gradients in 16 bits, and of the weights
        it trains a copy in 32 (`engine_memory`); FSDP2 and DDP hold them in 32 and cast them.
        """
        kept, width = 0.0 if self.offload else self.replicas / self.devices, 0.5 if half else 1.0
        return {
            "ddp": {},
            "fsdp2": {"weights": kept, "gradients": kept, "optimizer": kept},
            "zero2": {"weights": width, "gradients": width * kept, "optimizer": kept},
            "zero3": {"weights": width * kept, "gradients": width * kept, "optimizer": kept},
        }[self.name]


def engine_memory(step: Step, engine: Engine, *, model: nn.Module, dtype: torch.dtype) -> Step:
    """A step, counted with the engine's shares, with what the engine itself allocates on a device.

    - `gathered`, weights that are complete while they are used. FSDP2: what belongs to no layer of a stack
      (embeddings, the last norm, the head), and two layers, since the next is gathered while one works. ZeRO-3: all,
      up to LIVE.
    - `buckets`, gradients on their way to the other devices: of DDP a copy of all, of ZeRO up to BUCKET.
    - to `optimizer`, ZeRO's copy of the trained weights in float32.
    """
    width, memory = torch.finfo(dtype).bits // 8, dict(step.memory)
    parameters = sum(param.numel() for param in model.parameters())
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    if engine.devices > 1 and engine.name == "ddp":
        memory["buckets"] = 4 * trained
    elif engine.name == "fsdp2":
        largest, rest = layer_sizes(model)
        memory["gathered"] = width * min(parameters, rest + 2 * largest)
    elif engine.name in ("zero2", "zero3"):
        memory["buckets"] = width * min(BUCKET, trained)
        if engine.name == "zero3":
            memory["gathered"] = width * min(LIVE, parameters)
        if not engine.offload:
            memory["optimizer"] += 4 * trained // engine.devices
    return replace(step, memory=memory)


def host_memory(step: Step, engine: Engine, *, model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that each process holds in the host's memory where the engine offloads; `step` is of one device alone."""
    if not engine.offload:
        return 0
    part = engine.replicas / engine.devices
    trained = sum(param.numel() for param in model.parameters() if param.requires_grad)
    width = torch.finfo(dtype).bits // 8
    if engine.name == "fsdp2":
        return int(part * (step.memory["weights"] + 4 * trained + step.memory["optimizer"]))
    weights = step.memory["weights"] * width / 4 if engine.name == "zero3" else 0
    return int(part * (weights + (width + 4) * trained + step.memory["optimizer"]))


def layer_sizes(model: nn.Module) -> tuple[int, int]:
    """Parameters of the largest layer of a stack, and those that belong to no layer."""
    layers = {id(layer): layer for part in model.modules() if isinstance(part, nn.ModuleList) for layer in part}
    sizes = {key: {id(param): param.numel() for param in layer.parameters()} for key, layer in layers.items()}
    inside = {key for params in sizes.values() for key in params}
    rest = sum(param.numel() for param in model.parameters() if id(param) not in inside)
    return max((sum(params.values()) for params in sizes.values()), default=0), rest
