"""Intervals are those that theory gives; tests/test_coverage.py simulates how often they hold the truth."""

import math
import warnings
from dataclasses import astuple, replace

import numpy as np
import pytest
from scipy import stats

from hf_lm.evaluation.intervals import PERCENT, POSITIVE, Estimate, OverRuns, mean, randomisation, ratio
from hf_lm.evaluation.perplexity import _exp_or_inf

NOISE = np.random.default_rng(0).normal(size=(2, 100))


@pytest.mark.parametrize("right", [0, 1, 10, 33, 49, 50])
def test_a_proportion_has_the_interval_of_clopper_and_pearson(right):
    interval = mean(np.repeat([100.0, 0.0], [right, 50 - right]), bounds=PERCENT).interval()
    reference = stats.binomtest(right, 50).proportion_ci(method="exact")
    assert [interval.low, interval.high] == pytest.approx([100 * reference.low, 100 * reference.high], abs=0.01)


def test_examples_without_a_weight_do_not_narrow_an_interval():
    some = ratio([100.0] * 8 + [0.0] * 90, [1.0] * 8 + [0.0] * 90, bounds=PERCENT)
    assert some.interval() == mean(np.full(8, 100.0), bounds=PERCENT).interval()


def test_examples_of_one_unit_count_as_one():
    rng = np.random.default_rng(0)
    right, better = (rng.random((2, 40)) < [[0.5], [0.8]]) * 100.0
    units = rng.permutation(np.repeat(np.arange(40), 3))

    def repeated(values):
        return replace(mean(values[units], bounds=PERCENT), units=units)

    one, other = repeated(right), repeated(better)
    alone, beside = mean(right, bounds=PERCENT), mean(better, bounds=PERCENT)
    for found, wanted in ((one.interval(), alone.interval()), (other.minus(one), beside.minus(alone))):
        assert astuple(found) == pytest.approx(astuple(wanted))
    assert mean(right[units], bounds=PERCENT).interval().low > one.interval().low + 5  # as independent, too narrow
    assert randomisation(other, one) == randomisation(beside, alone)
    seeds = OverRuns([one, other]).interval(), OverRuns([alone, beside]).interval()
    assert astuple(seeds[0]) == pytest.approx(astuple(seeds[1]))


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 30.85), (50.0, 34.58, 65.42), (100.0, 69.15, 100.0)])
def test_where_all_examples_agree_others_may_differ(value, low, high):
    interval = mean(np.full(10, value), bounds=PERCENT).interval()
    assert [interval.low, interval.high] == pytest.approx([low, high], abs=0.01)
    assert mean(np.full(10, value)).interval().report() == {
        "value": value
    }  # without bounds nothing is known of others


def test_the_interval_of_a_mean_is_students_with_the_examples_that_carry_its_variance():
    values = NOISE[0]
    apart = values - values.mean()
    freedom = (apart**2).sum() ** 2 / (apart**4).sum() * 99 / 100
    reach = stats.t.ppf(0.975, freedom) * values.std(ddof=1) / 10
    interval = mean(values).interval()
    assert [interval.low, interval.high] == pytest.approx([values.mean() - reach, values.mean() + reach], rel=1e-4)
    one_decides = mean(np.r_[np.zeros(30), 31.0]).interval()
    assert one_decides.high == pytest.approx(1 + stats.t.ppf(0.975, 2), rel=1e-3)  # a standard error of 1


