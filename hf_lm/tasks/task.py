"""What a task must have: what training, measurement, planning and inspection ask of it, and no more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import Feature
from hf_lm.data.tables import Row, Table
from hf_lm.evaluation.intervals import Estimate
from hf_lm.tasks.losses import Batch
from hf_lm.tasks.proofs import Begun, Proof, ProvenTrainer
from hf_lm.tasks.rendering import Part

Loss = Callable[[Any, Batch], torch.Tensor]  # (outputs of the model, batch) -> sum over the batch's labels, in nats


class Measured(Protocol):
    """What a task measured on a split."""

    @property
    def loss(self) -> float | None:
        """Nats per label; None where it is not measured."""
        ...

    def metrics(self) -> dict[str, Estimate]: ...


class Rows(Protocol):
    """A list of features, or a torch Dataset of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Feature: ...


class TrainingData(Protocol):
    """What a Trainer needs: features, how they become a batch, and the loss of one."""

    tokenizer: PreTrainedTokenizerBase
    auto_class: str  # of transformers, which loads the model
    shifts_labels: bool  # the first label of a row is not predicted: next-token prediction
    context: int  # tokens of a row on average, for the FLOPs of attention

    @property
    def loss(self) -> Loss | None:
        """None where a trainer of another library computes it."""
        ...

    @property
    def train_dataset(self) -> "Rows": ...

    def collate(self, features: Sequence[Feature]) -> Batch:
        """The batch of some features: tensors by the names of the model's inputs."""
        ...


class Task(TrainingData, Protocol):
    """What `fit` trains, proves, measures, reports and saves; it knows no task by name."""

    recipe: str  # the name of the recipe that trains it
    kind: str  # of model that it makes, in a reader's words
    pipeline_tag: str  # of the Hub
    main_metric: str
    greater_is_better: bool
    unit: str  # that intervals are over: "examples", "documents"
    fingerprint: str  # of the text: a resumed run must read the same
    warnings: Sequence[str]  # what is lost of the data before training, with a remedy
    max_length: int  # tokens of a feature at most; 0 where features have no common limit
    report_seconds: float  # that the report's samples and yardsticks take, about

    @property
    def splits(self) -> Sequence[str]:
        """Of the data; train is the first."""
        ...

    def measure(self, model: PreTrainedModel, split: str, accelerator: Accelerator | None = None) -> Measured:
        """The metrics of a model on a split."""
        ...

    def baseline(self, split: str) -> tuple[str, Measured]:
        """The name of a trivial model and its metrics on a split."""
        ...

    def data_proofs(self, model: PreTrainedModel) -> dict[str, Callable[[], Proof]]:
        """What must hold of tokenizer and labels; no trainer is needed."""
        ...

    def proofs_before(self, trainer: ProvenTrainer) -> dict[str, Callable[[], Proof]]:
        """What must hold before training, `data_proofs` included."""
        ...

    def configure_inference(self, model: PreTrainedModel) -> None:
        """Write into a trained model what it must know to answer as it was measured."""
        ...

    def proofs_after(self, model: PreTrainedModel, folder: Path, adapter: Path | None) -> dict[str, Begun]:
        """What must hold of the saved folder, and of the adapter's where there is one; another process works on it."""
        ...

    def probe(self) -> Batch:
        """Inputs of the model on which its logits are compared before and after saving or merging."""
        ...

    def samples(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """{"prompt", "continuation"} of texts that the model generates for the report; {"messages"} of chats."""
        ...

    def predictions(self, measured: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """The rows of predictions.jsonl, from what was measured by split."""
        ...

    def report(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of report.json that are the task's own: the data, examples."""
        ...

    def train_lengths(self) -> list[int]:
        """Tokens that the model processes for each row of `train_dataset`, generated ones included."""
        ...

    def tokens_measured(self, split: str) -> int:
        """Tokens that a measurement of a split processes; those that are generated count once."""
        ...

    def excerpt(self, split: str) -> Self:
        """This task with so few examples of a split that a batch or two measures them."""
        ...

    def render(self, feature: Feature) -> list[Part]:
        """A feature as the collator passes it to the model, token by token, and what is learned of it."""
        ...


class SelfTrainingTask(Task, Protocol):
    """What training with few labels and much text asks beside: rows whose labels can be replaced."""

    table: Table
    confidence_threshold: float | None  # from which a prediction becomes a label; None where text is its own label

    def text_of(self, row: Row) -> str:
        """The text of a row."""
        ...

    def row_of(self, text: str) -> Row:
        """A row of a text without a label; its label means nothing."""
        ...

    def strata(self, rows: Sequence[Row]) -> list[Any]:
        """A group for each row: a selection keeps the groups in proportion."""
        ...

    def with_rows(self, split: str, rows: Sequence[Row]) -> Self:
        """This task with other rows as one of its splits."""
        ...
