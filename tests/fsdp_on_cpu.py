"""Run a recipe under FSDP2 on CPU processes, which accelerate would turn into DDP: it is told of GPUs over gloo.

torchrun --nproc_per_node 2 tests/fsdp_on_cpu.py recipes/pretrain.py --dataset ...
"""

import os
import runpy
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false"),
}


def _set_device(self: PartialState) -> None:
    self.device = torch.device("cpu")


PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = _set_device

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
