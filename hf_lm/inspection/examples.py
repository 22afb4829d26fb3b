"""One example as the model gets it: its tokens, and which of them it learns."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_lm.models.target_tokenizer import written_by


@dataclass
class Part:
    """A text that the model reads or learns. `pieces` are (text, tokens, learned); `said` stands for them in words."""

    name: str
    pieces: list[tuple[str, int, bool]] = field(default_factory=list)
    said: str = ""


def see(task: Any, feature: dict[str, Any]) -> list[Part]:
    """A feature as the task's collator hands it to the model, token by token."""
    batch = {key: value.tolist() for key, value in task.collate([feature]).items()}
    rows = len(batch["input_ids"])
    names = ("chosen", "rejected") if rows == 2 else ("reads",) * rows  # two answers that are compared
    return [part for i in range(rows) for part in _see_row(task, {k: v[i] for k, v in batch.items()}, names[i])]


def _see_row(task: Any, row: dict[str, Any], name: str) -> list[Part]:
    tokenizer, ids, labels = task.tokenizer, row["input_ids"], row.get("labels")
    if "completion_mask" in row:  # TRL's way to say what is learned
        return [Part(name, pieces(tokenizer, ids, [bool(learned) for learned in row["completion_mask"]]))]
    if not isinstance(labels, list):  # a class
        parts = [Part(name, pieces(tokenizer, ids))]
        if labels is not None:
            parts.append(Part("learns", said=f"{task.labels[labels]}  (class {labels} of {len(task.labels)})"))
        return parts
    if "decoder_input_ids" in row:
        return [
            Part(name, pieces(tokenizer, ids)),
            Part("writes", pieces(written_by(tokenizer), labels, [True] * len(labels))),
        ]
    if task.shifts_labels:
        # The first token of a row has nothing before it that could predict it.
        learned = [label != -100 and i > 0 for i, label in enumerate(labels)]
        if "position_ids" in row or hasattr(task, "streams"):
            return _by_document(task, row, learned)
        return [Part(name, pieces(tokenizer, ids, learned))]
    first, last = labels  # of a span
    said = f"token {first} and token {last}" if last else "token 0 twice: the answer is not in this window"
    return [
        Part(name, pieces(tokenizer, ids, [0 < first <= i <= last for i in range(len(ids))])),
        Part("learns to point to", said=said),
    ]


def _by_document(task: Any, row: dict[str, Any], learned: list[bool]) -> list[Part]:
    """A block cut where its documents begin: where positions restart or, if they do not, at each marker."""
    ids, positions = row["input_ids"], row.get("position_ids")
    if positions is not None:
        begins = [i for i, position in enumerate(positions) if position == 0]
    else:
        begins = [i for i, token in enumerate(ids) if token == task.streams["train"].begin]
    goes_on = hasattr(task, "streams") and ids[0] != task.streams["train"].begin
    edges = [0, *(i for i in begins if i > 0), len(ids)]
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise(edges), 1):
        name = f"document {number}" + (", which began in the block before" if number == 1 and goes_on else "")
        if number > 1 and positions is not None:
            name += ", which does not see those before"
        parts.append(Part(name, pieces(task.tokenizer, ids[start:stop], learned[start:stop])))
    return parts


def pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], learned: Sequence[bool] = ()
) -> list[tuple[str, int, bool]]:
    """(text, tokens, learned) of each token, special ones by their name; tokens that only together are a character
    are one piece.
    """
    learned, found, at = learned or [False] * len(ids), [], 0
    special = set(tokenizer.all_special_ids)
    while at < len(ids):
        size = 1
        name = str(tokenizer.convert_ids_to_tokens(ids[at]))
        if ids[at] in special:
            text = name
        elif "▁" in name:
            text = name.replace("▁", " ")  # SentencePiece: decoding one token would drop its space
        else:
            text = tokenizer.decode([ids[at]])
            while "�" in text and size < 6 and at + size < len(ids) and ids[at + size] not in special:
                size += 1
                text = tokenizer.decode(list(ids[at : at + size]))
            if "�" in text:
                size, text = 1, "�"
        found.append((text, size, bool(learned[at])))
        at += size
    return found


def count_tokens(feature: dict[str, Any]) -> int:
    """Tokens that a feature is read as; its positions and token types are none."""
    tokens = [key for key in feature if key.endswith("_ids") and not key.endswith(("position_ids", "type_ids"))]
    return sum(len(feature[key]) for key in tokens)


def spread(lengths: Sequence[int] | int) -> list[tuple[int, str]]:
    """Five rows, from the shortest to the longest; evenly spread where all are as long."""
    words = ("the shortest", "a quarter are shorter", "of middle length", "a quarter are longer", "the longest")
    if isinstance(lengths, int):
        return [(i * lengths // 5, "") for i in range(min(5, lengths))]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    places = [round(share * (len(order) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)]
    chosen = {order[place]: word for place, word in zip(places, words, strict=True)}
    return list(chosen.items())
