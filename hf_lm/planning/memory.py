"""The memory that a step needs on a device: quantized, and with what is beside its tensors."""

from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_lm.models.adapters import base_of
from hf_lm.planning.devices import CONTEXT, USABLE, Device
from hf_lm.training.estimate import resident
from hf_lm.training.fake_step import Step


def needed(step: Step, device: Device) -> int:
    """Bytes that a step needs on a device.

    Beside the tensors there is, on a CPU, the process as it is now, on a GPU its context.
    """
    if device.name == "cpu":
        live = max(step.peak, step.proofs)
        return resident(live - step.memory["weights"], step.memory["weights"])
    return int(step.peak / USABLE) + CONTEXT


def quantized(step: Step, model: PreTrainedModel, bits: int) -> Step:
    """A step whose frozen matrices are held in 4 bits (NF4 with quantized constants) or 8 (LLM.int8).

    One matrix at a time is in float32, while it is multiplied.
    """
    plain = base_of(model)
    ends = {id(end.weight) for end in (plain.get_input_embeddings(), plain.get_output_embeddings()) if end is not None}
    frozen = [
        module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "lora_" not in path and not module.weight.requires_grad
    ]
    frozen = [weight for weight in frozen if id(weight) not in ends]
    # 4 bits and, of each 64 weights, a constant of 8 bits, of each 256 of these one of 32; 8 bits and a scale a row.
    size = sum(w.numel() * (1 / 2 + 1 / 64 + 4 / (64 * 256)) if bits == 4 else w.numel() + 4 * len(w) for w in frozen)
    memory = dict(step.memory)
    memory["weights"] += int(size) - 4 * sum(w.numel() for w in frozen)
    memory["activations"] += 4 * max((w.numel() for w in frozen), default=0)
    return replace(step, memory=memory)
