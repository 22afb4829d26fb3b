"""What a run needs before it starts: parameters, FLOPs, memory, time, energy and price, and whether it fits.

The recipe itself runs, with its own arguments, up to `fit` (hf_lm.resolving); a training step of its model is run on
fake tensors (hf_lm.training.forecast); what fits is told by a table of devices (hf_lm.devices).
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_lm.devices import CONTEXT, GIB, USABLE, Device
from hf_lm.models.adapters import add_lora, is_adapted
from hf_lm.report import in_hours, peak_memory_bytes
from hf_lm.resolving import Resolved
from hf_lm.training import forecast as forecasting
from hf_lm.training.forecast import (
    UTILISATION,
    Step,
    checkpoints_activations,
    filled,
    fresh_optimizer,
    longest_batch,
    measure_step,
    parameters_by_part,
    precision,
)
from hf_lm.training.monitor import peak_flops
from hf_lm.training.trainer import Trainer

LORA_RANK = 16  # of the LoRA that a plan proposes
GROWTH = 1.04  # by which the peak of a process on a CPU rises after the steps that are tried (docs/plan.md)
TRIED = 100  # steps at most where rows differ in length: each new shape adds to the memory of the process
TRIED_FOR = 10.0  # seconds at most, after the first four
DEVICES = (2, 4, 8, 16, 32, 64)  # over which it proposes to shard


@dataclass
class Change:
    """A change that would make a run fit, what it then needs in bytes, and whether that fits; `said` is for people."""

    said: str
    needed: int
    fits: bool
    options: dict[str, Any]  # of the recipe


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
    args, task = run.args, run.task
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation is {utilisation}; it is a share of the device's speed, above 0 and up to 1.")
    dtype = precision(args)
    is_cpu = device.name == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        args = copy.copy(args)
        args.output_dir, args.report_to = folder, []

        def step_of(one: Variation, rows: int) -> Step:
            model, trainer = one.model, _trainer(_Weightless, one.model, task, args)
            accumulation = args.gradient_accumulation_steps * -(-args.per_device_train_batch_size // rows)
            step = measure_step(
                model,
                longest_batch(task, rows),
                loss=task.loss,
                optimizer=lambda model: fresh_optimizer(trainer, model),
                dtype=dtype,
                checkpointing=one.checkpointing,
                accumulation=accumulation,
            )
            return quantized(step, model, one.bits) if one.bits else step

        def needs(one: Variation, rows: int) -> int:
            return needed(step_of(one, rows), device, model=one.model, n=one.devices)

        variations, rows = variations_of(run), args.per_device_train_batch_size
        step = step_of(variations[0], rows)
        bytes_needed = needed(step, device, model=run.model)
        work = forecasting.work_of(task, args, scales=run.scales)
        flops = device.flops.get("float32" if dtype == torch.float32 else "half")
        flops = flops or peak_flops(torch.device("cpu") if is_cpu else args.device, dtype)
        times = work.seconds(step, flops * utilisation)
        assumed = list(run.assumed)
        if calibrate:
            found = run_a_little(run, args, work)
            times |= found.times
            saving = step.memory["weights"]  # are held twice while they are written
            bytes_needed = int(GROWTH * found.peak) + saving if is_cpu else max(bytes_needed, found.peak)
            per_step = sum(step.flops.values()) / work.longest * work.tokens / work.steps
            utilisation = per_step / (times["training"] / work.steps) / flops
        else:
            assumed.insert(0, f"{utilisation:.0%} of the device's matrix speed, {flops / 1e12:,.3g} TFLOP/s")
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
        memory=_kinds(step, device, bytes_needed),
        needed=bytes_needed,
        fits=fits,
        changes=changes,
        rows=rows,
        accumulation=args.gradient_accumulation_steps,
        longest=work.longest,
        tokens=work.tokens,
        tokens_per_epoch=work.tokens_per_epoch,
        steps_per_epoch=work.steps_per_epoch,
        steps=work.steps,
        flops_per_step=int(sum(step.flops.values()) / work.longest * work.tokens / work.steps),
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


def _trainer(trainer_class: type[Trainer], model: nn.Module, task: Any, args: Any) -> Trainer:
    return trainer_class(
        model,
        args,
        loss=task.loss,
        shifts_labels=task.shifts_labels,
        measure=lambda model: {},
        context=task.context,
        train_dataset=task.train_dataset,
        data_collator=task.collate,
        processing_class=task.tokenizer,
    )


def needed(step: Step, device: Device, *, model: nn.Module, n: int = 1) -> int:
    """Bytes that a step needs on each of n devices that share weights, gradients and optimizer state (FSDP).

    Of the shared weights the largest block is whole while it works. Beside the tensors stands, on a CPU, the process
    with its libraries as it is now, on a GPU its context.
    """
    shared = sum(step.memory[kind] for kind in ("weights", "gradients", "optimizer"))
    own = step.peak - shared
    whole = 0 if n == 1 else 2 * largest_block(model)
    live = shared // n + own + whole
    if device.name == "cpu":
        live = max(live, step.proofs)
        return forecasting.resident(live - step.memory["weights"], step.memory["weights"])
    return int(live / USABLE) + CONTEXT


def largest_block(model: nn.Module) -> int:
    """Bytes of the largest layer of a stack, or of the embedding if that is larger."""
    blocks = [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]
    blocks += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return max((sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks), default=0)


def quantized(step: Step, model: nn.Module, bits: int) -> Step:
    """A step whose frozen matrices are held in 4 bits (NF4 with quantized constants) or 8 (LLM.int8).

    One matrix at a time is whole, in float32, while it is multiplied.
    """
    plain = model.get_base_model() if is_adapted(model) else model
    ends = {id(end.weight) for end in (plain.get_input_embeddings(), plain.get_output_embeddings()) if end is not None}
    frozen = [
        module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "lora_" not in path and not module.weight.requires_grad
    ]
    frozen = [weight for weight in frozen if id(weight) not in ends]
    # 4 bits and, of each 64 weights, a constant of 8 bits, of each 256 of these one of 32; 8 bits and a scale a row.
    size = sum(w.numel() * (1 / 2 + 1 / 64 + 4 / (64 * 256)) if bits == 4 else w.numel() + 4 * len(w) for w in frozen)
    memory = dict(step.memory)
    memory["weights"] += int(size) - 4 * sum(w.numel() for w in frozen)
    memory["activations"] += 4 * max((w.numel() for w in frozen), default=0)
    return replace(step, memory=memory)


@dataclass(frozen=True)
class Variation:
    """A run with something changed: its name for people, what is then trained how, and the recipe's options for it."""

    name: str
    model: nn.Module
    checkpointing: bool
    bits: int
    devices: int
    options: dict[str, Any]


