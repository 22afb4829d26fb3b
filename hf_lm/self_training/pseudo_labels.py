"""Pseudo-labels: a teacher's answers to rows without labels, their confidence, and the rows that are used."""

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
    """A teacher's answers as labelled rows, and the confidence of each: (rows,), from 0 to 1.

    `nats`: per label of the curve's split, on which the temperature was not fitted; `nats_calibrated`: with it.
    `quality`: the task's metric over all rows, meaningful for those that are `known`.
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
    """Predict the rows of `pool` without their labels; those that are `known` measure the predictions.

    Confidence is the geometric mean of the probabilities of an answer's labels (its class; its first and last token;
    each token of a text), under the temperature that fits validation best.
    """
    model.eval()

    def nats(features: Sequence[Feature], temperatures: Sequence[float] | np.ndarray) -> np.ndarray:
        sums, counts = label_log_probs(model, task, features, temperatures=[*temperatures], accelerator=accelerator)
        return -sums.sum(axis=0) / max(1, counts.sum())

    validation = task.encoded["validation"].features
    labels = sum(np.size(feature["labels"]) for feature in validation)
    some = validation[:: max(1, labels // CALIBRATED_ON)]  # one number needs no more, and texts have many labels
    temperature = fit_temperature(lambda temperatures: nats(some, temperatures))
    before, after = nats(task.encoded[split].features, (1.0, temperature))
    asked = task.with_rows("pool", pool)
    with torch.no_grad():
        scores = asked.score("pool", asked.predict(model, "pool", accelerator))
    labelled = [
        (i, row)
        for i, example in enumerate(scores.examples)
        if (row := task.with_label(pool[i], example["prediction"])) is not None
    ]
    rows = [row for _, row in labelled]
    answered = task.with_rows("pool", rows)
    sums, counts = label_log_probs(
        model, answered, answered.encoded["pool"].features, temperatures=(temperature,), accelerator=accelerator
    )
    of = np.asarray(answered.rows_of_features("pool"), np.int64)
    sums = np.bincount(of, sums.reshape(-1), minlength=len(rows))
    counts = np.bincount(of, counts, minlength=len(rows))
    places = np.array([i for i, _ in labelled], np.int64)
    estimate = scores.estimates[task.main_metric]
    return PseudoLabels(
        rows,
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
    """The rows whose pseudo-label is used: as many of each stratum as `shares` says, the most confident first.

    None is below `threshold`, and the stratum with the fewest above it, for its share, limits all others: a teacher
    that prefers a class does not pass that on (class-balanced self-training, Zou et al., arXiv 1810.07911).
    """
    above: dict[Any, list[int]] = {kind: [] for kind in shares}
    for i in np.argsort(-confidence, kind="stable").tolist():
        if confidence[i] >= threshold and strata[i] in above:
            above[strata[i]].append(i)
    at_most = min(len(above[kind]) / share for kind, share in shares.items() if share > 0)
    taken = [above[kind][: int(at_most * share + 1e-9)] for kind, share in shares.items()]
    return np.sort(np.concatenate(taken)).astype(np.int64)
