"""What a run needs before it starts: parameters, FLOPs, memory, time, energy and price, and whether it fits.

The recipe itself runs, with its own arguments, up to `fit`; its models are built from their configurations, without
weights and without memory, and a training step of them is run on fake tensors (hf_lm.training.forecast).
"""

import contextlib
import copy
import difflib
import math
import re
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_lm.models import checkpoints
from hf_lm.models.adapters import add_lora, is_adapted
from hf_lm.report import in_hours, peak_memory_bytes
from hf_lm.training import forecast as forecasting
from hf_lm.training.forecast import (
    AROUND,
    UTILISATION,
    Step,
    filled,
    fresh_optimizer,
    longest_batch,
    measure_step,
    parameters_by_part,
    precision,
)
from hf_lm.training.monitor import peak_flops
from hf_lm.training.trainer import Trainer

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
LORA_RANK = 16  # of the LoRA that a plan proposes
DEVICES = (2, 4, 8, 16, 32, 64)  # over which it proposes to shard
SAMPLED = 32_000_000  # bytes of training text above which only the first documents are tokenized
SAMPLE = 8_000_000  # bytes of them


# The run


@dataclass
class Resolved:
    """What a recipe hands to `fit`, the model on the meta device; `scale`: how many times more data than was read."""

    recipe: str
    model: nn.Module
    task: Any
    args: Any
    arguments: dict[str, Any]  # as run.yaml has them
    bits: int = 0  # in which a frozen base is held; 0: in full
    scale: float = 1.0
    assumed: list[str] = field(default_factory=list)


