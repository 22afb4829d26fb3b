"""What every safety measurement gives: a number per group with its interval, and what it says."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_lm.evaluation.intervals import PERCENT, Estimate, Interval, ratio

ALL = "all"


@dataclass(frozen=True)
class Measure:
    """A number for all examples and for each group of them.

    Every estimate is over `unit`s in the order of the examples, so that two models can be compared in pairs.
    `sentence` puts the number into words, around `{value}`, `{group}` and `{source}`; `caution` says what it does not
    show.
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
        ours, theirs = self.groups[group], other.groups.get(group)
        if theirs is None or len(ours.statistics) != len(theirs.statistics):
            return None
        return ours.minus(theirs)

    def words(self, group: str = ALL) -> str:
        """The number and its interval as text."""
        return in_words(self.interval(group), self.number)

    def in_sentence(self, group: str = ALL) -> str:
        """The number of a group as a sentence."""
        return self.sentence.format(value=self.words(group), group=group, source=self.source)

    def stands_out(self, group: str) -> bool:
        """Whether a group's number is more than chance: above it, or with its interval clear of the neutral number."""
        interval = self.interval(group)
        if group in self.chance:
            return interval.value > self.chance[group]
        if self.neutral is None or interval.low is None or interval.high is None:
            return False
        return not interval.low <= self.neutral <= interval.high

    def report(self) -> dict[str, Any]:
        groups = {
            group: self.interval(group).report() | {"units": self.units(group)}
            for group in self.groups
            if self.units(group)
        }
        entry = {"name": self.name, "source": self.source, "unit": self.unit, "groups": groups}
        for group, number in self.chance.items():
            groups[group]["chance"] = number
        entry |= {} if self.neutral is None else {"neutral": self.neutral}
        return entry | ({"notes": list(self.notes)} if self.notes else {})


def in_words(interval: Interval, number: str) -> str:
    if not np.isfinite(interval.value):
        return "no number"
    text = number.format(interval.value)
    if interval.low is not None and interval.high is not None:
        low, high = (number.format(bound).removesuffix(" %") for bound in (interval.low, interval.high))
        text += f" ({low} to {high})"
    return text


def mean_by_group(
    values: ArrayLike,
    groups: Sequence[Sequence[str]],
    *,
    counts: ArrayLike | None = None,  # 1 or 0: whether an example counts
    bounds: tuple[float, float] = PERCENT,
    units: Sequence[str] = (),
) -> dict[str, Estimate]:
    """The mean of `values` over all examples and over each group; an example may belong to several groups.

    Examples that do not count stay in their place with no weight: two models' examples can then still be paired.
    Those of one of `units` count as one, their mean; without them each counts alone.
    """
    given = np.asarray(values, np.float64)
    weight = np.ones(len(given)) if counts is None else np.asarray(counts, np.float64)
    kept = np.where(weight > 0, given, 0.0)
    names = list(dict.fromkeys(name for some in groups for name in some))
    places = {unit: i for i, unit in enumerate(dict.fromkeys(units or range(len(given))))}
    place = np.array([places[unit] for unit in units or range(len(given))], int)

    def mean_of(inside: np.ndarray) -> Estimate:
        count = np.bincount(place, inside, len(places))
        total = np.bincount(place, kept * inside, len(places))
        return ratio(total / np.maximum(count, 1), np.minimum(count, 1), bounds=bounds)

    estimates = {ALL: mean_of(weight)}
    for name in names:
        estimates[name] = mean_of(np.array([name in some for some in groups], np.float64) * weight)
    return {name: estimate for name, estimate in estimates.items() if name == ALL or estimate.statistics[:, 1].any()}


class Gap(Estimate):
    """A number that is never negative and has no upper bound: neither is its interval."""

    def interval(self) -> Interval:
        found = super().interval()
        return found if found.low is None else replace(found, low=max(0.0, found.low))


def gap(values: np.ndarray, groups: Sequence[str], units: Sequence[Hashable]) -> Estimate:
    """How far apart the means of groups are: the largest minus the smallest, over `units`.

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

    return Gap(statistics, value_of)


def gap_by_chance(
    values: ArrayLike, groups: Sequence[str], units: Sequence[Hashable], *, shuffles: int = 500, seed: int = 0
) -> float:
    """The gap that 95 % of shuffles of the groups inside each unit stay below: what noise alone gives.

    Units of one example each, such as prompts that share no template, are shuffled together.
    """
    given, names = np.asarray(values, np.float64), sorted(set(groups))
    index = np.array([names.index(group) for group in groups])
    places: Mapping[Hashable, int] = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    unit = np.array([places[name] for name in units])
    if len(places) == len(given):
        unit[:] = 0
    order, rng = np.argsort(unit, kind="stable"), np.random.default_rng(seed)
    gaps = np.empty(shuffles)
    for i in range(shuffles):
        shuffled = np.lexsort((rng.random(len(given)), unit))
        dealt = given[shuffled]
        means = np.bincount(index[order], dealt, len(names)) / np.bincount(index[order], minlength=len(names))
        gaps[i] = means.max() - means.min()
    return float(np.quantile(gaps, 0.95))
