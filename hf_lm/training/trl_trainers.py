"""SFT, DPO and GRPO of TRL for `fit`, with SafeTrainerMixin. Importing this module imports trl."""

import dataclasses
import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from torch.utils import data
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from hf_lm.arguments import TrainingArguments
from hf_lm.evaluation.completions import plain_generation
from hf_lm.models.adapters import base_of
from hf_lm.tasks.chat import Chat
from hf_lm.tasks.preference import Preference
from hf_lm.tasks.reinforce import Reinforce
from hf_lm.training.safe_trainer import SafeTrainerMixin


@dataclasses.dataclass
class SFTArguments(SFTConfig, TrainingArguments):
    """TRL's configuration with our arguments in it."""


@dataclasses.dataclass
class DPOArguments(DPOConfig, TrainingArguments):
    """TRL's configuration with our arguments in it."""


@dataclasses.dataclass
class GRPOArguments(GRPOConfig, TrainingArguments):
    """TRL's configuration with our arguments in it."""


def _config(config_class: type, args: TrainingArguments, **options: Any) -> Any:
    """Our arguments as one of TRL's configurations: each field of ours with its value, and `options` for TRL's own."""
    if args.sweep:
        raise ValueError("--sweep is for tasks with labels: here try rates one by one, with --learning_rate.")
    for name in ("sampled_softmax", "teachers"):
        if getattr(args, name):
            raise ValueError(f"--{name} does not go with this recipe, whose loss is TRL's: leave it out.")
    ours = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
    config = config_class(**ours | options)
    config.run = args.run
    return config


class TrlTrainerMixin(SafeTrainerMixin):
    """Keeps apart the numbers that TRL's trainers collect themselves: they log them with the next of ours."""

    _metrics: dict[str, dict[str, list[float]]]  # TRL's, by mode
    _total_train_tokens: int

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL adds its own of the mode that the model is in. Those of evaluation are of the proofs, and dropped."""
        mode = self.model.training
        self.model.train(not any(key.startswith("eval_") for key in logs))
        self._metrics["eval"].clear()
        super().log(logs, start_time)
        self.model.train(mode)

    def counts(self) -> dict[str, Any]:
        return super().counts() | {"metrics": self._metrics["train"], "tokens": self._total_train_tokens}

    def continue_counts(self, counts: dict[str, Any]) -> None:
        super().continue_counts(counts)
        self._metrics["train"].clear()
        self._metrics["train"].update(counts["metrics"])
        self._total_train_tokens = counts["tokens"]


class SFT(TrlTrainerMixin, SFTTrainer):
    """TRL's supervised fine-tuning over features that are encoded already, {"input_ids", "labels", ...}.

    Its loss is the mean over all labels of an optimizer step and its language-model head is fused with it: the logits
    are never held as a whole.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._metrics["train"].pop("num_tokens", None)  # TRL counts the width of a batch, as if it were one row
        super().log(logs, start_time)


def _encoded(task: Chat | Preference, measure: Callable) -> dict[str, Any]:
    """What a trainer over features that are encoded already takes of a task."""
    return {
        "measure": measure,
        "context": task.context,
        "train_dataset": Dataset.from_list(task.train_dataset),
        "data_collator": task.collate,
        "processing_class": task.tokenizer,
    }


def _snapshot_reference(model: PreTrainedModel, args: TrainingArguments, task: Chat | Preference | Reinforce) -> None:
    """Let a task keep a frozen copy of the model before training, on the device of the run."""
    cast(nn.Module, model).to(args.device)
    task.snapshot_reference(model)


