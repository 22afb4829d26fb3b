"""Where each task begins: its few labelled rows, and the models that learn it, fresh or from a checkpoint."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.data.packing import Blocks
from hf_lm.data.sources import load_corpus
from hf_lm.data.tables import Row, Table, load_table
from hf_lm.models.bert import new_bert
from hf_lm.models.configuration import context_length, family, load_config
from hf_lm.models.encoder_decoder import load_text_to_text, new_bart
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.loading import load_causal_lm, load_with_head
from hf_lm.self_training.rows import Unlabelled, called, read_unlabelled
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tasks.question_answering import QuestionAnswering, QuestionAnsweringAsText, read_question_answering
from hf_lm.tasks.sentiment import Sentiment, SentimentAsText, read_sentiment
from hf_lm.tasks.summarization import Summarization, read_summarization
from hf_lm.tasks.text_to_text import TextToText
from hf_lm.tasks.translation import Translation, read_translation
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer, set_languages, set_pad


@dataclass
class Start:
    """`new_model()` gives a model for the task, `new_lm()` one for text, whose body the other then takes."""

    task: Any
    unlabelled: Unlabelled
    new_model: Callable[[], PreTrainedModel]
    new_lm: Callable[[], PreTrainedModel]
    max_length: int


def begin_sentiment(labelled: str, *, text_column: str, label_column: str, **options: Any) -> Start:
    with called("--labelled"):
        header = not (text_column.isdigit() or label_column.isdigit())
        table = load_table(labelled or "demo:opinions", endings="labels", header=header)
        labels = read_sentiment(table, text_column=text_column, label_column=label_column)
    begun = _Begun(table, lambda row: [row["text"]], **options)
    if begun.kind == "encoder-decoder":
        return begun.to_write(SentimentAsText, labels=labels, max_length=begun.max_length)
    task = Sentiment(table, begun.tokenizer, labels=labels, max_length=begun.max_length)
    return begun.with_head(task, AutoModelForSequenceClassification, labels=labels)


def begin_question_answering(labelled: str, **options: Any) -> Start:
    with called("--labelled"):
        table = load_table(labelled or "demo:countries")
        read_question_answering(table)
    begun = _Begun(table, lambda row: [row["question"], row["context"]], questions=True, **options)
    if begun.kind == "encoder-decoder":
        return begun.to_write(QuestionAnsweringAsText, **begun.lengths)
    task = QuestionAnswering(
        table,
        begun.tokenizer,
        causal=begun.kind == "decoder",
        max_length=begun.max_length,
        stride=begun.max_length // 3,
    )
    return begun.with_head(task, AutoModelForQuestionAnswering, fresh=BertForQuestionAnswering)


def begin_translation(labelled: str, *, source: str, target: str, **options: Any) -> Start:
    source, target = source or "en", target or "de"
    with called("--labelled"):
        table = load_table(labelled or "demo:phrases", header=not source.isdigit())
        read_translation(table, source=source, target=target)
    begun = _Begun(table, lambda row: [row["source"], *row["targets"]], **options)
    set_languages(begun.tokenizer, source, target)
    return begun.to_write(Translation, source=source, target=target, **begun.lengths)


def begin_summarization(labelled: str, *, source: str, target: str, **options: Any) -> Start:
    with called("--labelled"):
        table = load_table(labelled or "demo:docstrings")
        read_summarization(table, source=source, target=target)
    begun = _Begun(table, lambda row: [row["source"], *row["targets"]], **options)
    return begun.to_write(Summarization, **begun.lengths)


def begin_language_modelling(
    labelled: str,
    *,
    model: str,
    unlabelled: str,
    unlabelled_column: str,
    text_column: str,
    max_length: int,
    **_: Any,
) -> Start:
    """Documents of the domain take the place of labels: how much do a few of them tell after more text of its kind?"""
    with called("--labelled"):
        corpus = load_corpus(labelled or "demo", text_column=text_column)
    more = read_unlabelled(unlabelled, text_column=unlabelled_column)
    if model:
        tokenizer = load_tokenizer(model)
        max_length = min(max_length, context_length(load_config(model)) or max_length)
        new_model = lambda: load_causal_lm(model, tokenizer=tokenizer, block_size=max_length)  # noqa: E731
    else:
        tokenizer = new_tokenizer([*corpus.documents("train"), *more.texts], vocab_size=4096)
        new_model = lambda: new_gpt2(tokenizer, block_size=max_length)  # noqa: E731
    task = FewDocuments(corpus, tokenizer, block_size=max_length)
    return Start(task, more, new_model, new_model, max_length)


BEGIN: dict[str, Callable[..., Start]] = {
    "sentiment": begin_sentiment,
    "question_answering": begin_question_answering,
    "translation": begin_translation,
    "summarization": begin_summarization,
    "language_modelling": begin_language_modelling,
}


class _Begun:
    """A tokenizer, of a checkpoint or new, and what a checkpoint's family makes of a task with rows."""

    def __init__(
        self,
        table: Table,
        texts_of: Callable[[Row], Iterable[str]],
        *,
        model: str,
        unlabelled: str,
        unlabelled_column: str,
        max_length: int,
        max_target_length: int,
        questions: bool = False,
        **_: Any,
    ) -> None:
        self.table, self.model, self.max_length = table, model, max_length
        self.unlabelled = read_unlabelled(unlabelled, text_column=unlabelled_column, questions=questions)
        self.kind = family(load_config(model)) if model else ""
        if model:
            self.tokenizer = load_tokenizer(model)
            set_pad(self.tokenizer)
            self.max_length = min(max_length, context_length(load_config(model)) or max_length)
        else:
            texts = [text for row in table.rows["train"] for text in texts_of(row)]
            self.tokenizer = new_tokenizer(texts + self.unlabelled.texts, vocab_size=2048)
            self.tokenizer.add_special_tokens({"mask_token": "<|mask|>"})

        self.lengths = {"max_source_length": self.max_length, "max_target_length": max_target_length}

    def with_head(
        self,
        task: Any,
        head: type,
        *,
        labels: Sequence[str] = (),
        fresh: type[PreTrainedModel] = BertForSequenceClassification,
    ) -> Start:
        """An encoder or a decoder with a head; a small BERT where there is no checkpoint."""

        def new_model() -> PreTrainedModel:
            if self.model:
                return load_with_head(self.model, head, tokenizer=self.tokenizer, labels=labels)
            return new_bert(self.tokenizer, model_class=fresh, labels=labels, block_size=self.max_length)

        return Start(task, self.unlabelled, new_model, self._lm, self.max_length)

    def to_write(self, task_class: type[TextToText], **options: Any) -> Start:
        """A model that writes, of any family; a small BART where there is no checkpoint."""

        def load() -> PreTrainedModel:
            if self.model:
                return load_text_to_text(self.model, tokenizer=self.tokenizer)
            return new_bart(self.tokenizer, block_size=max(self.lengths.values()))

        task = task_class(self.table, self.tokenizer, load(), **options)

        def new_model() -> PreTrainedModel:
            model = load()
            task.tell(model)
            return model

        new_lm = self._lm if self.kind == "encoder" else load
        return Start(task, self.unlabelled, new_model, new_lm, self.max_length)

    def _lm(self) -> PreTrainedModel:
        if not self.model:
            return new_bert(self.tokenizer, model_class=BertForMaskedLM, block_size=self.max_length)
        auto_class = AutoModelForMaskedLM if self.kind == "encoder" else AutoModelForCausalLM
        return load_with_head(self.model, auto_class, tokenizer=self.tokenizer)


