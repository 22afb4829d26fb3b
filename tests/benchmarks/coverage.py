"""How often the 95 % interval of each metric holds the population's value, and how often noise alone is "beaten".

    python tests/benchmarks/coverage.py                        # the table of docs/concepts.md
    python tests/benchmarks/coverage.py --examples 20 31 --draws 500 --metrics accuracy "bits per byte"

A population is a pool of examples whose value is known; samples are drawn from it with replacement.
"""

import argparse
import math
from dataclasses import replace

import numpy as np

from hf_lm.evaluation.intervals import PERCENT, Estimate, mean
from hf_lm.evaluation.metrics import Classification, Translation
from hf_lm.evaluation.perplexity import Likelihood

POOL = 100_000
EXAMPLES = (20, 31, 50, 200, 1000)


def populations(seed: int = 0) -> dict[str, Estimate]:
    """An estimate over a pool for each kind of metric; what is hard for an interval is in it."""
    rng = np.random.default_rng(seed)
    found = {f"accuracy {share:g}": mean(100.0 * (rng.random(POOL) < share), bounds=PERCENT) for share in SHARES}
    heaped = np.select([rng.random(POOL) < 0.45, rng.random(POOL) < 0.3], [0.0, 100.0], rng.uniform(10, 90, POOL))
    ties = rng.choice([0.0, 50.0, 100.0], POOL, p=[0.1, 0.2, 0.7])
    found |= {
        "token F1, heaped at 0 and 100": mean(heaped, bounds=PERCENT),
        "ROUGE-L": mean(100 * rng.beta(3, 9, POOL), bounds=PERCENT),
        "win rate with ties": mean(ties, bounds=PERCENT),
    }
    shares = {"2 equal classes": [0.5, 0.5], "2 unequal classes": [0.8, 0.2], "5 classes": [0.2] * 5}
    for name, classes in shares.items():
        true = rng.choice(len(classes), POOL, p=classes)
        predicted = np.where(rng.random(POOL) < 0.85, true, rng.choice(len(classes), POOL))
        numbers = Classification(len(classes)).estimates(predicted, true)
        found |= {f"macro F1, {name}": numbers["macro_f1"], f"Matthews, {name}": numbers["mcc"]}
    found |= documents(rng) | sentences(rng) | probabilities(rng)
    found["reward, normal"] = mean(rng.normal(1, 2, POOL))
    found["reward, skewed"] = mean(rng.exponential(2, POOL) - 1)
    hard, own = rng.random(POOL), rng.random((2, POOL))
    right = 0.6 * hard + 0.4 * own < np.array([[0.7], [0.75]])
    found["difference of accuracies"] = mean(100.0 * right[1], bounds=PERCENT).difference(
        mean(100.0 * right[0], bounds=PERCENT)
    )
    rare = np.random.default_rng([seed, 1])  # of its own: what stands before is drawn as it was
    spam = (rare.random(POOL) < 0.03).astype(int)
    said = np.where(rare.random(POOL) < 0.85, spam, (rare.random(POOL) < 0.03).astype(int))
    numbers = Classification(2).estimates(said, spam)
    return found | {"macro F1, a class of 3 %": numbers["macro_f1"], "Matthews, a class of 3 %": numbers["mcc"]}


SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def documents(rng: np.random.Generator) -> dict[str, Estimate]:
    """Documents as long as those of the demo's test split, where one holds half of the tokens."""

    def likelihood(better: float) -> Likelihood:
        return Likelihood(np.maximum(0.3, rate - better) * tokens, tokens, size, words)

    tokens = np.maximum(2, np.rint(np.exp(rng.normal(6.14, 1.62, POOL))))
    rate = 4 + 0.06 * (np.log(tokens) - 6.14) + rng.normal(0, 0.4, POOL)
    size = tokens * 3.2 * np.exp(rng.normal(0, 0.11, POOL))
    words = tokens / 2.5 * np.exp(rng.normal(0, 0.15, POOL))
    numbers = likelihood(0.0).metrics()
    gain = 0.1 + 0.02 * (np.log(tokens) - 6.14) + rng.normal(0, 0.1, POOL)
    better = likelihood(gain).metrics()
    return {
        "bits per byte": numbers["bits_per_byte"],
        "token perplexity": numbers["perplexity"],
        "word perplexity": numbers["word_perplexity"],
        "difference of bits per byte": better["bits_per_byte"].difference(numbers["bits_per_byte"]),
    }


