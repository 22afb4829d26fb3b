"""Rows with and without labels: read, separated from held-out rows, and drawn."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_lm.data.hub_datasets import load_hub
from hf_lm.data.overlap import find_overlap, normal_words
from hf_lm.data.paths import find_files
from hf_lm.data.reading import SUFFIXES, clean, plain_text, read_lines, read_rows, suffix
from hf_lm.data.tables import Row, cell, pick_column
from hf_lm.tasks.questions import CONTEXT, QUESTION, flat_rows
from hf_lm.tasks.sentiment import LABEL, TEXT
from hf_lm.tasks.task import SelfTrainingTask


@dataclass
class Unlabelled:
    """Texts without labels, none twice, and questions without answers as rows.

    `left_out` counts rows by reason, `notes` are sentences for the report.
    """

    source: str
    texts: list[str] = field(default_factory=list)
    questions: list[Row] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@contextmanager
def rename_option_in_errors(name: str) -> Iterator[None]:
    """Readers of files name the option --dataset in errors; in this block it is called `name`."""
    try:
        yield
    except (ValueError, OSError) as error:
        if "--dataset" not in str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(str(error).replace("--dataset", name)) from None


def read_unlabelled(name: str, *, text_column: str = "", questions: bool = False) -> Unlabelled:
    """Texts from a .txt (a line each), a table or a Hub dataset (a row each); "" is none.

    A column called like labels is not read, and a note says so. With `questions` rows that have a question and a
    context are read as such, and their contexts as texts. Raises ValueError for a source without a text.
    """
    unlabelled = Unlabelled(name)
    if not name:
        return unlabelled
    with rename_option_in_errors("--unlabelled"):
        files = find_files(name, any_ending=True)
        unlabelled.source = name if files is None else Path(name).name  # a report tells no folders
        rows: list[Row] = []
        if files is None:
            rows = load_hub(name)[0]["train"].to_list()
        for path in files or ():
            if suffix(path) in SUFFIXES and suffix(path) != ".txt":
                rows += read_rows(path, header=not text_column.isdigit())
            else:
                unlabelled.texts += read_lines(path)
        if rows and questions and {*QUESTION, "paragraphs"} & set(rows[0]):
            unlabelled.questions = _questions(f"--unlabelled {unlabelled.source}", rows)
            unlabelled.texts += [row["context"] for row in unlabelled.questions]
        elif rows:
            where = f"--unlabelled {unlabelled.source}"
            column = pick_column(rows, text_column, TEXT, option="--unlabelled_column", where=where)
            ignored = [key for key in rows[0] if key in LABEL and not key.isdigit() and key != column]
            if ignored:
                unlabelled.notes.append(
                    f"{where} has a column {ignored[0]!r}, which looks like labels: it was not read"
                )
            unlabelled.texts += [cell(row, column, f"{where} row {i}", Counter()) for i, row in enumerate(rows, 1)]
    read = [clean(text, Counter()).strip() for text in unlabelled.texts]
    kept = dict.fromkeys(text for text in read if text)
    unlabelled.left_out["rows_without_text"] = sum(not text for text in read)
    if not unlabelled.questions:  # their contexts repeat
        unlabelled.left_out["repeated"] = len(read) - unlabelled.left_out["rows_without_text"] - len(kept)
    unlabelled.texts = list(kept)
    if not kept:
        raise ValueError(f"--unlabelled {name} has no text: it is empty, or only white space.")
    if questions and not unlabelled.questions:
        unlabelled.notes.append(
            f"--unlabelled {unlabelled.source} has texts and no questions: they serve pretraining alone"
        )
    return unlabelled


def _questions(where: str, rows: list[Row]) -> list[Row]:
    """Rows as question answering has them, none twice, without their answers."""
    rows = list(flat_rows(rows, where))
    question = pick_column(rows, "", QUESTION, option="a column question", where=where)
    context = pick_column(rows, "", CONTEXT, option="a column context", where=where)
    asked = dict.fromkeys((cell(row, question, where, Counter()), plain_text(row.get(context), where)) for row in rows)
    return [
        {"id": str(i), "question": asks, "context": text, "answers": [], "starts": []}
        for i, (asks, text) in enumerate(asked)
        if asks and text.strip()
    ]


def leave_out_known(unlabelled: Unlabelled, task: SelfTrainingTask) -> list[Row]:
    """Leave texts and questions out of `unlabelled` that are labelled in train or held out, and count them.

    Returns the training rows that may be read without their label: all but those that occur in a held-out split.
    Raises ValueError where no unlabelled text is left.
    """
    table = task.table
    train = [task.text_of(row) for row in table.rows["train"]]
    held_out = [task.text_of(row) for split in table.splits[1:] for row in table.rows[split]]
    labelled = {" ".join(normal_words(text)) for text in train}
    overlap = find_overlap(train, held_out).train

    def unknown(texts: list[str], held_out: list[str]) -> np.ndarray:
        there = find_overlap(texts, held_out).train
        known = np.array([" ".join(normal_words(text)) in labelled for text in texts], bool)
        unlabelled.left_out["in_a_held-out_split"] += int(there.sum())
        unlabelled.left_out["labelled_in_train"] += int((known & ~there).sum())
        return ~(there | known)

    if texts := unlabelled.texts:
        contexts = {row["context"] for split in table.splits[1:] for row in table.rows[split] if "context" in row}
        kept = unknown(texts, [*held_out, *contexts])
        unlabelled.texts = [text for text, keep in zip(texts, kept, strict=True) if keep]
        if not unlabelled.texts:
            raise ValueError(
                f"--unlabelled {unlabelled.source}: each of its {len(texts):,} texts also occurs in the labelled "
                "data, so it adds nothing. Leave the option out: train rows whose label a share leaves out are used."
            )
    if rows := unlabelled.questions:
        kept = unknown([task.text_of(row) for row in rows], held_out)
        unlabelled.questions = [row for row, keep in zip(rows, kept, strict=True) if keep]
    return [row for row, drop in zip(table.rows["train"], overlap, strict=True) if not drop]


def draw_labelled(strata: Sequence[Any], share: float, *, seed: int) -> list[int]:
    """Indices of the rows that keep their label: `share` of each kind, at least one; a larger share holds a smaller.

    Raises ValueError where fewer rows are asked for than there are kinds.
    """
    counts = Counter(strata)
    if not 0 < share <= 1 or round(share * len(strata)) < len(counts):
        raise ValueError(
            f"--shares {share:g} keeps {max(0, round(share * len(strata)))} of {len(strata):,} labelled rows, and "
            f"there are {len(counts)} kinds of them (classes, lengths); give a share from "
            f"{math.ceil(1e4 * len(counts) / len(strata)) / 1e4:g} to 1."
        )
    left = {kind: max(1, round(share * count)) for kind, count in counts.items()}
    drawn = []
    for i in np.random.default_rng(seed).permutation(len(strata)).tolist():
        if left[strata[i]] > 0:
            left[strata[i]] -= 1
            drawn.append(i)
    return sorted(drawn)
