"""Work on several processes over gloo, without a launcher: forked, so that nothing is imported again."""

import faulthandler
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def on_gloo(processes: int, work: Callable[..., Any], *args: Any, seconds: int = 120) -> list[Any]:
    """work(rank, *args) on each of n processes of a gloo group; returns the results by rank.

    Raises what one of them raises. A process that hangs prints where, and the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(
            _process, (processes, folder, work, args, seconds), nprocs=processes, join=False, start_method="fork"
        )
        assert context is not None
        end = time.monotonic() + seconds + 10
        while not context.join(timeout=1):
            assert time.monotonic() < end, "a process hangs: see its stack above"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _process(rank: int, processes: int, folder: str, work: Callable, args: Any, seconds: int) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(seconds, exit=True)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
