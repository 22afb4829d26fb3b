"""Named entities as tags of words (IOB1, IOB2, IOBES, BILOU, BMES), and their F1 as seqeval computes it."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_lm.evaluation.intervals import PERCENT, Estimate
from hf_lm.tasks.rows import class_scores

Entity = tuple[str, int, int]  # type, first word, last word
TAG = re.compile(r"O|[BIES](-.+)?")
LETTERS = {"L": "E", "U": "S", "M": "I"}  # of BILOU and BMES, for the same tags


def normal_tag(tag: str) -> str:
    """A tag as IOB or IOBES write it. Raises ValueError for one that says nothing of where an entity begins."""
    tag = tag.strip()
    if tag[:1] in LETTERS and tag[1:2] in ("-", ""):
        tag = LETTERS[tag[0]] + tag[1:]
    if not TAG.fullmatch(tag):
        raise ValueError(f"{tag!r} is not a tag of an entity: tags are O, or B- or I- and a type, such as B-PER")
    return tag


def is_tag(text: str) -> bool:
    """Whether a text is a tag of an entity, or of none."""
    try:
        normal_tag(text)
    except ValueError:
        return False
    return True


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities that tags mark, by the rules of conlleval, which are seqeval's default.

    B and S begin an entity, E and S end one. I and E also begin one after O, after an end or where the type changes,
    so IOB1 and tags that contradict each other, as a model may predict, have entities too.
    """
    entities: list[Entity] = []
    begun, before, kind_before = 0, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        letter, kind = tag[0], tag[2:]
        parted = before in "ES" or letter in "BS" or kind != kind_before
        if before != "O" and (parted or letter == "O"):
            entities.append((kind_before, begun, i - 1))
        if letter != "O" and (parted or before == "O"):
            begun = i
        before, kind_before = letter, kind
    return entities


def entity_estimates(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, Estimate]:
    """F1, precision and recall in percent of whole entities, over all types together; 0 where there is no entity.

    An entity is right if type, first and last word are (Tjong Kim Sang and De Meulder 2003). Both are (sentences,
    words).
    """
    counts = np.array([_counts(*pair) for pair in zip(predictions, references, strict=True)], np.float64)
    right, predicted, true = counts.reshape(-1, 3).T

    def share(part: np.ndarray, whole: np.ndarray) -> Estimate:  # sentences without any of either have no weight
        statistics = np.stack([part, whole], axis=1)
        return Estimate(statistics, lambda sums: _percent(sums[..., 0], sums[..., 1]), bounds=PERCENT)

    return {
        "f1": share(2 * right, predicted + true),
        "precision": share(right, predicted),
        "recall": share(right, true),
    }


def _counts(predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
    ours, theirs = set(entities_of(predicted)), set(entities_of(true))
    return len(ours & theirs), len(ours), len(theirs)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100 * np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def sentence_f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    """F1 of one sentence, 0 to 1; 1 where there is no entity and none is predicted."""
    right, ours, theirs = _counts(predicted, true)
    return 2 * right / (ours + theirs) if ours + theirs else 1.0


def by_type(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of each type, in percent, and how many of its entities are true ("rows")."""
    right, predicted, true = Counter(), Counter(), Counter()
    for ours, theirs in zip(predictions, references, strict=True):
        found, meant = set(entities_of(ours)), set(entities_of(theirs))
        predicted.update(kind for kind, _, _ in found)
        true.update(kind for kind, _, _ in meant)
        right.update(kind for kind, _, _ in found & meant)
    return {kind: class_scores(right[kind], predicted[kind], true[kind]) for kind in sorted(true | predicted)}
