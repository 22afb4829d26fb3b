"""Intervals for your own numbers: a value per example becomes an estimate with a 95 % interval."""

import numpy as np

from hf_lm.evaluation.intervals import Estimate, mean

right = np.random.default_rng(0).random(200) < 0.8  # 200 answers, right or wrong
accuracy = mean(100.0 * right, bounds=(0, 100))
print(f"accuracy {accuracy.value:.1f}, 95 % interval {accuracy.interval().low:.1f} to {accuracy.interval().high:.1f}")

# Any number that sums over examples determine: here F1, from (true positives, predicted, positive) of each example.
counts = np.stack([right & (np.arange(200) % 2 == 0), right, np.arange(200) % 2 == 0], axis=1).astype(float)
f1 = Estimate(counts, lambda sums: 200 * sums[..., 0] / (sums[..., 1] + sums[..., 2]), bounds=(0, 100))
print(f1.interval())