def variations_of(run: Resolved) -> list[Variation]:
    """What can be changed about a run, in the order of what it costs.

    Activation checkpointing costs a second forward; LoRA and QLoRA are another kind of training, offered where the
    recipe has it and starts from a checkpoint; sharding takes more devices. Each keeps the checkpointing before it.
    """
    checkpointing, model = checkpoints_activations(run.args), run.model
    plain = model.get_base_model() if is_adapted(model) else model
    found = [Variation("", model, checkpointing, run.bits, 1, {})]
    options: dict[str, Any] = {}
    if plain.supports_gradient_checkpointing and not checkpointing:
        checkpointing, options = True, {"activation_checkpointing": True}
        found.append(Variation("activation checkpointing", model, True, run.bits, 1, options))
    adapted, rank = model, {}
    if "lora_rank" in run.arguments and run.arguments.get("model") and not run.bits:
        if not is_adapted(model):
            adapted, rank = add_lora(copy.deepcopy(model), rank=LORA_RANK), {"lora_rank": LORA_RANK}
            found.append(Variation(f"LoRA of rank {LORA_RANK}", adapted, checkpointing, 0, 1, options | rank))
        if "quantize" in run.arguments:
            found.append(Variation("QLoRA in 4 bits", adapted, checkpointing, 4, 1, options | rank | {"quantize": 4}))
    for n in DEVICES:
        found.append(Variation(f"sharding over {n} devices (FSDP)", model, checkpointing, run.bits, n, options))
    return found