def sentences(rng: np.random.Generator, pool: int = 5000) -> dict[str, Estimate]:
    """Translations of which some words are wrong, more in some sentences than in others."""
    words = np.array([f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"])
    references = [rng.choice(words, max(2, rng.poisson(14))) for _ in range(pool)]
    wrong = rng.beta(1, 3, pool)
    predictions = [
        np.where(rng.random(len(reference)) < share, rng.choice(words, len(reference)), reference)
        for reference, share in zip(references, wrong, strict=True)
    ]
    return Translation().estimates([" ".join(p) for p in predictions], [" ".join(r) for r in references])


def probabilities(rng: np.random.Generator) -> dict[str, Estimate]:
    """Classifiers whose probabilities are right, too confident, in one bin alone, and almost 1 with rare errors."""
    logit = rng.normal(0, 2, POOL)
    true = (rng.random(POOL) < 1 / (1 + np.exp(-logit))).astype(int)
    sure, errors = 1 - rng.exponential(0.005, POOL).clip(0, 0.4), (rng.random(POOL) < 0.03).astype(int)
    classifiers = {
        "none": (1 / (1 + np.exp(-logit)), true),
        "overconfident": (1 / (1 + np.exp(-2 * logit)), true),
        "one bin": (rng.uniform(0.54, 0.59, POOL), (rng.random(POOL) < 0.5).astype(int)),
        "surer than right": (sure, 1 - errors),
    }
    found = {}
    for name, (chance, label) in classifiers.items():
        chances = np.stack([1 - chance, chance], axis=1)
        numbers = Classification(2).estimates((chance > 0.5).astype(int), label, probabilities=chances)
        found[f"calibration error, {name}"] = numbers["calibration_error"]
    return found


def sample(population: Estimate, examples: int, rng: np.random.Generator) -> Estimate:
    rows = population.statistics
    return replace(population, statistics=rows[rng.integers(len(rows), size=examples)])


def misses(population: Estimate, *, examples: int, draws: int, seed: int = 0) -> tuple[int, int]:
    """In how many of `draws` samples the population's value lies below the interval, and above it.

    A sample that gives no interval counts as one that misses.
    """
    rng, truth = np.random.default_rng([seed, examples]), population.value
    below = above = 0
    for _ in range(draws):
        interval = sample(population, examples, rng).interval()
        low = math.inf if interval.low is None else interval.low
        below += truth < low
        above += truth > (math.inf if interval.high is None else interval.high)
    return below, above


def false_alarms(population: Estimate, *, examples: int, draws: int, seed: int = 0) -> int:
    """How often one of two models of equal quality "beats" the other: their answers are from the same population."""
    rng, alarms = np.random.default_rng([seed, examples]), 0
    for _ in range(draws):
        one = sample(population, examples, rng).statistics
        other = sample(population, examples, rng).statistics
        alarms += replace(population, statistics=one).beats(replace(population, statistics=other))
    return alarms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=EXAMPLES)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--metrics", nargs="+", default=[""], help="beginnings of names; all by default")
    args = parser.parse_args()
    print("| metric | " + " | ".join(f"n = {n}" for n in args.examples) + " |")
    print("|---" * (1 + len(args.examples)) + "|")
    for name, population in populations().items():
        if not name.startswith(tuple(args.metrics)):
            continue
        cells = []
        for examples in args.examples:
            below, above = (count / args.draws for count in misses(population, examples=examples, draws=args.draws))
            cells.append(f"{1 - below - above:.3f} ({below:.3f}, {above:.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
