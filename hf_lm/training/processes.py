"""How processes share a run: what is refused because it would be silently wrong, rows per step, complete weights."""

import copy
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_lm.arguments import TrainingArguments
from hf_lm.hub.records import read_run
from hf_lm.models.adapters import base_of
from hf_lm.reporting.report import versions
from hf_lm.tasks.task import TrainingData
from hf_lm.training.trainer import Trainer

if TYPE_CHECKING:
    from hf_lm.training.safe_trainer import SafeTrainerMixin

T = TypeVar("T")


def describe_engine(trainer: "SafeTrainerMixin") -> str:
    """What shares the work among processes: "" for one, or DDP, FSDP2, ZeRO-n, and the sizes of other parallelism."""
    if trainer.args.world_size == 1:
        return ""
    name = "FSDP2" if trainer.is_fsdp_enabled else "DDP"
    if trainer.is_deepspeed_enabled:
        name = f"ZeRO-{_state(trainer).deepspeed_plugin.zero_stage}"
    sizes = {"context": trainer.get_cp_size(), "sequence": trainer.get_sp_size()}
    return "".join([f", {name}", *(f", {kind} parallelism {n}" for kind, n in sizes.items() if n > 1)])


def _state(trainer: "SafeTrainerMixin") -> Any:
    """accelerate's state, whose plugins have no types."""
    return trainer.accelerator.state


def check_engine(trainer: "SafeTrainerMixin", task: TrainingData) -> None:
    """Raise ValueError in one line for a combination that trains wrongly, or hangs, without an error of its own."""
    args, model = trainer.args, trainer.model
    muon, asked_for_fsdp = args.muon_learning_rate, os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if asked_for_fsdp and not trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP was asked for, but accelerate does not shard on this device and would train complete copies (DDP): "
            "take FSDP out of the launch, or start on GPUs."
        )
    if trainer.is_fsdp_enabled and _state(trainer).fsdp_plugin.fsdp_version != 2:
        raise ValueError("FSDP1 is not supported: set fsdp_version: 2 in the file of accelerate.")
    if loads_on_one(trainer):
        _check_loading(trainer)
    if trainer.is_fsdp_enabled:
        check_shardable(model)
    if trainer.is_deepspeed_enabled:
        _check_deepspeed(trainer, muon)
    if args.sampled_softmax and (trainer.get_cp_size() > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "--sampled_softmax reads rows of the complete output layer and of complete blocks, which no process holds "
            "here: leave it out, or train complete copies (DDP)."
        )
    if trainer.get_tp_size() > 1:
        raise ValueError(
            "tensor parallelism is not supported: recipes load complete weights. Set tp_size to 1 and shard with "
            "FSDP2."
        )
    if trainer.get_cp_size() > 1:
        _check_context_parallel(trainer, task)


def _check_context_parallel(trainer: "SafeTrainerMixin", task: TrainingData) -> None:
    """accelerate drops every mask of modules called self_attn, for good, and makes their attention causal."""
    if trainer.args.teachers:
        raise ValueError("--teachers read complete blocks, which no process has here: set cp_size to 1.")
    if task.collate([task.train_dataset[0]]).keys() - {"input_ids", "labels"}:  # a mask, or positions of documents
        raise ValueError(
            "context parallelism knows no mask but the causal one, which hides neither padding nor other documents: "
            "pretrain with --packing concatenate, or set cp_size to 1."
        )
    model = base_of(trainer.model)
    if not any(name.endswith("self_attn") for name, _ in model.named_modules()):
        raise ValueError(
            f"context parallelism: accelerate does not know the attention of {type(model).__name__}. Take a model of "
            "the kind of Llama, or set cp_size to 1."
        )


def check_shardable(model: PreTrainedModel) -> None:
    """Raise ValueError for a model that FSDP2 cannot shard: an encoder with the decoder of another checkpoint."""
    if base_of(model).config.model_type == "encoder-decoder":
        raise ValueError(
            f"FSDP2 cannot shard {type(base_of(model)).__name__}: the embedding of its decoder is the output layer "
            "too, and accelerate would put them into two groups. Use ZeRO-3 (--config_file zero3), or DDP."
        )


