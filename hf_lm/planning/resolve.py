"""A recipe run up to `fit`, for a plan: its own arguments, task and model, the model without weights and memory."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from hf_lm.arguments import TrainingArguments
from hf_lm.data.demos import documentation as demos
from hf_lm.dry_run import parse_recipe, run_recipe
from hf_lm.tasks.task import Task

SAMPLED = 32_000_000  # bytes of training text above which only the first documents are tokenized
SAMPLE = 8_000_000  # bytes of them
HELD_OUT = 0.05  # of the training text: a split beside train is taken to be that large
# Arguments of recipes that name a column, and which of the demo's columns it is where no data is read.
COLUMNS = {
    "text_column": "text",
    "label_column": "label",
    **{name: name for name in ("source", "target", "question", "context", "answers")},
}


@dataclass
class Resolved:
    """What a recipe hands to `fit`, the model on the meta device. `scales`: see hf_lm.training.estimate.work_of."""

    recipe: str
    model: PreTrainedModel
    task: Task
    args: TrainingArguments
    arguments: dict[str, Any]  # as run.yaml has them
    bits: int = 0  # in which a frozen base is held; 0: in full
    scales: dict[str, float] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def resolve(recipe: str, argv: Sequence[str], *, tokens: int = 0, bf16: bool | None = None) -> Resolved:
    """Run a recipe with its arguments up to `fit`, without weights.

    With `tokens` no data is read: the recipe reads text of the demo instead, and an epoch is so many tokens of it.
    `bf16` says whether the device multiplies in bfloat16; None asks this machine. Raises what the recipe
    raises, and ValueError for one that cannot be planned.
    """
    with tempfile.TemporaryDirectory() as folder:  # what is mapped into memory from it lives on
        sample = _Sample(Path(folder))
        if tokens:
            argv = [*argv, *_demo_data(parse_recipe(recipe, argv), Path(folder) / "demo")]
        try:
            with torch.device("meta"):
                called = run_recipe(recipe, argv, bf16=bf16, sample=sample, tokens=tokens)
                model, task, args = called.model, cast(Task, called.task), called.training_args
        except ValueError as error:
            if "was not loaded from the Hub" not in str(error):
                raise
            raise ValueError(
                f"{error} To plan without the data, say how many training tokens it has: --tokens N."
            ) from None
    if task.loss is None:
        raise ValueError(f"the recipe {recipe} trains by another loss than one over labels: it cannot be planned.")
    run = Resolved(Path(recipe).stem, model, task, args, args.run, int(args.run.get("quantize") or 0))
    run.assumed = list(called.options.get("assumed", ()))
    if tokens:
        if isinstance(rows := task.train_dataset, list):
            cast(Any, task).train_dataset = rows * -(
                -args.per_device_train_batch_size // len(rows)
            )  # enough for a batch
        run.scales = {"train": tokens / max(1, sum(task.train_lengths()))}
        run.assumed += [
            f"{tokens:,} tokens an epoch, as --tokens says: no data was read, rows are as long as they may be"
        ]
    elif sample.bytes:
        run.scales = sample.scales()
        run.assumed += [
            f"tokens of train from its {sample.size / 1e6:,.0f} MB and the first {SAMPLE / 1e6:.0f} MB tokenized"
        ]
    return run


class _Sample:
    """Of a large corpus the first documents of each split; `bytes` counts those that were read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.size, self.bytes = folder, 0, {}

    def __call__(self, documents: Iterable[str], folder: Path, split: str, size: int) -> tuple[Iterable[str], Path]:
        if size <= SAMPLED or folder.is_dir():
            return documents, folder
        self.size, self.bytes[split] = size, 0
        return self._first(documents, split), self.folder / split

    def _first(self, documents: Iterable[str], split: str) -> Iterator[str]:
        for text in documents:
            self.bytes[split] += len(text.encode())
            yield text
            if self.bytes[split] >= SAMPLE:
                return

    def scales(self) -> dict[str, float]:
        """How many times larger each split is than what was read of it; 1 for one that was read to its end."""
        sizes = {split: self.size if split == "train" else HELD_OUT * self.size for split in self.bytes}
        return {split: max(1.0, sizes[split] / read) if read >= SAMPLE else 1.0 for split, read in self.bytes.items()}


def _demo_data(args: object, folder: Path) -> list[str]:
    """Options with which a recipe reads the demo's text, longer than any task keeps, instead of its data."""
    if hasattr(args, "labelled"):
        options = ["--unlabelled", "", "--labelled"]
    elif hasattr(args, "dataset"):
        options = ["--dataset"]
    else:
        return []
    if hasattr(args, "document_start") or getattr(args, "task", "") == "language_modelling":
        return [*options, "demo"]
    long = [row["text"] for row in demos.documentation() if len(row["text"]) > 4000]
    rows = []
    for i, text in enumerate(long[:200]):
        text = (text * 2)[:6000]
        first = text.split()[0]
        row = dict.fromkeys(("text", "source", "target", "document", "summary", "context"), f"{i}. {text}")
        row |= {"question": text[:60], "answers": [{"text": first, "answer_start": row["context"].index(first)}]}
        row |= {"id": str(i), "label": str(i % 2)}
        row |= {
            "tokens": text.split(),
            "ner_tags": ["B-word" if n % 9 == 0 else "O" for n in range(len(text.split()))],
        }
        rows.append(row | {getattr(args, key): row[name] for key, name in COLUMNS.items() if getattr(args, key, "")})
    folder.mkdir()
    for split, part in {"train": rows[20:], "validation": rows[:10], "test": rows[10:20]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return [*options, str(folder)]
