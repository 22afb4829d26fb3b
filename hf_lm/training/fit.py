"""`fit`: prove, train, evaluate, save, report, push."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from hf_lm import dry_run
from hf_lm.arguments import TrainingArguments
from hf_lm.files import fingerprints
from hf_lm.hub.push import check_repository, push_to_hub
from hf_lm.models.adapters import has_base, is_adapted, merged
from hf_lm.models.quantization import quantized_bits
from hf_lm.output_folder import prepare_output, remove_results, save_run
from hf_lm.reporting.card import write_card
from hf_lm.reporting.plots import draw_plots
from hf_lm.reporting.report import (
    in_hours,
    peak_memory_bytes,
    plain,
    save_predictions,
    save_report,
    show_report,
    versions,
)
from hf_lm.tasks import proofs
from hf_lm.tasks.proofs import prove
from hf_lm.tasks.task import Measured, Task
from hf_lm.training.budget import EXIT_OUT_OF_BUDGET, StopAtBudget
from hf_lm.training.checkpoints import check_same_run, find_checkpoint, save_aside
from hf_lm.training.estimate import forecast
from hf_lm.training.selection import EarlyStopping, search_learning_rate
from hf_lm.training.trainer import SafeTrainerMixin, supervised_trainer

logger = logging.getLogger(__name__)


def fit(
    model: Any,
    task: Task,
    training_args: TrainingArguments,
    *,
    merge: bool = True,
    build_trainer: Callable[..., SafeTrainerMixin] = supervised_trainer,
    extra_report: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a model on a task and leave the whole output folder; returns the report.

    `merge` adds an adapter's updates to its base; without it the folder holds the adapter alone. `build_trainer(model,
    args, task, measure)` is what trains: hf_lm.training.trl_trainers has TRL's. `extra_report`: what a method measured
    before this training, as parts of the report.
    Before training, the proofs and, if asked, the checkpoint to resume; after it, the numbers on validation and, once,
    on test, the load-back in a fresh process, the card, the report and the push. report.json is written last: a
    folder that holds one is complete. Raises ValueError when a proof fails, when there is no token to push with or the
    repository's name is none, and FileExistsError when the output folder holds a run, or files of the user's that
    would be replaced; a signal, or a budget that is spent, ends the process after a checkpoint.
    """
    dry_run.reached(model, task, training_args, merge=merge, build_trainer=build_trainer, extra_report=extra_report)
    started = time.monotonic()
    disable_progress_bar()  # transformers' bars for writing shards, which cut through the one of training
    state = PartialState()
    say = state.print
    folder = Path(training_args.output_dir)
    resume = training_args.resume_from_checkpoint
    if training_args.push_to_hub:
        if not training_args.hub_model_id:
            raise ValueError("--push_to_hub needs --hub_model_id user/name.")
        check_repository(training_args.hub_model_id, training_args.hub_token)
    if is_adapted(model) and not merge and not has_base(model):
        raise ValueError(
            "--merge false leaves an adapter alone, and here it would have no base that loads by its name."
        )
    with state.main_process_first():
        if state.is_main_process:
            prepare_output(
                folder,
                resume=bool(resume),
                overwrite=training_args.overwrite_output_dir,
                inputs=[getattr(model, "name_or_path", "")],
            )
    checkpoint = find_checkpoint(resume, folder) if resume else None
    if checkpoint is not None and not training_args.resume_with_changes:
        check_same_run(checkpoint, training_args.run)

    if training_args.load_best_model_at_end and not training_args.run.get("metric_for_best_model"):
        training_args.metric_for_best_model = task.main_metric
        training_args.greater_is_better = task.greater_is_better
    newest: dict[int, Any] = {}  # the last evaluation while training, by its step

    def build(model: torch.nn.Module, args: TrainingArguments) -> SafeTrainerMixin:
        def measure(model: torch.nn.Module) -> dict[str, float]:
            scores = task.measure(model, "validation", trainer.accelerator)
            newest.clear()
            newest[trainer.state.global_step] = scores
            numbers = {"loss": scores.loss}
            estimates = scores.metrics()
            for name in sorted(estimates, key=lambda name: name != task.main_metric):  # it stands on the bar
                interval = estimates[name].interval()
                numbers |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
            return {name: number for name, number in numbers.items() if number is not None}

        trainer = build_trainer(model, args, task, measure)
        if args.early_stopping_patience:
            estimate = lambda: newest[trainer.state.global_step].metrics()[task.main_metric]  # noqa: E731
            trainer.add_callback(EarlyStopping(args.early_stopping_patience, estimate))
        return trainer

    trainer = build(model, training_args)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(
        f"{type(model).__name__}: {model.num_parameters():,} parameters, {trainable:,} "
        f"({trainable / model.num_parameters():.1%}) trained, on {describe(trainer)}"
    )
    if task.tokenizer_warning:
        say(f"  warning: {task.tokenizer_warning}")
    plan = planned(trainer, task) if state.is_main_process and checkpoint is None else None
    if plan is not None and plan["seconds"] > training_args.budget:
        say(
            f"  this run is planned to take {in_hours(plan['seconds'])}, more than its budget of "
            f"{in_hours(training_args.budget)}: it will stop with a checkpoint"
        )
    found = prove(task.proofs_before(trainer), skip=training_args.skip_proofs, say=say)
    swept = []
    if training_args.sweep and checkpoint is None:
        swept = search_learning_rate(
            build,
            model,
            training_args,
            metric=task.main_metric,
            greater_is_better=task.greater_is_better,
            say=say,
        )
        newest.clear()
        training_args.learning_rate = swept[0]["learning_rate"]
        training_args.run |= {"learning_rate": training_args.learning_rate, "sweep": 0}  # what run.yaml repeats
    if state.is_main_process:  # not earlier: a run that ended before this leaves the folder as it was
        if checkpoint is None or training_args.resume_with_changes:
            remove_results(folder, checkpoints=checkpoint is None)
        save_run(training_args.run, folder)
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")

    budget = None
    if training_args.budget < float("inf"):
        saved = sum(p.numel() * p.element_size() for p in model.parameters()) + 2 * 4 * trainable
        budget = StopAtBudget(training_args.budget, started=started, checkpoint_bytes=saved)
        trainer.add_callback(budget)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    go_on = (
        f"checkpoint-{step} is complete. Go on with the same command and --resume_from_checkpoint latest, or "
        f"--config {folder / 'run.yaml'} --resume_from_checkpoint latest."
    )
    if trainer.stop.stopped:
        say(f"stopped by a signal after step {step}; {go_on}")
        raise SystemExit(128 + trainer.stop.signal)
    if budget is not None and budget.stopped:
        say(
            f"stopped after step {step} of {trainer.state.max_steps}, {in_hours(time.monotonic() - started)} of "
            f"{in_hours(training_args.budget)}; {go_on}"
        )
        raise SystemExit(EXIT_OUT_OF_BUDGET)

    step = trainer.state.best_global_step if training_args.load_best_model_at_end else trainer.state.global_step
    # Measured anew where the best is not the last: a threshold that a task chooses on validation must be this model's.
    measured = {"validation": newest.get(step) or task.measure(trainer.model, "validation", trainer.accelerator)}
    if "test" in task.splits:
        measured["test"] = task.measure(trainer.model, "test", trainer.accelerator)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model.config.use_cache = True  # the Trainer turned it off for training, and would save that
    model.eval()
    tags = list(model.model_tags or [])  # of a callback, such as trackio's, or of TRL
    if state.is_main_process:
        remove_results(folder, checkpoints=False)  # of the same run, where a finished one was resumed
    state.wait_for_everyone()

    def save(name: str, write: Callable[[Path], None]) -> list[str]:
        return save_aside(folder, name, write, main=state.is_main_process, wait=state.wait_for_everyone)

    adapter, bits, saved = None, quantized_bits(model), []
    if is_adapted(model) and not merge:
        adapter = folder
    elif is_adapted(model):
        if has_base(model):
            adapter = folder / "adapter"
            saved += save("the adapter", lambda aside: trainer.save_model(str(aside / "adapter")))
        before = proofs.logits_of(model, task.probe())
        trainer.model = model = merged(model)
        merging = lambda: proofs.merging(before, proofs.logits_of(model, task.probe()), bits=bits)  # noqa: E731
        found |= prove({"merging": merging}, skip=training_args.skip_proofs, say=say)
    saved += save("the model", lambda aside: trainer.save_model(str(aside)))
    report: dict[str, Any] = {}
    if state.is_main_process:
        found |= prove(task.proofs_after(model, folder, adapter), skip=training_args.skip_proofs, say=say)
        report = {
            "recipe": task.recipe,
            "pipeline_tag": task.pipeline_tag,
            "main_metric": task.main_metric,
            "unit": task.unit,
            "seconds": 0.0,
            "versions": versions(),
            "processes": state.num_processes,
            "device": describe(trainer),
            "arguments": training_args.changed,
            **task.report(measured),
            "model": {
                "architecture": type(model).__name__,
                "auto_class": task.auto_class,
                "parameters": model.num_parameters(),
                "trainable": trainable,
                "model_type": model.config.model_type,
                "tags": tags,
            },
            "proofs": found,
            "metrics": {split: with_baseline(task, split, scores) for split, scores in measured.items()},
            "sweep": swept,
            "samples": task.samples(model),
            "speed": trainer.speedometer.speed | {"peak_memory_bytes": peak_memory_bytes()},
            "history": trainer.state.log_history,
            "files": fingerprints(folder, [name for name in saved if not name.endswith(".md")]),
        }
        if plan is not None:
            report["plan"] = plan
        report |= extra_report or {}
        if training_args.run.get("model"):
            report["model"]["base"] = training_args.run["model"]
        if training_args.run.get("decoder"):
            report["model"]["decoder"] = training_args.run["decoder"]
        report["seconds"] = time.monotonic() - started
        report = plain(report)
        save_predictions(task.predictions(measured), folder)
        draw_plots(report, folder)
        write_card(report, folder)
        save_report(report, folder)
        show_report(report, folder)
        if training_args.push_to_hub:
            url = push_to_hub(
                folder,
                training_args.hub_model_id,
                private=bool(training_args.hub_private_repo),
                token=training_args.hub_token,
            )
            say(f"pushed to {url}")
    state.wait_for_everyone()
    return report