class FewDocuments(LanguageModelling):
    """Language modelling whose training documents can be drawn as rows are; they are its labels."""

    sure_enough = None  # text is its own label: no teacher is needed

    def __init__(self, corpus: Any, tokenizer: PreTrainedTokenizerBase, *, block_size: int) -> None:
        super().__init__(corpus, tokenizer, block_size=block_size)
        rows = {
            split: [{"text": text, "document": i} for i, text in enumerate(corpus.documents(split))]
            for split in self.splits
        }
        self.table = Table(corpus.source, corpus.fingerprint, rows)

    def text_of(self, row: Row) -> str:
        return row["text"]

    def kinds(self, rows: Sequence[Row]) -> list[str]:
        return ["document"] * len(rows)

    def with_rows(self, split: str, rows: Sequence[Row]) -> "FewDocuments":
        """This task with some of the documents of a split."""
        task = copy.copy(self)
        task.table = replace(self.table, rows=self.table.rows | {split: list(rows)})
        task.streams = self.streams | {split: self.streams[split].take([row["document"] for row in rows])}
        task.train_dataset = Blocks(task.streams["train"], block_size=self.block_size, isolate=self.isolate)
        return task

    def report(self, measured: dict[str, Any]) -> dict[str, Any]:
        found = super().report(measured)
        found["data"]["notes"] = [*found["data"]["notes"], *self.table.notes]
        return found