def reference(value, left_out, bounds, runs=()):
    """The documented interval of a metric, with the distributions of scipy, (low, high)."""
    (least, most), n = bounds, len(left_out)
    positive, bounded = bounds == POSITIVE, math.isfinite(most - least)
    apart = np.log(left_out) if positive else left_out
    apart = apart - apart.mean()
    among = (n - 1) / n * (apart**2).sum()  # the jackknife's variance
    between = np.var(np.log(runs) if positive else runs, ddof=1) / len(runs) if runs else 0.0
    share = (value - least) / (most - least) if bounded else 0.5
    spread = share * (1 - share)
    carry = (apart**2).sum() ** 2 / (apart**4).sum() * (1 - 3 * spread) / spread  # n for zeros and ones
    carry = max(min(n, carry) * (n - 1) / n, 2)
    freedom = (among + between) ** 2 / (among**2 / carry + between**2 / max(1, len(runs) - 1))
    if bounded:
        trials = spread * (most - least) ** 2 / (among + between) * n / (n - 1)
        trials *= (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, freedom)) ** 2
        hits, misses = share * trials, (1 - share) * trials
        ends = stats.beta.ppf(0.025, hits, misses + 1), stats.beta.ppf(0.975, hits + 1, misses)
        return tuple(least + (most - least) * end for end in ends)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(among + between)
    return (value * math.exp(-reach), value * math.exp(reach)) if positive else (value - reach, value + reach)


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), POSITIVE, PERCENT, (-20.0, 80.0), (20.0, 120.0)])
@pytest.mark.parametrize("heaviest", [2.0, 60.0])
def test_intervals_of_examples_with_weights_and_of_trainings_are_those_of_the_reference(bounds, heaviest):
    rng = np.random.default_rng(1)
    weights = np.r_[rng.uniform(0.5, 1.5, 11), heaviest]
    parts = [weights * rng.uniform(25.0, 75.0, 12) for _ in range(3)]
    runs = [ratio(part, weights, bounds=bounds) for part in parts]
    left_out = [(part.sum() - part) / (weights.sum() - weights) for part in parts]
    one, together = runs[0].interval(), OverRuns(runs).interval()
    assert (one.low, one.high) == pytest.approx(reference(one.value, left_out[0], bounds), rel=1e-4)
    expected = reference(together.value, np.mean(left_out, axis=0), bounds, [run.value for run in runs])
    assert (together.low, together.high) == pytest.approx(expected, rel=1e-4)


def test_what_two_examples_and_one_say_of_a_share_between_other_bounds():
    agree = mean(np.full(10, 5.0), bounds=(-20.0, 80.0)).interval()  # as 25 of 0 to 100
    assert [agree.low, agree.high] == pytest.approx([5 - 0.3085 * 25, 5 + 0.3085 * 75], abs=0.01)
    alone = mean(np.array([5.0]), bounds=(-20.0, 80.0)).interval()
    assert [alone.low, alone.high] == pytest.approx([5 - 0.975 * 25, 5 + 0.975 * 75])
    assert mean(np.array([5.0])).interval().report() == {"value": 5.0}
    two = mean(np.array([20.0, 40.0])).interval()
    assert two.high - 30 == pytest.approx(stats.t.ppf(0.975, 1) * 10, rel=1e-3)
    assert mean(np.ones(4), bounds=(1.0, 5.0)).difference(mean(np.ones(4), bounds=(1.0, 9.0))).bounds == (-8.0, 4.0)
    with pytest.raises(ValueError, match="4 and 3 examples cannot be paired"):
        mean(np.ones(4)).difference(mean(np.ones(3)))


def test_a_metric_above_zero_has_an_interval_above_zero_and_its_exponential_the_same():
    nats, tokens = np.exp(NOISE[0]), 1 + np.exp(NOISE[1])
    interval = ratio(nats, tokens, bounds=POSITIVE).interval()
    assert 0 < interval.low < interval.value < interval.high
    assert interval.high / interval.value == pytest.approx(interval.value / interval.low)


def test_a_difference_is_of_pairs_and_its_bounds_are_those_of_both():
    one, other = mean(NOISE[0] + 3), mean(NOISE[0] + 0.1 * NOISE[1])
    difference = one.minus(other)
    assert difference.report() == pytest.approx(mean(3 - 0.1 * NOISE[1]).interval().report())
    assert mean(np.ones(4), bounds=PERCENT).difference(mean(np.ones(4), bounds=PERCENT)).bounds == (-100, 100)


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
    assert mean([1.0] * 6).beats(mean([0.0] * 6))  # of 2 ** 6 ways to swap them 2 are as far apart
    assert not any(mean([1.0] * n).beats(mean([0.0] * n)) for n in (1, 2, 3, 5))


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


@pytest.mark.parametrize("values", [[1.0, 4.0], [1.0, 2.0, 6.0], [3.0, 1.0, 4.0, 1.0, 5.0]])
def test_between_trainings_on_examples_that_agree_the_interval_is_students(values):
    interval = OverRuns([mean(np.full(50, value)) for value in values]).interval()
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert [interval.low, interval.high] == pytest.approx([np.mean(values) - reach, np.mean(values) + reach], rel=1e-3)


def test_trainings_are_measured_on_the_same_examples_and_paired_by_their_order():
    one, other = (mean(row) for row in NOISE)
    assert OverRuns([one]).interval() == one.interval()
    assert OverRuns([one, one]).interval().report() == pytest.approx(one.interval().report())
    assert OverRuns([one, other]).minus(OverRuns([one, other])).report() == {"value": 0.0}
    with pytest.raises(ValueError, match="2 and 1 trainings"):
        OverRuns([one, other]).minus(OverRuns([one]))
