"""What the fine-tuning tasks share: rows become features, answers scores beside a baseline, overlap is found."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Feature, Processes, map_by_length, pad_batch
from hf_lm.data.overlap import Overlap, find_overlap
from hf_lm.data.scripts import languages_of, script_shares
from hf_lm.data.tables import Row, Table, load_table
from hf_lm.evaluation.intervals import Estimate
from hf_lm.evaluation.likelihood import evaluating
from hf_lm.models.parts import embedding_rows
from hf_lm.models.target_tokenizer import has_target_tokenizer
from hf_lm.tasks import proofs
from hf_lm.tasks.proofs import Proof, ProvenTrainer
from hf_lm.tasks.rendering import Part, count_tokens
from hf_lm.tasks.rows import Encoded, Scores, is_right
from hf_lm.tasks.start import Start, start_fresh, start_from
from hf_lm.tasks.task import Loss
from hf_lm.tokenization.tokenizer import encode_documents

WORST = 20  # examples that the report shows
FIRST = 5  # and these, as they come
EXCERPT = 2**14  # tokens: a batch of an evaluation (hf_lm.data.batches)


class Supervised:
    """A task over labelled rows, as `fit` needs it. A subclass defines what raises NotImplementedError below; the rest
    is the same for all of them. Its class members are what `hf-lm score`, `predict` and its recipe ask before there is
    a model; hf_lm.tasks.by_name lists the classes.
    """

    recipe: str
    kind: str
    pipeline_tag: str
    auto_class = ""  # of the head; "" for a task whose answer is written, which sets it by the family of its model
    main_metric: str
    metric_names: ClassVar[tuple[str, ...]]  # in the order in which they are shown, the main one first
    columns: ClassVar[tuple[str, ...]]  # options of the recipe that name columns
    settings: ClassVar[dict[str, int]]  # options of the recipe that a checkpoint of another origin is measured with
    read: ClassVar[Callable[..., Any]]  # (table, **columns): reduce it to the task's rows, cut the splits it lacks
    endings: ClassVar[Literal["columns", "labels"]] = "columns"  # of files without rows: see load_table
    inputs: ClassVar[tuple[str, ...]] = ("text",)  # that the pipeline takes
    read_from = "text"  # the key of a row under which the text that is read stands
    metric: ClassVar[type[Any]]  # of hf_lm.evaluation.metrics: of predictions and references
    pipeline_options: ClassVar[dict[str, Any]] = {}  # with which the pipeline answers as the evaluation measures
    how = "text that it writes"  # its model answers, in words
    needs_validation = False  # whether test is measured with what was chosen on validation
    greater_is_better = True
    unit = "examples"
    shifts_labels = False
    loss: Loss | None = None
    warnings: Sequence[str] = ()
    max_length = 0
    report_seconds = 0.0
    labels: Sequence[str] = ()  # classes, in the order of the head

    def __init__(self, table: Table, tokenizer: PreTrainedTokenizerBase, *, drop_overlap: bool = False) -> None:
        self.table, self.tokenizer = table, tokenizer
        self.splits, self.fingerprint = table.splits, table.fingerprint
        self.overlap = self.overlap_of_splits()
        if drop_overlap:
            matching = np.any([found.train for found in self.overlap.values()], axis=0)
            if matching.all():
                raise ValueError(
                    "--drop_overlap would remove every training row: each also occurs in a held-out split."
                )
            table.rows["train"] = [row for row, drop in zip(table.rows["train"], matching, strict=True) if not drop]
            table.notes.append(f"{matching.sum():,} training rows that also occur in a held-out split were dropped")
            self.overlap = self.overlap_of_splits()
        self.encoded = {split: self.encode(table.rows[split]) for split in self.splits}
        self.train_dataset = self.encoded["train"].features
        train = self.encoded["train"].report()
        if train["tokens_lost"] >= 0.05:
            lengths = [f"--{name}" for name in getattr(self, "settings", ("max_length",)) if name.startswith("max_")]
            self.warnings = [
                f"{train['truncated']:.0%} of the training rows are truncated, and {train['tokens_lost']:.0%} of "
                f"their tokens lost: a larger {' or '.join(lengths)} keeps more"
            ]
        self.context = max(1, self.encoded["train"].tokens // max(1, len(self.train_dataset)))

    def overlap_of_splits(self) -> dict[str, Overlap]:
        """Which rows of each held-out split occur in the rows of train, as they are now."""
        texts = {split: [self.text_of(row) for row in self.table.rows[split]] for split in self.splits}
        return {split: find_overlap(texts["train"], texts[split]) for split in self.splits[1:]}

    # What a task says of itself, before there is a model

    @classmethod
    def texts_of(cls, row: Row) -> Sequence[str]:
        """All text of a row: what a new tokenizer is trained on."""
        return [row[cls.read_from], *row.get("targets", ())]

    @classmethod
    def languages(cls, columns: Mapping[str, str]) -> tuple[str, str] | None:
        """Source and target language, as the options that name columns have them; None where there are none."""
        return None

    @classmethod
    def from_start(cls, table: Table, start: Start, *_: object, **settings: object) -> "Supervised":
        """The task as its model learns it: by a head, or as text. `settings`, and `drop_overlap`, by keyword."""
        raise NotImplementedError

    @classmethod
    def estimates_of(cls, examples: Sequence[dict[str, Any]], labels: Sequence[str]) -> dict[str, Estimate]:
        """The metrics of examples as `score` makes them."""
        return cls.metric().estimates([row["prediction"] for row in examples], [row["reference"] for row in examples])

    @classmethod
    def labels_of(cls, examples: Sequence[dict[str, Any]]) -> list[str]:
        """The classes that occur in examples; empty where there are none."""
        return []

    @classmethod
    def instruction(
        cls, train: Sequence[Row], labels: Sequence[str], columns: Mapping[str, str], few_shot: int
    ) -> str:
        """What a model behind an API is told to do."""
        raise NotImplementedError

    @classmethod
    def as_prompt(cls, row: Row) -> str:
        """A row as an API is asked about it."""
        return row[cls.read_from]

    @classmethod
    def as_answer(cls, row: Row) -> str:
        """The right answer of a row, as an API should give it."""
        raise NotImplementedError

    @classmethod
    def examples_of(
        cls, rows: Sequence[Row], answers: Sequence[str], labels: Sequence[str]
    ) -> tuple[list[dict[str, Any]], int]:
        """An API's answers as examples, and how many of them are none of the possible answers."""
        raise NotImplementedError

    @classmethod
    def prediction_of(cls, given: object, output: Any) -> dict[str, Any]:
        """What the pipeline gave for an input, as `hf-lm predict` writes it: {"prediction", ...}."""
        raise NotImplementedError

    @classmethod
    def load(cls, dataset: str, **columns: str) -> Table:
        """The rows that `--dataset` names, as the task has them. Raises OSError or ValueError in one line."""
        header = not any(column.isdigit() for column in columns.values())
        table = load_table(dataset, endings=cls.endings, header=header)
        cls.read(table, **columns)
        return table

    @classmethod
    def prepare_model(
        cls,
        table: Table,
        model: str,
        *,
        block_size: int,
        as_text: bool = False,
        decoder: str = "",
        languages: tuple[str, str] | None = None,
        quantize: int = 0,
        more_texts: Sequence[str] = (),
        vocab_size: int = 2048,
        sizes: Mapping[str, int] | None = None,
    ) -> Start:
        """Tokenizer and model of a checkpoint as the task needs it, or small new ones where `model` is "".

        `more_texts`: what a new tokenizer is trained on beside the rows of train. Others: see hf_lm.tasks.start.
        """
        shared: dict[str, Any] = {"auto_class": cls.auto_class, "labels": table.labels, "languages": languages}
        if model:
            return start_from(model, **shared, as_text=as_text, decoder=decoder, quantize=quantize)
        texts = [text for row in table.rows["train"] for text in cls.texts_of(row)]
        shared |= {"block_size": block_size, "vocab_size": vocab_size, "sizes": sizes}
        return start_fresh([*texts, *more_texts], **shared)

    # What a task says of its rows and answers

    def row_of(self, text: str) -> Row:
        """A row of a text without a label; its label means nothing. For self-training, as the next two."""
        raise NotImplementedError

    def with_label(self, row: Row, prediction: str) -> Row | None:
        """The row with the prediction as its label; None where it cannot be one."""
        raise NotImplementedError

    def strata(self, rows: Sequence[Row]) -> list[Any]:
        """A group for each row: a selection keeps the groups in proportion."""
        raise NotImplementedError

    def text_of(self, row: Row) -> str:
        """The text of a row that must not occur in train."""
        return row[self.read_from]

    def target_of(self, row: Row) -> str:
        """What is to be written for a row; for tasks whose answer is written."""
        raise NotImplementedError

    def encode(self, rows: Sequence[Row]) -> Encoded:
        raise NotImplementedError

    def predict(self, model: PreTrainedModel, split: str, accelerator: Processes | None) -> Sequence[Any]:
        """What the model says to each row of a split, in their order."""
        raise NotImplementedError

    def score(self, split: str, answers: Sequence[Any]) -> Scores:
        raise NotImplementedError

    def baseline_predictions(self, split: str) -> tuple[str, Sequence[Any]]:
        """The name of a baseline and what it answers to each row."""
        raise NotImplementedError

    def label_proof(self) -> Proof:
        raise NotImplementedError

    # What all share

    def rows_of_features(self, split: str) -> Sequence[int]:
        """The row that each feature of a split is of."""
        return range(len(self.encoded[split].features))

    def with_rows(self, split: str, rows: Sequence[Row]) -> Self:
        """This task with other rows as one of its splits; what else was found, overlap among it, stays as it was."""
        task = copy.copy(self)
        task.table = replace(self.table, rows=self.table.rows | {split: list(rows)})
        task.encoded = self.encoded | {split: self.encode(rows)}
        task.train_dataset = task.encoded["train"].features
        return task

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        return pad_batch(features, pad_id=self.tokenizer.pad_token_id)

    def map_batches(
        self, read: Callable[..., list], model: PreTrainedModel, split: str, accelerator: Processes | None
    ) -> list[Any]:
        """`read(outputs, batch, rows)` over batches of the features of a split, in their order."""
        features, device = self.encoded[split].features, next(model.parameters()).device

        def work(rows: list[int]) -> list[Any]:
            batch = {key: value.to(device) for key, value in self.collate([features[i] for i in rows]).items()}
            return read(model(**{key: value for key, value in batch.items() if key != "labels"}), batch, rows)

        lengths = [len(feature["input_ids"]) for feature in features]
        return map_by_length(work, lengths, accelerator=accelerator, description=f"measuring {split}")

    def inference_settings(self) -> dict[str, Any]:
        """With which `pipeline` answers as the evaluation measured, beside its own defaults."""
        return {}

    def configure_inference(self, model: PreTrainedModel) -> None:
        """Write `inference_settings` into a model's configuration, by the name of its pipeline."""
        if settings := self.inference_settings():
            known = dict(getattr(model.config, "task_specific_params", None) or {})
            model.config.task_specific_params = known | {self.pipeline_tag: settings}

    def measure(self, model: PreTrainedModel, split: str, accelerator: Processes | None = None) -> Scores:
        with evaluating(model), torch.no_grad():
            answers = self.predict(model, split, accelerator)
        return self.score(split, answers)

    def baseline(self, split: str) -> tuple[str, Scores]:
        name, answers = self.baseline_predictions(split)
        return name, self.score(split, answers)

    def data_proofs(self, model: PreTrainedModel) -> dict[str, Callable[[], Proof]]:
        rows = embedding_rows(model)
        texts = [self.text_of(row) for row in self.table.rows["validation"][:200]]
        return {
            "vocabulary": lambda: proofs.vocabulary(
                self.tokenizer, encode_documents(self.tokenizer, texts), rows=rows
            ),
            "label_coverage": self.label_proof,
        }

    def proofs_before(self, trainer: ProvenTrainer) -> dict[str, Callable[[], Proof]]:
        first = self.train_dataset[:4]
        return {
            **self.data_proofs(trainer.model),
            "loss_invariance": lambda: proofs.loss_invariance(trainer, first),
            "learnable": lambda: proofs.learnable(trainer, first),
        }

    def probe(self) -> dict[str, torch.Tensor]:
        """Inputs of the model on which its logits are compared."""
        return {key: value for key, value in self.collate(self.train_dataset[:2]).items() if key != "labels"}

    def proofs_after(self, model: PreTrainedModel, folder: Path, adapter: Path | None) -> dict[str, proofs.Begun]:
        texts = [self.text_of(row) for row in self.table.rows["validation"][:20]]
        encoded = encode_documents(self.tokenizer, texts)
        written: dict[str, Any] = {}
        if has_target_tokenizer(self.tokenizer):
            targets = [self.target_of(row) for row in self.table.rows["validation"][:20]]
            ids = encode_documents(self.tokenizer, targets, as_targets=True)
            written = {"targets": targets, "encoded_targets": ids}

        def load_back(saved: Path) -> Callable[[], Proof]:
            options = {"num_labels": len(self.labels), "pad_token_id": model.config.pad_token_id}
            options = options if saved == adapter and self.labels else {}
            return proofs.load_back(
                saved, model, self.probe(), texts, encoded, auto_class=self.auto_class, options=options, **written
            )

        found = {"load_back": lambda: load_back(folder)}
        return found | ({"adapter_load_back": lambda: load_back(adapter)} if adapter not in (None, folder) else {})

    # What planning and inspection ask

    def train_lengths(self) -> list[int]:
        return [count_tokens(feature) for feature in self.train_dataset]

    def tokens_measured(self, split: str) -> int:
        return self.encoded[split].tokens

    def excerpt(self, split: str) -> Self:
        return self._every(split, EXCERPT * len(self.table.rows[split]) // max(1, self.encoded[split].tokens))

    def _every(self, split: str, count: int) -> Self:
        """This task with about `count` rows of a split, evenly spread."""
        rows = self.table.rows[split]
        return self.with_rows(split, rows[:: max(1, len(rows) // max(1, count))])

    def lengths(self, split: str) -> dict[str, list[int]]:
        """Tokens of each feature of a split: "read" and, where a text is generated, "written"."""
        return {"read": [count_tokens(feature) for feature in self.encoded[split].features]}

    def label_counts(self) -> dict[str, dict[str, int]]:
        """How often each kind of label occurs in each split; empty where labels are texts."""
        return {}

    def render(self, feature: Feature) -> list[Part]:
        row = {key: value[0].tolist() for key, value in self.collate([feature]).items()}
        return self.render_row(row)

    def render_row(self, row: dict[str, Any]) -> list[Part]:
        """The one row of a feature's batch, as lists."""
        raise NotImplementedError

    def without_overlap(self, split: str, scores: Scores) -> dict[str, float]:
        """Each metric over the rows of a split that do not occur in train; empty where none does."""
        kept = ~self.overlap[split].found
        if kept.all() or not kept.any():
            return {}
        return {
            name: Estimate(estimate.statistics[kept], estimate.value_of).value
            for name, estimate in scores.estimates.items()
            if len(estimate.statistics) == len(kept)
        }

    def predictions(self, measured: Mapping[str, Scores]) -> Iterable[dict[str, Any]]:
        for split, scores in measured.items():
            for example in scores.examples:
                yield {"split": split, **example}

    def samples(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        return []

    def report(self, measured: Mapping[str, Scores]) -> dict[str, Any]:
        """The report's parts about the data, and the worst answers on the last split measured."""
        data: dict[str, Any] = {
            "source": self.table.source,
            "format": self.table.format,
            "columns": self.table.columns,
            "fingerprint": self.table.fingerprint,
            "commit": self.table.commit,
            "notes": self.table.notes,
            "left_out": dict(self.table.left_out),
            "cut_from_train": [split for split in self.splits if self.table.origins.get(split) == "cut from train"],
        }
        some = self.table.rows["train"][:2000]
        data["scripts"] = script_shares(text for row in some for text in (self.text_of(row), *row.get("targets", ())))
        data["languages"] = self.table.languages or languages_of(data["scripts"])
        data |= {split: encoded.report() for split, encoded in self.encoded.items()}
        data["overlap"] = {
            split: found.report([self.text_of(row) for row in self.table.rows[split]])
            for split, found in self.overlap.items()
        }
        for split, scores in measured.items():
            if without := self.without_overlap(split, scores):
                data["overlap"][split]["metrics_without"] = without
        *_, last = measured.values()
        answered = [example for example in last.examples if {"reference", "prediction"} <= set(example)]
        wrong = {
            (example["input"], str(example["reference"]), example["prediction"]): example
            for example in answered
            if not is_right(example["prediction"], example["reference"])
        }
        worst = sorted(wrong.values(), key=lambda example: example["score"])[:WORST]
        return {"data": data, "example": self.example(), "examples": answered[:FIRST], "worst": worst}

    def example(self) -> dict[str, Any]:
        """What a person may ask the model: the row of held-out data that is nearest to a line in length."""
        rows = self.table.rows[self.splits[-1]][:200]
        return {"text": min((self.text_of(row) for row in rows), key=lambda text: abs(len(text) - 80))}
