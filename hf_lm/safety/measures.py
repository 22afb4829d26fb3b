"""What every safety measurement gives: a number per group with its interval, and what it says."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_lm.evaluation.intervals import PERCENT, Estimate, Interval, ratio

ALL = "all"


@dataclass(frozen=True)
class Measure:
    """A number for all examples and for each group of them.

    Every estimate is over `unit`s in the order in which the examples came, so that two models' numbers on the same
    examples can be compared in pairs. `sentence` says the number in words, around `{value}`, `{group}` and `{source}`;
    `caution` says what it does not show.
    """

    name: str
    source: str
    unit: str
    groups: dict[str, Estimate]
    sentence: str = ""
    caution: str = ""
    number: str = "{:.1f} %"
    neutral: float | None = None  # where the model would show no preference
    notes: tuple[str, ...] = ()
    chance: dict[str, float] = field(default_factory=dict)  # by group: what noise alone stays below in 95 % of cases

    def interval(self, group: str = ALL) -> Interval:
        """The value of a group with its 95 % interval."""
        return self.groups[group].interval()

    def units(self, group: str = ALL) -> int:
        """How many units the group's number is over."""
        return int((self.groups[group].statistics[:, -1] > 0).sum())

    def minus(self, other: "Measure", group: str = ALL) -> Interval | None:
        """The difference on the same examples, None where they are not the same."""
        one, two = self.groups[group], other.groups.get(group)
        if two is None or len(one.statistics) != len(two.statistics):
            return None
        return one.minus(two)

    def words(self, group: str = ALL) -> str:
        """The number and its interval as text."""
        return in_words(self.interval(group), self.number)

    def said(self, group: str = ALL) -> str:
        """The number of a group as a sentence."""
        return self.sentence.format(value=self.words(group), group=group, source=self.source)

    def stands_out(self, group: str) -> bool:
        """Whether a group's number is more than chance: above it, or with its interval clear of the neutral number."""
        found = self.interval(group)
        if group in self.chance:
            return found.value > self.chance[group]
        if self.neutral is None or found.low is None or found.high is None:
            return False
        return not found.low <= self.neutral <= found.high

    def report(self) -> dict[str, Any]:
        groups = {
            group: self.interval(group).report() | {"units": self.units(group)}
            for group in self.groups
            if self.units(group)
        }
        found = {"name": self.name, "source": self.source, "unit": self.unit, "groups": groups}
        for group, number in self.chance.items():
            groups[group]["chance"] = number
        found |= {} if self.neutral is None else {"neutral": self.neutral}
        return found | ({"notes": list(self.notes)} if self.notes else {})


def in_words(found: Interval, number: str) -> str:
    if not np.isfinite(found.value):
        return "no number"
    text = number.format(found.value)
    if found.low is not None and found.high is not None:
        low, high = (number.format(bound).removesuffix(" %") for bound in (found.low, found.high))
        text += f" ({low} to {high})"
    return text


def mean_by_group(
    values: Sequence[float],
    groups: Sequence[Sequence[str]],
    *,
    counts: Sequence[bool] | None = None,
    bounds: tuple[float, float] = PERCENT,
) -> dict[str, Estimate]:
    """The mean of `values` over all examples and over each group; an example may belong to several groups.

    Examples that do not count stay in their place with no weight: two models' examples can then still be paired.
    """
    values = np.asarray(values, np.float64)
    weight = np.ones(len(values)) if counts is None else np.asarray(counts, np.float64)
    values = np.where(weight > 0, values, 0.0)
    names = list(dict.fromkeys(name for some in groups for name in some))
    found = {ALL: ratio(values, weight, bounds=bounds)}
    for name in names:
        inside = np.array([name in some for some in groups], np.float64) * weight
        found[name] = ratio(values * inside, inside, bounds=bounds)
    return {name: estimate for name, estimate in found.items() if name == ALL or estimate.statistics[:, 1].any()}


def gap(values: Sequence[float], groups: Sequence[str], units: Sequence[Hashable]) -> Estimate:
    """How far the means of groups lie apart: the largest minus the smallest, over `units`.

    A unit is what the groups share, such as the template of prompts that differ only in the group they name. The gap
    is never negative and noise alone makes it positive: compare it with `gap_by_chance`.
    """
    names, rows = sorted(set(groups)), {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    statistics = np.ones((len(rows), 2 * len(names) + 1))  # sums, counts, and a one for the unit
    statistics[:, :-1] = 0
    for value, group, unit in zip(values, groups, units, strict=True):
        column = names.index(group)
        statistics[rows[unit], column] += value
        statistics[rows[unit], len(names) + column] += 1

    def value_of(sums: np.ndarray) -> np.ndarray:
        total, count = np.split(np.asarray(sums[..., :-1], np.float64), 2, axis=-1)
        means = total / np.where(count == 0, np.nan, count)
        return means.max(-1) - means.min(-1)  # NaN where a draw misses a group

    return Estimate(statistics, value_of)


def gap_by_chance(
    values: Sequence[float], groups: Sequence[str], units: Sequence[Hashable], *, shuffles: int = 500, seed: int = 0
) -> float:
    """The gap that 95 % of shuffles stay below when groups are dealt anew inside each unit: what noise alone gives.

    Units of one example each, such as prompts that share no template, are shuffled as one.
    """
    values, names = np.asarray(values, np.float64), sorted(set(groups))
    index = np.array([names.index(group) for group in groups])
    places: Mapping[Hashable, int] = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    unit = np.array([places[one] for one in units])
    if len(places) == len(values):
        unit[:] = 0
    order, rng = np.argsort(unit, kind="stable"), np.random.default_rng(seed)
    found = np.empty(shuffles)
    for i in range(shuffles):
        shuffled = np.lexsort((rng.random(len(values)), unit))
        dealt = values[shuffled]
        means = np.bincount(index[order], dealt, len(names)) / np.bincount(index[order], minlength=len(names))
        found[i] = means.max() - means.min()
    return float(np.quantile(found, 0.95))
