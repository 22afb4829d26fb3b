"""95 % intervals hold the truth in 93 of 100 samples or more, and noise alone is "beaten" in few (simulations)."""

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hf_lm.evaluation.intervals import PERCENT, mean
from hf_lm.evaluation.metrics import Classification

spec = importlib.util.spec_from_file_location("simulation", Path(__file__).parent / "benchmarks" / "coverage.py")
simulation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simulation)
false_alarms, misses, populations = simulation.false_alarms, simulation.misses, cache(simulation.populations)
QUICK = (
    "accuracy 0.98",
    "calibration error, surer than right",
    "macro F1, 2 equal classes",
    "Matthews, a class of 3 %",
    "token F1, heaped at 0 and 100",
    "bits per byte",
)


def fewest(draws: int) -> float:
    """What 93 % of draws fall below by chance in one of a thousand tests."""
    return stats.binom.ppf(0.001, draws, 0.93)


@pytest.mark.parametrize("name", QUICK)
def test_intervals_of_few_examples_hold_the_truth(name):
    assert 200 - sum(misses(populations()[name], examples=31, draws=200)) >= fewest(200)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [20, 31, 50, 200, 1000])
def test_intervals_of_every_metric_hold_the_truth(examples):
    draws = 1000
    covered = {name: draws - sum(misses(p, examples=examples, draws=draws)) for name, p in populations().items()}
    assert {name: count for name, count in covered.items() if count < fewest(draws)} == {}


@pytest.mark.parametrize("examples", [3, 5, 31])
def test_noise_alone_is_seldom_beaten(examples):
    names, draws = ("token F1, heaped at 0 and 100", "bits per byte"), 60
    alarms = sum(false_alarms(populations()[name], examples=examples, draws=draws) for name in names)
    assert alarms <= (0 if examples < 6 else stats.binom.ppf(0.999, 2 * draws, 0.025))


@pytest.mark.slow
@pytest.mark.parametrize("examples", [10, 20, 31, 50])
@pytest.mark.parametrize("name", ["token F1, heaped at 0 and 100", "bits per byte", "macro F1, 2 equal classes"])
def test_noise_alone_is_beaten_in_one_of_forty_draws(name, examples):
    assert false_alarms(populations()[name], examples=examples, draws=1000) <= stats.binom.ppf(0.999, 1000, 0.025)


def correlations_beaten(accuracy: float | None, *, examples: int, draws: int, classes=(0.5, 0.5), said=None) -> int:
    """How often a classifier's Matthews correlation "beats" the most frequent class, by draws of `examples`.

    With `accuracy` None its answers, which have the frequencies `said`, do not depend on the classes.
    """
    rng, found, kinds = np.random.default_rng([0, examples]), 0, len(classes)
    metric = Classification(kinds)
    for _ in range(draws):
        true = rng.choice(kinds, examples, p=classes)
        guess = rng.choice(kinds, examples, p=said or classes)
        answers = guess if accuracy is None else np.where(rng.random(examples) < accuracy, true, 1 - true)
        most = np.full(examples, np.bincount(true).argmax())
        found += metric.estimates(answers, true)["mcc"].beats(metric.estimates(most, true)["mcc"])
    return found


def test_a_classifier_that_is_right_in_five_of_eight_has_a_correlation_beyond_the_most_frequent_class():
    assert correlations_beaten(0.63, examples=120, draws=100) >= 70


@pytest.mark.parametrize("examples", [60, 250])
@pytest.mark.parametrize(
    ("classes", "said"), [((0.5, 0.5), (0.5, 0.5)), ((0.95, 0.05), (0.5, 0.5)), ((0.5, 0.5), (0.95, 0.05))]
)
def test_a_correlation_by_chance_seldom_beats_the_most_frequent_class(examples, classes, said):
    beaten = correlations_beaten(None, examples=examples, draws=300, classes=classes, said=said)
    assert beaten <= stats.binom.ppf(0.999, 300, 0.05)


def test_no_sample_has_an_interval_of_no_width():
    rng = np.random.default_rng(0)
    for name, population in populations().items():
        rows = population.statistics
        for examples in (2, 5, 20):
            some = replace(population, statistics=rows[rng.integers(len(rows), size=examples)]).interval()
            assert some.low is None or some.high is None or some.low < some.high, name
    assert mean(np.full(8, 100.0), bounds=PERCENT).interval().low == pytest.approx(100 * 0.025 ** (1 / 8))
