"""`hf-lm plan`: what a resolved run needs on a device.

The recipe itself runs, with its own arguments, up to `fit` (resolving); a training step of its model is run on fake
tensors (hf_lm.training.fake_step); the memory of devices is in a table (devices).
"""

import copy
import math
import tempfile
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hf_lm.arguments import TrainingArguments
from hf_lm.models.adapters import base_of, is_adapted
from hf_lm.planning.calibration import run_a_little
from hf_lm.planning.changes import Change, Variation, propose, variations_of
from hf_lm.planning.devices import Device
from hf_lm.planning.engines import Engine, engine_memory, host_memory
from hf_lm.planning.memory import needed, quantized
from hf_lm.planning.resolve import Resolved
from hf_lm.training.estimate import UTILISATION, Work, checkpoints_activations, one_step, precision, work_of
from hf_lm.training.fake_step import Step, parameters_by_part
from hf_lm.training.monitor import peak_flops
from hf_lm.training.processes import check_shardable, keep_rows_per_step
from hf_lm.training.trainer import Trainer, supervised_trainer

GROWTH = 1.04  # by which the peak of a process on a CPU rises after the steps that are tried (docs/plan.md)


@dataclass
class Plan:
    """What a run needs on a device: bytes, seconds, kilowatt-hours."""

    run: Resolved
    device: Device
    present: bool  # whether that device is this machine's
    work: Work
    step: Step
    needed: int  # bytes
    times: dict[str, float]  # seconds of training, evaluation and what is around them
    utilisation: float  # share of the device's matrix speed
    engine: Engine = field(default_factory=Engine)  # memory and `needed` are those of one of its devices
    host: int = 0  # bytes in the host's memory of each process, of what the engine offloads
    changes: list[Change] = field(default_factory=list)  # tried to make it fit
    calibrated: bool = False  # times, memory and utilisation were measured
    assumed: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        return "full" if not is_adapted(self.run.model) else "QLoRA" if self.run.bits else "LoRA"

    @property
    def precision(self) -> str:
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(precision(self.run.args), "float32")

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        return parameters_by_part(self.run.model)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by kind at the peak of a step, and what is beside its tensors."""
        rest = "process and allocator" if self.device.name == "cpu" else "context and allocator"
        return self.step.memory | {rest: max(0, self.needed - self.step.peak)}

    @property
    def fits(self) -> bool:
        return self.needed <= self.device.memory

    @property
    def flops_per_step(self) -> int:
        work = self.work
        return int(sum(self.step.flops.values()) / work.longest * work.tokens / work.steps)

    @property
    def seconds(self) -> float:
        return sum(self.times.values())

    @property
    def flops(self) -> float:
        return float(self.flops_per_step) * self.work.steps * self.work.trainings

    @property
    def energy(self) -> float | None:
        """Kilowatt-hours of the boards at full load; None where their power is not known."""
        return self.engine.devices * self.device.watts * self.seconds / 3.6e6 if self.device.watts else None

    @property
    def price(self) -> float | None:
        """Of the run, in the currency of --price_per_hour; None without one."""
        price = self.run.args.price_per_hour
        return price * self.seconds / 3600 if price else None

    def report(self) -> dict[str, Any]:
        """Plain values, for --json. What is not known or has no limit is absent."""
        run, work = self.run, self.work
        values = {
            "recipe": run.recipe,
            "architecture": type(base_of(run.model)).__name__,
            "device": asdict(self.device),
            "engine": asdict(self.engine),
            "host": self.host,
            "present": self.present,
            "method": self.method,
            "precision": self.precision,
            "checkpointing": checkpoints_activations(run.args),
            "parts": self.parts,
            "memory": self.memory,
            "needed": self.needed,
            "fits": self.fits,
            "changes": [asdict(change) for change in self.changes],
            "rows": run.args.per_device_train_batch_size,
            "accumulation": run.args.gradient_accumulation_steps,
            "longest": work.longest,
            "tokens": work.tokens,
            "tokens_per_epoch": work.tokens_per_epoch,
            "steps_per_epoch": work.steps_per_epoch,
            "steps": work.steps,
            "trainings": work.trainings,
            "flops_per_step": self.flops_per_step,
            "utilisation": self.utilisation,
            "times": self.times,
            "price_per_hour": run.args.price_per_hour,
            "budget": run.args.budget,
            "calibrated": self.calibrated,
            "assumed": self.assumed,
            "seconds": self.seconds,
            "flops": self.flops,
            "energy_kwh": self.energy,
            "price": self.price,
        }
        return {key: value for key, value in values.items() if value is not None and value != math.inf}


def make_plan(
    run: Resolved,
    device: Device,
    *,
    present: bool,
    utilisation: float = UTILISATION,
    calibrate: bool = False,
    engine: Engine | None = None,
) -> Plan:
    """The plan of a resolved run on a device, or on those of an engine; `present` says that it is this machine's.

    `calibrate` runs a few real steps here, and a part of an evaluation, and takes their time and memory. Raises
    ValueError for what an engine cannot shard, and where the model's step cannot be run.
    """
    engine = engine or Engine()
    _check_engine(engine, run)
    run = replace(run, args=copy.copy(run.args))
    keep_rows_per_step(run.args, None, processes=engine.devices)
    args, dtype = copy.copy(run.args), precision(run.args)
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir, args.report_to = folder, []  # the Trainer makes its output folder

        def step_with(variation: Variation, rows: int) -> Step:
            trainer = supervised_trainer(variation.model, args, run.task, lambda model: {}, trainer_class=_Weightless)
            shares = variation.engine.shares(half=dtype != torch.float32)
            step = one_step(trainer, run.task, rows=rows, checkpointing=variation.checkpointing, shares=shares)
            step = quantized(step, variation.model, variation.bits) if variation.bits else step
            return engine_memory(step, variation.engine, model=variation.model, dtype=dtype)

        def needs(variation: Variation, rows: int) -> int:
            return needed(step_with(variation, rows), device)

        variations, rows = variations_of(run, engine), args.per_device_train_batch_size
        step = step_with(variations[0], rows)
        work = work_of(run.task, args, scales=run.scales, processes=engine.devices)
        speed = _speed(device, args)
        times, bytes_needed = work.seconds(step, speed * utilisation), needed(step, device)
        plan = Plan(run, device, present, work, step, bytes_needed, times, utilisation, engine)
        plan.assumed = [*run.assumed, *_not_counted(args)]
        if engine.offload:
            alone = replace(variations[0], engine=Engine())
            plan.host = host_memory(step_with(alone, rows), engine, model=run.model, dtype=dtype)
        if calibrate:
            measured, peak = run_a_little(run, args, work)
            plan.calibrated, plan.times = True, plan.times | measured
            plan.utilisation = plan.flops / plan.times["training"] / speed
            saving = step.memory["weights"]  # are held twice while they are written
            plan.needed = int(GROWTH * peak) + saving if device.name == "cpu" else max(bytes_needed, peak)
        else:
            plan.assumed.insert(0, f"{utilisation:.0%} of the device's matrix speed, {speed / 1e12:,.3g} TFLOP/s")
        if not plan.fits:
            accumulation = args.gradient_accumulation_steps
            plan.changes = propose(variations, needs, device.memory, rows=rows, accumulation=accumulation)
    return plan


def _check_engine(engine: Engine, run: Resolved) -> None:
    if engine.name.startswith("zero") and run.args.muon_learning_rate:
        raise ValueError("ZeRO flattens weights and Muon needs matrices: --muon_learning_rate 0 or --engine fsdp2.")
    if engine.name != "ddp" and run.bits:
        raise ValueError(f"a quantized base is not sharded here: --engine ddp, or leave --quantize {run.bits} out.")
    if engine.name == "fsdp2":
        check_shardable(run.model)


def _not_counted(args: TrainingArguments) -> list[str]:
    """What the plan leaves out of a run, a line each."""
    left_out = {
        "logits of the whole vocabulary, of which --sampled_softmax needs a part": args.sampled_softmax > 0,
        "without the forward passes and the weights of the --teachers": bool(args.teachers),
    }
    return [line for line, applies in left_out.items() if applies]


def _speed(device: Device, args: TrainingArguments) -> float:
    """FLOP/s of a device's matrix products in the precision of a run: of its data sheet, or measured here."""
    dtype = precision(args)
    listed = device.flops.get("float32" if dtype == torch.float32 else "half")
    return listed or peak_flops(torch.device("cpu") if device.name == "cpu" else args.device, dtype)


class _Weightless(Trainer):
    """A Trainer of a model on the meta device, for the optimizer that it would make."""

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model
