"""A few real steps of a run, and a part of an evaluation: their time and memory."""

import copy
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_lm.arguments import TrainingArguments
from hf_lm.planning.resolve import Resolved
from hf_lm.reporting.report import peak_memory_bytes
from hf_lm.tasks.task import Task
from hf_lm.training.estimate import Work
from hf_lm.training.fake_step import filled
from hf_lm.training.trainer import supervised_trainer

TRIED = 100  # steps at most where rows differ in length: each new shape adds to the memory of the process
TRIED_FOR = 10.0  # seconds at most, after the first four


def run_a_little(run: Resolved, args: TrainingArguments, work: Work) -> tuple[dict[str, float], int]:
    """Train random weights of the run's shape for a few steps here, and measure a part of a split with them.

    Returns the seconds of the whole run by part, and the peak of the memory in bytes. The first two batches warm up;
    the next two are timed, and where rows differ in length some more. Raises ValueError for quantized weights.
    """
    if run.bits:
        raise ValueError("--calibrate cannot run a quantized model: leave --quantize out of the plan, or --calibrate.")
    device = args.device
    model = filled(run.model, lambda tensor: random_values(tensor, device))
    args = copy.copy(args)
    args.max_steps, args.save_strategy, args.eval_strategy = TRIED, SaveStrategy.NO, IntervalStrategy.NO
    args.load_best_model_at_end, args.disable_tqdm, args.logging_strategy = False, True, IntervalStrategy.NO
    trainer = supervised_trainer(model, args, run.task, lambda model: {})
    marks: list[tuple[float, int]] = []
    varied = len(set(run.task.train_lengths())) > 1

    def enough() -> bool:
        marks.append((time.perf_counter(), int(trainer.tokens_seen)))
        return len(marks) >= 4 and (not varied or marks[-1][0] - marks[3][0] > TRIED_FOR)

    trainer.add_callback(_Clock(enough))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    (begun, before), (ended, after) = marks[1], marks[-1]
    times = {"training": work.trainings * work.tokens * (ended - begun) / (after - before)}
    read, seconds = _measure_some(run.task, model)
    times["evaluation"] = work.measured / read * seconds
    times["around"] = work.around
    return times, peak_memory_bytes()


class _Clock(TrainerCallback):
    def __init__(self, enough: Callable[[], bool]) -> None:
        self.enough = enough

    def on_step_end(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        control.should_training_stop = self.enough()


def random_values(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of that shape, small where it is a matrix; what is not on the meta device is copied."""
    if not tensor.is_meta:
        return tensor.detach().clone().to(device)
    if not tensor.is_floating_point():  # a buffer of positions or kinds
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    if tensor.ndim < 2:
        return torch.ones(tensor.shape, dtype=tensor.dtype, device=device)
    return torch.randn(tensor.shape, dtype=tensor.dtype, device=device).mul_(0.02)


def _measure_some(task: Task, model: PreTrainedModel) -> tuple[int, float]:
    """Measure a batch or two of validation, for its memory too; returns their tokens and the seconds."""
    task = task.excerpt("validation")
    begun = time.perf_counter()
    task.measure(model, "validation")
    return task.tokens_measured("validation"), time.perf_counter() - begun
