"""`fit`: prove, train, measure, save, report, push."""

import contextlib
import copy
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from hf_lm import dry_run
from hf_lm.arguments import TrainingArguments
from hf_lm.hub.push import check_repository, push_to_hub
from hf_lm.launching import EXIT_OUT_OF_BUDGET
from hf_lm.models.adapters import base_of, has_base, is_adapted, merged
from hf_lm.models.quantization import quantized_bits
from hf_lm.output_folder import is_run, list_checkpoints, prepare_output, remove_results, save_run
from hf_lm.reporting.card import write_card
from hf_lm.reporting.plots import draw_plots
from hf_lm.reporting.report import in_hours, plain, save_predictions, save_report, show_report
from hf_lm.tasks.proofs import Proof, begin, check_skipped, logits_of, merging, prove
from hf_lm.tasks.task import Measured, Task
from hf_lm.training.budget import StopAtBudget
from hf_lm.training.checkpoints import (
    check_same_inputs,
    check_same_run,
    disk_errors,
    find_checkpoint,
    inputs_of,
    rates_tried,
    save_aside,
    searched_learning_rate,
)
from hf_lm.training.estimate import estimate_run
from hf_lm.training.outcome import (
    Finished,
    base_of_an_adapter,
    describe_devices,
    models_of,
    origin_of,
    outcome,
    times,
)
from hf_lm.training.processes import (
    check_engine,
    check_processes,
    counting_alone,
    describe_engine,
    empty_copy,
    full_weights,
    keep_rows_per_step,
    loads_on_one,
    on_main_process,
    prepare_sharding,
    with_weights,
)
from hf_lm.training.rates import choose_rate
from hf_lm.training.safe_trainer import SafeTrainerMixin
from hf_lm.training.selection import EarlyStopping, choose_direction, search_learning_rate, set_learning_rate
from hf_lm.training.trainer import supervised_trainer

logger = logging.getLogger(__name__)

BuildTrainer = Callable[[Any, TrainingArguments, Any, Callable[[PreTrainedModel], dict[str, float]]], SafeTrainerMixin]
Evaluations = dict[int, Measured]  # the last evaluation while training, by its step


