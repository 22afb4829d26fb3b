"""Scores for answers: rewards that can be checked, classifiers, and functions of the user's own."""

import importlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import regex

from hf_lm.data.patterns import Pattern
from hf_lm.evaluation.intervals import ANY

Scorer = Callable[[list[str]], list[float]]  # a number for each answer; more is better
Reward = Callable[[list[str], list[str], list[str]], list[float]]  # of prompts, answers and references

REWARDS = ("exact_answer", "format", "length", "chrf")
COMPARING = ("exact_answer", "chrf")  # of them those that need a reference
# With its sign, which no digit or letter stands before ("3-5" holds 3 and 5), or a minus sign of Unicode.
NUMBER = re.compile(r"(?<![\w.])[-\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)|\d[\d,]*(?:\.\d+)?")


def load_reward(name: str, *, pattern: str = "", target_length: int = 0) -> Reward:
    """A reward by its name, or `module:function`, whose numbers are checked at each call.

    exact_answer: 1 where the last number of the answer (without one, the whole answer) is that of the reference.
    format: 1 where `pattern`, a regular expression, matches the whole answer. length: 1 at `target_length` characters,
    falling to 0 at none and at twice as many. chrf: sentence chrF against the reference, 0 to 1 (Popović 2015).
    A function takes prompts, answers and references, lists of strings, and returns a number for each answer.
    Raises ValueError in one line.
    """
    if ":" in name:
        return checked(load_function(name, "--reward"), name)
    if name == "exact_answer":
        return checked(lambda _, answers, references: [*map(same_answer, answers, references)], name)
    if name == "format":
        if not pattern:
            raise ValueError("--reward format needs --pattern, a regular expression that a whole answer must match.")
        form = Pattern(pattern, option="--pattern", flags=regex.DOTALL)
        return checked(lambda _, answers, __: [bool(form.fullmatch(answer.strip())) for answer in answers], name)
    if name == "length":
        if target_length < 1:
            raise ValueError("--reward length needs --target_length, the characters that an answer should have.")
        fit = lambda answer: max(0.0, 1 - abs(len(answer.strip()) / target_length - 1))  # noqa: E731
        return checked(lambda _, answers, __: [*map(fit, answers)], name)
    if name == "chrf":
        from sacrebleu.metrics.chrf import CHRF

        likeness = lambda answer, reference: CHRF().sentence_score(answer, [reference]).score / 100  # noqa: E731
        return checked(lambda _, answers, references: [*map(likeness, answers, references)], name)
    raise ValueError(f"there is no reward {name!r}; there are {', '.join(REWARDS)}, and module:function.")


def reward_bounds(name: str) -> tuple[float, float]:
    """The least and the greatest number that a reward of `load_reward` can give; a function may give any."""
    return ANY if ":" in name else (0.0, 1.0)


def same_answer(answer: str, reference: str) -> float:
    """1 where an answer ends in the reference's number or, where that has none, is the reference but for its case."""
    numbers = [NUMBER.findall(text) for text in (answer, reference)]
    if numbers[1]:
        last = [Decimal(found[-1].replace(",", "").replace("\u2212", "-")) for found in numbers if found]
        return float(bool(numbers[0]) and last[0] == last[1])
    return float(" ".join(answer.casefold().split()).rstrip(".") == " ".join(reference.casefold().split()).rstrip("."))


def checked(function: Callable[..., Any], name: str) -> Reward:
    """A reward whose every call gives a finite number for each answer, or raises ValueError in one line."""

    def reward(prompts: list[str], answers: list[str], references: list[str]) -> list[float]:
        return _numbers(name, lambda: function(prompts, answers, references), answers)

    return reward


def _numbers(name: str, call: Callable[[], Any], answers: Sequence[str]) -> list[float]:
    try:
        found = call()
    except Exception as error:
        raise ValueError(f"{name} raised {type(error).__name__}: {' '.join(str(error).split())}.") from error
    try:
        numbers = [float(number) for number in found]
    except (TypeError, ValueError):
        raise ValueError(f"{name} returned {found!r:.80}; it must return a number for each answer.") from None
    if len(numbers) != len(answers):
        raise ValueError(f"{name} returned {len(numbers)} numbers for {len(answers)} answers.")
    for number, answer in zip(numbers, answers, strict=True):
        if not math.isfinite(number):
            raise ValueError(f"{name} gave {number} for the answer {answer[:60]!r}; it must give finite numbers.")
    return numbers


def load_function(name: str, option: str) -> Callable[..., Any]:
    """The function `module:function` names; modules are also looked for where the command was started."""
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ValueError(f"{option} {name}: there is no module {module!r} ({error}).") from None
    except AttributeError:
        raise ValueError(f"{option} {name}: the module {module} has no {function!r}.") from None


def load_scorer(name: str, *, label: str = "") -> Scorer:
    """What scores answers: `module:function`, of a list of texts, or a text classifier's probability of `label`.

    Raises ValueError or OSError in one line where there is no such function, checkpoint or label.
    """
    if ":" in name and not Path(name).exists():
        function = load_function(name, "--scorer")
        return lambda texts: _numbers(name, lambda: function(texts), texts)

    from hf_lm.evaluation.classifiers import class_probabilities, load_classifier
    from hf_lm.models.configuration import load_config
    from hf_lm.models.devices import device_named

    labels = load_config(name).label2id or {}
    if label not in labels:
        raise ValueError(f"--scorer {name} knows the labels {list(labels)}; choose one of them with --scorer_label.")
    model, tokenizer = load_classifier(name, device=device_named())
    return lambda texts: class_probabilities(model, tokenizer, texts)[:, int(labels[label])].tolist()
