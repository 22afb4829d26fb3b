"""From rows of predictions.jsonl back to metrics: what a model said is kept, and measured again by the same code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_lm.evaluation.intervals import Estimate
from hf_lm.evaluation.metrics import Classification, QuestionAnswering, Summarization, Translation

Example = dict[str, Any]

METRICS = {  # by task, the main one first
    "pretrain": ("bits_per_byte", "word_perplexity", "perplexity"),
    "sentiment": ("accuracy", "macro_f1", "mcc", "calibration_error"),
    "question_answering": (
        *("f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_f1", "no_answer_exact_match"),
    ),
    "translation": ("bleu", "chrf", "ter"),
    "summarization": ("rougeL", "rouge1", "rouge2", "rougeLsum"),
}
GROUPS = {"perplexity": METRICS["pretrain"], "rouge": METRICS["summarization"]}  # one name for several
UNITS = {"pretrain": "documents", "question_answering": "questions"}  # that intervals are over; else examples


def estimates_of(task: str, examples: Sequence[Example], *, labels: Sequence[str] = ()) -> dict[str, Estimate]:
    """The metrics of a task over examples as predictions.jsonl has them, in the order of METRICS.

    `labels`: the classes of `sentiment`, the same for all models that are compared; a prediction that is none of them
    is wrong. A calibration error needs the probabilities of all examples.
    """
    if task == "pretrain":
        from hf_lm.evaluation.perplexity import Likelihood

        columns = (np.array([row[name] for row in examples]) for name in ("nll", "tokens", "bytes", "words"))
        found = Likelihood(*columns).metrics()
    elif task == "sentiment":
        found = _classes(examples, labels)
    else:
        metric = {"question_answering": QuestionAnswering, "translation": Translation, "summarization": Summarization}
        said, meant = [row["prediction"] for row in examples], [row["reference"] for row in examples]
        found = metric[task]().estimates(said, meant)
    return {name: found[name] for name in METRICS[task] if name in found}


def _classes(examples: Sequence[Example], labels: Sequence[str]) -> dict[str, Estimate]:
    index = {label: i for i, label in enumerate(labels)}
    predicted = [index.get(row["prediction"], -1) for row in examples]
    true = [index[row["reference"]] for row in examples]
    probabilities = None
    if all("probabilities" in row for row in examples):
        others = sorted({name for row in examples for name in row["probabilities"]} - set(labels))
        probabilities = np.array([[row["probabilities"].get(n, 0.0) for n in (*labels, *others)] for row in examples])
    return Classification(classes=len(labels)).estimates(predicted, true, probabilities=probabilities)


def read_predictions(path: Path) -> list[Example]:
    """The rows of a file of JSON lines; a last line that was cut short is left out."""
    text = path.read_text(encoding="utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n")[:-1]]
    except ValueError:
        raise ValueError(f"{path} is no file of JSON lines.") from None
