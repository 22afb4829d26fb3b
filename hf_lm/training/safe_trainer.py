"""What every Trainer here does beside its loss: transformers' own, mended where it was wrong (docs/upstream.md)."""

import contextlib
import json
from collections.abc import Callable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import ProgressCallback, TrainerState
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hf_lm import dry_run
from hf_lm.arguments import TrainingArguments
from hf_lm.data.batches import GroupedByLength
from hf_lm.data.packing import Blocks
from hf_lm.models.adapters import base_of, is_adapted, save_adapted
from hf_lm.models.parts import attention, is_faster_plain
from hf_lm.models.target_tokenizer import has_target_tokenizer, save_tokenizer
from hf_lm.output_folder import list_checkpoints, remove_checkpoint, save_run
from hf_lm.training.allocator import keep_freed_memory
from hf_lm.training.checkpoints import (
    INPUTS,
    SWEPT,
    OnTrainBegin,
    SaveBeforeWaiting,
    StopOnSignal,
    check_best,
    rotate,
    save_aside,
    unscheduled_steps,
)
from hf_lm.training.monitor import Progress, Speedometer, flops_per_token
from hf_lm.training.optimizers import new_muon_adamw
from hf_lm.training.rates import choose_rate

# For type checkers alone: what follows the mixin in the bases of a class is a Trainer of transformers or TRL.
_Trainer = transformers.Trainer if TYPE_CHECKING else object


