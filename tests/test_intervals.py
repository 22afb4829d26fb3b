"""Bootstrap intervals keep the variance that theory gives them."""

import numpy as np
import pytest

from hf_lm.evaluation.intervals import OverRuns, mean


@pytest.mark.parametrize("values", [[1.0, 4.0], [1.0, 2.0, 6.0], [3.0, 1.0, 4.0, 1.0, 5.0]])
def test_the_variance_between_trainings_is_the_unbiased_variance_of_their_mean(values):
    """Rao and Wu 1988: drawing n - 1 of n makes the variance of the bootstrap mean s^2 / n, s^2 with n - 1 below."""
    runs = OverRuns([mean(np.full(50, value)) for value in values])  # equal examples: all noise is between trainings
    drawn = runs.resampled(resamples=20_000)
    assert drawn.mean() == pytest.approx(np.mean(values), rel=0.02)
    assert drawn.var() == pytest.approx(np.var(values, ddof=1) / len(values), rel=0.06)


def test_of_one_training_only_the_examples_are_resampled():
    values = np.random.default_rng(0).normal(size=200)
    assert np.array_equal(OverRuns([mean(values)]).resampled(), mean(values).resampled())
