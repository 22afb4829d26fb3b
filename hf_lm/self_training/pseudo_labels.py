"""What a teacher passes on: its answers to rows without labels, how sure it is of them, and which are taken."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_lm.data.batches import Feature
from hf_lm.data.tables import Row
from hf_lm.evaluation.calibration import fit_temperature, label_log_probs
from hf_lm.evaluation.intervals import Estimate
from hf_lm.tasks.supervised import Supervised

CALIBRATED_ON = 5000  # labels of validation, about


@dataclass
class PseudoLabels:
    """A teacher's answers as labelled rows, and how sure it is of each: (rows,), from 0 to 1.

    `nats` are those per label of the curve's split, which the temperature has not seen, and `nats_calibrated` with it.
    `quality` is the task's metric over all rows, and means something for those of which `known` holds.
    """

    rows: list[Row]
    confidence: np.ndarray
    temperature: float
    nats: float
    nats_calibrated: float
    quality: Estimate
    known: np.ndarray

    def quality_of(self, taken: np.ndarray) -> dict[str, float]:
        """The metric over those answers of `taken` whose label is known; empty where none is."""
        chosen = taken[self.known[taken]]
        if not len(chosen):
            return {}
        value = Estimate(self.quality.statistics[chosen], self.quality.value_of).value
        return {"right": value, "known": len(chosen)}


def pseudo_label(
    task: Supervised,
    model: PreTrainedModel,
    pool: Sequence[Row],
    known: np.ndarray,
    *,
    split: str,
    accelerator: Accelerator,
) -> PseudoLabels:
    """Answer the rows of `pool`, whose labels are not looked at; those of which `known` holds measure the answers.

    Confidence is the geometric mean of the probabilities of an answer's labels (its class; its first and last token;
    each token of a text), under the temperature that fits validation best.
    """
    model.eval()

    def nats(features: Sequence[Feature], temperatures: Sequence[float]) -> np.ndarray:
        sums, counts = label_log_probs(model, task, features, temperatures=temperatures, accelerator=accelerator)
        return -sums.sum(axis=0) / max(1, counts.sum())

    validation = task.encoded["validation"].features
    labels = sum(np.size(feature["labels"]) for feature in validation)
    some = validation[:: max(1, labels // CALIBRATED_ON)]  # one number needs no more, and texts have many labels
    temperature = fit_temperature(lambda temperatures: nats(some, temperatures))
    before, after = nats(task.encoded[split].features, (1.0, temperature))
    asked = task.with_rows("pool", pool)
    with torch.no_grad():
        scores = asked.score("pool", asked.predict(model, "pool", accelerator))
    said = [
        (i, row)
        for i, example in enumerate(scores.examples)
        if (row := task.with_label(pool[i], example["prediction"])) is not None
    ]
    given = [row for _, row in said]
    told = task.with_rows("pool", given)
    sums, counts = label_log_probs(
        model, told, told.encoded["pool"].features, temperatures=(temperature,), accelerator=accelerator
    )
    of = np.asarray(told.rows_of_features("pool"), np.int64)
    sums = np.bincount(of, sums.reshape(-1), minlength=len(given))
    counts = np.bincount(of, counts, minlength=len(given))
    places = np.array([i for i, _ in said], np.int64)
    estimate = scores.estimates[task.main_metric]
    return PseudoLabels(
        given,
        confidence=np.exp(sums / np.maximum(counts, 1)),
        temperature=temperature,
        nats=float(before),
        nats_calibrated=float(after),
        quality=Estimate(estimate.statistics[places], estimate.value_of),
        known=known[places],
    )


def select_confident(
    strata: Sequence[Any], confidence: np.ndarray, shares: dict[Any, float], *, threshold: float
) -> np.ndarray:
    """Rows that are taken at their word: as many of each kind as `shares` says, the surest first.

    None is below `threshold`, and the kind that has fewest above it, for its share, says how many there are of all: a
    teacher that prefers a class does not pass that on (class-balanced self-training, Zou et al., arXiv 1810.07911).
    """
    above: dict[Any, list[int]] = {kind: [] for kind in shares}
    for i in np.argsort(-confidence, kind="stable").tolist():
        if confidence[i] >= threshold and strata[i] in above:
            above[strata[i]].append(i)
    at_most = min(len(above[kind]) / share for kind, share in shares.items() if share > 0)
    taken = [above[kind][: int(at_most * share + 1e-9)] for kind, share in shares.items()]
    return np.sort(np.concatenate(taken)).astype(np.int64)


def shares_of(strata: Sequence[Any]) -> dict[Any, float]:
    """How much of the rows each kind is."""
    return {kind: count / len(strata) for kind, count in Counter(strata).items()}
