"""`hf-lm plan`: what a resolved run needs on a device.

The recipe itself runs, with its own arguments, up to `fit` (resolving); a training step of its model is run on fake
tensors (hf_lm.training.fake_step); what fits is told by a table of devices (devices).
"""

import copy
import math
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from hf_lm.models.adapters import is_adapted
from hf_lm.planning.calibration import run_a_little
from hf_lm.planning.changes import Change, Variation, propose, variations_of
from hf_lm.planning.devices import Device
from hf_lm.planning.memory import by_kind, needed, quantized
from hf_lm.planning.resolve import Resolved
from hf_lm.training.estimate import UTILISATION, precision, step_of, work_of
from hf_lm.training.fake_step import Step, parameters_by_part
from hf_lm.training.monitor import peak_flops
from hf_lm.training.trainer import Trainer, supervised_trainer

GROWTH = 1.04  # by which the peak of a process on a CPU rises after the steps that are tried (docs/plan.md)


@dataclass
class Plan:
    """What a run needs. Bytes, seconds, kilowatt-hours; `memory` is by kind at the peak of a step, `needed` in all."""

    recipe: str
    architecture: str
    device: Device
    present: bool  # whether that device is this machine's
    method: str  # full, LoRA, QLoRA
    precision: str
    checkpointing: bool
    parts: dict[str, dict[str, int]]
    memory: dict[str, int]
    needed: int
    fits: bool
    changes: list[Change]
    rows: int  # of a batch
    accumulation: int
    longest: int  # tokens of the largest batch
    tokens: int  # trained on in all
    tokens_per_epoch: int
    steps_per_epoch: int
    steps: int
    flops_per_step: int
    utilisation: float
    times: dict[str, float]  # seconds of training, evaluation and what is around them
    price_per_hour: float
    budget: float  # seconds
    calibrated: bool = False
    assumed: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(self.times.values())

    @property
    def flops(self) -> float:
        return float(self.flops_per_step) * self.steps

    @property
    def energy(self) -> float | None:
        """Kilowatt-hours of the board at full load; None where its power is not known."""
        return self.device.watts * self.seconds / 3.6e6 if self.device.watts else None

    @property
    def price(self) -> float | None:
        return self.price_per_hour * self.seconds / 3600 if self.price_per_hour else None

    def report(self) -> dict[str, Any]:
        """Plain values, for --json."""
        derived = {"seconds": self.seconds, "flops": self.flops, "energy_kwh": self.energy, "price": self.price}
        return {
            key: value for key, value in (asdict(self) | derived).items() if value is not None and value != math.inf
        }


def make_plan(
    run: Resolved,
    device: Device,
    *,
    present: bool,
    utilisation: float = UTILISATION,
    calibrate: bool = False,
) -> Plan:
    """The plan of a resolved run on a device; `present` says that it is this machine's.

    `calibrate` runs three real steps here, and a part of an evaluation, and takes their time and memory.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation is {utilisation}; it is a share of the device's speed, above 0 and up to 1.")
    args = copy.copy(run.args)
    rows, dtype, is_cpu = args.per_device_train_batch_size, precision(args), device.name == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir, args.report_to = folder, []  # the Trainer makes its output folder

        def step_with(one: Variation, rows: int) -> Step:
            trainer = supervised_trainer(one.model, args, run.task, lambda model: {}, trainer_class=_Weightless)
            step = step_of(trainer, run.task, rows=rows, checkpointing=one.checkpointing)
            return quantized(step, one.model, one.bits) if one.bits else step

        def needs(one: Variation, rows: int) -> int:
            return needed(step_with(one, rows), device, model=one.model, n=one.devices)

        variations = variations_of(run)
        step = step_with(variations[0], rows)
        bytes_needed = needed(step, device, model=run.model)
        work = work_of(run.task, args, scales=run.scales)
        flops_per_step = sum(step.flops.values()) / work.longest * work.tokens / work.steps
        speed = device.flops.get("float32" if dtype == torch.float32 else "half")
        speed = speed or peak_flops(torch.device("cpu") if is_cpu else args.device, dtype)
        times, assumed = work.seconds(step, speed * utilisation), list(run.assumed)
        if calibrate:
            found = run_a_little(run, args, work)
            times |= found.times
            saving = step.memory["weights"]  # are held twice while they are written
            bytes_needed = int(GROWTH * found.peak) + saving if is_cpu else max(bytes_needed, found.peak)
            utilisation = flops_per_step / (times["training"] / work.steps) / speed
        else:
            assumed.insert(0, f"{utilisation:.0%} of the device's matrix speed, {speed / 1e12:,.3g} TFLOP/s")
        fits = bytes_needed <= device.memory
        accumulation = args.gradient_accumulation_steps
        changes = [] if fits else propose(variations, needs, device.memory, rows=rows, accumulation=accumulation)
    return Plan(
        recipe=run.recipe,
        architecture=type(run.model.get_base_model() if is_adapted(run.model) else run.model).__name__,
        device=device,
        present=present,
        method="full" if not is_adapted(run.model) else "QLoRA" if run.bits else "LoRA",
        precision={torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "float32"),
        checkpointing=variations[0].checkpointing,
        parts=parameters_by_part(run.model),
        memory=by_kind(step, device, bytes_needed),
        needed=bytes_needed,
        fits=fits,
        changes=changes,
        rows=rows,
        accumulation=accumulation,
        longest=work.longest,
        tokens=work.tokens,
        tokens_per_epoch=work.tokens_per_epoch,
        steps_per_epoch=work.steps_per_epoch,
        steps=work.steps,
        flops_per_step=int(flops_per_step),
        utilisation=utilisation,
        times=times,
        price_per_hour=args.price_per_hour,
        budget=args.budget,
        calibrated=calibrate,
        assumed=assumed,
    )


class _Weightless(Trainer):
    """A Trainer of a model on the meta device, for the optimizer that it would make."""

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model