class SafeTrainerMixin(_Trainer):
    """What every Trainer here does beside its loss; stands before a class of transformers or TRL.

    A NaN stops the run, checkpoints are complete or absent, signals lose nothing, speed is measured, Muon can train
    the matrices, evaluation is `measure(model)`: its numbers without the `eval_` prefix, on every process. `context`
    is the length of a row in tokens, for the FLOPs of attention. Nothing but hf_lm.hub.push touches the network.
    """

    args: TrainingArguments
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        measure: Callable[[nn.Module], dict],
        context: int,
        **kwargs: Any,
    ) -> None:
        dry_run.refuse()
        args.remove_unused_columns = False  # it would take the labels of heads that call theirs otherwise
        args.logging_nan_inf_filter = False  # it would hide a NaN; training_step stops at one
        args.dataloader_pin_memory &= torch.accelerator.is_available()  # or torch warns at every run on a CPU
        choose_rate(args, model)
        self.measure, self.context = measure, context
        self.tokens_seen: int | torch.Tensor = 0  # by all processes
        self.inputs: dict[str, str] = {}  # of checkpoints.inputs_of
        self.swept: list[dict[str, float]] = []  # what --sweep tried
        self._aside: Path | None = None
        self._resumed: Path | None = None  # the checkpoint that training continued from
        self._faster_plain = False  # see is_faster_plain
        tokenizer = kwargs.get("processing_class")
        self._pair = tokenizer if tokenizer is not None and has_target_tokenizer(tokenizer) else None
        if self._pair is not None:  # the Trainer would overwrite the decoder's special token ids with the encoder's
            kwargs["processing_class"] = None
        no_rows: Any = []  # `measure` knows what it evaluates on
        super().__init__(model=model, args=args, eval_dataset=no_rows, **kwargs)
        if args.muon_learning_rate:  # a factory, which the Trainer calls twice
            self.optimizer_cls_and_kwargs = (lambda: self._muon_adamw, {})
        if args.dataloader_persistent_workers and isinstance(kwargs.get("train_dataset"), Blocks):
            raise ValueError(
                "--dataloader_persistent_workers: workers that live on would read the documents of each epoch in the "
                "order of the first: leave it out."
            )
        self.stop = StopOnSignal()
        self.add_callback(self.stop)
        if isinstance(self.train_dataset, Blocks) and self.train_dataset.window:
            self.add_callback(SaveBeforeWaiting(self.train_dataset.waits))
        self.add_callback(OnTrainBegin(self._begin))
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        self.speedometer = Speedometer(
            lambda: int(self.tokens_seen), flops_per_token(model, context, args.sampled_softmax), dtype
        )
        self.add_callback(self.speedometer)
        if self.pop_callback(ProgressCallback):
            self.add_callback(Progress)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        if self.args.device.type == "cpu":
            keep_freed_memory()
        plain = self.args.bf16 and self.args.device.type == "cpu"
        self._faster_plain = plain and is_faster_plain(base_of(self.model), context=self.context)
        try:
            with attention(base_of(self.model), "eager") if self._faster_plain else contextlib.nullcontext():
                return super().train(resume_from_checkpoint, **kwargs)
        finally:
            self.stop.release()  # training may have ended in an error

    # Loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        for key, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
            if key in inputs:
                read = inputs[mask].sum() if mask in inputs else inputs[key].numel()  # padding is not read
                self.tokens_seen += read * self.args.data_parallel
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._stop_at("loss", loss)
        return loss

    def _trains_copies(self) -> bool:
        """Whether each process trains a complete copy of the model on equal gradients (DDP)."""
        split = self.args.data_parallel < self.args.world_size
        return not (split or self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _rows_that_count(self, size: int) -> int:
        """How many rows of this process's newest batch, of `size` rows, count: the first.

        accelerate fills the last batch of an epoch with rows from its beginning, behind the others of all processes.
        """
        if not (self.is_in_train and self.accelerator.gradient_state.end_of_dataloader):
            return size
        # accelerate's own `remainder` is lost where an epoch is resumed in its middle
        batches = 1 if self.accelerator.split_batches else self.args.data_parallel
        rows = len(cast(Sized, self.train_dataset)) % (self.args.train_batch_size * batches)
        if not rows or self.args.dataloader_drop_last:
            return size
        together = self.args.world_size // self.args.data_parallel
        return min(size, max(0, rows - size * (self.args.process_index // together)))

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """As the Trainer's, but rows that fill an epoch's last batch count nothing: they get the label -100."""
        if batch_samples and "labels" in batch_samples[-1]:
            labels = batch_samples[-1]["labels"]
            labels[self._rows_that_count(len(labels)) :] = -100
        return super()._get_num_items_in_batch(batch_samples, device)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            self._stop_at("gradient norm", norm)  # before the weights take it in; fp16's scaler skips such a step
        return norm

    def _stop_at(self, what: str, value: torch.Tensor | float) -> None:
        raise FloatingPointError(
            f"the {what} became {float(value)} at step {self.state.global_step + 1}, learning rate "
            f"{self._get_learning_rate():.3g}. The last checkpoint is untouched: lower --learning_rate"
            + (" and --muon_learning_rate" if self.args.muon_learning_rate else "")
            + " or lengthen --warmup_steps."
        )

    # Order of the rows

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.data_parallel
        return GroupedByLength([len(row["input_ids"]) for row in rows], at_once, seed=seed)

    # Optimizer and schedule

    def _muon_adamw(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        adamw, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
        if adamw is not torch.optim.AdamW:
            raise ValueError(
                f"--optim {OptimizerNames(self.args.optim).value}: where Muon trains the matrices, AdamW trains the "
                "rest. Set --muon_learning_rate 0 to train every weight with it, or --optim adamw_torch."
            )
        return new_muon_adamw(
            model,
            adamw=settings,
            embedding_rate_scale=self.args.embedding_rate_scale,
            last_norm_rate_scale=self.args.last_norm_rate_scale or 1.0,
            weight_decay=self.args.weight_decay,
            decayed=set(self.get_decay_parameter_names(model)),
            muon_learning_rate=self.args.muon_learning_rate,
            muon_weight_decay=self.args.muon_weight_decay,
            copies=self.args.world_size if self._trains_copies() else 1,
        )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        given: Any = self.args.lr_scheduler_kwargs
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            steps = max(1, round(self.args.decay_share * num_training_steps))
            self.args.lr_scheduler_kwargs = {"num_decay_steps": steps, "decay_type": "linear"} | (given or {})
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            self.args.lr_scheduler_kwargs = given  # which another training may share

    # Resuming

    def _run_epoch(self, **kwargs: Any) -> None:
        if isinstance(self.train_dataset, Blocks):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            self.train_dataset.start_epoch(kwargs["epoch"], seed=seed)
        # Where several processes resume within an epoch, accelerate lets no sampler know which one it is.
        kwargs["train_dataloader"].set_epoch(kwargs["epoch"])
        # The Trainer would look only after another step, and forget what a callback said when training began.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(**kwargs)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_train_epochs: int, checkpoint: str | None, trial: None
    ) -> tuple[int, int]:
        begun = super()._init_training_state(max_steps, steps_per_epoch, num_train_epochs, checkpoint, trial)
        if checkpoint is None:
            return begun
        self._resumed = Path(checkpoint)
        # The best checkpoint was recorded by its path at that time: the folder may have been moved since, and a
        # relative path holds for one working directory.
        recorded = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).best_model_checkpoint
        if recorded:
            folders = (Path(self.args.output_dir), Path(checkpoint).parent)
            here = [path for folder in folders if (path := folder / Path(recorded).name).is_dir()]
            self.state.best_model_checkpoint = str(here[0]) if here else self.state.best_model_checkpoint
            if self.args.load_best_model_at_end:
                check_best(here[0] if here else folders[0] / Path(recorded).name)
        return begun

    def counts(self) -> dict[str, Any]:
        """What a log is computed from: numbers since the last log, and of the whole run. As JSON holds them."""
        loss = float(self._tr_loss)  # pyright: ignore[reportArgumentType]
        return {"loss": loss, "logged": self._globalstep_last_logged, "total": self._total_loss_scalar}

    def continue_counts(self, counts: dict[str, Any]) -> None:
        """Continue from the `counts` of a checkpoint: the next log is that of an uninterrupted run."""
        self._tr_loss += counts["loss"]
        self._globalstep_last_logged, self._total_loss_scalar = counts["logged"], counts["total"]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.world_size > 1:  # each process has the loss of its rows, and another number of them may go on
            loss = cast(torch.Tensor, self._tr_loss)
            loss.copy_(self._mean(loss.clone()))
        (Path(output_dir) / f"counts_{self.args.process_index}.json").write_text(json.dumps(self.counts()))

    def _mean(self, number: torch.Tensor) -> torch.Tensor:
        """Over all processes, each of which must ask."""
        return cast(torch.Tensor, self.accelerator.reduce(number, "mean"))

    def _begin(self) -> None:
        """Restore the counts of the run that is resumed, and remove the checkpoints that it was about to remove."""
        if self.is_fsdp_enabled and hasattr(self.model, "generate"):  # it calls an encoder by itself
            register_fsdp_forward_method(self.model, "generate")
        if self._resumed is None:
            return
        resumed = Path(self._resumed).resolve()
        names = (f"counts_{self.args.process_index}.json", "counts_0.json")  # a process more takes those of the first
        if counts := next((resumed / name for name in names if (resumed / name).is_file()), None):
            self.continue_counts(json.loads(counts.read_text()))
        newest = list_checkpoints(self.args.output_dir)[-1:]
        if [path.resolve() for path in newest] == [resumed]:
            self._rotate(newest[0])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        groups = self.optimizer.param_groups
        given = [{key: value for key, value in group.items() if key not in ("params", "lr")} for group in groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = self.lr_scheduler
        if checkpoint is None or not self.args.resume_with_changes or not isinstance(schedule, LambdaLR):
            return
        # The checkpoint brought its own rates, decay and betas along: take those of the arguments again.
        schedule.base_lrs = [group["initial_lr"] for group in given]
        for group, values, factor in zip(self.optimizer.param_groups, given, schedule.lr_lambdas, strict=True):
            group |= values | {"lr": values["initial_lr"] * factor(schedule.last_epoch)}
        schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]  # which the log shows

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied weight is saved once: under its other name it is not missing.
        state, missing = self.model.state_dict(keep_vars=True), set(load_result.missing_keys)
        there = {id(weight) for name, weight in state.items() if name not in missing}
        lost = [name for name in load_result.missing_keys if id(state.get(name)) not in there]
        super()._issue_warnings_after_load(type(load_result)(lost, load_result.unexpected_keys))

    # Evaluation and logs

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        # Not as it is trained: in bfloat16 the two differ in the fifth digit, and test is measured after training.
        with attention(base_of(self.model), "sdpa") if self._faster_plain else contextlib.nullcontext():
            metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.measure(self.model).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.speedometer.measure())
        if "train_loss" in logs:  # the Trainer's is of this process, and of the steps since the resume
            total = torch.tensor(self._total_loss_scalar, device=self.args.device)
            logs["train_loss"] = float(self._mean(total)) / max(1, self.state.global_step)
        super().log(logs, start_time)

    # Checkpoints

    def _get_output_dir(self, trial: None) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # pickled, and never read: run.yaml holds the same
            (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)
        tokenizer = self._pair or self.processing_class
        # super() used names that transformers 4 does not know
        if self.args.should_save and isinstance(tokenizer, PreTrainedTokenizerBase):
            save_tokenizer(tokenizer, output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)  # its forward in mixed precision is still to be trained
        if self.args.should_save and is_adapted(model):
            save_adapted(model, output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: None) -> None:
        name = f"checkpoint-{self.state.global_step}"
        folder = Path(self.args.output_dir)

        def write(aside: Path) -> None:
            self._aside = aside
            best = self.state.best_model_checkpoint
            try:
                super(SafeTrainerMixin, self)._save_checkpoint(model, trial)
            finally:
                self._aside = None
            # The Trainer noted the folder aside, on every process; and an uninterrupted run has none of a stop.
            new = self.state.best_global_step == self.state.global_step
            scheduled = self.state.global_step not in unscheduled_steps(self.state)
            self.state.best_model_checkpoint = str(folder / name) if new and scheduled else best
            if self.args.should_save:
                self.state.save_to_json(str(aside / name / "trainer_state.json"))
                save_run(self.args.run, aside / name)
                (aside / name / INPUTS).write_text(json.dumps(self.inputs | {SWEPT: self.swept}))

        save_aside(folder, name, write, main=self.is_world_process_zero(), wait=self.accelerator.wait_for_everyone)
        self._rotate(folder / name)

    def _rotate(self, newest: Path) -> None:
        if self.args.should_save:
            rotate(
                newest,
                keep=self.args.save_total_limit,
                best=self.state.best_model_checkpoint,
                unscheduled=unscheduled_steps(self.state),
            )

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        check_best(best)
        super()._load_best_model()
        if self.args.should_save and self.args.save_total_limit == 1:  # the Trainer would remove them in place
            for path in list_checkpoints(self.args.output_dir):
                if path.name != best.name:
                    remove_checkpoint(path)

    def init_hf_repo(self, *_: object, **__: object) -> None:
        """Nothing touches the network before the result is on disk: hf_lm.hub.push pushes it, in one commit."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """See init_hf_repo."""

    def push_to_hub(self, *_: object, **__: object) -> None:
        """See init_hf_repo: `save_model` calls it."""

    def create_model_card(self, *_: object, **__: object) -> None:
        """The card is drawn from the report, once; TRL would write one with every checkpoint."""

    def _send_telemetry(self) -> None:
        """TRL would report each run to the Hub."""
