"""The tests between two models keep their promises: how often they are wrong, what they find, what scipy finds."""

import numpy as np
import pytest
from scipy import stats

from hf_lm.evaluation.compare import compare, holm
from hf_lm.evaluation.intervals import PERCENT, Estimate, mean, randomisation, ratio
from hf_lm.evaluation.metrics import Translation
from hf_lm.reporting.report import in_words
from hf_lm.scoring.scoreboard import sentence


def answers(rng, *, examples=120, gain=0.0):
    """Two classifiers, right in 70 % and 70 % + gain, who mostly err on the same examples."""
    hard, own = rng.random(examples), rng.random((2, examples))
    right = 0.7 * hard + 0.3 * own < 0.5 + np.array([[0.1], [0.1 + gain]])
    return mean(right[0].astype(float)), mean(right[1].astype(float))


def test_models_that_are_equal_differ_in_five_of_a_hundred_comparisons():
    rng = np.random.default_rng(1)
    p = np.array([randomisation(*answers(rng), resamples=400) for _ in range(400)])
    wrong = (p < 0.05).sum()
    assert stats.binom.ppf(0.001, 400, 0.03) <= wrong <= stats.binom.ppf(0.999, 400, 0.05)  # ties make it cautious
    assert stats.binom.ppf(0.001, 400, 0.45) <= (p < 0.5).sum() <= stats.binom.ppf(0.999, 400, 0.5)


def test_a_difference_is_found_as_often_as_the_paired_test_of_theory_finds_it():
    rng = np.random.default_rng(2)
    found, theory = 0, 0
    for _ in range(150):
        one, other = answers(rng, gain=0.09)
        found += randomisation(one, other, resamples=400) < 0.05
        apart = one.statistics[:, 0] - other.statistics[:, 0]
        theory += stats.binomtest(int((apart < 0).sum()), max(1, int((apart != 0).sum()))).pvalue < 0.05  # McNemar's
    assert found > 75
    assert abs(found - theory) <= 8


def test_many_equal_models_are_all_equal_in_95_of_a_hundred_tables():
    rng, tables = np.random.default_rng(3), 50
    wrong = 0
    for _ in range(tables):
        hard = rng.random(100)
        models = {name: mean((0.6 * hard + 0.4 * rng.random(100) < 0.6).astype(float)) for name in "abc"}
        wrong += any(one.better for one in compare(models, "accuracy", resamples=300))
    assert wrong <= stats.binom.ppf(0.999, tables, 0.05)


@pytest.mark.parametrize("examples", [6, 9, 40])
def test_p_of_a_difference_of_means_is_that_of_scipy(examples):
    rng = np.random.default_rng(examples)
    one, other = rng.normal(0.6, 1, examples), rng.normal(0, 1, examples)
    p = randomisation(mean(one), mean(other), resamples=20_000)
    reference = stats.permutation_test(
        (one, other), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=20_000, rng=0
    ).pvalue
    assert p == pytest.approx(reference, abs=1e-12 if examples <= 12 else 0.01)


@pytest.mark.parametrize(("differ", "exact"), [(12, True), (13, False)])
def test_every_swap_is_tried_where_at_most_twelve_examples_differ(differ, exact):
    one, other = np.arange(1.0, 31), np.arange(1.0, 31)
    one[:differ] += 1
    p = randomisation(mean(one), mean(other), resamples=99)
    assert p == (2 / 2**12 if exact else 1 / 100)  # all swapped or none; at random neither occurs in 99


def test_a_model_is_better_where_the_interval_and_the_corrected_test_say_so():
    def numbers(shifts, higher_is_better=True):
        ground = np.random.default_rng(0).normal(size=100)
        shifts = {name: np.array(shift + [0.0] * (100 - len(shift))) for name, shift in shifts.items()}
        return {n: mean(ground + shift, higher_is_better=higher_is_better) for n, shift in shifts.items()}

    few, enough = [1.0] * 5, [1.0] * 6  # of n that differ, all one way, p is 2 / 2 ** n: 0.0625 and 0.03125
    (found,) = compare(numbers({"a": [0.0], "b": enough}), "f1")
    assert (found.model_a, found.model_b, found.metric, found.better) == ("a", "b", "f1", "b")
    assert (found.p, found.p_corrected, found.comparisons, found.examples) == (2 / 64, 2 / 64, 1, 100)
    assert found.higher_is_better
    assert found.difference.value == pytest.approx(-0.06)
    assert compare(numbers({"b": enough, "a": [0.0]}), "f1")[0].better == "b"
    (found,) = compare(numbers({"a": [0.0], "b": enough}, higher_is_better=False), "ter")
    assert (found.better, found.higher_is_better) == ("a", False)
    (found,) = compare(numbers({"a": [0.0], "b": few}), "f1")
    assert (found.p, found.better) == (2 / 32, "")
    three = compare(numbers({"a": [0.0], "b": enough, "c": [0.0]}), "f1")
    assert [(one.model_a, one.model_b) for one in three] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [one.p for one in three] == [2 / 64, 1.0, 2 / 64]
    assert [one.p_corrected for one in three] == [6 / 64, 1.0, 6 / 64]
    assert not any(one.better for one in three)
    outlier = compare(numbers({"a": [0.0], "b": [0.01] * 12 + [-0.1]}), "f1", resamples=1000)[0]
    assert outlier.better == ""