def _check_loading(trainer: "SafeTrainerMixin") -> None:
    """What cannot be trained where the weights are read on one process, and the others wait without any."""
    reason, model = "", trainer.model
    buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
    if buffers:
        reason = f"accelerate cannot share the buffers of {type(base_of(model)).__name__} ({min(buffers)})"
    elif base_of(model).config.is_encoder_decoder:
        reason = f"accelerate ties the two sides of {type(base_of(model)).__name__} anew"
    elif trainer.args.sweep:
        reason = "--sweep trains complete models"
    elif not isinstance(trainer, Trainer):
        reason = "TRL's trainers compute a loss together, and may need a complete reference model"
    if reason:
        raise ValueError(f"fsdp_cpu_ram_efficient_loading: {reason}. Set it to false.")


def _check_deepspeed(trainer: "SafeTrainerMixin", muon: float) -> None:
    config = _state(trainer).deepspeed_plugin.deepspeed_config
    if muon:
        raise ValueError(
            "--muon_learning_rate: DeepSpeed hands out flat parts of parameters, and Muon needs matrices. Set "
            "--muon_learning_rate 0 --optim adamw_torch, or shard with FSDP2."
        )
    if str(config.get("optimizer", {}).get("type", "")).lower() == "muon":
        raise ValueError(
            'DeepSpeed\'s own Muon spares only names with "embed" or "lm_head", and would orthogonalise embeddings '
            "such as GPT-2's. Take `optimizer` out of its file: --optim adamw_torch, or FSDP2 with our Muon."
        )


def prepare_sharding(trainer: "SafeTrainerMixin") -> None:
    """Where FSDP2 shards: both sides of an encoder-decoder get one embedding module, and the groups are chosen.

    Where the launch names none, the groups are the model's layers, and nothing that holds an embedding: accelerate
    shards the input embedding by itself. Of a model whose `_no_split_modules` name what holds it (BERT's embeddings)
    it would do so twice, which ends in a TypeError.
    """
    if not trainer.is_fsdp_enabled:
        return
    model = base_of(trainer.model)
    _share_embedding(model)
    if _state(trainer).fsdp_plugin.transformer_cls_names_to_wrap is not None:
        return
    hold_embeddings = {
        type(module).__name__
        for module in model.modules()
        if any(isinstance(child, nn.Embedding) for child in module.children())
    }
    layers = sorted(set(model._no_split_modules or ()) - hold_embeddings)
    _state(trainer).fsdp_plugin.transformer_cls_names_to_wrap = layers


def _share_embedding(model: PreTrainedModel) -> None:
    """Let one module hold the input embedding, and others that are tied to it ask that: torch shards a weight once."""
    embedding = model.get_input_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child is not embedding and type(child) is type(embedding) and child.weight is embedding.weight:
                setattr(module, name, _Ask(embedding))


class _Ask(nn.Module):
    """Calls another module, of which it holds no parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # a tuple, which is not searched for parameters

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._module[0](*inputs)


def on_main_process(work: Callable[[], T]) -> T:
    """What `work` returns on the main process, or the OSError or ValueError that it raises there, on every process."""
    done: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            done = [work()]
        except (OSError, ValueError) as error:
            done = [error]
    [found] = broadcast_object_list(done)
    if isinstance(found, OSError | ValueError):
        raise found
    return found


@contextmanager
def counting_alone(args: TrainingArguments) -> Iterator[None]:
    """The Trainer counts the labels of this process only, so that it computes a loss without waiting for others."""
    before, args.average_tokens_across_devices = args.average_tokens_across_devices, False
    try:
        yield
    finally:
        args.average_tokens_across_devices = before


def check_processes(folder: Path, inputs: dict[str, str]) -> None:
    """Compare what the processes of a run see: their versions and `inputs` (what they read) must be equal.

    Prints a warning where one does not see the output folder of the first. Raises ValueError on every process.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    [mark] = broadcast_object_list([folder / f".process-{secrets.token_hex(4)}"])
    if state.is_main_process:
        mark.touch()
    state.wait_for_everyone()
    seen = gather_object([{"versions": versions(), "inputs": inputs, "folder": mark.exists()}])
    if state.is_main_process:
        mark.unlink(missing_ok=True)
    for process, own in enumerate(seen):
        for kind, verb in (("versions", "runs other versions"), ("inputs", "reads other data")):
            if own[kind] != seen[0][kind]:
                names = {*own[kind], *seen[0][kind]}
                differ = sorted(name for name in names if own[kind].get(name) != seen[0][kind].get(name))
                details = [f"{name} {seen[0][kind].get(name)} and {own[kind].get(name)}" for name in differ]
                raise ValueError(f"process {process} {verb} than process 0: {', '.join(details)}. Make them equal.")
    if blind := [str(process) for process, own in enumerate(seen) if not own["folder"]]:
        state.print(
            f"  warning: processes {', '.join(blind)} do not see {folder} of process 0, and the run cannot be "
            "resumed. Give --output_dir and HF_HOME on a disk that all machines share"
        )