def planned(trainer: SafeTrainerMixin, task: Task) -> dict[str, float] | None:
    """What this run should take, as report.json has it; None where it cannot be told, for it must not end a run."""
    try:
        return forecast(trainer, task)
    except Exception as error:
        logger.debug("no plan: %s", error)
        return None


def with_baseline(task: Task, split: str, measured: Measured) -> dict[str, Any]:
    """The metrics of a split as report.json holds them, each beside the trivial model's on the same examples.

    What the trivial model has no number for stands alone.
    """
    name, trivial = task.baseline(split)
    baseline, found = trivial.metrics(), {}
    for key, estimate in measured.metrics().items():
        found[key] = estimate.interval().report()
        if key in baseline:
            beaten = estimate.beats(baseline[key])
            found[key]["baseline"] = {"name": name, "value": baseline[key].value, "beaten": beaten}
    return found


def describe(trainer: SafeTrainerMixin) -> str:
    """The devices of a run in words: a launch that silently started one process is seen here."""
    n, kind = trainer.args.world_size, trainer.args.device.type
    if kind == "cpu":
        kind += f", {torch.get_num_threads()} threads each" if n > 1 else f", {torch.get_num_threads()} threads"
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "float32"
    return f"{n} process{'es' if n > 1 else ''} ({kind}), {precision}"
