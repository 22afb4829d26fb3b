"""LoRA: the checkpoint is frozen and small matrices beside its own are trained (Hu et al., arXiv 2106.09685)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from hf_lm.files import new_folder
from hf_lm.models.configuration import ADAPTED, ADAPTER, find_adapter, load_config
from hf_lm.models.loading import add_adapter, load_with_head
from hf_lm.models.parts import fresh_modules
from hf_lm.models.quantization import dequantized, quantized_bits
from hf_lm.models.target_tokenizer import find_target, save_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

# peft's task types, and the class that loads a model for each.
AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
}


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,  # 0 trains every weight
    alpha: int = 0,  # the update is scaled by alpha / rank; 0 is twice the rank
    dropout: float = 0.0,
    dora: bool = False,  # weight-decomposed (arXiv 2402.09353)
    rslora: bool = False,  # scaled by alpha / sqrt(rank) (arXiv 2312.03732)
) -> nn.Module:
    """Freeze a model and give each matrix of its body an update of rank `rank`; new heads are trained in full.

    Returns the model itself for rank 0, else a PeftModel. The experts of a mixture, which transformers stacks in one
    parameter, stay frozen. Raises ValueError for a negative rank, and for a model without a linear layer in its body.
    """
    if rank < 0:
        raise ValueError(f"--lora_rank is {rank}; it must be 0 (train every weight) or more.")
    if rank == 0:
        return model
    from peft import LoraConfig

    fresh = fresh_modules(model)
    targets = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not model.get_output_embeddings()
        and not any(name == part or name.startswith(f"{part}.") for part in fresh)
    }
    if not targets:
        raise ValueError(
            f"--lora_rank {rank}: the body of {type(model).__name__} has no linear layer that LoRA could update: "
            "leave it out, and every weight is trained."
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        use_dora=dora,
        use_rslora=rslora,
        target_modules=list(targets),
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in targets.values()),  # or peft warns, and sets it
        modules_to_save=fresh or None,
    )
    base = model.name_or_path
    adapted = add_adapter(model, config)
    if base and Path(base).is_dir():
        # A relative path such as out/pretrain is also a name on the Hub: from another folder peft would look there.
        adapted.peft_config["default"].base_model_name_or_path = str(Path(base).resolve())
    return adapted


def is_adapted(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether a model carries an adapter."""
    return hasattr(model, "peft_config")


def base_of(model: nn.Module) -> PreTrainedModel:
    """The model that an adapter was added to; a model without one as it is."""
    return cast(PreTrainedModel, getattr(model, "get_base_model", lambda: model)())


def has_base(model: "PeftModel") -> bool:
    """Whether an adapter's base is a checkpoint; on a randomly initialised model the adapter could not be loaded."""
    return bool(base_of(model).name_or_path)


def merged(model: "PeftModel") -> PreTrainedModel:
    """The plain model with the updates of LoRA added to its weights, in eval mode.

    The weights of a quantized base are dequantized first: the adapter was trained on those, and they differ from the
    checkpoint's own by the error of quantization. peft would add the updates and quantize the sum again.
    """
    if quantized_bits(model):
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        config, updates = model.peft_config["default"], get_peft_model_state_dict(model)
        model = add_adapter(dequantized(cast(Any, model).unload()), config)
        set_peft_model_state_dict(model, updates)
    return cast(Any, model).merge_and_unload().eval()


def save_adapted(model: "PeftModel", folder: str | Path) -> None:
    """Write what an adapter's own files lack: classes, prompts, quantization and the generation configuration.

    Not as config.json: transformers would then expect a complete model in the folder. The names of the adapted modules
    are sorted: peft writes a set, in another order in each process, and the same run would have another file.
    """
    described = Path(folder) / ADAPTER
    content = json.loads(described.read_text(encoding="utf-8"))
    if isinstance(content["target_modules"], list):  # else a pattern
        content["target_modules"].sort()
    described.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
    base = base_of(model)
    base.config.to_json_file(Path(folder) / ADAPTED)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)


def load_merged(adapter: str, *, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The plain model of an adapter and its base, in float32, of the class that the adapter's configuration implies.

    Raises OSError where the base is missing, and ValueError where there is no adapter or it has an unknown class.
    """
    auto_class = _auto_class(_require_adapter(adapter), load_config(adapter), adapter)
    return load_with_head(adapter, auto_class, tokenizer=tokenizer, trained=True).eval()


def _require_adapter(folder: str) -> dict[str, Any]:
    adapter = find_adapter(folder)
    if adapter is None:
        raise ValueError(f"{folder} holds no adapter (adapter_config.json).")
    return adapter


def _auto_class(adapter: dict[str, Any], config: transformers.PreTrainedConfig, name: str) -> type:
    own = (adapter.get("auto_mapping") or {}).get("base_model_class")
    for task, auto in AUTO_CLASSES.items():
        auto_class = getattr(transformers, auto)
        served = auto_class._model_mapping.get(type(config), None)
        served = served if isinstance(served, tuple) else (served,)
        if adapter.get("task_type") == task or any(each is not None and each.__name__ == own for each in served):
            return auto_class
    raise ValueError(f"{name} is an adapter for {own or adapter.get('task_type')}, which hf_lm cannot merge.")


def merge_adapter(adapter: str | Path, output: str | Path) -> Path:
    """Write the plain model of an adapter and its base, with its tokenizer, as an ordinary folder, complete or absent.

    Raises FileExistsError where `output` holds anything, and OSError where the base is missing.
    """
    adapter, output = str(adapter), Path(output)
    base = _require_adapter(adapter)["base_model_name_or_path"]
    load_config(adapter)  # reports in one line what is missing
    source = adapter if (Path(adapter) / "tokenizer_config.json").is_file() else base
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    find_target(tokenizer, source)
    if not tokenizer.encode("a b", add_special_tokens=False):
        raise ValueError(f"{source} has no tokenizer files: copy them into {adapter}.")
    with new_folder(output, "folder") as aside:
        load_merged(adapter, tokenizer=tokenizer).save_pretrained(aside)
        save_tokenizer(tokenizer, aside)
    return output
