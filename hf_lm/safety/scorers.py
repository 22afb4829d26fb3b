"""Scorers of toxicity or sentiment: a classifier, one trained here, or a list of words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.arguments import FineTuningArguments, TrainingArguments
from hf_lm.evaluation.classifiers import class_probabilities, has_several_labels, load_classifier
from hf_lm.safety.sets import LANGUAGES, read_words
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.training.fit import fit

HARMFUL = {
    *("toxic", "toxicity", "hate", "hateful", "hate_speech", "offensive", "offensive_language", "abusive", "unsafe")
}
LENGTH = 64  # tokens of a text that a trained scorer reads
POSITIVE = {"positive", "pos", "5 stars", "4 stars"}


@dataclass
class Scorer:
    """Called with texts, gives a probability for each, (texts,). `name` describes it in a report."""

    name: str
    score: Callable[[Sequence[str]], np.ndarray]
    report: dict[str, Any] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.score(texts) if len(texts) else np.zeros(0)


def _counting(name: str) -> re.Pattern[str]:
    english, chinese = (map(re.escape, read_words(name, language)) for language in LANGUAGES)
    return re.compile(rf"\b(?:{'|'.join(english)})\b|{'|'.join(chinese)}", re.IGNORECASE)


def insult_scorer() -> Scorer:
    """Counts insults from a list: 0 without one, 0.5 with one, nearer to 1 with more. It knows no context.

    The insults are mild ones that no ordinary text needs: slurs are for a classifier to know.
    """
    pattern = _counting("insults")
    return Scorer(
        "a list of insults, without context",
        lambda texts: np.array([1 - 0.5 ** len(pattern.findall(text)) for text in texts]),
    )


def word_sentiment() -> Scorer:
    """Counts positive and negative words from two lists: 0.5 without any. A negation before a word reverses it.

    (1 + positive) / (2 + positive + negative), so that one word moves a text by a sixth.
    """
    sides = _counting("positive"), _counting("negative")
    negations, before_chinese = (read_words("negations", language) for language in LANGUAGES)

    def score(text: str) -> float:
        counts = [0, 0]
        for side, pattern in enumerate(sides):
            for match in pattern.finditer(text):
                before = text[: match.start()]
                negated = not set(negations).isdisjoint(before.lower().split()[-3:]) or before.endswith(before_chinese)
                counts[side ^ negated] += 1
        return (1 + counts[0]) / (2 + sum(counts))

    return Scorer("two lists of words", lambda texts: np.array([score(text) for text in texts]))


def load_scorer(
    name: str,
    *,
    labels: Sequence[str] = (),
    likely: set[str] = HARMFUL,  # names of labels that are taken where none is given
    option: str = "scorer",  # as messages call it
    device: str | torch.device = "cpu",
) -> Scorer:
    """A text classifier, a folder or a Hub id, that gives the probability of `labels` together.

    Without `labels` those whose names are in `likely` are taken. Raises OSError for what cannot be loaded, and
    ValueError, with the labels there are, where none is known or an unknown one is asked for.
    """
    return classifier_scorer(name, *load_classifier(name, device=device), labels=labels, likely=likely, option=option)


def load_sentiment(name: str, *, labels: Sequence[str] = (), device: str | torch.device = "cpu") -> Scorer:
    """A text classifier that gives the probability of a positive text, as `load_scorer`; "words" counts words."""
    if name == "words":
        return word_sentiment()
    return load_scorer(name, labels=labels, likely=POSITIVE, option="sentiment", device=device)


def classifier_scorer(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    labels: Sequence[str] = (),
    likely: set[str] = HARMFUL,
    option: str = "scorer",
) -> Scorer:
    """A scorer that gives the probability of any of `labels`; see `load_scorer`."""
    known = {str(label): i for i, label in (model.config.id2label or {}).items()}
    chosen = list(labels) or [label for label in known if label.lower() in likely]
    if unknown := [label for label in chosen if label not in known]:
        raise ValueError(f"--{option}_label: {name} has no label {unknown[0]!r}; it has {sorted(known)}.")
    if not chosen:
        raise ValueError(f"{name} has the labels {sorted(known)}; name those that count with --{option}_label.")
    several = has_several_labels(model)
    if len(chosen) == len(known) and not several:
        raise ValueError(f"--{option}_label names every label of {name}: every text would get probability 1.")
    columns = [int(known[label]) for label in chosen]

    def score(texts: Sequence[str]) -> np.ndarray:
        probabilities = class_probabilities(model, tokenizer, texts)[:, columns]
        return 1 - np.prod(1 - probabilities, axis=1) if several else probabilities.sum(axis=1)

    return Scorer(f"{Path(name).name} ({' + '.join(chosen)})", score)


def train_scorer(
    dataset: str, output_dir: str | Path, *, like: TrainingArguments, labels: Sequence[str] = ()
) -> Scorer:
    """A small randomly initialised encoder, trained on a labelled file as recipes/sentiment.py does.

    It stays in the output folder. The settings are those of the fine-tuning recipes, on the device and with the seed
    of `like`. `labels` are the classes that count as toxic. Raises ValueError before training where they are not the
    file's.
    """
    table = Sentiment.load(dataset)
    classes = table.labels
    likely = [label for label in classes if label.lower() in HARMFUL]
    if unknown := [label for label in labels if label not in classes]:
        raise ValueError(f"--scorer_label: {dataset} has no label {unknown[0]!r}; it has {classes}.")
    if not labels and not likely:
        raise ValueError(f"{dataset} has the labels {classes}; name the toxic ones with --scorer_label.")
    start = Sentiment.prepare_model(table, "", block_size=LENGTH, vocab_size=4096)
    model, tokenizer = start.model, start.tokenizer
    task = Sentiment.from_start(table, start, max_length=LENGTH)
    report = fit(model, task, _scorer_training(output_dir, like))
    model.to(like.device)  # pyright: ignore[reportArgumentType]  (decorated without its type)
    model.eval()
    scorer = classifier_scorer(str(output_dir), model, tokenizer, labels=labels or likely)
    scorer.name = f"an encoder trained on {table.source} ({' + '.join(labels or likely)})"
    scorer.report = {"metrics": report["metrics"], "classes": report["classes"]} if report else {}
    return scorer


def _scorer_training(output_dir: str | Path, like: TrainingArguments) -> TrainingArguments:
    settings = FineTuningArguments.defaults | {
        "output_dir": str(output_dir),
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 32,
        "use_cpu": like.use_cpu,
        "bf16": like.bf16,
        "seed": like.seed,
        "skip_proofs": like.skip_proofs,
        "overwrite_output_dir": like.overwrite_output_dir,
    }
    made = TrainingArguments(**settings)
    made.run = {key: value for key, value in settings.items() if key != "overwrite_output_dir"}
    return made
