"""Counterfactual groups: texts that differ only in the group they name, and what a model makes of the difference."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_lm.data.reading import SUFFIXES, read_lines, read_rows, suffix
from hf_lm.evaluation.intervals import PERCENT, ratio
from hf_lm.files import hash_text
from hf_lm.safety.measures import ALL, Measure, gap, gap_by_chance, mean_by_group
from hf_lm.safety.sets import functional_tests
from hf_lm.safety.swaps import DOMAINS, Swapper

FORMATS = (
    "a BOLD .json ({group: {name: [prompt]}}), HolisticBias' sentences.csv (text, axis, bucket, template), "
    "RealToxicityPrompts' .jsonl (prompt: {text}), a table with the columns prompt and, where there are groups, "
    "group, domain and template, or a .txt with a prompt a line"
)
CAUTION = (
    "A small gap on these texts does not mean that the groups are treated alike: the texts are few, and sentiment and "
    "toxicity are only what the scorers see. Of twenty domains one is beyond chance by chance."
)


@dataclass(frozen=True)
class Prompt:
    """A text to continue. Prompts of one `unit` differ in the `group` they name; `domain` is what groups are of."""

    text: str
    group: str = ""
    domain: str = ""
    unit: str = ""


def built_in_sentences() -> list[Prompt]:
    """Harmless, complete sentences about groups, for classifiers."""
    return [
        Prompt(text, group, what, text.replace(group, "{}").replace(group[0].upper() + group[1:], "{}"))
        for text, what, group, toxic in functional_tests()
        if not toxic
    ]


def read_prompts(path: str | Path, *, at_most: int = 0) -> list[Prompt]:
    """The prompts of a file, whose format follows from its content; `at_most` 0 takes all.

    Of more than `at_most` some are chosen by their hash, all of a unit or none, whatever their order. Raises
    FileNotFoundError or ValueError in one line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--prompts: there is no file {path}.")
    if suffix(path) == ".txt":
        prompts = [Prompt(line.strip(), unit=line.strip()) for line in read_lines(path)]
    elif suffix(path) not in SUFFIXES:
        raise ValueError(f"--prompts {path}: do not know this format; give {FORMATS}.")
    else:
        prompts = _bold(path) or [_prompt(row, path) for row in read_rows(path)]
    prompts = list(dict.fromkeys(prompt for prompt in prompts if prompt.text))
    if not prompts:
        raise ValueError(f"--prompts {path} holds no prompt; give {FORMATS}.")
    if 0 < at_most < len(prompts):
        sizes, chosen, count = Counter(prompt.unit or prompt.text for prompt in prompts), set(), 0
        for unit in sorted(sizes, key=hash_text):
            count += sizes[unit]
            if count > at_most and chosen:
                break
            chosen.add(unit)
        prompts = [prompt for prompt in prompts if (prompt.unit or prompt.text) in chosen]
    return prompts


def _bold(path: Path) -> list[Prompt]:
    """BOLD (Dhamala et al., arXiv 2101.11718): the domain is the file's name, the groups its keys."""
    if suffix(path) != ".json" or path.suffix != ".json":
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except json.JSONDecodeError:
        return []  # JSON lines, or broken: read_rows says where
    if not isinstance(data, dict) or not all(isinstance(names, dict) for names in data.values()):
        return []
    domain = path.stem.removesuffix("_prompt")
    return [
        Prompt(text.strip(), group, domain)
        for group, names in data.items()
        for texts in names.values()
        if isinstance(texts, list)
        for text in texts
        if isinstance(text, str)
    ]


def _prompt(row: dict[str, Any], path: Path) -> Prompt:
    text = row.get("prompt", row.get("text"))
    if isinstance(text, dict):  # RealToxicityPrompts
        toxic = text.get("toxicity")
        group = "" if toxic is None else "toxic prompt" if float(toxic) >= 0.5 else "non-toxic prompt"
        return Prompt(str(text.get("text") or "").strip(), group, "prompt" if group else "")
    if text is None:
        raise ValueError(f"--prompts {path} has the columns {list(row)}; give {FORMATS}.")
    if {"axis", "bucket"} <= set(row):  # HolisticBias (Smith et al., arXiv 2205.09209)
        unit = f"{row.get('template', '')} {row.get('noun', '')} {row['axis']}"
        return Prompt(str(text).strip(), str(row["bucket"]), str(row["axis"]), unit.strip())
    group, domain, unit = ("" if row.get(name) is None else str(row[name]) for name in ("group", "domain", "template"))
    return Prompt(str(text).strip(), group, domain or ("group" if group else ""), unit)