def fit(
    model: PreTrainedModel,
    task: Task,
    training_args: TrainingArguments,
    *,
    merge: bool = True,
    build_trainer: BuildTrainer = supervised_trainer,
    extra_report: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a model, or peft's of one, on a task and write the complete output folder; returns the report.

    Of several processes the first writes: the others return {} when the model is saved, and wait for no upload.
    `merge` adds an adapter's updates to its base; without it the folder holds the adapter alone. `build_trainer(model,
    args, task, measure)` makes the Trainer: hf_lm.training.trl_trainers has TRL's. `extra_report`: what a method
    measured before this training, as parts of the report.

    report.json is written last: a folder that holds one is complete. Raises ValueError when a proof fails, when there
    is no token to push with or the repository's name is invalid, and FileExistsError when the output folder holds a
    run, or files of the user's that would be replaced. A signal, or a budget that is spent, ends the process after a
    checkpoint.
    """
    dry_run.reached(model, task, training_args, merge=merge, build_trainer=build_trainer, extra_report=extra_report)
    begun, state = time.monotonic(), PartialState()
    started = training_args.started or begun
    disable_progress_bar()  # transformers' bars for writing shards, which would break the bar of training
    args, origin = _own_arguments(training_args, task, model), origin_of(model)
    check_arguments(args, model, merge=merge)
    with contextlib.ExitStack() as lock:
        checkpoint = open_output(args, inputs=[*origin.values(), *args.teachers], lock=lock)
        inputs = inputs_of(task) | models_of([*base_of_an_adapter(model), *args.teachers])
        check_processes(Path(args.output_dir), inputs)
        if checkpoint is not None and not args.resume_with_changes:
            check_same_inputs(checkpoint, inputs)
        trainer, evaluations = build(model, task, args, build_trainer)
        trainer.inputs = inputs
        check_engine(trainer, task)
        empty = empty_copy(model) if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else None
        prepare_sharding(trainer)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        plan = announce(trainer, task, model, trainable, started=started, resumed=checkpoint is not None)
        before = task.proofs_before(trainer)
        check_skipped(args.skip_proofs, before)
        proofs = prove_all(trainer, before)
        make = lambda model, args: build(model, task, args, build_trainer)[0]  # noqa: E731
        sweep = args.sweep and checkpoint is None and search_learning_rate(make, model, args, task, started=started)
        swept = trainer.swept = sweep or rates_tried(checkpoint)
        replace_results(args, checkpoint)
        train(trainer, checkpoint, started=started)
        measured = measure(trainer, task, evaluations)
        finished = finish_model(trainer, task, args, merge=merge, empty=empty)
        report: dict[str, Any] = {}
        if state.is_main_process:
            after = task.proofs_after(finished.model, Path(args.output_dir), finished.adapter)
            loading = begin(after, skip=args.skip_proofs)  # meanwhile samples are drawn
            report = outcome(trainer, task, args, measured, finished, origin=origin, trainable=trainable, swept=swept)
            proofs |= finished.proofs | prove(loading, skip=args.skip_proofs, say=state.print)
            report |= {"proofs": proofs} | times(plan, checkpoint, started=started, begun=begun) | (extra_report or {})
            report = write_results(report, task, measured, args)
            push(args)
        return report


def _own_arguments(training_args: TrainingArguments, task: Task, model: PreTrainedModel) -> TrainingArguments:
    """A copy of the caller's arguments, with a learning rate.

    The best checkpoint is chosen by the task's metric unless they name one.
    """
    args = copy.copy(training_args)
    args.hub_token = training_args.hub_token  # which copies leave out
    if args.load_best_model_at_end and not args.names_metric:
        args.metric_for_best_model, args.greater_is_better = task.main_metric, task.greater_is_better
    if message := choose_rate(args, model):
        PartialState().print(message)
    return args


def check_arguments(args: TrainingArguments, model: PreTrainedModel, *, merge: bool) -> None:
    """Raise ValueError for what would fail only at the end of the run."""
    if args.push_to_hub:
        if not args.hub_model_id:
            raise ValueError("--push_to_hub needs --hub_model_id user/name.")
        check_repository(args.hub_model_id, args.hub_token)
    if is_adapted(model) and not merge and not has_base(model):
        raise ValueError(
            "--merge false saves an adapter alone, and this one would have no base that can be loaded by its name."
        )


def open_output(args: TrainingArguments, *, inputs: Iterable[str], lock: contextlib.ExitStack) -> Path | None:
    """Check and make the output folder; returns the checkpoint to resume, if one was asked for and there is one.

    `inputs` are names of what the run reads, which must not be replaced. Other runs are refused until `lock` is
    closed. An earlier run stays in the folder until `replace_results`. Raises FileExistsError, FileNotFoundError,
    OSError or ValueError.
    """
    state, folder, resume = PartialState(), Path(args.output_dir), args.resume_from_checkpoint
    with state.main_process_first():
        if state.is_main_process:
            overwrite = args.overwrite_output_dir
            prepare_output(folder, resume=bool(resume), overwrite=overwrite, inputs=inputs, lock=lock)
    # each process would read every file
    checkpoint = on_main_process(lambda: find_checkpoint(resume, folder)) if resume else None
    if checkpoint is not None and args.save_only_model:
        raise ValueError(
            f"{checkpoint} holds no state of the optimizer (--save_only_model) and cannot be continued. Give it as "
            "--model to train on from its weights, in another --output_dir."
        )
    written = checkpoint or (folder if resume and is_run(folder) else None)  # a killed run leaves run.yaml at least
    if written is not None and args.sweep and (rate := searched_learning_rate(written)) is not None:
        set_learning_rate(args, rate)
    message = keep_rows_per_step(args, None if args.resume_with_changes else written)
    if written is not None and not args.resume_with_changes:
        check_same_run(written, args.run, args.chosen)
    if message:
        state.print(message)
    return checkpoint


def build(
    model: PreTrainedModel, task: Task, args: TrainingArguments, build_trainer: BuildTrainer
) -> tuple[SafeTrainerMixin, Evaluations]:
    """The Trainer, which evaluates by the task's own measurement, and its last evaluation."""
    evaluations: Evaluations = {}

    def measure(model: PreTrainedModel) -> dict[str, float]:
        scores = task.measure(model, "validation", trainer.accelerator)
        evaluations.clear()
        evaluations[trainer.state.global_step] = scores
        numbers = {"loss": scores.loss}
        metrics = scores.metrics()
        choose_direction(trainer.args, metrics)
        for name in sorted(metrics, key=lambda name: name != task.main_metric):  # the first is shown on the bar
            interval = metrics[name].interval()
            numbers |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return {name: number for name, number in numbers.items() if number is not None}

    trainer = build_trainer(model, args, task, measure)
    if args.early_stopping_patience:
        newest = lambda: evaluations[trainer.state.global_step].metrics()[task.main_metric]  # noqa: E731
        trainer.add_callback(EarlyStopping(args.early_stopping_patience, newest))
    return trainer, evaluations


def prove_all(trainer: SafeTrainerMixin, proofs: dict[str, Callable[[], Proof]]) -> dict[str, dict[str, Any]]:
    """Run the proofs on every process, or on the main process where it alone has weights so far."""
    run = partial(prove, proofs, skip=trainer.args.skip_proofs, say=PartialState().print)
    if not loads_on_one(trainer):
        return run()
    with counting_alone(trainer.args):
        return on_main_process(run)


def announce(
    trainer: SafeTrainerMixin, task: Task, model: PreTrainedModel, trainable: int, *, started: float, resumed: bool
) -> dict[str, float] | None:
    """Print what is trained on which devices; returns what the run is estimated to take, for report.json.

    That is None in a resumed run, on the other processes, and where it cannot be estimated, which must not end a run.
    """
    say, budget, parameters = PartialState().print, trainer.args.budget, model.num_parameters()
    say(
        f"{type(model).__name__}: {parameters:,} parameters, {trainable:,} ({trainable / parameters:.1%}) trained, on "
        f"{describe_devices(trainer.args)}{describe_engine(trainer)}"
    )
    if task.recipe != "pretrain" and not origin_of(model):
        frozen = "--lora_rank keeps most of its weights as they are: leave it out"
        learns = frozen if is_adapted(model) else "it learns from these examples alone"
        say(f"  no --model was given: the model is a new one, and {learns}")
    for sentence in task.warnings:
        say(f"  warning: {sentence}")
    if resumed or not PartialState().is_main_process:
        return None
    try:
        plan = estimate_run(trainer, task)
    except Exception as error:
        logger.debug("no plan: %s", error)
        return None
    if (seconds := time.monotonic() - started + plan["seconds"]) > budget:
        say(
            f"  this run is estimated to take {in_hours(seconds)}, more than its budget of "
            f"{in_hours(budget)}: it will stop with a checkpoint"
        )
    return plan


def replace_results(args: TrainingArguments, checkpoint: Path | None) -> None:
    """Remove an earlier run and write run.yaml: not before this, so that a run that fails early changes nothing."""
    if PartialState().is_main_process:
        if checkpoint is None or args.resume_with_changes:
            remove_results(args.output_dir, checkpoints=checkpoint is None)
        with disk_errors("run.yaml", Path(args.output_dir)):
            save_run(args.run, args.output_dir)


def train(trainer: SafeTrainerMixin, checkpoint: Path | None, *, started: float) -> None:
    """Train, from a checkpoint if there is one. Ends the process where a signal or the budget stopped training.

    `started`: when the run started, by time.monotonic().
    """
    say, args, budget = PartialState().print, trainer.args, None
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    if args.budget < float("inf") or args.stop_after_steps:
        sizes = [(p.numel(), p.element_size(), p.requires_grad) for p in trainer.model.parameters()]
        saved = sum(n * size + 2 * 4 * n * trained for n, size, trained in sizes)  # weights, and AdamW's two averages
        last = args.stop_after_steps
        budget = StopAtBudget(args.budget, started=started, checkpoint_bytes=saved, steps=last)
        trainer.add_callback(budget)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    kept = list_checkpoints(args.output_dir)
    continuing = f"{kept[-1].name} is complete. " if kept else ""
    continuing += (
        "It holds the model alone (--save_only_model): the run cannot be continued."
        if args.save_only_model
        else "Continue with the same command and --resume_from_checkpoint latest, or "
        f"--config {shlex.quote(str(Path(args.output_dir) / 'run.yaml'))} --resume_from_checkpoint latest."
    )
    complete = bool(kept) and kept[-1].name == f"checkpoint-{step}"
    if trainer.stop.signal is not None and not complete:  # it came after the last step, with --save_strategy no
        say("a signal arrived after the last step, of which there is no checkpoint: the run goes on; another ends it")
    elif trainer.stop.signal is not None:  # at the last step too: what is left takes time
        say(f"stopped by a signal after step {step}; {continuing}")
        raise SystemExit(128 + trainer.stop.signal)
    if budget is not None and budget.stopped:
        allowed = (
            f", {in_hours(time.monotonic() - started)} of {in_hours(args.budget)}"
            if math.isfinite(args.budget)
            else ""
        )
        say(f"stopped after step {step} of {trainer.state.max_steps}{allowed}; {continuing}")
        raise SystemExit(EXIT_OUT_OF_BUDGET)


def measure(trainer: SafeTrainerMixin, task: Task, evaluations: Evaluations) -> dict[str, Measured]:
    """The trained model on validation and, once, on test."""
    best = trainer.args.load_best_model_at_end
    step = trainer.state.best_global_step if best else trainer.state.global_step
    # Measured again where the best is not the last: a threshold chosen on validation must be this model's.
    last = evaluations.get(step) if step is not None else None
    measured = {"validation": last or task.measure(trainer.model, "validation", trainer.accelerator)}
    if "test" in task.splits:
        measured["test"] = task.measure(trainer.model, "test", trainer.accelerator)
    return measured


def finish_model(
    trainer: SafeTrainerMixin,
    task: Task,
    args: TrainingArguments,
    *,
    merge: bool,
    empty: PreTrainedModel | None = None,
) -> Finished:
    """Merge an adapter if asked, prove that merging changed no logits, and save the model: on every process.

    The weights of a sharded model, or of DeepSpeed's optimizer, are gathered once, into `empty` on the main process,
    which alone merges and saves: what it continues with needs no other process.
    """
    state, folder = PartialState(), Path(args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    write: Callable[[Path], None] = lambda aside: trainer.save_model(str(aside))  # noqa: E731
    if empty is not None:
        weights = full_weights(trainer)
        if state.is_main_process:
            trainer.model = model = with_weights(empty, weights)
        write = lambda aside: trainer._save(str(aside)) if state.is_main_process else None  # noqa: E731
    model.config.use_cache = True  # the Trainer turned it off for training, and would save that
    task.configure_inference(base_of(model))
    model.eval()
    tags = list(model.model_tags or [])
    if state.is_main_process:
        remove_results(folder, checkpoints=False)  # of the same run, where a finished one was resumed
    state.wait_for_everyone()

    def save(name: str, write: Callable[[Path], None]) -> list[str]:
        return save_aside(folder, name, write, main=state.is_main_process, wait=state.wait_for_everyone)

    adapter, files, proofs, final = None, [], {}, cast(PreTrainedModel, model)
    if is_adapted(model) and not merge:
        adapter = folder
    elif is_adapted(model):
        if has_base(model):
            adapter = folder / "adapter"
            files += save("the adapter", lambda aside: write(aside / "adapter"))
        if empty is None or state.is_main_process:
            bits, before = quantized_bits(model), logits_of(model, task.probe())
            trainer.model = final = merged(model)
            proof = lambda: merging(before, logits_of(final, task.probe()), bits=bits)  # noqa: E731
            proofs = prove({"merging": proof}, skip=args.skip_proofs, say=state.print)
    files += save("the model", write)
    return Finished(final, adapter, files, tags, proofs)


def write_results(
    report: dict[str, Any], task: Task, measured: dict[str, Measured], args: TrainingArguments
) -> dict[str, Any]:
    """Write predictions, plots and card, and last report.json; returns the report as that holds it."""
    folder, report = Path(args.output_dir), plain(report)
    with disk_errors("predictions.jsonl", folder):
        save_predictions(task.predictions(measured), folder)
    with disk_errors("the plots", folder):
        draw_plots(report, folder)
    with disk_errors("the card and the report", folder):
        write_card(report, folder)
        save_report(report, folder)
    show_report(report, folder)
    return report


def push(args: TrainingArguments) -> None:
    """Push the output folder if asked."""
    if args.push_to_hub:
        url = push_to_hub(
            args.output_dir, str(args.hub_model_id), private=bool(args.hub_private_repo), token=args.hub_token
        )
        PartialState().print(f"pushed to {url}")