def propose(
    variations: Sequence[Variation],
    needs: Callable[[Variation, int], int],
    memory: int,
    *,
    rows: int,
    accumulation: int = 1,
) -> list[Change]:
    """The changes tried up to the first that fits `memory`: each with the batch as it is, then with smaller ones.

    `needs(variation, rows)` is in bytes. A smaller batch is accumulated to the same, so that training does not change.
    """
    tried: list[Change] = []

    def change(one: Variation, few: int) -> Change:
        options, said = dict(one.options), [one.name] if one.name else []
        if one.checkpointing and "activation_checkpointing" in options and one.name != "activation checkpointing":
            said.append("activation checkpointing")
        if few < rows:
            times = accumulation * -(-rows // few)
            options |= {"per_device_train_batch_size": few, "gradient_accumulation_steps": times}
            said.append(f"batches of {few} accumulated {times} times")
        bytes_needed = needs(one, few)
        return Change(" + ".join(said), bytes_needed, bytes_needed <= memory, options)

    halved = [rows >> i for i in range(rows.bit_length())]
    for one in variations:
        sizes = halved if one.name else halved[1:]
        if not sizes:
            continue
        tried.append(change(one, sizes[0]))
        if tried[-1].fits:
            return tried
        smallest = change(one, sizes[-1])
        if not smallest.fits:
            tried += [smallest] * (len(sizes) > 1)
            continue
        for few in sizes[1:]:
            if (found := change(one, few)).fits:
                return [*tried, found]
    return tried


def _kinds(step: Step, device: Device, needed: int) -> dict[str, int]:
    """The memory of a step by kind, and what stands beside it."""
    rest = "process and allocator" if device.name == "cpu" else "context and allocator"
    return step.memory | {rest: max(0, needed - step.peak)}


# Three real steps


@dataclass
class Measured:
    times: dict[str, float]
    peak: int  # bytes


def run_a_little(run: Resolved, args: Any, work: forecasting.Work) -> Measured:
    """Train random weights of the run's shape for a few steps here, and measure a part of a split with them.

    The first two batches warm up; the next two are timed, and where rows differ in length some more. Raises
    ValueError for quantized weights.
    """
    if run.bits:
        raise ValueError("--calibrate cannot run a quantized model: leave --quantize out of the plan, or --calibrate.")
    device = args.device
    model = filled(run.model, lambda tensor: _random(tensor, device))
    args = copy.copy(args)
    args.max_steps, args.save_strategy, args.eval_strategy = TRIED, SaveStrategy.NO, IntervalStrategy.NO
    args.load_best_model_at_end, args.disable_tqdm, args.logging_strategy = False, True, IntervalStrategy.NO
    trainer = _trainer(Trainer, model, run.task, args)
    marks: list[tuple[float, int]] = []
    varied = not hasattr(run.task.train_dataset, "block_size")

    def enough() -> bool:
        marks.append((time.perf_counter(), int(trainer.tokens_seen)))
        return len(marks) >= 4 and (not varied or marks[-1][0] - marks[3][0] > TRIED_FOR)

    trainer.add_callback(_Clock(enough))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    (begun, before), (ended, after) = marks[1], marks[-1]
    times = {"training": work.tokens * (ended - begun) / (after - before)}
    read, seconds = _measure_some(run.task, model)
    times["evaluation"] = work.measured / read * seconds
    times["around"] = work.around
    return Measured(times, peak_memory_bytes())


class _Clock(TrainerCallback):
    def __init__(self, enough: Callable[[], bool]) -> None:
        self.enough = enough

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        control.should_training_stop = self.enough()


def _random(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not tensor.is_meta:
        return tensor.detach().clone().to(device)
    if tensor.ndim < 2:
        return torch.ones(tensor.shape, dtype=tensor.dtype, device=device)
    return torch.randn(tensor.shape, dtype=tensor.dtype, device=device).mul_(0.02)


def _measure_some(task: Any, model: nn.Module, *, documents: int = 32, tokens: int = 2**14) -> tuple[int, float]:
    """Measure a batch or two of validation; returns the tokens read, as tokens_measured counts them, and the seconds.

    So many tokens are a batch of an evaluation (hf_lm.data.batches): its memory is then seen too.
    """
    task = copy.copy(task)
    if hasattr(task, "streams"):
        whole = task.streams["validation"]
        few = min(documents, len(whole))
        stop = int(whole.starts[few]) + 1 if few < len(whole) else whole.total
        part = replace(
            whole, tokens=whole.tokens[:stop], **{n: getattr(whole, n)[:few] for n in ("starts", "bytes", "words")}
        )
        task.streams = {"validation": part}
    else:
        whole, encoded = task.table.rows["validation"], task.encoded["validation"]
        rows = tokens * len(whole) // max(1, encoded.tokens) if not hasattr(task, "generation") else 64
        few = whole[:: max(1, len(whole) // max(1, rows))]
        task.table = replace(task.table, rows={"validation": few})
        task.encoded = {"validation": task.encode(few)}
        if hasattr(
            task, "generation"
        ):  # random weights never end a text; trained ones write about as much as is asked
            task.generation = copy.deepcopy(task.generation)
            longest = max(len(feature["labels"]) for feature in task.encoded["validation"].features)
            task.generation.max_new_tokens = min(longest, task.generation.max_new_tokens)
    begun = time.perf_counter()
    task.measure(model, "validation")
    return forecasting.tokens_measured(task, "validation"), time.perf_counter() - begun


# For people


def show(plan: Plan) -> str:
    """The plan as a table that is read in ten seconds."""
    where = "this machine" if plan.present else "by its data sheet"
    total = sum(part["parameters"] for part in plan.parts.values())
    trained = sum(part["trainable"] for part in plan.parts.values())
    kind = f"{plan.method}, {plan.precision}" + (", activation checkpointing" if plan.checkpointing else "")
    lines = [f"{plan.recipe}: {plan.architecture} on {plan.device.name} ({where}), {kind}", ""]
    lines.append(
        f"Parameters  {total:>15,}" + (f", {trained:,} trained ({trained / total:.1%})" if trained < total else "")
    )
    lines += [
        f"  {part:<10}{count['parameters']:>15,}  {_bar(count['parameters'], total)}"
        for part, count in plan.parts.items()
    ]
    lines += [
        "",
        f"Memory      {_size(plan.needed):>15} of {_size(plan.device.memory)}"
        + (" free" if plan.device.name == "cpu" else ""),
    ]
    lines += [f"  {name:<22}{_size(size):>9}  {_bar(size, plan.needed)}" for name, size in plan.memory.items()]
    if plan.fits:
        lines.append("  It fits.")
    else:
        lines.append("  It does NOT fit. Tried, the cheapest first:")
        lines += [f"    {'fits' if c.fits else 'no  '} {_size(c.needed):>9}  {c.said}" for c in plan.changes]
        if (last := plan.changes[-1]).fits and last.options:
            lines.append("    " + " ".join(f"--{key} {str(value).lower()}" for key, value in last.options.items()))
    batch = f"{plan.rows} rows, up to {plan.longest:,} tokens" + (
        f", {plan.accumulation} accumulated" if plan.accumulation > 1 else ""
    )
    lines += [
        "",
        f"Data        {plan.tokens_per_epoch:>15,} tokens, {plan.steps_per_epoch:,} steps an epoch (batch: {batch})",
        f"Training    {plan.tokens:>15,} tokens, {plan.steps:,} steps, "
        f"{plan.steps / plan.steps_per_epoch:.3g} epochs, {_flops(plan.flops)}",
        f"Time        {in_hours(plan.seconds):>15} = "
        + " + ".join(f"{in_hours(seconds)} {name}" for name, seconds in plan.times.items()),
    ]
    if plan.energy is not None:
        lines.append(f"Energy      {plan.energy:>11,.2f} kWh at {plan.device.watts} W")
    if plan.price is not None:
        lines.append(f"Price       {plan.price:>15,.2f} at {plan.price_per_hour:g} an hour")
    if plan.seconds > plan.budget:
        lines.append(f"Budget      {in_hours(plan.budget):>15}: the run will stop there with a checkpoint")
    said = "Measured in a few steps here" if plan.calibrated else "Assumed"
    said += f": {plan.utilisation:.0%} of the device's matrix speed" if plan.calibrated else ""
    lines += [
        "",
        said
        + (": " if plan.assumed and not plan.calibrated else "; " if plan.assumed else "")
        + "; ".join(plan.assumed),
    ]
    return "\n".join(lines)


def _bar(part: float, whole: float, width: int = 24) -> str:
    return "█" * round(width * part / whole) if whole else ""


def _size(size: float) -> str:
    if size >= 10 * GIB:
        return f"{size / GIB:,.1f} GiB"
    return f"{size / 2**20:,.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**10:,.0f} KiB"


def _flops(count: float) -> str:
    for power, name in ((18, "exa"), (15, "peta"), (12, "tera")):
        if count >= 10**power:
            return f"{count / 10**power:,.1f} {name}FLOP"
    return f"{count / 1e9:,.1f} gigaFLOP"
