"""What a run will take, before it starts: what it reads, and how long and in how much memory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from hf_lm.arguments import TrainingArguments
from hf_lm.reporting.report import peak_memory_bytes
from hf_lm.tasks.task import Task
from hf_lm.training.fake_step import Step, measure_step
from hf_lm.training.monitor import peak_flops

if TYPE_CHECKING:
    from hf_lm.training.safe_trainer import SafeTrainerMixin

UTILISATION = 0.4  # share of a device's matrix speed that training reaches, where nothing was measured
# The C allocator of a CPU keeps freed memory in pieces: what is resident is more than what lives (docs/plan.md).
FRAGMENTATION = 1.3
FIRST_USE = 40 * 2**20  # bytes of library code and buffers that come into memory with the first step on a CPU
AROUND = 8.0  # seconds that proofs, saving and the load-back in a fresh process take beside the training


@dataclass
class Work:
    """What a run reads. Tokens are of what stands in a batch; padding, which grouped rows have little of, is not."""

    steps: int
    steps_per_epoch: int
    tokens: int  # trained on, in all
    tokens_per_epoch: int
    measured: int  # read while measuring, in all
    longest: int  # of the largest batch of one process
    world_size: int
    around: float  # seconds
    trainings: int = 1  # of so many steps and tokens: those of --sweep and the run's own

    def seconds(self, step: Step, speed: float) -> dict[str, float]:
        """Training, evaluation and what is around them, at `speed` FLOP/s of each process."""
        per_token = sum(step.flops.values()) / self.longest / self.world_size / speed
        read = step.flops["forward"] / self.longest / self.world_size / speed
        training = self.trainings * self.tokens * per_token
        return {"training": training, "evaluation": self.measured * read, "around": self.around}


def work_of(
    task: Task, args: TrainingArguments, *, scales: Mapping[str, float] | None = None, processes: int = 0
) -> Work:
    """What a run over a task reads, in training as the Trainer counts its steps.

    `scales` says of a split how many times larger it is than what the task holds of it; `processes` 0 are those here.
    """
    lengths, rows, scales = task.train_lengths(), args.per_device_train_batch_size, scales or {}
    processes = processes or args.world_size
    scale = scales.get("train", 1.0)
    batches = math.ceil(scale * len(lengths) / (rows * processes))
    epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else max(1, math.ceil(epoch * args.num_train_epochs))
    per_epoch = int(scale * sum(lengths))
    times = 1
    if args.eval_strategy == "epoch":
        times = math.ceil(steps / epoch)
    elif args.eval_strategy == "steps" and args.eval_steps:
        every = args.eval_steps if args.eval_steps >= 1 else max(1, round(args.eval_steps * steps))
        times = max(1, int(steps // every) + (steps % every > 0 and not args.load_best_model_at_end))
    times += args.eval_on_start
    # a rate that is tried is measured at its end, and before it only if that may stop it
    times += args.sweep * (1 + (times if args.early_stopping_patience else args.eval_on_start))
    measured = times * task.tokens_measured("validation") * scales.get("validation", 1.0)
    measured += task.tokens_measured("test") * scales.get("test", 1.0) if "test" in task.splits else 0
    return Work(
        steps=steps,
        steps_per_epoch=epoch,
        tokens=int(per_epoch * steps / epoch),
        tokens_per_epoch=per_epoch,
        measured=int(measured),
        longest=max(1, sum(sorted(lengths, reverse=True)[:rows])),
        world_size=processes,
        around=AROUND + task.report_seconds,
        trainings=1 + args.sweep,
    )


def estimate_run(trainer: "SafeTrainerMixin", task: Task) -> dict[str, float]:
    """The seconds and the peak memory that `fit` will take with a trainer and a task, as report.json has them."""
    args = trainer.args
    step = one_step(trainer, task, rows=args.per_device_train_batch_size, checkpointing=checkpoints_activations(args))
    times = work_of(task, args).seconds(step, UTILISATION * peak_flops(args.device, precision(args)))
    live = max(step.peak, step.proofs)
    peak = live if args.device.type != "cpu" else resident(live - step.memory["weights"])
    return {"seconds": sum(times.values()), "peak_memory_bytes": peak}


def one_step(
    trainer: "SafeTrainerMixin",
    task: Task,
    *,
    rows: int,
    checkpointing: bool,
    shares: Mapping[str, float] | None = None,
) -> Step:
    """The step of a trainer, run on fake tensors in batches of the longest `rows`: fewer are accumulated to the same.

    `shares`: see `measure_step`.
    """
    args, lengths = trainer.args, task.train_lengths()
    longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:rows]
    if task.loss is None:
        raise ValueError("the trainer computes the loss itself: its step cannot be run by itself.")
    return measure_step(
        trainer.model,
        task.collate([task.train_dataset[i] for i in longest]),
        loss=task.loss,
        optimizer=lambda model: fresh_optimizer(trainer, model),
        dtype=precision(args),
        checkpointing=checkpointing,
        accumulation=args.gradient_accumulation_steps * -(-args.per_device_train_batch_size // rows),
        shares=shares,
    )


def checkpoints_activations(args: TrainingArguments) -> bool:
    """Whether a run recomputes activations; transformers is renaming the argument."""
    return bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing)


def precision(args: TrainingArguments) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def fresh_optimizer(trainer: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a trainer would make for a model; the trainer itself is left without one."""
    try:
        return trainer.create_optimizer(model)
    finally:
        trainer.optimizer = None


def resident(live: int, weights: int = 0) -> int:
    """Peak resident memory of this process on a CPU once `live` bytes of tensors and `weights` are in it as well.

    The plots that end a run bring their library, which is loaded here so that it counts.
    """
    from matplotlib.backends import backend_agg  # noqa: F401

    now = psutil.Process().memory_info().rss
    return max(peak_memory_bytes(), int(now + FIRST_USE + weights + FRAGMENTATION * live))