def test_many_examples_are_swapped_some_at_a_time_and_every_swap_counts():
    sizes = []

    def value_of(sums):
        sizes.append(len(np.atleast_2d(sums)))
        return np.full(sums.shape[:-1], np.nan)

    rows = np.random.default_rng(0).normal(size=(3000, 1))
    assert randomisation(Estimate(rows, value_of), Estimate(rows[::-1], value_of), resamples=3000) == 1.0
    assert 3000 * max(sizes) <= 2**22  # memory does not grow with the swaps
    apart = mean(rows[:, 0] + 1), mean(rows[:, 0])
    assert randomisation(*apart, resamples=3000) == 1 / 3001
    assert randomisation(*apart) == 1 / 5001


def test_the_interval_of_a_difference_is_that_of_scipy():
    rng = np.random.default_rng(5)
    one, other = rng.normal(0.3, 1, 80), rng.normal(0, 1, 80)
    ours = compare({"a": mean(one), "b": mean(other)}, "x")[0].difference
    reference = stats.bootstrap(
        (one, other), lambda x, y, axis: (x - y).mean(axis), paired=True, method="percentile", rng=0
    ).confidence_interval
    assert ours.value == pytest.approx(one.mean() - other.mean())
    assert [ours.low, ours.high] == pytest.approx([reference.low, reference.high], abs=0.03)


def test_holm_steps_down_from_the_smallest():
    # Holm 1979: sorted p times m, m - 1, ...; never below the one before, never above 1.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


def test_a_metric_that_is_no_mean_is_tested_as_a_whole():
    rng = np.random.default_rng(7)
    words = [f"w{i}" for i in range(50)]
    references = [list(rng.choice(words, 12)) for _ in range(60)]

    def noisy(share):
        rows = [[w if rng.random() > share else rng.choice(words) for w in row] for row in references]
        return Translation().estimates([" ".join(r) for r in rows], [" ".join(r) for r in references])["bleu"]

    good, poor, same = noisy(0.1), noisy(0.35), noisy(0.1)
    assert randomisation(good, poor, resamples=500) == pytest.approx(1 / 501)
    assert randomisation(good, same, resamples=500) > 0.05
    assert randomisation(poor, good, resamples=500) == randomisation(good, poor, resamples=500)


def test_models_that_say_the_same_are_equal_and_examples_must_pair():
    one = mean(np.arange(30.0))
    assert randomisation(one, one) == 1.0
    with pytest.raises(ValueError, match="cannot be paired"):
        randomisation(one, mean(np.arange(29.0)))


def test_swaps_that_leave_no_value_count_against_a_difference():
    unknown = Estimate(np.array([[1.0], [0.0], [1.0]]), lambda sums: np.full(sums.shape[:-1], np.nan))
    assert randomisation(unknown, Estimate(np.zeros((3, 1)), unknown.value_of)) == 1.0


def test_a_sentence_says_who_is_better_by_how_much_and_how_sure():
    rng = np.random.default_rng(0)
    tokens, worse = np.full(200, 50.0), rng.normal(100, 5, 200)
    found = compare(
        {
            "a": ratio(worse, tokens, higher_is_better=False),
            "b": ratio(worse - rng.normal(10, 3, 200), tokens, higher_is_better=False),
            "c": ratio(worse + rng.normal(0, 5, 200), tokens, higher_is_better=False),
        },
        "bits_per_byte",
    )
    said = {(one.model_a, one.model_b): sentence(one, "documents") for one in found}
    assert said["a", "b"].startswith("b is better than a by 0.195 bits per byte, 95 % interval 0.18")
    assert said["a", "b"].endswith("p < 0.001 after correction for 3 comparisons.")
    assert said["a", "c"].startswith("No difference beyond noise between a and c: 0.0")
    alone = compare(
        {"a": mean(np.full(40, 100.0), bounds=PERCENT), "b": mean(np.zeros(40), bounds=PERCENT)}, "accuracy"
    )
    assert "a is better than b by 100.0 points of accuracy" in sentence(alone[0])
    right = mean(np.array([100.0, 0.0] * 20), bounds=PERCENT)
    assert "a and b: 0.0 points of accuracy for b" in sentence(compare({"a": right, "b": right}, "accuracy")[0])
    assert in_words("kl", {"value": -0.001, "low": -0.004, "high": 0.002}) == "0.00 nats (0.00 nats to 0.00 nats)"
    assert "correction" not in sentence(alone[0])


def test_equal_models_differ_by_zero_without_a_sign():
    [found] = compare({"a": mean(np.full(9, 0.5)), "b": mean(np.full(9, 0.5))}, "accuracy")
    assert ": 0.0 points of accuracy for b" in sentence(found)


def test_one_document_is_too_few_to_say_anything():
    [found] = compare({"a": mean(np.array([0.9])), "b": mean(np.array([0.2]))}, "accuracy")
    expected = "a and b cannot be compared: 0.7 points of accuracy for a, and too few documents to test it (1)."
    assert sentence(found, "documents") == expected
