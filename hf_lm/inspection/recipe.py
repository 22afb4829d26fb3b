"""`hf-lm inspect`: what a recipe, or what it hands to `fit`, would train on."""

import copy
import itertools
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, cast

from transformers import PreTrainedModel, Trainer

from hf_lm.arguments import TrainingArguments
from hf_lm.dry_run import run_recipe
from hf_lm.inspection.data import inspect_documents, inspect_rows
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tasks.rendering import count_tokens
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.task import Task
from hf_lm.training.trainer import supervised_trainer

BATCHES = 1000  # of one epoch: the padding of more would tell nothing new


def inspect_recipe(recipe: str, arguments: Sequence[str] = (), *, examples: int = 5) -> dict[str, Any]:
    """What a recipe, called with these arguments, would train on: plain values, and under "examples" Parts.

    The recipe itself makes model, tokenizer and task (`run_recipe`), and the Trainer its batches. Raises ValueError or
    OSError in one line, as the recipe does.
    """
    called = run_recipe(recipe, [*arguments, "--use_cpu", "true"])
    return inspect_task(
        called.model,
        cast(Task, called.task),
        called.training_args,
        examples=examples,
        build_trainer=called.options.get("build_trainer", supervised_trainer),
    )


def inspect_task(
    model: PreTrainedModel,
    task: Task,
    training_args: TrainingArguments,
    *,
    examples: int = 5,
    build_trainer: Callable[..., Trainer] = supervised_trainer,
) -> dict[str, Any]:
    """The same for what a recipe would hand to `fit`.

    Raises ValueError for a task whose texts are only written while it trains.
    """
    if not count_tokens(task.train_dataset[0]):
        raise ValueError(f"{task.recipe} learns from what it writes while it trains: there is nothing to show before.")
    if isinstance(task, LanguageModelling):
        data, lengths = inspect_documents(task), len(task.train_dataset)
    elif isinstance(task, Supervised):
        data, lengths = inspect_rows(task), [count_tokens(feature) for feature in task.train_dataset]
    else:
        raise ValueError(f"{task.recipe} has neither rows nor documents that could be inspected.")
    return {
        "recipe": task.recipe,
        "model": {
            "architecture": type(model).__name__,
            "base": " and ".join(filter(None, (training_args.run.get(half) for half in ("model", "decoder")))),
        },
        "examples": [
            {"row": row, "what": what, "parts": task.render(task.train_dataset[row])}
            for row, what in quantile_rows(lengths)[:examples]
        ],
        "padding": measure_padding(model, task, training_args, build_trainer=build_trainer),
        **data,
    }


def measure_padding(
    model: PreTrainedModel,
    task: Task,
    training_args: TrainingArguments,
    *,
    build_trainer: Callable[..., Trainer] = supervised_trainer,
) -> dict[str, Any]:
    """The share of padding in the batches of the Trainer's first epoch, and what padding to the maximum would make."""
    args = copy.copy(training_args)
    rows = places = used = batches = 0
    with tempfile.TemporaryDirectory() as folder:  # the Trainer makes its output folder
        args.output_dir, args.report_to = folder, []
        trainer = build_trainer(model, args, task, lambda model: {})
        for batch in itertools.islice(trainer.get_train_dataloader(), BATCHES):
            batches += 1
            for key, ids in batch.items():
                if key.endswith("input_ids"):
                    mask = batch.get(key.removesuffix("input_ids") + "attention_mask")
                    places += ids.numel()
                    used += ids.numel() if mask is None else int(mask.sum())
            rows += len(ids)
    padding = {"batches": batches, "batch_size": args.train_batch_size, "share": 1 - used / max(1, places)}
    if longest := task.max_length:
        padding |= {"maximum": longest, "to_maximum": 1 - used / (rows * longest)}
    return padding


def quantile_rows(lengths: Sequence[int] | int) -> list[tuple[int, str]]:
    """Five rows, from the shortest to the longest; evenly spread where all are as long."""
    words = ("the shortest", "a quarter are shorter", "of middle length", "a quarter are longer", "the longest")
    if isinstance(lengths, int):
        return [(i * lengths // 5, "") for i in range(min(5, lengths))]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    places = [round(share * (len(order) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)]
    chosen = {order[place]: word for place, word in zip(places, words, strict=True)}
    return list(chosen.items())
