"""Bootstrap intervals keep the distribution and the variance that theory gives them."""

import math
import warnings
from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy import stats

from hf_lm.evaluation.intervals import Estimate, OverRuns, mean, ratio
from hf_lm.evaluation.perplexity import _exp_or_inf

NOISE = np.random.default_rng(0).normal(size=(2, 100))


def test_every_draw_of_as_many_examples_is_as_likely_as_any_other():
    values = [0.0, 1.0, 5.0]
    exact = Counter(sum(draw) for draw in product(values, repeat=3))  # of the 27 draws
    found = Counter(np.rint(3 * mean(values).resampled(resamples=5400)).tolist())
    assert found.keys() == exact.keys()
    counts = [(found[total], 5400 / 27 * ways) for total, ways in exact.items()]
    assert stats.chisquare(*zip(*counts, strict=True)).pvalue > 0.001


@pytest.mark.parametrize(
    "number", [mean(NOISE[0]), ratio(NOISE[0], 2 + NOISE[1] ** 2), OverRuns([mean(row) for row in NOISE])]
)
def test_an_interval_leaves_one_resampled_value_in_forty_on_each_side(number):
    values, interval = number.resampled(resamples=4000, seed=3), number.interval(resamples=4000, seed=3)
    assert interval.value == number.value
    assert (values < interval.low).sum() == (values > interval.high).sum() == 100
    other = type(number)(number.runs[::-1]) if isinstance(number, OverRuns) else mean(NOISE[1])
    apart = values - other.resampled(resamples=4000, seed=3)  # the same draws for both
    difference = number.minus(other, resamples=4000, seed=3)
    assert difference.value == number.value - other.value
    assert (apart < difference.low).sum() == (apart > difference.high).sum() == 100


def test_many_examples_are_drawn_some_at_a_time_and_none_is_left_out():
    drawn = []

    def value_of(sums):
        drawn.append(len(sums))
        return sums[..., 0] / 3000

    examples = np.random.default_rng(0).normal(1e6, 1e3, size=(3000, 1))
    values = Estimate(examples, value_of).resampled(resamples=3000)
    assert sum(drawn) == 3000
    assert 3000 * max(drawn) <= 2**22  # examples in memory: no more as resamples grow
    assert values.mean() == pytest.approx(examples.mean(), abs=5)
    assert values.std() == pytest.approx(examples.std() / math.sqrt(3000), rel=0.1)


def test_better_is_beyond_noise_in_the_direction_of_the_metric():
    high, low = mean(NOISE[0] + 0.6), mean(NOISE[0] + 0.1 * NOISE[1])
    assert high.beats(low)
    assert not low.beats(high)
    assert not high.beats(high)
    high, low = mean(NOISE[0] + 0.6, higher_is_better=False), mean(NOISE[0], higher_is_better=False)
    assert low.beats(high)
    assert not high.beats(low)
    assert not high.beats(high)
    above, below = mean(NOISE[0] + 0.01), mean(NOISE[0][::-1])
    assert not above.beats(below)  # within noise
    assert mean([1.0, 1.0]).beats(mean([0.0, 0.0]))
    assert not mean([1.0]).beats(mean([0.0]))  # one example leaves no noise to compare with


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_values_beyond_floats_are_compared_without_their_noise(higher_is_better):
    nats = {"huge": 1e4, "small": 1.0}  # whose exponential is beyond floats, and is not
    numbers = {
        name: ratio(np.full(20, size), np.ones(20), transform=_exp_or_inf, higher_is_better=higher_is_better)
        for name, size in nats.items()
    }
    best, worst = ("huge", "small") if higher_is_better else ("small", "huge")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers["huge"].interval().report() == {"value": math.inf}
    with np.errstate(invalid="ignore"):
        assert numbers[best].beats(numbers[worst])
        assert not numbers[worst].beats(numbers[best])
        assert not any(number.beats(number) for number in numbers.values())


def test_a_ratio_is_of_sums_and_over_nothing_it_is_no_number():
    assert ratio([1.0, 5.0], [1.0, 2.0]).value == 2
    assert ratio([1.0], [1.0]).higher_is_better  # unless it is given
    assert Estimate(np.ones((1, 1)), np.sum).higher_is_better
    assert ratio([0.0, 0.0], [1.0, 0.0]).value == 0
    assert ratio([3.0], [1.0]).value == 3
    assert ratio([3.0], [-1.0]).value == -3
    assert math.isnan(ratio([0.0], [0.0]).value)
    some = ratio([0.0, 1.0, 2.0], [0.0, 1.0, 1.0])  # draws of the first alone have no value and are left out
    assert 1 <= some.interval().low < some.interval().high <= 2


@pytest.mark.parametrize("values", [[1.0, 4.0], [1.0, 2.0, 6.0], [3.0, 1.0, 4.0, 1.0, 5.0]])
def test_the_variance_between_trainings_is_the_unbiased_variance_of_their_mean(values):
    """Rao and Wu 1988: drawing n - 1 of n makes the variance of the bootstrap mean s^2 / n, s^2 with n - 1 below."""
    runs = OverRuns([mean(np.full(50, value)) for value in values])  # equal examples: all noise is between trainings
    drawn = runs.resampled(resamples=20_000)
    assert drawn.mean() == pytest.approx(np.mean(values), rel=0.02)
    assert drawn.var() == pytest.approx(np.var(values, ddof=1) / len(values), rel=0.06)


def test_trainings_are_measured_on_the_same_examples_and_paired_by_their_order():
    one, other = (mean(row) for row in NOISE)
    assert np.array_equal(OverRuns([one]).resampled(seed=5), one.resampled(seed=5))  # only the examples
    assert OverRuns([one, one]).resampled(resamples=300, seed=5) == pytest.approx(one.resampled(resamples=300, seed=5))
    assert OverRuns([one, other]).minus(OverRuns([one, other])).report() == {"value": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(ValueError, match="2 and 1 trainings"):
        OverRuns([one, other]).minus(OverRuns([one]))
