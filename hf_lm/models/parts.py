"""The parts of a model: its body, its heads, and the modules that a checkpoint does not bring."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

SHORT = 512  # tokens
UNNAMED = re.compile(r"LABEL_\d+")
BODIES = ("shared", "encoder", "decoder")  # children of a model that are not heads, besides its base_model_prefix
# Cross attention, as BERT, GPT-2 and XGLM call it, and the projection between two widths.
BETWEEN = ("crossattention", "ln_cross_attn", "encoder_attn", "encoder_attn_layer_norm", "enc_to_dec_proj")


def is_faster_plain(model: PreTrainedModel, *, context: int) -> bool:
    """Whether a model trains faster in bfloat16 on a CPU if it attends by two products and a softmax ("eager").

    That holds of rows of at most SHORT tokens, where torch's fused attention is set: a step with it takes 1.2 to 1.6
    times as long there (measured: docs/experiments.md). In float32 the two are equal.
    """
    return context <= SHORT and model.config._attn_implementation == "sdpa"


@contextmanager
def attention(model: PreTrainedModel, kind: str) -> Iterator[None]:
    """Attend by `kind` of transformers' implementations, and afterwards as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(kind)
    try:
        yield
    finally:
        model.set_attn_implementation(before or kind)


def embedding_rows(model: PreTrainedModel) -> int:
    """How many ids a model has an embedding for."""
    return cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0]


def last_norm(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The gain and bias of the norm after the last layer; nothing of a model that has none, as of an LSTM."""
    found: list[torch.nn.Parameter] = []
    for child in model.base_model.children():
        if getattr(getattr(child, "weight", None), "ndim", 0) == 1:
            found = list(child.parameters())
    return found


def in_body(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to the body rather than to a head; in a model without head every weight does."""
    body = model.base_model_prefix
    parts = [body] if hasattr(model, body) else [name for name, _ in model.named_children()]
    return key.split(".")[0] in parts


def has_untrained_head(model: PreTrainedModel) -> bool:
    """Whether a head looks untrained: every bias 0 and no class named. A head without biases passes."""
    names = (model.config.id2label or {}).values()
    if model.get_output_embeddings() is not None or not all(map(UNNAMED.fullmatch, names)):
        return False
    biases = [p for key, p in model.named_parameters() if not in_body(model, key) and key.endswith("bias")]
    return bool(biases) and not any(bias.is_meta or bias.any() for bias in biases)


def kept_in_full_precision(model: PreTrainedModel) -> list[str]:
    """Modules that are not quantized: heads, the output embedding, and those that a checkpoint may lack."""
    names = [name for name, _ in model.named_children() if name not in (model.base_model_prefix, *BODIES)]
    return names + [name for name, _ in model.named_modules() if name.endswith(("pooler", *BETWEEN))]


def fresh_modules(model: PreTrainedModel) -> list[str]:
    """Modules that are not pretrained: a task's head, the cross attention of a decoder from a checkpoint, and matrices
    that a checkpoint lacked, such as the pooler of a masked language model.

    LoRA trains and saves them in full: frozen, they would be random again whenever the adapter is loaded.
    """
    output = model.get_output_embeddings()
    if model.config.model_type == "encoder-decoder":
        names = [name for name, _ in model.named_modules() if name.endswith(BETWEEN)]
    else:
        names = [
            name
            for name, child in model.named_children()
            if name not in (model.base_model_prefix, *BODIES)
            and child is not output
            and any(True for _ in child.parameters())
        ]
    lacked = set(getattr(model, "at_random", ()))
    return names + [
        name
        for name, module in model.named_modules()
        if name in lacked
        and isinstance(module, torch.nn.Linear | Conv1D)
        and module is not output
        and not any(name == part or name.startswith(f"{part}.") for part in names)
    ]