def recipe_path(recipe: str) -> Path:
    """The file of a recipe, by its name or its path. Raises ValueError that names those there are."""
    if recipe.endswith(".py") and Path(recipe).is_file():
        return Path(recipe)
    folders = [Path(__file__).parent.parent / "recipes", Path(__file__).parent / "recipes"]
    found = {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}
    if recipe not in found:
        near = difflib.get_close_matches(recipe, found, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no recipe {recipe!r}; there are {', '.join(found)}, or a path to one.{hint}")
    return found[recipe]


def resolve(recipe: str, argv: Sequence[str], *, tokens: int = 0, bf16: bool | None = None) -> Resolved:
    """Run a recipe with its arguments up to `fit`, without weights.

    With `tokens` no data is read: text of the demo stands in for it, and so many tokens of it are trained on in an
    epoch. `bf16` says whether the device multiplies in bfloat16; None asks this machine. A wrong argument ends the
    process as it does in the recipe; ValueError for a recipe that does not end in `fit`.
    """
    path, found = recipe_path(recipe), []

    def caught(model: nn.Module, task: Any, training_args: Any, **_: Any) -> dict:
        found.append((model, task, training_args))
        return {}

    data = _Data(tokens)
    seams = {
        "hf_lm.training.fit": {"fit": caught},
        "hf_lm.models.checkpoints": {"_load_weights": _without_weights, "_is_causal": lambda model: True},
        **data.seams(),
    }
    if bf16 is not None:
        seams["hf_lm.arguments"] = {"bf16_is_fast": lambda: bf16}
    hook, command_line = sys.excepthook, sys.argv
    try:
        sys.argv = [str(path), *argv]
        with _replaced(seams), _empty_pairs(), init_empty_weights():
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.excepthook = command_line, hook
    if not found:
        raise ValueError(f"the recipe {recipe} does not end in `fit`, which is what a plan is made of.")
    model, task, args = found[0]
    plain = model.get_base_model() if is_adapted(model) else model
    plain.tie_weights()  # building without memory parts what is tied
    return Resolved(
        path.stem, model, task, args, args.run, int(args.run.get("quantize") or 0), **data.about(task, args)
    )


@contextlib.contextmanager
def _replaced(seams: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Modules with some of their names bound to other values; a recipe that is run meanwhile imports those."""
    before = {(module, name): getattr(import_module(module), name) for module in seams for name in seams[module]}
    try:
        for module, name in before:
            setattr(sys.modules[module], name, seams[module][name])
        yield
    finally:
        for (module, name), value in before.items():
            setattr(sys.modules[module], name, value)


def _without_weights(auto_class: type, name_or_path: str, config: Any, **_: Any) -> tuple[Any, dict]:
    model = auto_class.from_config(config)
    model.name_or_path = name_or_path
    return model, {"missing_keys": set()}


@contextlib.contextmanager
def _empty_pairs() -> Iterator[None]:
    """An encoder that serves as both sides of an encoder-decoder, without its weights."""
    from transformers import EncoderDecoderConfig, EncoderDecoderModel

    def pair(encoder: str, decoder: str, **_: Any) -> EncoderDecoderModel:
        sides = checkpoints.load_config(encoder), checkpoints.load_config(decoder)
        return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*sides))

    before = EncoderDecoderModel.__dict__["from_encoder_decoder_pretrained"]
    EncoderDecoderModel.from_encoder_decoder_pretrained = staticmethod(pair)
    try:
        yield
    finally:
        EncoderDecoderModel.from_encoder_decoder_pretrained = before


def _guess_column(rows: Any, asked: str, guesses: Sequence[str], **_: Any) -> str:
    return next(name for name in guesses if name in rows[0])


# Stand-in rows have the columns that tasks guess, not those of the data.
TASKS_GUESS = {
    f"hf_lm.tasks.{task}": {"pick_column": _guess_column}
    for task in ("sentiment", "question_answering", "translation", "summarization")
}


class _Data:
    """Where a plan takes its data from: as the run does, but of a large corpus only the first documents are tokenized;
    with `tokens`, from the demo.
    """

    def __init__(self, tokens: int) -> None:
        from hf_lm.data import sources, tables
        from hf_lm.tasks import language_modelling

        self.tokens, self.size = tokens, 0
        self.share: dict[str, float] = {}  # split -> how many times larger it is than what was read of it
        self._corpus, self._table = sources.load_corpus, tables.load_table
        self._tokenize = language_modelling.tokenize_documents
        self._aside = tempfile.TemporaryDirectory()

    def seams(self) -> dict[str, dict[str, Any]]:
        return {
            "hf_lm.data.sources": {"load_corpus": self.corpus},
            "hf_lm.data.tables": {"load_table": self.table},
            "hf_lm.tasks.language_modelling": {"tokenize_documents": self.tokenize},
        } | (TASKS_GUESS if self.tokens else {})

    def corpus(self, dataset: str, **options: Any) -> Any:
        if self.tokens:
            return self._corpus("demo")
        with _ask_for_tokens():
            corpus = self._corpus(dataset, **options)
        self.size = corpus.size
        return corpus

    def table(self, dataset: str, **options: Any) -> Any:
        if self.tokens:
            return _stand_in()
        with _ask_for_tokens():
            return self._table(dataset, **options)

    def tokenize(self, documents: Any, *, folder: Path, name: str = "text", **options: Any) -> Any:
        if self.size <= SAMPLED or folder.is_dir():
            return self._tokenize(documents, folder=folder, name=name, **options)
        taken = [0]

        def some() -> Iterator[str]:
            for text in documents:
                taken[0] += len(text.encode())
                yield text
                if taken[0] >= SAMPLE:
                    return

        stream = self._tokenize(some(), folder=Path(self._aside.name) / name, name=name, **options)
        whole = self.size if name == "train" else 0.05 * self.size
        self.share[name] = max(1.0, whole / taken[0]) if taken[0] >= SAMPLE else 1.0
        return stream

    def about(self, task: Any, args: Any) -> dict[str, Any]:
        lengths = forecasting.lengths_of(task)
        if self.tokens:
            said = (
                f"{self.tokens:,} tokens an epoch, as --tokens says: no data was read, rows are as long as they may be"
            )
            return {"scale": self.tokens / max(1, sum(lengths)), "assumed": [said]}
        if scale := self.share.get("train"):
            said = f"tokens of train from its {self.size / 1e6:,.0f} MB and the first {SAMPLE / 1e6:.0f} MB tokenized"
            return {"scale": scale, "assumed": [said]}
        return {}


@contextlib.contextmanager
def _ask_for_tokens() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "was not loaded from the Hub" not in str(error):
            raise
        raise ValueError(
            f"{error} To plan without the data, say how many training tokens it has: --tokens N."
        ) from None


def _stand_in() -> Any:
    """Labelled rows for any task where the data is not read: text of the demo, longer than any task keeps."""
    from hf_lm.data.demos import documentation
    from hf_lm.data.tables import Table

    long = [row["text"] for row in documentation() if len(row["text"]) > 4000]
    rows = []
    for i, text in enumerate(long[:200]):
        text = (text * 8)[:20_000]
        first = text.split()[0]
        row = dict.fromkeys(("text", "source", "target", "document", "summary", "context"), f"{i}. {text}")
        row |= {"question": text[:60], "answers": [{"text": first, "answer_start": row["context"].index(first)}]}
        rows.append(row | {"id": str(i), "label": str(i % 2)})
    return Table("stand-in", "", {"train": rows[20:], "validation": rows[:10], "test": rows[10:20]})


# The plan


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


def find_gpu(name: str) -> Device:
    """A device of GPUS by its name, however it is spelt. Raises ValueError with the closest name."""
    plain = re.sub(r"nvidia|geforce|amd|instinct|tesla|sxm\d?|[\s_]|^-|-$", "", name.lower())
    found = {re.sub(r"-", "", key): gpu for key, gpu in GPUS.items()}
    if (plain := plain.replace("-", "")) in found:
        return found[plain]
    near = difflib.get_close_matches(plain, found, n=1, cutoff=0.4)
    near = near or [key for key in found if plain and key.startswith(plain)]
    hint = f" Did you mean {found[near[0]].name!r}?" if near else ""
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

        def needs(model: nn.Module, rows: int, checkpointing: bool, bits: int, n: int = 1) -> tuple[Step, int]:
            """A step of a variation of the run, and the bytes that it needs on each of n devices."""
            trainer = _trainer(_Weightless, model, task, args)
            accumulation = args.gradient_accumulation_steps * -(-args.per_device_train_batch_size // rows)
            step = measure_step(
                model,
                longest_batch(task, rows),
                loss=task.loss,
                optimizer=lambda model: fresh_optimizer(trainer, model),
                dtype=dtype,
                checkpointing=checkpointing,
                accumulation=accumulation,
            )
            if bits:
                step = quantized(step, model, bits)
            return step, needed(step, device, model=model, n=n)

        rows, checkpointing = args.per_device_train_batch_size, bool(args.gradient_checkpointing)
        step, bytes_needed = needs(run.model, rows, checkpointing, run.bits)
        work = forecasting.work_of(task, args, scale=run.scale)
        flops = device.flops.get("float32" if dtype == torch.float32 else "half")
        flops = flops or peak_flops(torch.device("cpu") if is_cpu else args.device, dtype)
        times = work.seconds(step, flops * utilisation)
        assumed = list(run.assumed)
        if calibrate:
            found = run_a_little(run, args, work)
            times |= found.times
            bytes_needed = found.peak if is_cpu else max(bytes_needed, found.peak)
            per_step = sum(step.flops.values()) / work.longest * work.tokens / work.steps
            utilisation = per_step / (times["training"] / work.steps) / flops
        else:
            assumed.insert(0, f"{utilisation:.0%} of the device's matrix speed, {flops / 1e12:,.3g} TFLOP/s")
        fits = bytes_needed <= device.memory
        changes = [] if fits else propose(run, needs, device.memory)
    return Plan(
        recipe=run.recipe,
        architecture=type(run.model.get_base_model() if is_adapted(run.model) else run.model).__name__,
        device=device,
        present=present,
        method="full" if not is_adapted(run.model) else "QLoRA" if run.bits else "LoRA",
        precision={torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "float32"),
        checkpointing=checkpointing,
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


def propose(run: Resolved, needs: Callable[..., tuple[Step, int]], memory: int) -> list[Change]:
    """What could be changed, in the order of what it costs, up to the first change that fits `memory`.

    A smaller batch with accumulation costs nothing but speed; activation checkpointing a second forward; LoRA and
    QLoRA another kind of training; sharding more devices. Each is tried with the batch as it is and then smaller.
    """
    args, whole = run.args, run.args.per_device_train_batch_size
    plain = run.model.get_base_model() if is_adapted(run.model) else run.model
    lora = {"lora_rank": LORA_RANK}
    variations: list[tuple[str, nn.Module, bool, int, int, dict[str, Any]]] = []
    saving = bool(args.gradient_checkpointing) or not plain.supports_gradient_checkpointing
    variations.append(("", run.model, bool(args.gradient_checkpointing), run.bits, 1, {}))
    checkpoint = {} if saving else {"activation_checkpointing": True}
    on = plain.supports_gradient_checkpointing
    if not saving:
        variations.append(("activation checkpointing", run.model, on, run.bits, 1, checkpoint))
    if "lora_rank" in run.arguments and run.arguments.get("model") and not run.bits:
        adapted = run.model
        if not is_adapted(run.model):
            adapted = add_lora(copy.deepcopy(run.model), rank=LORA_RANK)
            variations.append((f"LoRA of rank {LORA_RANK}", adapted, on, 0, 1, checkpoint | lora))
        if "quantize" in run.arguments:
            variations.append(("QLoRA in 4 bits", adapted, on, 4, 1, checkpoint | lora | {"quantize": 4}))
    for n in DEVICES:
        variations.append((f"sharding over {n} devices (FSDP)", run.model, on, run.bits, n, checkpoint))

    tried: list[Change] = []
    for name, model, checkpointing, bits, n, options in variations:
        rows = whole
        smallest = None
        while rows:
            if name or rows < whole:
                if rows < whole and smallest is None:  # is there a batch that fits at all?
                    smallest = needs(model, 1, checkpointing, bits, n)[1]
                    if smallest > memory:
                        tried.append(_change(name, checkpointing, 1, whole, args, options, smallest, memory))
                        break
                change = _change(
                    name,
                    checkpointing,
                    rows,
                    whole,
                    args,
                    options,
                    needs(model, rows, checkpointing, bits, n)[1],
                    memory,
                )
                if change.fits or rows == whole:
                    tried.append(change)
                if change.fits:
                    return tried
            rows //= 2
    return tried


def _change(
    name: str, checkpointing: bool, rows: int, whole: int, args: Any, options: dict, needed: int, memory: int
) -> Change:
    said = [name] if name else []
    if checkpointing and not args.gradient_checkpointing and name != "activation checkpointing":
        said.append("activation checkpointing")
    if rows < whole:
        accumulation = args.gradient_accumulation_steps * -(-whole // rows)
        options = options | {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        said.append(f"batches of {rows} accumulated {accumulation} times")
    return Change(" + ".join(said), needed, needed <= memory, options)


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

    The first batch, which holds the longest rows where rows are grouped by length, warms up; the next three are timed.
    Raises ValueError for quantized weights.
    """
    if run.bits:
        raise ValueError("--calibrate cannot run a quantized model: leave --quantize out of the plan, or --calibrate.")
    device = args.device
    model = filled(run.model, lambda tensor: _random(tensor, device))
    args = copy.copy(args)
    args.max_steps, args.save_strategy, args.eval_strategy = 4, SaveStrategy.NO, IntervalStrategy.NO
    args.load_best_model_at_end, args.disable_tqdm, args.logging_strategy = False, True, IntervalStrategy.NO
    trainer = _trainer(Trainer, model, run.task, args)
    marks: list[tuple[float, int]] = []
    clock = _Clock(lambda: marks.append((time.perf_counter(), int(trainer.tokens_seen))))
    trainer.add_callback(clock)
    trainer.train()
    (begun, before), (ended, after) = marks[1], marks[-1]
    times = {"training": work.tokens * (ended - begun) / (after - before)}
    read, seconds = _measure_some(run.task, model)
    times["evaluation"] = work.measured / read * seconds
    times["around"] = AROUND
    return Measured(times, peak_memory_bytes())


class _Clock(TrainerCallback):
    def __init__(self, mark: Callable[[], None]) -> None:
        self.mark = mark

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.mark()


def _random(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not tensor.is_meta:
        return tensor.detach().clone().to(device)
    if tensor.ndim < 2:
        return torch.ones(tensor.shape, dtype=tensor.dtype, device=device)
    return torch.randn(tensor.shape, dtype=tensor.dtype, device=device).mul_(0.02)


def _measure_some(task: Any, model: nn.Module, rows: int = 32) -> tuple[int, float]:
    """Measure some rows of validation; returns the tokens read, as tokens_measured counts them, and the seconds."""
    task = copy.copy(task)
    if hasattr(task, "streams"):
        whole = task.streams["validation"]
        few = min(rows, len(whole))
        stop = int(whole.starts[few]) + 1 if few < len(whole) else whole.total
        part = replace(
            whole, tokens=whole.tokens[:stop], **{n: getattr(whole, n)[:few] for n in ("starts", "bytes", "words")}
        )
        task.streams = {"validation": part}
    else:
        few = task.table.rows["validation"]
        few = few[:: max(1, len(few) // rows)]
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
    where = "this machine" if plan.present else "assumed"
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
        f"Training    {plan.tokens:>15,} tokens, {plan.steps:,} steps, {_flops(plan.flops)}",
        f"Time        {in_hours(plan.seconds):>15} = "
        + " + ".join(f"{in_hours(seconds)} {name}" for name, seconds in plan.times.items()),
    ]
    if plan.energy is not None:
        lines.append(f"Energy      {plan.energy:>11,.2f} kWh at {plan.device.watts} W")
    if plan.price is not None:
        lines.append(f"Price       {plan.price:>15,.2f} at {plan.price_per_hour:g} an hour")
    if plan.seconds > plan.budget:
        lines.append(f"Budget      {in_hours(plan.budget):>15}: the run will stop there with a checkpoint")
    said = "Measured in three steps here" if plan.calibrated else "Assumed"
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
    return f"{size / GIB:,.1f} GiB" if size >= 10 * GIB else f"{size / 2**20:,.0f} MiB"


def _flops(count: float) -> str:
    for power, name in ((18, "exa"), (15, "peta"), (12, "tera")):
        if count >= 10**power:
            return f"{count / 10**power:,.1f} {name}FLOP"
    return f"{count / 1e9:,.1f} gigaFLOP"
