"""Summarization: a document is read, a summary written."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hf_lm.data.overlap import UNSPACED, normal_words
from hf_lm.data.tables import Row, Table, check_columns, hold_out, pick_column
from hf_lm.evaluation.metrics import Summarization as Rouge
from hf_lm.evaluation.metrics import sentences
from hf_lm.tasks.text_to_text import TextToText, to_sources_and_targets

SOURCE = ("document", "article", "source", "text", "dialogue", "body", "content")
TARGET = ("summary", "highlights", "target", "abstract", "title")


def read_summarization(table: Table, *, source: str = "", target: str = "") -> None:
    """Reduce a table to rows of {"source", "targets"} and cut the splits it lacks.

    A source may be a list of sentences, a target a list of references.
    """
    where, first = f"--dataset {table.source}", table.rows["train"]
    source = pick_column(first, source, SOURCE, option="--source", where=where)
    target = pick_column(first, target, TARGET, option="--target", where=where)
    table.columns = {"source": source, "target": target}
    check_columns(table, (source, target))
    to_sources_and_targets(table, source, target)
    hold_out(table, {"validation": 0.05, "test": 0.05}, group=lambda row: row["source"], unit="document")


class Summarization(TextToText):
    recipe, kind, pipeline_tag = "summarization", "summarization model", "summarization"
    metric_names = ("rougeL", "rouge1", "rouge2", "rougeLsum")
    main_metric, metric, score_of_a_text = metric_names[0], Rouge, "rougeL"
    settings: ClassVar = {"max_source_length": 256, "max_target_length": 64, "num_beams": 1}
    read = staticmethod(read_summarization)
    cue = "\n\nTL;DR: "  # as GPT-2's authors had it

    @classmethod
    def instruction(
        cls, train: Sequence[Row], labels: Sequence[str], columns: Mapping[str, str], few_shot: int
    ) -> str:
        targets = [row["targets"][0] for row in train]
        unit = "characters" if re.search(UNSPACED, "".join(targets[:100])) else "words"
        length = int(np.median([len(normal_words(target)) for target in targets]))
        return f"Summarize the text in about {length} {unit}."

    def baseline_predictions(self, split: str) -> tuple[str, Sequence[Any]]:
        leads = [sentences(row["source"]).split("\n")[0] for row in self.table.rows[split]]
        return "lead sentence", [(lead, 0.0, 0) for lead in leads]
