"""A checkpoint and its task, made again as the run that trained it had them, so that it is measured the same."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_lm.data.tables import Table
from hf_lm.hub.records import read_report, read_run
from hf_lm.models.configuration import context_length, family, find_adapter, load_config
from hf_lm.tasks.by_name import TASKS
from hf_lm.tasks.start import head_of, start_from
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.text_to_text import TextToText

SETTINGS: dict[str, dict[str, int]] = {  # by task: what a model that no recipe trained is measured with
    "pretrain": {"block_size": 0, "eval_stride": 0, "eval_tokens": 0},
    **{name: task.settings for name, task in TASKS.items()},
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder or a name on the Hub; `adapter` is what it says of itself where it is one, else None."""

    name: str
    adapter: dict[str, Any] | None
    config: PreTrainedConfig
    run: dict[str, Any]  # of run.yaml; empty where no recipe trained it
    report: dict[str, Any]  # of report.json, likewise

    @property
    def recipe(self) -> str:
        """That of its task: of a model that recipes/self_training.py trained, the one that its run names."""
        recipe = self.report.get("recipe", "")
        named = self.run.get("task", "") if recipe == "self_training" else recipe
        return "pretrain" if named == "language_modelling" else named

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is: with an adapter, or else with its base."""
        if self.adapter is None or (Path(self.name) / "tokenizer_config.json").is_file():
            return self.name
        return self.adapter["base_model_name_or_path"]


def open_checkpoint(name: str) -> Checkpoint:
    """What is known of a model before its weights are read. Raises OSError or ValueError in one line."""
    folder, adapter = Path(name), find_adapter(name)
    config = load_config(name)
    # An adapter kept beside its merged model, and a checkpoint, belong to the run of the folder above.
    inside = folder.name == "adapter" or folder.name.startswith("checkpoint-")
    run = next((p for p in (folder, folder.parent)[: 1 + inside] if (p / "report.json").is_file()), folder)
    report, arguments = read_report(run) or {}, read_run(run) or {}
    if report.get("recipe") == "self_training" and (longest := arguments.get("max_length")):
        block = min(longest, context_length(config) or longest)  # this and the next as hf_lm.self_training.setups
        arguments |= {"max_source_length": longest, "stride": longest // 3, "block_size": block}
        arguments |= {"dataset": arguments.get("labelled", "")}
    return Checkpoint(name, adapter, config, arguments, report)


def autocast_as(model: PreTrainedModel, settings: dict[str, Any]) -> AbstractContextManager:
    """The precision in which the run measured."""
    if settings["precision"] == "float32":
        return nullcontext()
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float16
    return torch.autocast(model.device.type, dtype=dtype)


def build_task(
    checkpoint: Checkpoint, task: type[Supervised], table: Table, *, columns: dict[str, str], settings: dict[str, Any]
) -> tuple[PreTrainedModel, Supervised, str]:
    """Model and task as the recipe makes them, and where it was never taught the task, in words how it is prompted.

    That is a decoder, asked with the task's cue: of what it writes the first line counts, for it never learned to
    stop. Raises ValueError for an encoder that lacks the head, or that would have to write.
    """
    config, name = checkpoint.config, task.recipe
    with_head = bool(task.auto_class) and _has_head(checkpoint, head_of(task.auto_class))
    if family(config) == "encoder" and not with_head:
        what = "has no head for this" if task.auto_class else "writes no text"
        raise ValueError(
            f"{checkpoint.name} was saved as {(config.architectures or [config.model_type])[0]} and {what}: fine-tune "
            f"it first with recipes/{name}.py --model {checkpoint.name}."
        )
    start = start_from(
        checkpoint.name,
        auto_class=task.auto_class,
        as_text=not with_head,
        labels=head_labels(checkpoint, table.labels) if with_head and table.labels else table.labels,
        tokenizer=checkpoint.tokenizer,
        languages=task.languages(columns),
        trained=True,
    )
    made = task.from_start(table, start, **{key: value for key, value in settings.items() if key != "precision"})
    taught = checkpoint.recipe == name or checkpoint.adapter is not None
    taught = taught or made.pipeline_tag in (getattr(config, "task_specific_params", None) or {})
    if isinstance(made, TextToText) and made.writes and start.family == "decoder" and not taught:
        prompted = f"prompted with {made.cue.strip()!r}, never trained for it; the first line it writes counts"
        return start.model, made, prompted
    return start.model, made, ""


def _has_head(checkpoint: Checkpoint, auto_class: type) -> bool:
    """Whether the checkpoint, or its adapter, brings a trained head."""
    config = checkpoint.config
    if checkpoint.adapter is not None:
        return bool(checkpoint.adapter.get("modules_to_save")) and family(config) != "encoder-decoder"
    known = type(config) in auto_class._model_mapping
    return known and auto_class._model_mapping[type(config)].__name__ in (config.architectures or [])


def head_labels(checkpoint: Checkpoint, labels: Sequence[str]) -> list[str]:
    """The classes of a head, in its order, by the names that the data gives them; others keep their own.

    Equal but for case, the beginning of one another (`pos`, `POSITIVE`), or numbered (`LABEL_1` is `1`). Raises
    ValueError where a class of the data is not among them.
    """
    own = [str(name) for _, name in sorted((checkpoint.config.id2label or {}).items())]

    def same(one: str, other: str) -> bool:
        one, other = one.casefold(), other.casefold()
        short = min(len(one), len(other))
        return one == other or f"label_{other}" == one or (short > 2 and one[:short] == other[:short])

    found = {label: [name for name in own if same(name, label)] for label in labels}
    exact = {label: [label] if label in own else names for label, names in found.items()}
    chosen = {names[0]: label for label, names in exact.items() if len(names) == 1}
    if len(chosen) < len(labels):
        raise ValueError(
            f"{checkpoint.name} tells apart {', '.join(own[:10])}; the data has {', '.join(labels[:10])}: name its "
            "classes so in id2label of its config.json."
        )
    return [chosen.get(name, name) for name in own]
