"""Translation: a text in one language is read, the same in another written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from hf_lm.data.tables import Row, Table, check_columns, column_names, hold_out, pick_column
from hf_lm.evaluation.metrics import Translation as Metric
from hf_lm.tasks.rows import Scores
from hf_lm.tasks.start import Start
from hf_lm.tasks.text_to_text import TextToText, to_sources_and_targets

LANGUAGE = r"[a-z]{2,3}([-_]\w+)?"  # a code such as en, zh-CN or eng_Latn


def read_translation(table: Table, *, source: str, target: str) -> None:
    """Reduce a table to rows of {"source", "targets"} and cut the splits it lacks.

    `source` and `target` are columns, or languages: of a column `translation` that holds both, or of the columns
    `source` and `target`.
    """
    for split, rows in table.rows.items():
        table.rows[split] = with_languages(rows)
    where, first = f"--dataset {table.source}", table.rows["train"]
    if not table.languages and all(re.fullmatch(r"[a-z]{2}", name) for name in (source, target)):
        table.languages = [source, target]  # as files called train.en and train.de say
    columns = set(column_names(first))
    languages = all(re.fullmatch(LANGUAGE, name) for name in (source, target))
    if languages and {"source", "target"} <= columns and not {source, target} & columns:
        source, target = "source", "target"
    source = pick_column(first, source, ("source", "src", "0"), option="--source", where=where)
    target = pick_column(first, target, ("target", "tgt", "1"), option="--target", where=where)
    table.columns = {"source": source, "target": target}
    check_columns(table, (source, target, "translation"))
    to_sources_and_targets(table, source, target)
    hold_out(table, {"validation": 0.05, "test": 0.05}, group=lambda row: row["source"], unit="source text")


def with_languages(rows: Sequence[Row]) -> list[Row]:
    """Rows with the languages of a column `translation` as columns."""
    return [row | row["translation"] if isinstance(row.get("translation"), dict) else row for row in rows]


class Translation(TextToText):
    recipe, kind, pipeline_tag = "translation", "translation model", "translation"
    metric_names = ("bleu", "chrf", "ter")
    main_metric, metric, score_of_a_text = metric_names[0], Metric, "chrf"
    read = staticmethod(read_translation)
    cue = "\n=\n"

    @classmethod
    def languages(cls, columns: Mapping[str, str]) -> tuple[str, str] | None:
        return columns["source"], columns["target"]

    @classmethod
    def from_start(cls, table: Table, start: Start, *, drop_overlap: bool = False, **settings: Any) -> Self:
        source, target = start.languages or ("", "")
        return super().from_start(table, start, drop_overlap=drop_overlap, source=source, target=target, **settings)

    @classmethod
    def instruction(
        cls, train: Sequence[Row], labels: Sequence[str], columns: Mapping[str, str], few_shot: int
    ) -> str:
        source, target = columns.get("source", ""), columns.get("target", "")
        if all(re.fullmatch(LANGUAGE, name) and name not in ("src", "tgt") for name in (source, target)):
            return f"Translate from {source} to {target}. Answer with the translation and nothing else."
        if few_shot:
            return "Translate as in the examples. Answer with the translation and nothing else."
        raise ValueError(
            "say which languages with --instruction 'Translate from English to German.', or give --few_shot."
        )

    def __init__(self, *args: Any, source: str = "", target: str = "", **options: Any) -> None:
        self.direction = f"translation_{source}_to_{target}"  # as T5's checkpoints name what they were taught
        super().__init__(*args, **options)

    def own_prefix(self, known: dict[str, Any]) -> str:
        return known.get(self.direction, {}).get("prefix") or super().own_prefix(known)

    def baseline_predictions(self, split: str) -> tuple[str, Sequence[Any]]:
        return "copy of the source", [(row["source"], 0.0, 0) for row in self.table.rows[split]]

    def baseline(self, split: str) -> tuple[str, Scores]:
        """The source copied. For TER, which an empty text brings to 100, nothing is written where that costs less."""
        name, scores = super().baseline(split)
        ter = scores.estimates["ter"]
        edits, length = ter.statistics.T
        scores.estimates["ter"] = replace(ter, statistics=np.stack([np.minimum(edits, length), length], axis=1))
        return name, scores

    def report(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        return super().report(measured) | {"signatures": self.measured_by.signatures}
