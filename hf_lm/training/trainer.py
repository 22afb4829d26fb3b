"""The project's Trainer: SafeTrainerMixin with a loss. TRL's trainers bring theirs (hf_lm.training.trl_trainers)."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_lm.arguments import TrainingArguments
from hf_lm.models.parts import embedding_rows
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tasks.task import TrainingData
from hf_lm.training.distillation import distilled_loss
from hf_lm.training.output_loss import PLAIN, output_loss
from hf_lm.training.safe_trainer import SafeTrainerMixin
from hf_lm.training.sampled_softmax import sampled_softmax


class Trainer(SafeTrainerMixin, transformers.Trainer):
    """A Trainer whose loss is the mean over all labels of an optimizer step, whatever the model.

    Whatever the batch size, the accumulation and the number of processes: n rows in one batch, n accumulated batches
    of 1 and n processes give the same loss and gradients. `loss(outputs, batch)` is the sum over a batch's labels
    (hf_lm.tasks.losses), `shifts_labels` says that the first label of a row is not predicted.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of the whole step

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
        shifts_labels: bool,
        **kwargs: Any,
    ) -> None:
        self.loss = loss
        super().__init__(model, args, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that num_items_in_batch is counted,
        self._loss_shifts_labels = shifts_labels  # over the labels that are predicted
        self._sampled = None
        if args.sampled_softmax:
            self._sampled = sampled_softmax(kwargs.get("train_dataset"), embedding_rows(model), args.sampled_softmax)
        self._plain = args.device.type == "cpu" and model.config.model_type in PLAIN and self._trains_copies()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        given = {key: value for key, value in inputs.items() if key not in ("labels", "shift_labels")}
        of_states = self._sampled or (output_loss if self._plain and self.loss is next_token_loss else None)
        if of_states and model.training:  # proofs take the complete softmax, and evaluation the logits
            outputs = model(**given, output_hidden_states=True, logits_to_keep=1)
            head = self.accelerator.unwrap_model(model).get_output_embeddings()
            with self.accelerator.autocast():
                loss = of_states(outputs.hidden_states[-1], head, inputs["labels"])
        else:
            outputs = model(**given)
            loss = self.loss(outputs, inputs)
        if num_items_in_batch is None:
            labels = inputs["labels"][:, 1:] if self._loss_shifts_labels else inputs["labels"]
            loss = loss / (labels != -100).sum()
        else:
            # num_items_in_batch counts all processes, and DDP takes the mean of their gradients: undo the mean.
            counted = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * counted / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def supervised_trainer(
    model: PreTrainedModel,
    args: TrainingArguments,
    task: TrainingData,
    measure: Callable,
    *,
    trainer_class: type[Trainer] = Trainer,
) -> Trainer:
    """The Trainer of a task whose loss is a sum over labels."""
    assert task.loss is not None, f"the loss of {type(task).__name__} is computed by a trainer of TRL"
    return trainer_class(
        model,
        args,
        loss=distilled_loss(model, args, task) if args.teachers else task.loss,
        shifts_labels=task.shifts_labels,
        measure=measure,
        context=task.context,
        train_dataset=task.train_dataset,
        data_collator=task.collate,
        processing_class=task.tokenizer,
    )