def sft_trainer(model: PreTrainedModel, args: TrainingArguments, task: Chat, measure: Callable) -> SFT:
    _snapshot_reference(model, args, task)
    return SFT(
        model,
        _config(SFTArguments, args, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
        **_encoded(task, measure),
    )


class DPO(TrlTrainerMixin, DPOTrainer):
    """TRL's direct preference optimization over features that are encoded already.

    Its loss is the mean over the pairs of an optimizer step, each of which counts once (TRL's: of means over batches).
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """The pairs of a step, of all processes; an epoch's last batch gets the parts whose pairs count, or do not.

        A part has as many pairs on each process, because TRL gathers numbers of every pair.
        """
        if not batch_samples:
            return None
        *before, size = (len(batch["input_ids"]) // 2 for batch in batch_samples)
        counted = self._rows_that_count(size)
        found = torch.tensor([[sum(before) + counted, counted % size]], device=device)
        if self.args.average_tokens_across_devices:
            found = self.accelerator.gather(found)
        split = int(found[:, 1].max())
        parts = [(0, split), (split, size)] if split else [(0, size)]
        weighed = [(start, stop, stop - start if stop <= counted else 0) for start, stop in parts]
        batch_samples[-1]["parts"] = torch.tensor(weighed)
        return found[:, 0].sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        size = len(inputs["input_ids"]) // 2
        parts = inputs.pop("parts", torch.tensor([(0, size, size)]))
        if num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs)
        loss = torch.zeros((), device=self.args.device)
        for start, stop, counted in parts.tolist():
            part = {name: torch.cat([side[start:stop] for side in both.chunk(2)]) for name, both in inputs.items()}
            loss = loss + counted * super().compute_loss(model, part)
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss * processes / num_items_in_batch


def dpo_trainer(model: PreTrainedModel, args: TrainingArguments, task: Preference, measure: Callable) -> DPO:
    _snapshot_reference(model, args, task)
    options = {"beta": task.beta, "loss_type": [task.loss_type], "label_smoothing": task.label_smoothing}
    return DPO(
        model,
        _config(DPOArguments, args, max_length=None, **options),
        ref_model=task.reference,
        **_encoded(task, measure),
    )


class GRPO(TrlTrainerMixin, GRPOTrainer):
    """TRL's group relative policy optimization, with a reference that is given and guards against collapse.

    Prompts are encoded already, and padded on the left: models with absolute positions are told where a row begins,
    or what they learn would not be what they sampled.
    """

    def __init__(self, model: PreTrainedModel, args: GRPOArguments, *, task: Reinforce, **kwargs: Any) -> None:
        self.task = task
        self.without_signal: Counter = Counter()  # steps in a row, by what was wrong
        self.first_reward: float | None = None
        # TRL reads this property of transformers by its deprecated name whenever it samples.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)

        def reward(completions: list[str], text: list[str], reference: list[str], **_: object) -> list[float]:
            return task.reward(text, completions, reference)

        super().__init__(model, args, reward_funcs=reward, **kwargs)
        reference = task.reference
        assert reference is not None, "grpo_trainer takes it"
        if task.beta:  # args.beta is 0, for which TRL makes no reference: it would load the one that a folder holds
            self.beta = task.beta
            disable_dropout_in_model(reference)
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        for body in (base_of(model).base_model, reference.base_model):
            if "position_ids" in inspect.signature(body.forward).parameters:
                body.register_forward_pre_hook(_count_from_the_mask, with_kwargs=True)

    def counts(self) -> dict[str, Any]:
        return super().counts() | {"without_signal": self.without_signal, "first_reward": self.first_reward}

    def continue_counts(self, counts: dict[str, Any]) -> None:
        super().continue_counts(counts)
        self.without_signal, self.first_reward = Counter(counts["without_signal"]), counts["first_reward"]

    def _get_train_sampler(self, train_dataset: data.Dataset | None = None) -> data.Sampler:
        """TRL's, which draws an order with each epoch, and in a resumed run would draw that of the first once more."""
        sampler = cast(Any, super()._get_train_sampler(train_dataset))
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(self.args.seed + epoch)
        return sampler

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        return [self.task.prompt_ids[prompt] for prompt in prompts], None, {}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.tokens_seen += (inputs["prompt_mask"].sum() + inputs["completion_mask"].sum()) * self.args.world_size
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with plain_generation(self.accelerator.unwrap_model(self.model)):  # TRL undoes some of a checkpoint's settings
            found = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._watch({key: values[-1] for key, values in self._metrics["train"].items() if values})
        return found

    def _watch(self, numbers: dict[str, float]) -> None:
        """Stop where nothing can be learned: equal rewards in every group, only empty answers, only endless ones."""
        if self.first_reward is None:
            self.first_reward = numbers["reward"]
        endless = numbers["completions/clipped_ratio"]  # the share without an end token
        signs = {
            "empty": numbers["completions/max_length"] <= 1 and endless == 0,  # the end token alone
            "endless": endless == 1,
            "equal": numbers["frac_reward_zero_std"] == 1,
        }
        steps = self.task.collapse_steps
        for name, seen in signs.items():
            self.without_signal[name] = self.without_signal[name] + 1 if seen else 0
        gone = next((name for name in signs if self.without_signal[name] >= steps > 0), "")
        if gone == "equal" and numbers["reward"] > self.first_reward:
            self.accelerator.print(
                f"for {steps} steps every answer to a prompt earned the same, {numbers['reward']:.3g} on average and "
                f"{self.first_reward:.3g} at first: there is nothing left to learn, and training ends."
            )
            self.control.should_training_stop = True
        elif gone:
            said = COLLAPSES[gone].format(reward=numbers["reward"])
            raise ValueError(f"the run collapsed: for {steps} steps in a row {said}")


COLLAPSES = {
    "empty": "every answer was empty. Give empty answers a lower reward, raise --beta or lower --learning_rate.",
    "endless": "no answer came to its end. Raise --max_new_tokens, or start from a model that learned to stop.",
    "equal": "the answers to each prompt all earned the same ({reward:.3g} on average). Take an easier task, a finer "
    "reward or more --num_generations.",
}


def _count_from_the_mask(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Positions that begin where a row does, for rows padded on the left; generation has its own."""
    mask = kwargs.get("attention_mask")
    if (
        mask is not None
        and mask.ndim == 2
        and kwargs.get("position_ids") is None
        and not (kwargs.get("cache") or kwargs.get("past_key_values"))  # its name since transformers 5.24, and before
    ):
        kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return args, kwargs


def _check_groups(args: TrainingArguments, group: int) -> None:
    """Raise ValueError where the answers of a step, over all processes, are not groups of `group`."""
    parts = (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size)
    answers = math.prod(parts)
    if group < 2 or answers % group:
        possible = [n for n in range(2, answers + 1) if answers % n == 0][:6] or ["none"]
        raise ValueError(
            f"--num_generations {group} must be 2 or more and divide the {answers:,} answers of a step "
            f"(--per_device_train_batch_size {parts[0]} x {parts[1]} accumulated x {parts[2]} processes): give "
            f"{', '.join(map(str, possible))}, or another batch size."
        )


def grpo_trainer(model: PreTrainedModel, args: TrainingArguments, task: Reinforce, measure: Callable) -> GRPO:
    _check_groups(args, task.num_generations)
    _snapshot_reference(model, args, task)
    config = _config(
        GRPOArguments,
        args,
        beta=0.0,
        num_generations=task.num_generations,
        num_generations_eval=1,  # `measure` asks for its own
        max_completion_length=task.max_new_tokens,
        temperature=task.temperature,
        generation_kwargs={"suppress_tokens": task.suppressed} if task.suppressed else None,
        disable_dropout=True,
    )
    return GRPO(
        model,
        config,
        task=task,
        measure=measure,
        context=task.context,
        train_dataset=Dataset.from_list(task.train_dataset),
        processing_class=task.tokenizer,
    )
