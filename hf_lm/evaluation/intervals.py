"""A number over examples: its value, its 95 % interval, and whether it is better than another number."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

ANY, POSITIVE, PERCENT = (-math.inf, math.inf), (0.0, math.inf), (0.0, 100.0)  # between which numbers a metric lies
EXACT = 12  # examples that differ: up to so many, every way to swap them is tried (4,096)
FEWEST = 6  # examples that differ: with fewer nothing is beaten
LEVEL = 0.05  # of tests and intervals, two-sided


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % interval; the bounds are None where the examples do not determine them."""

    value: float
    low: float | None = None
    high: float | None = None

    def report(self) -> dict[str, float]:
        """The keys of report.json: bounds that do not exist are absent."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Estimate:
    """A number that sums over examples determine: a ratio of sums, corpus BLEU, macro F1, a calibration error.

    `statistics` is (examples, k); `value_of` maps sums (..., k) to values (...). `bounds`: the least and the greatest
    value that the metric can have; they choose the interval, see `interval_of`. `of_constant`: the value where all
    answers are the same, whatever the examples, if the metric has one. `units` (examples,) numbers what examples are
    of, where several are right or wrong together, as the questions about one text: intervals and tests are over units.
    """

    statistics: np.ndarray
    value_of: Callable[[np.ndarray], np.ndarray]
    higher_is_better: bool = True
    bounds: tuple[float, float] = ANY
    of_constant: float | None = None
    units: np.ndarray | None = None

    @property
    def value(self) -> float:
        return float(self.value_of(self.statistics.sum(axis=0)))

    def interval(self) -> Interval:
        """The value with its 95 % interval over examples."""
        return interval_of(self.value, self.left_out(), self.bounds)

    def left_out(self) -> np.ndarray:
        """The value without each example, or unit, that has a weight: the jackknife (Tukey 1958)."""
        summed = self.by_unit()
        weighted = summed[summed.any(axis=1)]
        return self.value_of(summed.sum(axis=0) - weighted)

    def by_unit(self) -> np.ndarray:
        """The statistics, summed over the examples of each unit, (units, k)."""
        if self.units is None:
            return self.statistics
        return np.stack([np.bincount(self.units, column) for column in self.statistics.T], axis=1)

    def difference(self, other: "Estimate") -> "Estimate":
        """This number minus `other` on the same examples, which are left out of both together."""
        if len(self.statistics) != len(other.statistics):
            raise ValueError(f"{len(self.statistics)} and {len(other.statistics)} examples cannot be paired.")
        both, k = np.concatenate([self.statistics, other.statistics], axis=1), self.statistics.shape[1]
        (low, high), (other_low, other_high) = self.bounds, other.bounds
        return Estimate(
            both,
            lambda sums: self.value_of(sums[..., :k]) - other.value_of(sums[..., k:]),
            self.higher_is_better,
            (low - other_high, high - other_low),
            units=self.units,
        )

    def minus(self, other: "Estimate") -> Interval:
        """The difference of two numbers on the same examples, with its 95 % interval."""
        return self.difference(other).interval()

    def beats(self, other: "Estimate") -> bool:
        """Whether this is better than `other` on the same examples, by the paired test at the level of 5 %.

        With fewer than six examples that differ nothing is beaten: no p of the test is below the level. Where `other`
        has the value of constant answers, which no example can change, the interval decides: answers swapped with
        constant ones still correlate with the truth, so that the test misses half of what the interval sees.
        """
        if not math.isfinite(self.value) or not math.isfinite(other.value):
            return self.value > other.value if self.higher_is_better else self.value < other.value
        if self.of_constant is not None and np.all(other.left_out() == self.of_constant):
            interval, differ = self.interval(), (self.by_unit() != other.by_unit()).any(axis=1).sum()
            bound = interval.low if self.higher_is_better else interval.high
            return bool(differ >= FEWEST and bound is not None and (bound > other.value) == self.higher_is_better)
        better = (self.value > other.value) == self.higher_is_better
        return better and randomisation(self, other, resamples=2000) < LEVEL


@dataclass(frozen=True)
class OverRuns:
    """One number after several trainings on the same examples, paired by their order: seed by seed. Its value is the
    mean over them, and its interval holds for other trainings and other examples.
    """

    runs: Sequence[Estimate]

    @property
    def value(self) -> float:
        return float(np.mean([run.value for run in self.runs]))

    def interval(self) -> Interval:
        places = np.cumsum([run.statistics.shape[1] for run in self.runs])[:-1]

        def value_of(sums: np.ndarray) -> np.ndarray:
            parts = np.split(sums, places, axis=-1)
            return np.mean([run.value_of(part) for run, part in zip(self.runs, parts, strict=True)], axis=0)

        statistics = np.concatenate([run.statistics for run in self.runs], axis=1)
        together = Estimate(statistics, value_of, units=self.runs[0].units)
        return interval_of(self.value, together.left_out(), self.runs[0].bounds, runs=[run.value for run in self.runs])

    def minus(self, other: "OverRuns") -> Interval:
        """The difference on the same examples and the same seeds."""
        if len(self.runs) != len(other.runs):
            raise ValueError(f"{len(self.runs)} and {len(other.runs)} trainings cannot be paired.")
        return OverRuns([a.difference(b) for a, b in zip(self.runs, other.runs, strict=True)]).interval()


def interval_of(
    value: float, left_out: np.ndarray, bounds: tuple[float, float], *, runs: Sequence[float] = ()
) -> Interval:
    """The 95 % interval of a metric that lies between `bounds`, from its values without each example, (examples,).

    The variance is the jackknife's (Efron and Stein 1981), with that between `runs`, the values after several
    trainings, added. The interval is Student's, of a metric that is above 0 on the scale of its logarithm. It has as
    many degrees of freedom as there are examples that carry the variance: few where one long document decides. For a
    metric between two finite bounds see `_of_a_share`.
    """
    examples, (least, most) = len(left_out), bounds
    if not examples:  # as of precision where nothing is found and nothing was to be
        return Interval(value)
    bounded = math.isfinite(most - least)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = np.log if bounds == POSITIVE else np.asarray
        apart = scale(left_out) - scale(left_out).mean()
        among = float((apart**2).sum()) * (examples - 1) / examples
        between = float(np.var(scale(runs), ddof=1)) / len(runs) if len(runs) > 1 else 0.0
    variance = among + between
    if examples == 1 and bounded and math.isfinite(value):
        return _where_all_agree(value, bounds, examples)
    if examples < 2 or not math.isfinite(variance) or not math.isfinite(value):
        return Interval(value)
    share = (value - least) / (most - least) if bounded else 0.5
    agree = np.ptp(left_out) <= 1e-12 * (most - least if bounded else abs(value)) and not between
    if agree or not 0 < share < 1:
        return _where_all_agree(value, bounds, examples) if bounded else Interval(value)
    freedom = _degrees_of_freedom(apart, share, between, len(runs))
    if bounded:
        trials = share * (1 - share) * (most - least) ** 2 * examples / (examples - 1) / variance
        trials *= (_student(examples - 1) / _student(freedom)) ** 2
        low, high = _of_a_share(share, trials)
        return Interval(value, least + (most - least) * low, least + (most - least) * high)
    reach = _student(freedom) * math.sqrt(variance)
    if bounds == POSITIVE:
        return Interval(value, value * math.exp(-reach), value * math.exp(reach) if reach < 700 else None)
    return Interval(value, value - reach, value + reach)


def _degrees_of_freedom(apart: np.ndarray, share: float, between: float, runs: int) -> float:
    """Those of the variance of examples that lie `apart` from their mean, and of that `between` runs.

    Of n zeros and ones, whatever the share of ones, they are n - 1; where one example has all the variance, 2, the
    least: with one, intervals are three times as wide, and held the truth no more often in simulations.
    """
    examples, among = len(apart), float((apart**2).sum()) * (len(apart) - 1) / len(apart)
    spread = share * (1 - share)
    carrying = float((apart**2).sum() ** 2 / (apart**4).sum()) * (1 - 3 * spread) / spread if among else 1.0
    carrying = max(min(1.0, carrying / examples) * (examples - 1), min(2, examples - 1))
    # Satterthwaite 1946: a sum of two variances.
    return (among + between) ** 2 / (among**2 / carrying + between**2 / max(1, runs - 1))


def _of_a_share(share: float, trials: float) -> tuple[float, float]:
    """The interval of a share: that of a proportion over as many trials as have its variance (Korn and Graubard 1998).

    For a mean of zeros and ones the trials are the examples, and the interval is that of Clopper and Pearson (1934).
    """
    hits, misses = share * trials, (1 - share) * trials
    logits = _beta_quantile(LEVEL / 2, hits, misses + 1), _beta_quantile(1 - LEVEL / 2, hits + 1, misses)
    low, high = (math.exp(-np.logaddexp(0, -logit)) for logit in logits)
    return low, high


def _where_all_agree(value: float, bounds: tuple[float, float], examples: int) -> Interval:
    """Other examples may differ, anywhere within the bounds: up to the share of them that so many miss in 2.5 %."""
    unseen = 1 - (LEVEL / 2) ** (1 / examples)
    return Interval(value, value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value))


def _student(freedom: float) -> float:
    """What |t| exceeds in 5 %; t² / (freedom + t²) has a beta distribution."""
    return math.sqrt(freedom * math.exp(-_beta_quantile(LEVEL, freedom / 2, 0.5)))


def _beta_quantile(p: float, a: float, b: float) -> float:
    """The logit of the p quantile of a beta distribution, whose density over logits is summed on a grid."""
    spread = 10 * math.sqrt(1 / a + 1 / b)
    grid = np.linspace(-spread - 20 / a, spread + 20 / b, 20_001) + math.log(a / b)
    density = a * grid - (a + b) * np.logaddexp(0, grid)
    density = np.exp(density - density.max())
    summed = np.cumsum(density) - density / 2
    return float(np.interp(p * summed[-1], summed, grid))


def randomisation(one: Estimate, other: Estimate, *, resamples: int = 5000, seed: int = 0) -> float:
    """The p of no difference, two-sided: how often swapping the two models' answers at random parts them as far.

    Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989; for metrics that are no means, as BLEU, Riezler
    and Maxwell 2005. Exact where at most 12 examples differ, else never below 1 / (resamples + 1). Swaps that leave
    the metric without a value count as far apart.
    """
    if one.statistics.shape != other.statistics.shape:
        raise ValueError(f"{len(one.statistics)} and {len(other.statistics)} examples cannot be paired.")
    total = one.statistics.sum(axis=0) + other.statistics.sum(axis=0)
    apart = one.by_unit() - other.by_unit()
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


def ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
    higher_is_better: bool = True,
    bounds: tuple[float, float] = ANY,
) -> Estimate:
    """`transform(sum(numerator) / sum(denominator))`; both are (examples,).

    A ratio of sums, not a mean of ratios: a long document counts as much as its tokens.
    """
    statistics = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], axis=1)

    def value_of(sums: np.ndarray) -> np.ndarray:
        return transform(sums[..., 0] / np.where(sums[..., 1] == 0, np.nan, sums[..., 1]))

    return Estimate(statistics, value_of, higher_is_better, bounds)


def units_of(keys: Sequence[Hashable]) -> np.ndarray:
    """Which unit each example is of, (examples,): those of equal keys are of one; see `Estimate`."""
    places: dict[Hashable, int] = {}
    return np.array([places.setdefault(key, len(places)) for key in keys], int)


def mean(values: np.ndarray, *, higher_is_better: bool = True, bounds: tuple[float, float] = ANY) -> Estimate:
    """The mean of one value per example, (examples,)."""
    return ratio(values, np.ones(len(values)), higher_is_better=higher_is_better, bounds=bounds)
