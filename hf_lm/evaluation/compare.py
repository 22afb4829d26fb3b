"""Whether a model is better than another on the same examples: paired tests, corrected for their number.

Pure functions over Estimates whose rows are the same examples; hf_lm.scoring.scoreboard has the sentences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hf_lm.evaluation.intervals import LEVEL, Estimate, Interval, randomisation


@dataclass(frozen=True)
class Comparison:
    """Two models under one metric. `difference`: `model_a` minus `model_b`, paired by example.

    `p` is that of approximate randomisation, two-sided; `p_corrected` after Holm's correction for the `comparisons`
    made. `better` names the better model where both the test and the interval say so, else it is "".
    """

    model_a: str
    model_b: str
    metric: str
    difference: Interval
    p: float
    p_corrected: float
    comparisons: int
    examples: int
    higher_is_better: bool
    better: str


def compare(estimates: Mapping[str, Estimate], metric: str, *, resamples: int = 5000) -> list[Comparison]:
    """Every pair of models under one metric. Raises ValueError where they were not measured on as many examples."""
    pairs = list(combinations(estimates, 2))
    p_values = [randomisation(estimates[a], estimates[b], resamples=resamples) for a, b in pairs]
    compared = []
    for (a, b), p, corrected in zip(pairs, p_values, holm(p_values), strict=True):
        difference, higher = estimates[a].minus(estimates[b]), estimates[a].higher_is_better
        apart = difference.low is not None and difference.high is not None and difference.low * difference.high > 0
        best = a if (difference.value > 0) == higher else b
        compared.append(
            Comparison(
                model_a=a,
                model_b=b,
                metric=metric,
                difference=difference,
                p=p,
                p_corrected=corrected,
                comparisons=len(pairs),
                examples=len(estimates[a].statistics),
                higher_is_better=higher,
                better=best if apart and corrected < LEVEL else "",
            )
        )
    return compared


def holm(p_values: Sequence[float]) -> list[float]:
    """p values after Holm's correction (1979): the chance of one false difference or more stays below the level."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return corrected.tolist()
