"""Distillation: a model learns from the labels and from what other models, its teachers, expect in their place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_lm.arguments import TrainingArguments
from hf_lm.models.configuration import load_config
from hf_lm.models.loading import load_weights
from hf_lm.models.parts import embedding_rows
from hf_lm.tasks.losses import Batch, WithLogits, span_loss
from hf_lm.tasks.task import Loss, TrainingData
from hf_lm.tokenization.tokenizer import load_tokenizer


class Distillation:
    """The cross-entropy against a mixture: each label, and with `weight` the mean of the teachers' distributions.

    Hinton et al. 2015, "Distilling the knowledge in a neural network", arXiv 1503.02531, at temperature 1; the mean of
    an ensemble as one teacher is theirs too. Its least value is not 0 but the entropy of the mixture.
    """

    def __init__(self, teachers: Sequence[PreTrainedModel], *, weight: float, shifts_labels: bool) -> None:
        self.teachers: list[nn.Module] = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.weight, self.shifts_labels = weight, shifts_labels

    def __call__(self, outputs: WithLogits, batch: Batch) -> torch.Tensor:
        """The sum over the labels of a batch, in nats. Labels as those of hf_lm.tasks.losses; -100 are ignored."""
        labels, logits = batch["labels"], outputs.logits
        given = {key: value for key, value in batch.items() if key != "labels"}
        predicted = labels[:, 1:] != -100 if self.shifts_labels else labels != -100
        chosen = labels[:, 1:][predicted] if self.shifts_labels else labels[predicted]  # (n,)
        with torch.no_grad():
            expected = torch.zeros((), device=logits.device)
            for teacher in self.teachers:
                said = teacher.to(logits.device)(**given).logits
                expected = expected + self._of(said, predicted).softmax(-1)
            target = expected * (self.weight / len(self.teachers))  # (n, classes)
            target.scatter_add_(1, chosen[:, None], torch.full_like(target[:, :1], 1 - self.weight))
        return F.cross_entropy(self._of(logits, predicted), target, reduction="sum")

    def _of(self, logits: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """The logits of the labels that are predicted: (n, classes) of (..., classes)."""
        return (logits[:, :-1] if self.shifts_labels else logits)[predicted].float()


def distilled_loss(model: PreTrainedModel, args: TrainingArguments, task: TrainingData) -> Loss:
    """The loss of a task with `args.teachers`, folders or Hub ids. Raises ValueError or OSError for one that cannot
    teach this model: of another kind, with another tokenizer or other classes.
    """
    if task.loss is span_loss or args.sampled_softmax:
        what = "--sampled_softmax, which has a loss of its own" if args.sampled_softmax else "spans in a context"
        raise ValueError(f"--teachers does not go with {what}: leave one of them out.")
    teachers = [_load(name, model, task) for name in args.teachers]
    return Distillation(teachers, weight=args.teacher_weight, shifts_labels=task.shifts_labels)


def _load(name: str, model: PreTrainedModel, task: TrainingData) -> PreTrainedModel:
    auto_class: type = getattr(transformers, task.auto_class)
    teacher = load_weights(auto_class, name, load_config(name))
    teacher.config.use_cache = False  # as the Trainer has it: with a cache the documents of a block are not isolated
    same = load_tokenizer(name).get_vocab() == task.tokenizer.get_vocab()
    if not same or embedding_rows(teacher) != embedding_rows(model):
        raise ValueError(
            f"--teachers: {name} has another tokenizer than this model, so their predictions are about other tokens. "
            f"Train this one with --tokenizer {name}, or on the text that it had."
        )
    theirs, ours = (each.config.id2label or {} for each in (teacher, model))
    if theirs != ours:
        raise ValueError(
            f"--teachers: {name} has the classes {', '.join(theirs.values())}, this model {', '.join(ours.values())}: "
            "give one that was trained for the same classes."
        )
    return teacher
