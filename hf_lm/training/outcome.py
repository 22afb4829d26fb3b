"""What `fit` reports about a training: the contents of report.json."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import EncoderDecoderModel, PreTrainedModel

from hf_lm.arguments import TrainingArguments
from hf_lm.files import fingerprints
from hf_lm.models.adapters import base_of, is_adapted
from hf_lm.models.configuration import commit_of, model_fingerprint
from hf_lm.reporting.report import peak_memory_bytes, versions
from hf_lm.tasks.task import Measured, Task
from hf_lm.training.processes import on_main_process
from hf_lm.training.safe_trainer import SafeTrainerMixin


class Finished(NamedTuple):
    """A trained model as it is saved."""

    model: PreTrainedModel
    adapter: Path | None  # the folder of the adapter, where one was saved
    files: list[str]  # of the model, by their paths in the output folder
    tags: list[str]  # for the card: a callback's, such as trackio's, or TRL's
    proofs: dict[str, Any]


def outcome(
    trainer: SafeTrainerMixin,
    task: Task,
    args: TrainingArguments,
    measured: dict[str, Measured],
    finished: Finished,
    *,
    origin: dict[str, str],  # see `origin_of`
    trainable: int,  # parameters
    swept: list[dict[str, float]],
) -> dict[str, Any]:
    """The report of a run but for its proofs and its seconds, which end when it is written."""
    model = finished.model
    return {
        "recipe": task.recipe,
        "kind": task.kind,
        "pipeline_tag": task.pipeline_tag,
        "main_metric": task.main_metric,
        "unit": task.unit,
        "seconds": 0.0,
        "versions": versions(),
        "processes": args.world_size,
        "device": describe_devices(args),
        "arguments": {name: args.run.get(name, value) for name, value in args.changed.items()},  # as run.yaml has them
        **task.report(measured),
        "model": {
            "architecture": type(model).__name__,
            "auto_class": task.auto_class,
            "parameters": model.num_parameters(),
            "trainable": trainable,
            "model_type": model.config.model_type,
            "tags": finished.tags,
            **origin,
            "base_commit": commit_of(origin.get("base", "")),  # of a base on the Hub
        },
        "proofs": {},  # the last of which are still under way
        "metrics": {split: with_baseline(task, split, scores) for split, scores in measured.items()},
        "sweep": swept,
        "samples": task.samples(model),
        "speed": trainer.speedometer.speed | {"peak_memory_bytes": peak_memory_bytes()},
        "history": trainer.state.log_history,
        "files": fingerprints(args.output_dir, [name for name in finished.files if not name.endswith(".md")]),
    }


def times(plan: dict[str, float] | None, checkpoint: Path | None, *, started: float, begun: float) -> dict[str, Any]:
    """The seconds since the recipe started, the checkpoint that was resumed then, and the plan beside what it took.

    `begun`: when `fit` began, whose seconds are planned. Both by time.monotonic().
    """
    now = time.monotonic()
    resumed = {"resumed": checkpoint.name} if checkpoint else {}
    return {"seconds": now - started} | resumed | ({"plan": plan | {"took": now - begun}} if plan else {})


def with_baseline(task: Task, split: str, measured: Measured) -> dict[str, Any]:
    """The metrics of a split for report.json, each with the baseline's on the same examples where that has one."""
    name, trivial = task.baseline(split)
    baseline, metrics = trivial.metrics(), {}
    for key, estimate in measured.metrics().items():
        metrics[key] = estimate.interval().report()
        if key in baseline:
            beaten = estimate.beats(baseline[key])
            metrics[key]["baseline"] = {"name": name, "value": baseline[key].value, "beaten": beaten}
    return metrics


def origin_of(model: PreTrainedModel) -> dict[str, str]:
    """The checkpoint that a model was loaded from as `base`, and as `decoder` that of a decoder loaded by itself.

    Empty for a model that was randomly initialised.
    """
    plain = base_of(model)
    base, decoder = _source(plain), ""
    if not base and isinstance(plain, EncoderDecoderModel):
        base, decoder = _source(plain.encoder), _source(plain.decoder)
    origin = {"base": base, "decoder": "" if decoder == base else decoder}
    return {key: name for key, name in origin.items() if name}


def _source(model: PreTrainedModel | None) -> str:
    return getattr(model, "loaded_from", "") or getattr(model, "name_or_path", "")


def describe_devices(args: TrainingArguments) -> str:
    """The devices of a run: shows a launch that started one process where several were wanted."""
    n, kind = args.world_size, args.device.type
    if kind == "cpu":
        kind += f", {torch.get_num_threads()} threads each" if n > 1 else f", {torch.get_num_threads()} threads"
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    return f"{n} process{'es' if n > 1 else ''} ({kind}), {precision}"


def base_of_an_adapter(model: PreTrainedModel) -> Iterable[str]:
    """Its folder or Hub id, which no checkpoint holds; nothing for a model that is trained completely."""
    return origin_of(base_of(model)).values() if is_adapted(model) else ()


def models_of(names: list[str]) -> dict[str, str]:
    """What a checkpoint records of the models that it does not hold; the main process reads them."""
    return on_main_process(lambda: {f"model {name}": model_fingerprint(name) for name in names})
