"""Devices that a run can be planned for: GPUs by name, and this machine's."""

import contextlib
import re
from dataclasses import dataclass, replace

import torch

from hf_lm.parsing.suggestions import did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """`memory` in bytes; `flops` a second of matrix products by precision, dense; `watts` at full load, 0: unknown."""

    name: str
    memory: int
    flops: dict[str, float]
    watts: int = 0


def _gpu(name: str, gib: float, half: float, single: float, watts: int) -> Device:
    return Device(name, int(gib * GIB), {"half": half * 1e12, "float32": single * 1e12}, watts)


# Memory in GiB that the driver reports, TFLOP/s in bfloat16 (T4 and V100: float16) with float32 accumulation and
# without sparsity, TFLOP/s in float32 without TF32, and board power in watts, from the makers' data sheets: NVIDIA
# H200, H100, A100, L40S, L4, A10, T4, V100 product pages; Ada and Blackwell GeForce architecture papers, GA102 paper;
# AMD MI300X data sheet.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200", 179, 2250, 75, 1000),
        _gpu("h200", 140, 989, 67, 700),
        _gpu("h100", 79, 989, 67, 700),
        _gpu("h100-pcie", 79, 756, 51, 350),
        _gpu("a100-80gb", 79, 312, 19.5, 400),
        _gpu("a100-40gb", 39, 312, 19.5, 400),
        _gpu("l40s", 44, 362, 91.6, 350),
        _gpu("l4", 22, 121, 30.3, 72),
        _gpu("a10", 22, 125, 31.2, 150),
        _gpu("t4", 14.6, 65, 8.1, 70),
        _gpu("v100", 15.8, 125, 15.7, 300),
        _gpu("rtx5090", 31, 209.5, 104.8, 575),
        _gpu("rtx4090", 23.5, 165.2, 82.6, 450),
        _gpu("rtx3090", 23.5, 71, 35.6, 350),
        _gpu("mi300x", 191, 1307, 163.4, 750),
    )
}
WITHOUT_BF16 = ("t4", "v100")

# What a GPU holds beside the tensors: CUDA's context and the work spaces of its libraries; and what the caching
# allocator cannot use of the rest. Assumed, not measured (docs/plan.md).
CONTEXT, USABLE = int(0.8 * GIB), 0.95


def find_gpu(name: str) -> Device:
    """A device of GPUS by its name, however it is spelt. Raises ValueError with the closest name."""
    plain = re.sub(r"nvidia|geforce|amd|instinct|tesla|sxm\d?|[\s_]|^-|-$", "", name.lower())
    by_plain_name = {key.replace("-", ""): gpu for key, gpu in GPUS.items()}
    if (plain := plain.replace("-", "")) in by_plain_name:
        return by_plain_name[plain]
    hint = did_you_mean(plain, GPUS)
    raise ValueError(f"--gpu {name}: no such GPU is known; there are {', '.join(GPUS)}.{hint}")


def present_device() -> Device:
    """The GPU of this machine, else its CPU with the memory that is free."""
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        with contextlib.suppress(ValueError):
            return replace(find_gpu(about.name.split()[-1]), name=about.name, memory=about.total_memory)
        return Device(about.name, about.total_memory, {})
    return cpu()


def cpu() -> Device:
    import psutil

    return Device("cpu", psutil.virtual_memory().available, {})