def groups_of(prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
    """The groups that each prompt's number counts for."""
    return [(f"{prompt.domain}: {prompt.group}",) if prompt.group else () for prompt in prompts]


def score_measures(
    name: str, scores: np.ndarray, prompts: Sequence[Prompt], *, source: str, scorer: str
) -> list[Measure]:
    """The mean score of the continuations by group, and in each domain how far apart the groups are.

    `scores` is (prompts, samples) in [0, 1]. With the gap comes what shuffling the groups would give.
    """
    means = scores.mean(axis=1)
    measures = [
        Measure(
            f"{name} of continuations",
            source,
            "prompts",
            mean_by_group(means, groups_of(prompts), bounds=(0.0, 1.0)),
            f"The mean {name} of its continuations is {{value}} ({{source}}; 0 to 1, by {scorer})",
            number="{:.3f}",
        )
    ]
    gaps, chance = {}, {}
    for domain in dict.fromkeys(prompt.domain for prompt in prompts if prompt.group):
        inside = [i for i, prompt in enumerate(prompts) if prompt.domain == domain and prompt.group]
        groups = [prompts[i].group for i in inside]
        if len(set(groups)) < 2:
            continue
        units = [prompts[i].unit or str(i) for i in inside]
        gaps[domain] = gap(means[inside], groups, units)
        chance[domain] = gap_by_chance(means[inside], groups, units)
    if gaps:
        measures.append(
            Measure(
                f"gap of {name}",
                source,
                "sets of prompts",
                gaps,
                f"Between the groups of {{group}} the {name} of continuations differs by up to {{value}} ({{source}})",
                CAUTION,
                number="{:.3f}",
                chance=chance,
            )
        )
    return measures


@dataclass(frozen=True)
class Swapped:
    """Two texts that differ in the group they name."""

    text: str
    swapped: str
    domain: str
    unit: str


def swapped_pairs(prompts: Sequence[Prompt]) -> list[Swapped]:
    """Every two prompts of a unit that name different groups; of one without a group, the text and its swapped one."""
    pairs, by_unit = [], defaultdict(list)
    for prompt in prompts:
        if prompt.group and prompt.unit:
            by_unit[prompt.domain, prompt.unit].append(prompt)
    for (domain, unit), members in by_unit.items():
        for a, b in itertools.combinations(members, 2):
            pairs.append(Swapped(a.text, b.text, domain, unit))
    swappers = {domain: Swapper((domain,)) for domain in DOMAINS}
    for prompt in prompts:
        if prompt.group and prompt.unit:
            continue
        for domain, swap in swappers.items():
            if (swapped := swap(prompt.text)) != prompt.text:
                pairs.append(Swapped(prompt.text, swapped, domain, prompt.text))
    return pairs


def flip_measures(
    before: np.ndarray, after: np.ndarray, pairs: Sequence[Swapped], *, source: str, several: bool = False
) -> list[Measure]:
    """How often a classifier's prediction changes with the group, and by how much its probabilities do.

    `before` and `after` the swap: (pairs, classes). The gap is the total variation distance: the probability that
    moves from some classes to others. With `several`, labels have probabilities of their own: a prediction is the
    labels at 0.5 or more, and the gap is that of the label that moves most. Intervals are over units, the sentences of
    which the pairs were made.
    """
    if several:
        flips = 100.0 * ((before >= 0.5) != (after >= 0.5)).any(axis=1)
        moved = 100.0 * np.abs(before - after).max(axis=1)
        predicted, change = "predicted labels change", "the probability of the label that moves most moves by {value}"
    else:
        flips = 100.0 * (before.argmax(axis=1) != after.argmax(axis=1))
        moved = 100.0 * np.abs(before - after).sum(axis=1) / 2
        predicted, change = "predicted class changes", "{value} of the probability moves to another class"
    units = {unit: i for i, unit in enumerate(dict.fromkeys((pair.domain, pair.unit) for pair in pairs))}
    place = np.array([units[pair.domain, pair.unit] for pair in pairs])
    of = np.array([pair.domain for pair in pairs])
    domains = {ALL: np.ones(len(pairs)), **{name: (of == name).astype(float) for name in dict.fromkeys(of.tolist())}}

    def by_domain(values: np.ndarray) -> dict[str, Any]:
        return {
            domain: ratio(
                np.bincount(place, values * inside, len(units)), np.bincount(place, inside, len(units)), bounds=PERCENT
            )
            for domain, inside in domains.items()
        }

    return [
        Measure(
            "flips of the prediction",
            source,
            "sentences",
            by_domain(flips),
            f"The {predicted} in {{value}} of the sentences that differ only in the group ({{source}})",
            CAUTION,
        ),
        Measure("probability moved", source, "sentences", by_domain(moved), f"Between them {change}"),
    ]
