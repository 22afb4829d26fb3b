"""Whether one model is better than another on the same examples: tested in pairs, corrected for how often one asks.

Pure functions over Estimates whose rows are the same examples. What the numbers mean for a reader is said in
hf_lm.scoring.scoreboard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from hf_lm.evaluation.intervals import Estimate, Interval

EXACT = 12  # examples that differ: up to so many, every way to swap them is tried (4,096)
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two models under one metric. `difference`: `one` minus `other`, with the interval of a paired bootstrap.

    `p` is that of approximate randomisation, two-sided; `corrected` after Holm's correction for the `comparisons`
    made. `better` names the better model where both the test and the interval say so, else it is "".
    """

    one: str
    other: str
    metric: str
    difference: Interval
    p: float
    corrected: float
    comparisons: int
    examples: int
    higher_is_better: bool
    better: str


def compare(estimates: Mapping[str, Estimate], metric: str, *, resamples: int = 5000) -> list[Comparison]:
    """Every pair of models under one metric. Raises ValueError where they were not measured on as many examples."""
    pairs = list(combinations(estimates, 2))
    found = [randomisation(estimates[one], estimates[other], resamples=resamples) for one, other in pairs]
    compared = []
    for (one, other), p, corrected in zip(pairs, found, holm(found), strict=True):
        difference, higher = estimates[one].minus(estimates[other]), estimates[one].higher_is_better
        apart = difference.low is not None and difference.high is not None and difference.low * difference.high > 0
        best = one if (difference.value > 0) == higher else other
        compared.append(
            Comparison(
                one=one,
                other=other,
                metric=metric,
                difference=difference,
                p=p,
                corrected=corrected,
                comparisons=len(pairs),
                examples=len(estimates[one].statistics),
                higher_is_better=higher,
                better=best if apart and corrected < LEVEL else "",
            )
        )
    return compared


def randomisation(one: Estimate, other: Estimate, *, resamples: int = 5000, seed: int = 0) -> float:
    """The p of no difference, two-sided: how often swapping the two models' answers at random parts them as far.

    Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989; for metrics that are no means, as BLEU, Riezler
    and Maxwell 2005. Exact where at most 12 examples differ, else never below 1 / (resamples + 1). Swaps that leave
    the metric without a value count as far apart.
    """
    if one.statistics.shape != other.statistics.shape:
        raise ValueError(f"{len(one.statistics)} and {len(other.statistics)} examples cannot be paired.")
    total = one.statistics.sum(axis=0) + other.statistics.sum(axis=0)
    apart = one.statistics - other.statistics
    apart = apart[apart.any(axis=1)]  # where both say the same a swap changes nothing
    bound = abs(one.value - other.value) * (1 - 1e-9) - 1e-12  # sums in another order differ by rounding
    if len(apart) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(apart)))).reshape(2 ** len(apart), len(apart))
        return float(_far(signs, apart, total, one, bound).mean())
    rng, far = np.random.default_rng(seed), 0
    rows = max(1, 2**22 // len(apart))  # swaps drawn at a time: memory stays flat as examples grow
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), len(apart))
        far += int(_far(rng.integers(0, 2, size, np.int8) * 2.0 - 1, apart, total, one, bound).sum())
    return (far + 1) / (resamples + 1)


def _far(signs: np.ndarray, apart: np.ndarray, total: np.ndarray, metric: Estimate, bound: float) -> np.ndarray:
    """Whether the swaps that `signs` (swaps, examples) say part two models by `bound` or more, (swaps,)."""
    swapped = (total + signs @ apart) / 2
    with np.errstate(invalid="ignore"):
        return ~(np.abs(metric.value_of(swapped) - metric.value_of(total - swapped)) < bound)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values after Holm's correction (1979): the chance of one false difference or more stays below the level."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return corrected.tolist()
