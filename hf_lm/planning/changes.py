"""Changes that would make a run fit, the cheapest first."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hf_lm.models.adapters import add_lora, base_of, is_adapted
from hf_lm.planning.engines import Engine
from hf_lm.planning.resolve import Resolved
from hf_lm.training.estimate import checkpoints_activations

LORA_RANK = 16  # of the LoRA that a plan proposes
DEVICES = (2, 4, 8, 16, 32, 64)  # over which it proposes to shard


@dataclass
class Change:
    """A change that may make a run fit; `name` is for people."""

    name: str
    needed: int  # bytes
    fits: bool
    options: dict[str, Any]  # of the recipe


@dataclass(frozen=True)
class Variation:
    """A run with something changed; `name` is for people, `options` are the recipe's."""

    name: str
    model: PreTrainedModel
    checkpointing: bool
    bits: int
    engine: Engine
    options: dict[str, Any]


def variations_of(run: Resolved, engine: Engine) -> list[Variation]:
    """The changes to a run on an engine, in the order of what they cost.

    Activation checkpointing costs a second forward; LoRA and QLoRA are another kind of training, offered where the
    recipe has it and starts from a checkpoint; sharding takes more devices. Each keeps the checkpointing before it.
    """
    checkpointing, model = checkpoints_activations(run.args), run.model
    plain = base_of(model)
    variations = [Variation("", model, checkpointing, run.bits, engine, {})]
    options: dict[str, Any] = {}
    if plain.supports_gradient_checkpointing and not checkpointing:
        checkpointing, options = True, {"activation_checkpointing": True}
        variations.append(Variation("activation checkpointing", model, True, run.bits, engine, options))
    adapted: Any = model  # or the adapted one
    rank: dict[str, Any] = {}
    if "lora_rank" in run.arguments and run.arguments.get("model") and not run.bits:
        if not is_adapted(run.model):
            adapted, rank = add_lora(copy.deepcopy(model), rank=LORA_RANK), {"lora_rank": LORA_RANK}
            variations.append(
                Variation(f"LoRA of rank {LORA_RANK}", adapted, checkpointing, 0, engine, options | rank)
            )
        if "quantize" in run.arguments and engine.name == "ddp":
            quantized = options | rank | {"quantize": 4}
            variations.append(Variation("QLoRA in 4 bits", adapted, checkpointing, 4, engine, quantized))
    # FSDP2 shards neither a quantized base nor an encoder with another checkpoint as its decoder
    if not (run.bits or plain.config.model_type == "encoder-decoder"):
        sharded = [
            Engine("fsdp2", n) for n in DEVICES if n > engine.devices or (n, engine.name) == (engine.devices, "ddp")
        ]
        variations += [Variation(more.said, model, checkpointing, 0, more, options) for more in sharded]
    return variations


def propose(
    variations: Sequence[Variation],
    needs: Callable[[Variation, int], int],
    memory: int,
    *,
    rows: int,
    accumulation: int = 1,
) -> list[Change]:
    """The changes tried up to the first that fits `memory`: each with the batch as it is, then with smaller ones.

    `needs(variation, rows)` is in bytes. A smaller batch is accumulated to the same, so that training does not change.
    """
    tried: list[Change] = []

    def change(variation: Variation, few: int) -> Change:
        name, options = variation.name, dict(variation.options)
        names = [name] if name else []
        if variation.checkpointing and "activation_checkpointing" in options and name != "activation checkpointing":
            names.append("activation checkpointing")
        if few < rows:
            times = accumulation * -(-rows // few)
            options |= {"per_device_train_batch_size": few, "gradient_accumulation_steps": times}
            names.append(f"batches of {few} accumulated {times} times")
        bytes_needed = needs(variation, few)
        return Change(" + ".join(names), bytes_needed, bytes_needed <= memory, options)

    halved = [rows >> i for i in range(rows.bit_length())]
    for variation in variations:
        sizes = halved if variation.name else halved[1:]
        if not sizes:
            continue
        tried.append(change(variation, sizes[0]))
        if tried[-1].fits:
            return tried
        smallest = change(variation, sizes[-1])
        if not smallest.fits:
            tried += [smallest] * (len(sizes) > 1)
            continue
        for few in sizes[1:]:
            if (smaller := change(variation, few)).fits:
                return [*tried, smaller]
    return tried
