"""Which checkpoint and which learning rate: chosen on validation, and by more than its noise."""

import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, set_seed

from hf_lm.arguments import TrainingArguments
from hf_lm.evaluation.intervals import Estimate
from hf_lm.launching import EXIT_OUT_OF_BUDGET
from hf_lm.tasks.task import Task
from hf_lm.training.budget import StopAtBudget
from hf_lm.training.checkpoints import kept_by_callbacks


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without one that is better than the best by more than noise explains.

    `newest()` is the estimate of the last evaluation. Two are compared on the same examples, by the paired test, so
    that an insignificant gain does not keep a run alive. The best and the count are in the state of each checkpoint:
    a resumed run stops where the uninterrupted one would, and one that was stopped here does not train again.
    """

    KEY = "early_stopping"  # in the state's `stateful_callbacks`

    def __init__(self, patience: int, newest: Callable[[], Estimate]) -> None:
        self.patience, self.newest = patience, newest
        self.best: np.ndarray | None = None  # the statistics of the best estimate
        self.waited = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if saved := kept_by_callbacks(state).get(self.KEY):
            self.best, self.waited = np.array(saved["best"]), saved["waited"]
            control.should_training_stop |= self.waited >= self.patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        estimate = self.newest()
        if self.best is None or estimate.beats(replace(estimate, statistics=self.best)):
            self.best, self.waited = estimate.statistics, 0
        else:
            self.waited += 1
            control.should_training_stop |= self.waited >= self.patience
        kept_by_callbacks(state)[self.KEY] = {"best": self.best.tolist(), "waited": self.waited}


def choose_direction(args: TrainingArguments, metrics: Mapping[str, Estimate]) -> None:
    """Whether more is better of the metric that the best checkpoint is chosen by, unless --greater_is_better says it.

    The Trainer takes every metric for one of which more is better, but for losses. Raises ValueError for a metric that
    the task does not have.
    """
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if name != "loss" and name not in metrics:
        raise ValueError(f"--metric_for_best_model {name}: the task measures {', '.join(['loss', *metrics])}.")
    if "greater_is_better" not in args.asked:
        args.greater_is_better = name != "loss" and metrics[name].higher_is_better


class _EndOfTrial(StopAtBudget):
    """Ends a trial at the budget of the run, without a checkpoint."""

    def _save(self, state: TrainerState, control: TrainerControl) -> None:
        pass


def search_learning_rate(
    build: Callable[[PreTrainedModel, TrainingArguments], Any],
    model: PreTrainedModel,
    training_args: TrainingArguments,
    task: Task,
    *,
    started: float,  # when the run started, by time.monotonic()
) -> list[dict[str, float]]:
    """Train copies of a model at `training_args.sweep` rates, and set the best in the arguments.

    Returns {"learning_rate", the main metric} of each, best first.
    Rates between a tenth and ten times the given one are proposed by Optuna (Akiba et al., arXiv 1907.10902), and each
    is measured on validation after its training. A rate that diverges is left out; nothing is saved. The search stops
    where --max_hours or --max_cost leave no time for another trial and the run itself, and ends the process where they
    do not cover the first. The random state is that of before. Raises ImportError without Optuna and ValueError where
    each rate diverged.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("--sweep searches through Optuna: pip install 'hf-lm[sweep]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    args, middle, tried = copy.copy(training_args), training_args.learning_rate, []
    say, metric, greater_is_better = PartialState().print, task.main_metric, task.greater_is_better
    args.save_strategy, args.load_best_model_at_end, args.report_to = "no", False, []
    if not args.early_stopping_patience:
        args.eval_strategy = "no"  # a trial is measured once, at its end

    def objective(trial: "optuna.Trial") -> float:
        rate = trial.suggest_float("learning_rate", middle / 10, middle * 10, log=True)
        [args.learning_rate] = broadcast_object_list([rate])  # all processes train at the main one's
        set_seed(args.seed)
        trainer, begun = build(copy.deepcopy(model), args), time.monotonic()
        budget = _EndOfTrial(args.budget, started=started, checkpoint_bytes=0)
        trainer.add_callback(budget)
        try:
            trainer.train()
        except FloatingPointError:
            say(f"  sweep: learning rate {args.learning_rate:.2e} diverges")
            raise
        _end_if_stopped(trainer, budget, say)
        value = trainer.evaluate()[f"eval_{metric}"]
        tried.append({"learning_rate": args.learning_rate, metric: value})
        say(f"  sweep: learning rate {args.learning_rate:.2e}, {metric.replace('_', ' ')} {value:.4g}")
        now = time.monotonic()
        [over] = broadcast_object_list([now - started + 2 * (now - begun) > args.budget])
        if over and len(tried) < args.sweep:
            say(f"  sweep: the budget leaves no time for more than {len(tried)} of {args.sweep} rates")
            trial.study.stop()
        return value

    sampler = optuna.samplers.TPESampler(seed=training_args.seed)
    study = optuna.create_study(direction="maximize" if greater_is_better else "minimize", sampler=sampler)
    with _random_state_kept():
        study.optimize(objective, n_trials=training_args.sweep, catch=(FloatingPointError,))
    if not tried:
        raise ValueError(f"--sweep: each of {training_args.sweep} rates diverged; lower --learning_rate.")
    tried.sort(key=lambda trial: -trial[metric] if greater_is_better else trial[metric])
    set_learning_rate(training_args, tried[0]["learning_rate"])
    return tried


def set_learning_rate(args: TrainingArguments, rate: float) -> None:
    """Train at a rate that was searched: run.yaml repeats the run, not the search."""
    args.learning_rate, args.sweep = rate, 0
    args.run = args.run | {"learning_rate": rate, "sweep": 0}
    args.changed = {key: value for key, value in args.changed.items() if key != "sweep"} | {"learning_rate": rate}


def _end_if_stopped(trainer: Any, budget: StopAtBudget, say: Callable[[str], None]) -> None:
    if trainer.stop.signal is not None:
        say("stopped by a signal. Continue with the same command and --resume_from_checkpoint latest.")
        raise SystemExit(128 + trainer.stop.signal)
    if budget.stopped:
        say("--max_hours or --max_cost is spent within a trial of --sweep: give more, or a smaller --sweep.")
        raise SystemExit(EXIT_OUT_OF_BUDGET)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])
