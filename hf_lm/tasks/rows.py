"""What a task makes of a split: rows as features, cut to fit, and what was measured on them."""

from dataclasses import dataclass, field
from typing import Any

from hf_lm.data.batches import Feature
from hf_lm.evaluation.intervals import Estimate


@dataclass
class Scores:
    """What was measured on a split. `examples` are rows of predictions.jsonl, the worst scored lowest by `score`."""

    estimates: dict[str, Estimate]
    examples: list[dict[str, Any]]
    loss: float | None = None

    def metrics(self) -> dict[str, Estimate]:
        return self.estimates


def is_right(prediction: str, reference: str | list[str]) -> bool:
    """Whether a prediction is word for word a reference; where a question has none, whether it is empty."""
    if isinstance(reference, str):
        return prediction == reference
    return prediction in reference or not (reference or prediction)


def class_scores(right: float, predicted: float, true: float) -> dict[str, float]:
    """Precision, recall and F1 of a class, in percent, from its counts, and how many of the rows are of it."""
    return {
        "precision": 100 * right / max(1, predicted),
        "recall": 100 * right / max(1, true),
        "f1": 200 * right / max(1, predicted + true),
        "rows": int(true),
    }


def room_beside(used: int, length: int, option: str) -> int:
    """Tokens of a text that fit into `length` beside `used` others. Raises ValueError where none does."""
    if length <= used:
        raise ValueError(f"{option} {length} holds no token of a text beside {used} others: give {used + 1} or more.")
    return length - used


@dataclass
class Encoded:
    """A split as features, and what was cut to make them fit."""

    features: list[Feature] = field(default_factory=list)
    cut: int = 0  # rows
    tokens: int = 0  # before cutting
    tokens_cut: int = 0

    def truncated(self, ids: list[int], room: int) -> list[int]:
        """The first `room` ids of a text; what is cut is counted."""
        self.tokens += len(ids)
        self.cut += len(ids) > room
        self.tokens_cut += max(0, len(ids) - room)
        return ids[:room]

    def report(self) -> dict[str, Any]:
        rows = len(self.features)
        lost = self.tokens_cut / max(1, self.tokens)
        return {"rows": rows, "tokens": self.tokens, "truncated": self.cut / max(1, rows), "tokens_lost": lost}
