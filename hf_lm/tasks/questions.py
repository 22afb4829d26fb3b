"""Rows of questions: SQuAD's nested articles and flat rows, with answers that stand at their offsets."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from hf_lm.data.reading import SURROGATE, plain_text
from hf_lm.data.tables import Row, Table, cell, check_columns, drop_empty_splits, hold_out, pick_column, whole_number

QUESTION, CONTEXT = ("question", "query", "0"), ("context", "passage", "document")  # columns, as they are often called
ANSWERS = ("answers", "answer", "answer_text")


def read_question_answering(table: Table, *, question: str = "", context: str = "", answers: str = "") -> None:
    """Reduce a table to rows of {"id", "question", "context", "answers": [str], "starts": [int]}.

    Takes SQuAD's nested articles (v1 and v2) and flat rows, of which `answer_start` may be a column. An
    offset at which the answer does not stand is repaired where the text occurs once in the context; otherwise the
    answer is left out of train, and a row without another is left out and counted: its answer is not there, or in
    several places. Missing splits are cut by context.
    """
    where = f"--dataset {table.source}"
    if table.rows["train"] and "paragraphs" in table.rows["train"][0]:
        table.format += " that hold SQuAD's nested articles"
    for split, rows in table.rows.items():
        table.rows[split] = list(flat_rows(rows, f"{where}, {split}"))
    first = table.rows["train"]
    if not first:
        raise ValueError(f"{where} has no question in train.")
    names = {
        "question": pick_column(first, question, QUESTION, option="--question", where=where),
        "context": pick_column(first, context, CONTEXT, option="--context", where=where),
        "answers": pick_column(first, answers, ANSWERS, option="--answers", where=where),
    }
    table.columns = names
    check_columns(table, (*names.values(), "answer_start", "id", "is_impossible"))
    for split, rows in table.rows.items():
        found = [
            _row(row, number, names, table.left_out, f"{where}, {split} row {number + 1}")
            for number, row in enumerate(rows)
        ]
        found = [row for row in found if row is not None]
        if split == "train":
            unusable = [row for row in found if row["answers"] and set(row["starts"]) == {None}]
            several = sum(any(text in row["context"] for text in row["answers"]) for row in unusable)
            table.left_out["answers_in_several_places"] += several
            table.left_out["answers_not_in_their_context"] += len(unusable) - several
            found = [_placed(row) for row in found if not row["answers"] or set(row["starts"]) != {None}]
        table.rows[split] = found
    needs = "with a question, a context and, if there is one, an answer that stands in it, once or at its start"
    drop_empty_splits(table, needs)
    hold_out(table, {"validation": 0.1, "test": 0.1}, group=lambda row: row["context"], unit="context")


def _placed(row: Row) -> Row:
    """A row with those of its answers that stand in its context: others may be names of the same thing."""
    placed = [(text, start) for text, start in zip(row["answers"], row["starts"], strict=True) if start is not None]
    return row | {"answers": [text for text, _ in placed], "starts": [start for _, start in placed]}


def flat_rows(rows: Sequence[Row], where: str) -> Iterable[Row]:
    """SQuAD's articles as rows; rows as they are. Raises ValueError for an article of another form."""
    for number, row in enumerate(rows, 1):
        if "paragraphs" not in row:
            yield row
            continue
        try:
            yield from [{"context": part["context"], **asked} for part in row["paragraphs"] for asked in part["qas"]]
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{where}, article {number}: not of SQuAD's form, paragraphs of {{context, qas}} ({error})."
            ) from None


def _row(row: Row, number: int, names: dict[str, str], left_out: Counter, where: str) -> Row | None:
    question = cell(row, names["question"], where, left_out)
    context = plain_text(row.get(names["context"]), f"{where}: {names['context']!r}")
    context = SURROGATE.sub("\ufffd", context)  # of the same length: answers are found by their offsets
    if not question or not context.strip():
        left_out["rows_without_question_or_context"] += 1
        return None
    given = row.get(names["answers"])
    if given is None or given != given or _is_true(row.get("is_impossible")):
        given = []
    given = [given] if isinstance(given, str) else given
    beside = _number(row.get("answer_start"))  # in a column of its own
    if given and beside is not None and isinstance(given, list) and not isinstance(given[0], dict):
        given = {"text": given, "answer_start": beside if isinstance(beside, list) else [beside]}
    if isinstance(given, dict):  # {"text": [...], "answer_start": [...]}
        if "text" not in given:
            there = ", ".join(map(repr, given)) or "nothing"
            raise ValueError(f"{where}: the answers have no text; they have {there}.")
        texts, starts = given["text"], given.get("answer_start", [])
        texts, starts = ([texts], [starts]) if isinstance(texts, str) else (texts, starts)
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise ValueError(f"{where}: the answers' text and answer_start must be lists of one length.")
        given = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    given = given if isinstance(given, list) else [given]
    given = [one if isinstance(one, dict) else {"text": one} for one in given]
    given = [one | {"text": plain_text(one.get("text"), f"{where}: an answer's text")} for one in given]
    given = [one for one in given if one["text"].strip()]
    answers = [one["text"] for one in given]
    starts = [_place(one, context, left_out, where) for one in given]
    key = str(row.get("id", number))
    return {"id": key, "question": question, "context": context, "answers": answers, "starts": starts}


def _number(start: object) -> object:
    """A start, which a .csv holds as text; None for an empty cell and NaN."""
    if isinstance(start, str):
        text = whole_number(start.strip())
        return int(text) if re.fullmatch(r"-?\d+", text) else text or None
    return start if start == start else None


def _is_true(value: object) -> bool:
    """Whether a flag is set, which a .csv holds as text; NaN is none."""
    return value.strip().lower() in ("true", "1", "1.0") if isinstance(value, str) else bool(value) and value == value


def _place(answer: Row, context: str, left_out: Counter, where: str) -> int | None:
    """Where an answer stands in its context; None where that cannot be told."""
    text, start = answer["text"], answer.get("answer_start")
    start = -1 if start is None else start
    if isinstance(start, bool) or not isinstance(start, int):
        raise ValueError(f"{where}: answer_start is {start!r:.40}; it must be an integer, or left out.")
    if start >= 0 and context[start : start + len(text)] == text:
        return start
    if context.count(text) == 1:
        left_out["wrong_offsets_repaired"] += start >= 0
        return context.index(text)
    return None
