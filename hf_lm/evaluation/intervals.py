"""Bootstrap intervals."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % interval; the bounds are None where one example leaves nothing to resample."""

    value: float
    low: float | None = None
    high: float | None = None

    def report(self) -> dict[str, float]:
        """What stands in report.json: bounds that do not exist are absent."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def bootstrap_ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`transform(sum(numerator) / sum(denominator))` with a percentile bootstrap interval over examples.

    A ratio of sums, not a mean of ratios: a long document counts as much as its tokens. Both arrays are (examples,)
    and are resampled together. `transform` must be monotone. The same arrays always give the same interval.
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    examples = len(numerator)
    value = float(transform(numerator.sum() / denominator.sum()))
    if examples < 2:
        return Interval(value)
    rng = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    rows = max(1, 2**22 // examples)  # resamples drawn at a time: memory stays flat as examples grow
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, examples, size=(size, examples))  # (resamples, examples)
        sums = denominator[drawn].sum(axis=1)
        ratios[start : start + size] = numerator[drawn].sum(axis=1) / np.where(sums == 0, np.nan, sums)
    tail = (1 - confidence) / 2
    low, high = transform(np.nanquantile(ratios, [tail, 1 - tail]))
    return Interval(value, float(low), float(high))