def keep_rows_per_step(args: TrainingArguments, checkpoint: Path | None, *, processes: int = 0) -> str:
    """Give each optimizer step the rows of the run that is resumed, or of --rows_per_step, by accumulation.

    Sets `gradient_accumulation_steps`, and records the rows in the arguments' `run`; a length that followed from other
    rows (hf_lm.tasks.length) becomes that of the resumed run. Returns a sentence where that
    changed the accumulation, else "". Raises ValueError where the processes' batches do not divide the rows.
    `processes`: of a planned run; 0 are those here.
    """
    rows, source, saved = args.rows_per_step, "--rows_per_step", {}
    at_once = args.train_batch_size * (processes or args.data_parallel)
    if checkpoint is not None and not args.resume_with_changes:
        saved = read_run(checkpoint) or {}
        rows, source = saved.get("rows_per_step") or rows, f"{checkpoint}: rows_per_step"
    message = ""
    if rows and rows != at_once * args.gradient_accumulation_steps:
        if rows % at_once:
            raise ValueError(
                f"{source} {rows}: {processes or args.world_size} processes with {args.train_batch_size} rows each "
                f"read {at_once} at once, which does not divide it. Start another number of processes, or give "
                "another --per_device_train_batch_size" + (" with --resume_with_changes." if checkpoint else ".")
            )
        args.gradient_accumulation_steps = rows // at_once
        for name in args.chosen & saved.keys():
            setattr(args, name, saved[name])
            args.run = args.run | {name: saved[name]}
        message = f"{rows} rows a step: {args.gradient_accumulation_steps} batches of {at_once} are accumulated"
    args.run = args.run | {"rows_per_step": at_once * args.gradient_accumulation_steps}
    return message


def loads_on_one(trainer: "SafeTrainerMixin") -> bool:
    """Whether the main process alone (of each machine) reads a checkpoint; the others have no weights before sharding.

    They are on the meta device until then.
    """
    return bool(trainer.is_fsdp_enabled and _state(trainer).fsdp_plugin.cpu_ram_efficient_loading)


def empty_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model on which no memory is spent: parameters are on the meta device, tied ones stay tied.

    A `forward` that belongs to the instance is left out: TRL's calls that of the model it was made for, and waits for
    ever where one process calls it and the weights are sharded.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    empty = copy.deepcopy(model, memo)
    for module in empty.modules():
        vars(module).pop("forward", None)
    return empty


def full_weights(trainer: "SafeTrainerMixin") -> Mapping[str, Any]:
    """The complete weights of a trained model in the optimizer's precision, on the first process; each must ask.

    DeepSpeed keeps the float32 weights in parts, and under `--bf16` trains a copy that is rounded to bfloat16. From
    here on transformers takes no model for one of ZeRO-3: `generate` on the first process would wait for the others.
    """
    if not trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model)
    from deepspeed.runtime.zero import GatheredParameters  # pyright: ignore[reportMissingImports]
    from deepspeed.utils import safe_get_full_fp32_param  # pyright: ignore[reportMissingImports]

    weights, main = {}, PartialState().is_main_process
    at_once = _state(trainer).deepspeed_plugin.zero_stage < 3  # a device has room for all weights
    for name, weight in trainer.accelerator.unwrap_model(trainer.model).state_dict(keep_vars=True).items():
        own = safe_get_full_fp32_param(weight) if weight.requires_grad else None
        if own is None:  # frozen, or a buffer
            with GatheredParameters(weight):
                own = weight.detach().clone()
        if main:
            dtype = torch.float32 if own.is_floating_point() else own.dtype
            weights[name] = own.detach().to(own.device if at_once else "cpu", dtype)
    unset_hf_deepspeed_config()
    return weights


def with_weights(empty: PreTrainedModel, weights: Mapping[str, Any]) -> PreTrainedModel:
    """An `empty_copy` with the weights of a full state dict, which it takes over without a copy."""
    empty.load_state_dict(weights, strict=False, assign=True)  # tied weights may stand under one of their names
    base_of(empty).tie_weights()
    if missing := [name for name, parameter in empty.named_parameters() if parameter.is_meta]:
        raise ValueError(f"the gathered weights lack {', '.join(missing[:3])}.")
    return empty.eval()
