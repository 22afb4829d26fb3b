"""A frozen base in 4 or 8 bits, with adapters that are trained (QLoRA: Dettmers et al., arXiv 2305.14314)."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def quantization_options(bits: int, *, keep: list[str]) -> dict[str, Any]:
    """Options of `from_pretrained` that load a model in `bits`, except the modules `keep`.

    4 is NF4 with quantized constants, dequantized before the product. 8 is LLM.int8 (arXiv 2208.07339), which also
    rounds activations and takes their outliers from the batch: the output for a row depends a little on the other
    rows. Raises ValueError for other numbers, ImportError without bitsandbytes.
    """
    if bits not in (4, 8):
        raise ValueError(f"--quantize is {bits}; it must be 4 or 8, or 0 for full precision.")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ImportError("--quantize needs bitsandbytes: pip install 'hf-lm[quantize]'.") from None
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,  # under --bf16, autocast still multiplies in bfloat16
        llm_int8_skip_modules=keep,
    )
    return {"quantization_config": config, "device_map": {"": PartialState().device}}


def keep_weights(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for a CPU's bfloat16 kernel.

    It would at the first evaluation, and round their constants: training would continue from a different base. It also
    fails for a matrix whose width is not a multiple of 64.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def quantized_bits(model: nn.Module) -> int:
    """4 or 8 where a model's matrices are quantized to that many bits, else 0."""
    return 4 if getattr(model, "is_loaded_in_4bit", False) else 8 if getattr(model, "is_loaded_in_8bit", False) else 0


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself with its matrices dequantized to float32, in ordinary layers.

    GPT-2's Conv1D, which bitsandbytes replaces by Linear layers, become Conv1D again. transformers' own `dequantize`
    leaves them Linear: they would be saved transposed, and the square ones load without an error.
    """
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        if type(module).__name__ not in ("Linear4bit", "Linear8bitLt"):
            continue
        weight = dequantize_bnb_weight(module.weight, getattr(module, "state", None)).float()  # (out, in)
        plain: nn.Module
        if getattr(module, "source_cls", nn.Linear) is Conv1D:
            plain = Conv1D(module.out_features, module.in_features)
            weight = weight.T.contiguous()
        else:
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if module.bias is not None:
            plain.bias = nn.Parameter(module.bias.detach().float(), requires_grad=False)
        model.set_submodule(name, plain.train(module.training))
    # No trace of quantization is left: config.json would make bitsandbytes necessary to load the model.
    for part in (part for part in model.modules() if isinstance(part, PreTrainedModel)):
        for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method", "hf_quantizer"):
            part.__dict__.pop(name, None)
        for name in ("quantization_config", "_is_quantized", "_pre_quantization_dtype"):
            part.config.__dict__.pop(name, None)
    return model
