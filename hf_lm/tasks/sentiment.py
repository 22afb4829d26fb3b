"""Sentiment, or any other class of a text: one label per row."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Processes
from hf_lm.data.overlap import UNSPACED
from hf_lm.data.tables import Row, Table, cell, check_columns, drop_empty_splits, hold_out, pick_column, whole_number
from hf_lm.evaluation.intervals import Estimate
from hf_lm.evaluation.metrics import Classification
from hf_lm.tasks.losses import label_loss
from hf_lm.tasks.proofs import Proof
from hf_lm.tasks.rendering import Part, token_pieces
from hf_lm.tasks.rows import Encoded, Scores, class_scores, room_beside
from hf_lm.tasks.start import Start
from hf_lm.tasks.supervised import Supervised
from hf_lm.tasks.text_to_text import TextToText
from hf_lm.tokenization.tokenizer import encode_documents, special_tokens_around

TEXT = ("text", "sentence", "review", "content", "comment", "tweet", "0")
LABEL = ("label", "labels", "sentiment", "class", "category", "polarity", "1")
FEW_CLASSES = 20  # of more, each has two training rows on average


def read_sentiment(table: Table, *, text_column: str = "", label_column: str = "") -> list[str]:
    """Reduce a table to rows of {"text", "label"}, cut the splits it lacks, and return the names of its classes.

    Rows without a text or a label are left out and counted; -1 is a class where one row of train in twenty has it, and
    no label elsewhere. Raises ValueError for one class only, and for a class of a held-out split that train has not.
    """
    where = f"--dataset {table.source}"
    first = table.rows["train"]
    text = pick_column(first, text_column, TEXT, option="--text_column", where=where)
    label = pick_column(first, label_column, LABEL, option="--label_column", where=where)
    table.columns = {"text": text, "label": label}
    check_columns(table, (text, label))
    negative = 20 * sum(_is_minus_one(row, label) for row in first) >= len(first)
    for split, rows in table.rows.items():
        unlabelled = {""} if negative and not all(_is_minus_one(row, label) for row in rows) else {"", "-1"}
        table.rows[split] = list(_rows(rows, text, label, unlabelled, f"{where}, {split}", table.left_out))
    drop_empty_splits(table, f"with both {text!r} and {label!r}")
    hold_out(table, {"validation": 0.1, "test": 0.1}, group=lambda row: row["text"], unit="text")
    labels = sorted({row["label"] for row in table.rows["train"]}, key=lambda name: (len(name), name))
    if len(labels) < 2:
        raise ValueError(
            f"{where} has one class only, {_short(labels[0])!r} in {label!r}: there is nothing to tell apart."
        )
    if len(labels) > FEW_CLASSES and 2 * len(labels) > len(table.rows["train"]):
        raise ValueError(
            f"{where}: {label!r} has {len(labels):,} different values in {len(table.rows['train']):,} training rows "
            f"({_few(labels)}): numbers or text? A class needs rows of its own; name another column with "
            "--label_column."
        )
    for split in table.splits:
        if unseen := sorted({row["label"] for row in table.rows[split]} - set(labels)):
            raise ValueError(
                f"{where}: {split} has labels that train has not: {_few(unseen)}; train has {_few(labels)}."
            )
    table.labels = labels
    return labels


def _few(labels: Sequence[str]) -> str:
    return f"{[_short(label) for label in labels[:5]]}" + (f" and {len(labels) - 5:,} more" if len(labels) > 5 else "")


def _short(label: str) -> str:
    return label if len(label) <= 40 else f"{label[:39]}…"


def _is_minus_one(row: Row, label: str) -> bool:
    return whole_number(str(row.get(label)).strip()) == "-1"


def _rows(
    rows: Sequence[Row], text: str, label: str, unlabelled: set[str], where: str, left_out: Counter
) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        words = cell(row, text, f"{where} row {number}", left_out)
        name = whole_number(cell(row, label, f"{where} row {number}", left_out))
        if not words:
            left_out["rows_without_text"] += 1
        elif name in unlabelled:
            left_out["rows_without_label"] += 1
        else:
            yield {"text": words, "label": name}


class _OneOfClasses(Supervised):
    """What is the same however a class is chosen: rows of {"text", "label"}, answers that are logits per class."""

    recipe, kind, pipeline_tag = "sentiment", "text classifier", "text-classification"
    metric_names = ("accuracy", "macro_f1", "mcc", "calibration_error")
    main_metric = metric_names[0]
    columns, endings = ("text_column", "label_column"), "labels"
    settings: ClassVar = {"max_length": 256}
    pipeline_options: ClassVar = {"truncation": True}
    read = staticmethod(read_sentiment)
    read_from, confidence_threshold = "text", 0.8
    labels: list[str]
    table: Table

    @classmethod
    def estimates_of(cls, examples: Sequence[dict[str, Any]], labels: Sequence[str]) -> dict[str, Estimate]:
        """A prediction that is none of `labels` is wrong. A calibration error needs the probabilities of all."""
        index = {label: i for i, label in enumerate(labels)}
        predicted = [index.get(row["prediction"], -1) for row in examples]
        true = [index[row["reference"]] for row in examples]
        probabilities = None
        if all("probabilities" in row for row in examples):
            others = sorted({name for row in examples for name in row["probabilities"]} - set(labels))
            names = (*labels, *others)
            probabilities = np.array([[row["probabilities"].get(name, 0.0) for name in names] for row in examples])
        return Classification(classes=len(labels)).estimates(predicted, true, probabilities=probabilities)

    @classmethod
    def labels_of(cls, examples: Sequence[dict[str, Any]]) -> list[str]:
        return sorted({row[key] for row in examples for key in ("reference", "prediction")})

    @classmethod
    def instruction(
        cls, train: Sequence[Row], labels: Sequence[str], columns: Mapping[str, str], few_shot: int
    ) -> str:
        return f"Which class is the text? Answer with one of these and nothing else: {', '.join(labels)}."

    @classmethod
    def as_answer(cls, row: Row) -> str:
        return row["label"]

    @classmethod
    def examples_of(
        cls, rows: Sequence[Row], answers: Sequence[str], labels: Sequence[str]
    ) -> tuple[list[dict[str, Any]], int]:
        chosen = [to_label(answer, labels) for answer in answers]
        examples = [
            {"input": row["text"], "reference": row["label"], "prediction": label or answer}
            for row, answer, label in zip(rows, answers, chosen, strict=True)
        ]
        return examples, chosen.count("")

    @classmethod
    def prediction_of(cls, given: object, output: list[dict[str, Any]] | dict[str, Any]) -> dict[str, Any]:
        best = output[0] if isinstance(output, list) else output
        return {"prediction": best["label"], "score": best["score"]}

    def know_classes(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.index = {label: i for i, label in enumerate(self.labels)}

    def row_of(self, text: str) -> Row:
        return {"text": text, "label": self.labels[0]}

    def with_label(self, row: Row, prediction: str) -> Row | None:
        return {"text": row["text"], "label": prediction}

    def strata(self, rows: Sequence[Row]) -> list[str]:
        return [row["label"] for row in rows]

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        rows = self.table.rows[split]
        true = np.array([self.index[row["label"]] for row in rows])
        log_probs = torch.from_numpy(np.asarray(answers, np.float64)).log_softmax(-1).numpy()
        probabilities, predicted = np.exp(log_probs), np.argmax(answers, axis=1)
        examples = [
            {
                "input": row["text"],
                "reference": row["label"],
                "prediction": self.labels[guess],
                "score": float(chance[right]),
                "probabilities": dict(zip(self.labels, chance.tolist(), strict=True)),
            }
            for row, guess, chance, right in zip(rows, predicted, probabilities, true, strict=True)
        ]
        metric = Classification(classes=len(self.labels))
        estimates = metric.estimates(predicted.tolist(), true.tolist(), probabilities=probabilities)
        return Scores(estimates, examples, float(-log_probs[np.arange(len(true)), true].mean()))

    def baseline_predictions(self, split: str) -> tuple[str, Sequence[Any]]:
        """The most frequent class, with the frequencies of train as its probabilities."""
        counts = Counter(row["label"] for row in self.table.rows["train"])
        log_counts = np.log([counts[label] for label in self.labels])
        return "majority class", [log_counts] * len(self.table.rows[split])

    def baseline(self, split: str) -> tuple[str, Scores]:
        name, answers = self.baseline_predictions(split)
        scores = self.score(split, answers)
        del scores.estimates["calibration_error"]  # the frequencies of train are calibrated by construction
        return name, scores

    def label_counts(self) -> dict[str, dict[str, int]]:
        counts = {split: Counter(row["label"] for row in rows) for split, rows in self.table.rows.items()}
        return {split: {label: counted[label] for label in self.labels} for split, counted in counts.items()}

    def report(self, measured: Mapping[str, Scores]) -> dict[str, Any]:
        *_, last = measured.values()
        counts = np.split(last.estimates["macro_f1"].statistics.sum(axis=0), 3)  # right, predicted, true
        classes = dict(zip(self.labels, map(class_scores, *counts), strict=True))
        return super().report(measured) | {"classes": classes}


class Sentiment(_OneOfClasses):
    """A class per text, by a classification head: on the first token of an encoder, on the last of a decoder.

    `labels`: the classes, in the order of the head. `max_length`: tokens of a text, special ones included.
    """

    auto_class = "AutoModelForSequenceClassification"
    loss = staticmethod(label_loss)

    @classmethod
    def from_start(cls, table: Table, start: Start, *, max_length: int, drop_overlap: bool = False) -> Supervised:
        options: dict[str, Any] = {"labels": start.labels, "drop_overlap": drop_overlap}
        if start.as_text:
            return SentimentAsText(table, start.tokenizer, start.model, max_length=max_length, **options)
        start.model.config.problem_type = "single_label_classification"  # a checkpoint may have had another
        return cls(table, start.tokenizer, max_length=start.at_most(max_length), **options)

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        *,
        labels: Sequence[str],
        max_length: int,
        drop_overlap: bool = False,
    ) -> None:
        self.know_classes(labels)
        self.max_length, self.how = max_length, f"a classification head for {', '.join(labels[:10])}"
        self.frame = special_tokens_around(tokenizer, causal=False)  # as who loads the tokenizer will have it
        super().__init__(table, tokenizer, drop_overlap=drop_overlap)
        tokenizer.model_max_length = max_length  # at which a pipeline truncates, as these rows were

    def encode(self, rows: Sequence[Row]) -> Encoded:
        encoded, frame = Encoded(), self.frame
        room = room_beside(len(frame.before) + len(frame.after), self.max_length, "--max_length")
        for row, ids in zip(rows, encode_documents(self.tokenizer, [row["text"] for row in rows]), strict=True):
            input_ids = [*frame.before, *encoded.truncated(ids, room), *frame.after]
            encoded.features.append({"input_ids": input_ids, "labels": self.index[row["label"]]})
        return encoded

    def predict(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> Sequence[Any]:
        """Logits per row, (rows, classes)."""
        read = lambda outputs, *_: list(outputs.logits.double().cpu().numpy())  # noqa: E731
        return self.map_batches(read, model, split, accelerator)

    def label_proof(self) -> Proof:
        rows, features = self.table.rows["train"][:64], self.train_dataset[:64]
        labels = self.collate(features)["labels"].tolist()
        wrong = [i for i, row in enumerate(rows) if self.labels[labels[i]] != row["label"]]
        counts = Counter(row["label"] for row in self.table.rows["train"])
        shown = ", ".join(f"{_short(label)} {counts[label]:,}" for label in self.labels[:10])
        shown += f", and {len(self.labels) - 10:,} more" if len(self.labels) > 10 else ""
        if wrong:
            return Proof(False, f"{len(wrong)} of {len(rows)} labels are not the class of their row")
        plain = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=self.max_length).input_ids
        other = [i for i, ids in enumerate(plain) if ids != features[i]["input_ids"]]
        if len(other) > len(rows) // 10:  # text that holds a special token's name is read differently
            return Proof(False, f"the tokenizer alone gives other ids for {len(other)} of {len(rows)} rows")
        return Proof(True, f"the labels of {len(rows)} rows are the classes that the table names ({shown})")

    def render_row(self, row: dict[str, Any]) -> list[Part]:
        label = row["labels"]
        text = f"{self.labels[label]}  (class {label} of {len(self.labels)})"
        return [Part("reads", token_pieces(self.tokenizer, row["input_ids"])), Part("learns", text=text)]


class SentimentAsText(_OneOfClasses, TextToText):
    """A class per text, by the likelihood of its name: for encoder-decoders, and decoders asked to write it.

    `labels`: the classes, whose names the model learns to write. `max_length`: tokens of a text.
    """

    cue, writes, how = "\nSentiment: ", False, "the likelihood of each class's name"

    def __init__(
        self,
        table: Table,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        labels: Sequence[str],
        max_length: int,
        drop_overlap: bool = False,
    ) -> None:
        self.know_classes(labels)
        self.label_ids = encode_documents(tokenizer, self.labels, as_targets=True)
        longest = 2 + max(len(ids) for ids in self.label_ids)
        super().__init__(
            table, tokenizer, model, max_source_length=max_length, max_target_length=longest, drop_overlap=drop_overlap
        )

    def target_of(self, row: Row) -> str:
        return row["label"]

    def inference_settings(self) -> dict[str, Any]:
        return super().inference_settings() | {"labels": self.labels}

    def predict(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> Sequence[Any]:
        """Log-likelihood of each class's name, (rows, classes)."""
        prompts = [self.prompt(feature) for feature in self.encoded[split].features]
        features = [self.feature(prompt, ids) for prompt in prompts for ids in self.label_ids]
        losses = self.losses(model, features, accelerator, description=f"measuring {split}")
        return list(-np.array([loss for loss, _ in losses]).reshape(len(prompts), len(self.labels)))


def to_label(answer: str, labels: Sequence[str]) -> str:
    """The one class whose name stands in an answer as a word, whatever its case; "" where none or several do."""
    inside = [
        label
        for label in labels
        if re.search(rf"(?<![^\W_]){re.escape(label)}(?![^\W_])", answer, re.IGNORECASE)
        or (re.search(UNSPACED, label) and label in answer)
    ]
    whole = [label for label in inside if not any(label != other and label in other for other in inside)]
    return whole[0] if len(whole) == 1 else ""
