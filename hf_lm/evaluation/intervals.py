"""Bootstrap intervals: how far a number would move on other examples, and whether a difference is more than noise."""

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Estimate:
    """A number that sums over examples determine: a ratio of sums, corpus BLEU, macro F1, a calibration error.

    `statistics` is (examples, k); `value_of` maps sums (..., k) to values (...). Of resampled examples only the sums
    are taken, so that a bootstrap costs a matrix product whatever the metric.
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """

    statistics: np.ndarray
    value_of: Callable[[np.ndarray], np.ndarray]
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        return float(self.value_of(self.statistics.sum(axis=0)))

    def interval(self, **options) -> Interval:
        """The value with its percentile interval over examples."""
        return Interval(self.value, *_percentiles(self.resampled(**options)))

    def minus(self, other: "Estimate", **options) -> Interval:
        """The difference of two numbers on the same examples, resampled together (a paired bootstrap; Koehn 2004)."""
        if len(self.statistics) != len(other.statistics):
            raise ValueError(f"{len(self.statistics)} and {len(other.statistics)} examples cannot be paired.")
        differences = self.resampled(**options) - other.resampled(**options)
        return Interval(self.value - other.value, *_percentiles(differences))

    def beats(self, other: "Estimate") -> bool:
        """Whether this is better than `other` on the same examples by more than the noise of 95 %."""
        if len(self.statistics) < 2:
            return False
        difference = self.minus(other)
        if difference.low is None or difference.high is None:
            return self.value > other.value if self.higher_is_better else self.value < other.value
        return difference.low > 0 if self.higher_is_better else difference.high < 0

    def resampled(self, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
        """The value on `resamples` draws of as many examples, (resamples,). Equal seeds draw the same examples."""
        examples = len(self.statistics)
        if examples < 2:
            return np.full(resamples, np.nan)
        rng = np.random.default_rng(seed)
        values = np.empty(resamples)
        rows = max(1, 2**22 // examples)  # resamples drawn at a time: memory stays flat as examples grow
        for start in range(0, resamples, rows):
            size = min(rows, resamples - start)
            drawn = rng.integers(0, examples, size=(size, examples)) + examples * np.arange(size)[:, None]
            times = np.bincount(drawn.ravel(), minlength=size * examples).reshape(size, examples)
            values[start : start + size] = self.value_of(times @ self.statistics)
        return values


@dataclass(frozen=True)
class OverRuns:
    """One number after several trainings on the same examples, paired by their order: seed by seed. Its value is the
    mean over them.

    An interval resamples trainings and examples together, the same examples for all. Of n trainings n - 1 are drawn,
    which makes the variance between them the unbiased one (Rao and Wu 1988); with one only the examples are resampled.
    """

    runs: Sequence[Estimate]

    @property
    def value(self) -> float:
        return float(np.mean([run.value for run in self.runs]))

    def interval(self, **options) -> Interval:
        return Interval(self.value, *_percentiles(self.resampled(**options)))

    def minus(self, other: "OverRuns", **options) -> Interval:
        """The difference on the same examples and the same seeds, resampled together."""
        if len(self.runs) != len(other.runs):
            raise ValueError(f"{len(self.runs)} and {len(other.runs)} trainings cannot be paired.")
        differences = self.resampled(**options) - other.resampled(**options)
        return Interval(self.value - other.value, *_percentiles(differences))

    def resampled(self, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
        values = np.stack([run.resampled(resamples=resamples, seed=seed) for run in self.runs])  # (runs, resamples)
        runs = len(values)
        drawn = np.random.default_rng([seed, 1]).integers(0, runs, size=(max(1, runs - 1), resamples))
        return values[drawn, np.arange(resamples)].mean(axis=0)


def _percentiles(values: np.ndarray, confidence: float = 0.95) -> tuple[float | None, float | None]:
    values = values[~np.isnan(values)]
    if not len(values):
        return None, None
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # between two values that overflowed
        bounds = np.quantile(values, [tail, 1 - tail])
    low, high = (float(bound) if np.isfinite(bound) else None for bound in bounds)
    return low, high


def ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
    higher_is_better: bool = True,
) -> Estimate:
    """`transform(sum(numerator) / sum(denominator))`; both are (examples,).

    A ratio of sums, not a mean of ratios: a long document counts as much as its tokens.
    """
    statistics = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], axis=1)

    def value_of(sums: np.ndarray) -> np.ndarray:
        return transform(sums[..., 0] / np.where(sums[..., 1] == 0, np.nan, sums[..., 1]))

    return Estimate(statistics, value_of, higher_is_better)


def mean(values: np.ndarray, *, higher_is_better: bool = True) -> Estimate:
    """The mean of one value per example, (examples,)."""
    return ratio(values, np.ones(len(values)), higher_is_better=higher_is_better)
