"""From rows of predictions.jsonl back to metrics: what a model said is kept, and measured again by the same code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_lm.evaluation.intervals import Estimate
from hf_lm.evaluation.perplexity import Likelihood
from hf_lm.tasks.by_name import TASKS

Example = dict[str, Any]

METRICS = {  # by task, the main one first
    "pretrain": ("bits_per_byte", "word_perplexity", "perplexity"),
    **{name: task.metric_names for name, task in TASKS.items()},
}
GROUPS = {"perplexity": METRICS["pretrain"], "rouge": METRICS["summarization"]}  # one name for several


SAME = ("input", "context", "reference", "bytes", "words")  # two rows with the same of these are one example


def example_key(row: Example) -> str:
    return json.dumps([row.get(name) for name in SAME], ensure_ascii=False)


def labels_of(task: str, examples: Sequence[Example]) -> list[str]:
    """The classes that occur in examples; empty where the task has none."""
    return TASKS[task].labels_of(examples) if task in TASKS else []


def unit_of(task: str) -> str:
    """What intervals are over."""
    return "documents" if task == "pretrain" else TASKS[task].unit


def estimates_of(task: str, examples: Sequence[Example], *, labels: Sequence[str] = ()) -> dict[str, Estimate]:
    """The metrics of a task over examples as predictions.jsonl has them, in the order of METRICS.

    `labels`: the classes, the same for all models that are compared.
    """
    if task == "pretrain":
        nll, tokens, size, words = (
            np.array([row[name] for row in examples]) for name in ("nll", "tokens", "bytes", "words")
        )
        estimates = Likelihood(nll, tokens, size, words).metrics()
    else:
        estimates = TASKS[task].estimates_of(examples, labels)
    return {name: estimates[name] for name in METRICS[task] if name in estimates}


def read_predictions(path: Path) -> list[Example]:
    """The rows of a file of JSON lines; a last line that was cut short is left out."""
    text = path.read_text(encoding="utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n")[:-1]]
    except ValueError:
        raise ValueError(f"{path} is no file of JSON lines.") from None
