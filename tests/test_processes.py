"""Several processes train and measure as one does: the same rows a step, each counted once, and the same numbers."""

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from on_gloo import on_gloo
from torch.utils.data import SequentialSampler

from hf_lm.arguments import TrainingArguments
from hf_lm.data.batches import pad_batch
from hf_lm.evaluation.likelihood import token_log_probs
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.losses import next_token_loss
from hf_lm.training.trainer import Trainer

ROWS = 19  # no multiple of what a step reads


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset or self.train_dataset)


def train(rank, folder, tokenizer, processes, batch):
    for state in (AcceleratorState, GradientState, PartialState):  # of the process that was forked
        state._reset_state()
    torch.manual_seed(0)
    model = new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=16, block_size=32, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 12, (ROWS,), generator=generator).tolist()
    rows = [torch.randint(0, len(tokenizer), (length,), generator=generator).tolist() for length in lengths]
    features = [{"input_ids": row, "labels": row} for row in rows]
    trainer = InOrder(
        model,
        TrainingArguments(
            output_dir=str(folder / f"{processes}"),
            use_cpu=True,
            ddp_backend="gloo",
            num_train_epochs=2,
            per_device_train_batch_size=batch,
            learning_rate=1e-2,
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        ),
        loss=next_token_loss,
        shifts_labels=True,
        measure=lambda model: {"loss": 1.0},
        context=32,
        train_dataset=features,
        data_collator=lambda features: pad_batch(features, pad_id=0),
    )
    trainer.train()
    assert trainer.args.world_size == processes
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    scores = token_log_probs(trainer.model, features[:5], processes=trainer.accelerator, max_rows=1)
    return losses, [float(row.sum()) for row in scores]


def test_two_processes_train_and_measure_as_one_and_count_no_row_of_an_epoch_twice(tokenizer, tmp_path):
    ((losses, scores),) = on_gloo(1, train, tmp_path, tokenizer, 1, 8, seconds=40)
    two = on_gloo(2, train, tmp_path, tokenizer, 2, 4)
    assert len(losses) == 6
    for losses_of_rank, scores_of_rank in two:
        assert losses_of_rank == pytest.approx(losses, rel=1e-5)
        assert scores_of_rank == pytest.approx(scores, rel=1e-4)
