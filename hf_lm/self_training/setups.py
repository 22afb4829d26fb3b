"""Where each task begins: its few labelled rows, and the models that learn it, fresh or from a checkpoint."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, cast

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.data.packing import Blocks
from hf_lm.data.sources import Corpus, load_corpus
from hf_lm.data.tables import Row, Table
from hf_lm.models.bert import new_bert
from hf_lm.models.configuration import context_length, load_config
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm, load_with_head
from hf_lm.self_training.rows import Unlabelled, read_unlabelled, rename_option_in_errors
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tasks.question_answering import QuestionAnswering
from hf_lm.tasks.sentiment import Sentiment
from hf_lm.tasks.summarization import Summarization
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.task import SelfTrainingTask
from hf_lm.tasks.text_to_text import TextToText
from hf_lm.tasks.translation import Translation
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer, set_pad


@dataclass
class Setup:
    """`new_model()` gives a model for the task, `new_lm()` one for text, whose body the other then takes."""

    task: SelfTrainingTask
    unlabelled: Unlabelled
    new_model: Callable[[], PreTrainedModel]
    new_lm: Callable[[], PreTrainedModel]
    max_length: int


def begin_language_modelling(
    labelled: str,
    *,
    model: str,
    unlabelled: str,
    unlabelled_column: str,
    text_column: str,
    max_length: int,
    drop_overlap: bool = False,
    **_: object,
) -> Setup:
    """Documents of the domain take the place of labels: how much do a few of them tell after more text of its kind?"""
    if drop_overlap:
        raise ValueError("--drop_overlap is for rows with labels; the proof leakage reports what documents share.")
    with rename_option_in_errors("--labelled"):
        corpus = load_corpus(labelled or "demo", text_column=text_column)
    more = read_unlabelled(unlabelled, text_column=unlabelled_column)
    if model:
        tokenizer = load_tokenizer(model)
        set_pad(tokenizer)
        max_length = min(max_length, context_length(load_config(model)) or max_length)
        new_model = lambda: load_causal_lm(model, tokenizer=tokenizer, block_size=max_length)  # noqa: E731
    else:
        tokenizer = new_tokenizer([*corpus.documents("train"), *more.texts], vocab_size=4096)
        new_model = lambda: new_gpt2(tokenizer, block_size=max_length)  # noqa: E731
    task = FewDocuments(corpus, tokenizer, block_size=max_length)
    return Setup(cast(SelfTrainingTask, task), more, new_model, new_model, max_length)


def begin_rows(
    task_class: type[Supervised],
    labelled: str,
    *,
    demo: str,
    defaults: Mapping[str, str] = MappingProxyType({}),
    model: str,
    unlabelled: str,
    unlabelled_column: str,
    max_length: int,
    max_target_length: int,
    drop_overlap: bool = False,
    **options: str,
) -> Setup:
    """A task over labelled rows, with a tokenizer that has also read the unlabelled text where it is new.

    `demo`: what "" reads; `defaults`: the columns of it. `options` name columns.
    """
    columns = {name: options.get(name) or defaults.get(name, "") for name in task_class.columns}
    with rename_option_in_errors("--labelled"):
        table = task_class.load(labelled or demo, **columns)
    questions = "question" in task_class.inputs
    more = read_unlabelled(unlabelled, text_column=unlabelled_column, questions=questions)
    start = task_class.prepare_model(
        table,
        model,
        block_size=max(max_length, max_target_length) if not task_class.auto_class else max_length,
        languages=task_class.languages(columns),
        more_texts=more.texts,
    )
    max_length = start.at_most(max_length) if model else max_length
    if not model:
        start.tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    lengths = {
        "max_length": max_length,
        "stride": max_length // 3,
        "max_source_length": max_length,
        "max_target_length": max_target_length,
    }
    settings = {key: lengths[key] for key in task_class.settings if key in lengths}
    task = task_class.from_start(table, start, drop_overlap=drop_overlap, **settings)

    def new_model() -> PreTrainedModel:
        made = start.new_model()
        if isinstance(task, TextToText):
            task.configure_generation(made)
        return made

    def new_lm() -> PreTrainedModel:
        if start.as_text and start.family != "encoder":
            return start.new_model()
        if not model:
            return new_bert(start.tokenizer, model_class=BertForMaskedLM, block_size=max_length)
        auto_class = AutoModelForMaskedLM if start.family == "encoder" else AutoModelForCausalLM
        return load_with_head(model, auto_class, tokenizer=start.tokenizer)

    return Setup(cast(SelfTrainingTask, task), more, new_model, new_lm, max_length)


SETUPS: dict[str, Callable[..., Setup]] = {
    "sentiment": partial(begin_rows, Sentiment, demo="demo:opinions"),
    "question_answering": partial(begin_rows, QuestionAnswering, demo="demo:countries"),
    "translation": partial(begin_rows, Translation, demo="demo:phrases", defaults={"source": "en", "target": "de"}),
    "summarization": partial(begin_rows, Summarization, demo="demo:docstrings"),
    "language_modelling": begin_language_modelling,
}


class FewDocuments(LanguageModelling):
    """Language modelling whose training documents can be drawn as rows are; they are its labels."""

    confidence_threshold = None  # text is its own label: no teacher is needed

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, block_size: int) -> None:
        super().__init__(corpus, tokenizer, block_size=block_size)
        rows = {
            split: [{"text": text, "document": i} for i, text in enumerate(corpus.documents(split))]
            for split in self.splits
        }
        self.table = Table(corpus.source, corpus.fingerprint, rows)

    def text_of(self, row: Row) -> str:
        return row["text"]

    def strata(self, rows: Sequence[Row]) -> list[str]:
        return ["document"] * len(rows)

    def with_rows(self, split: str, rows: Sequence[Row]) -> "FewDocuments":
        """This task with some of the documents of a split."""
        task = copy.copy(self)
        task.table = replace(self.table, rows=self.table.rows | {split: list(rows)})
        task.streams = self.streams | {split: self.streams[split].take([row["document"] for row in rows])}
        if split in self.scored:
            task.scored = self.scored | {split: task.streams[split]}
        task.train_dataset = Blocks(task.streams["train"], block_size=self.block_size, isolate=self.isolate)
        return task

    def report(self, measured: dict[str, Any]) -> dict[str, Any]:
        found = super().report(measured)
        found["data"]["notes"] = [*found["data"]["notes"], *self.table.notes]
        return found
