"""LoRA: a checkpoint stays as it is, and small matrices beside its own are trained (Hu et al., arXiv 2106.09685)."""

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_lm.models.checkpoints import ADAPTED, fresh_modules
from hf_lm.models.quantization import dequantized, quantized_bits


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,  # 0 trains every weight
    alpha: int = 0,  # the update is scaled by alpha / rank; 0 is twice the rank
    dropout: float = 0.0,
    dora: bool = False,  # weight-decomposed (arXiv 2402.09353)
    rslora: bool = False,  # scaled by alpha / sqrt(rank) (arXiv 2312.03732)
) -> nn.Module:
    """Freeze a model and give each matrix of its body an update of rank `rank`; heads that are new are trained whole.

    Returns the model itself for rank 0, else a PeftModel. Raises ValueError for a negative rank.
    """
    if rank < 0:
        raise ValueError(f"--lora_rank is {rank}; it must be 0 (train every weight) or more.")
    if rank == 0:
        return model
    from peft import LoraConfig, get_peft_model

    fresh = fresh_modules(model)
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not model.get_output_embeddings()
        and not any(name == part or name.startswith(f"{part}.") for part in fresh)
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        use_dora=dora,
        use_rslora=rslora,
        target_modules=targets,
        modules_to_save=fresh or None,
    )
    return get_peft_model(model, config)


def is_adapted(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def has_base(model: nn.Module) -> bool:
    """Whether an adapter's base is a checkpoint, without which it cannot be loaded: a fresh model is none."""
    return bool(model.get_base_model().name_or_path)


def merged(model: nn.Module) -> PreTrainedModel:
    """The plain model with the updates of LoRA added to its weights.

    Those of a quantized base are dequantized first: they are what the adapter was trained on, while the checkpoint's
    own weights differ from them by what quantization lost. peft would add the updates and quantize the sum again.
    """
    if quantized_bits(model):
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        config, updates = model.peft_config["default"], get_peft_model_state_dict(model)
        model = get_peft_model(dequantized(model.unload()), config)
        set_peft_model_state_dict(model, updates)
    return model.merge_and_unload().eval()


def save_adapted(model: nn.Module, folder: str | Path) -> None:
    """Write beside an adapter what its own files do not say: classes, prompts, quantization, how to generate.

    Not as config.json: transformers would then look for a whole model in the folder.
    """
    base = model.get_base_model()
    base.config.to_json_file(Path(folder) / ADAPTED)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)
