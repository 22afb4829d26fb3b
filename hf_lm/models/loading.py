"""Load checkpoints, or refuse them in one line."""

import logging
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.models.configuration import (
    ADAPTER,
    CONFIG,
    adapter_weights,
    architecture,
    context_length,
    family,
    find_adapter,
    load_config,
    set_labels,
    special_ids,
    why,
)
from hf_lm.models.parts import embedding_rows, has_untrained_head, in_body, kept_in_full_precision
from hf_lm.models.quantization import dequantized, keep_weights, quantization_options
from hf_lm.models.target_tokenizer import target_tokenizer
from hf_lm.signals import time_limit

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

# float32, else the saved one: a bfloat16 checkpoint would be trained in bfloat16
SAFE = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
Shapes = Sequence[Sequence[int]]  # of a weight: as it was saved, as it is needed
HEAD = "head"
PATIENCE = 600  # seconds to place an adapter: seconds on large models, minutes where a PiSSA is computed again
# Buffers that old versions saved, and the pooler, which some heads do not use.
UNUSED = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias|attn\.bias|attention\.bias|version|pooler\..*)$")


def load_causal_lm(
    name_or_path: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    block_size: int = 0,  # tokens of a training row; 0 checks nothing
    quantize: int = 0,  # bits of its matrices: 4 or 8; 0 is full precision
) -> PreTrainedModel:
    """A causal language model from a folder or the Hub, in float32 and ready to train.

    Weights come from safetensors only, and no code of the checkpoint is run. With a `tokenizer` its special ids are
    set in the configuration and the generation configuration.

    Raises OSError where the checkpoint is missing or unreadable, and ValueError where it is not a causal language
    model, does not fit the tokenizer, or has fewer positions than `block_size`.
    """
    name_or_path = str(name_or_path)
    config = load_config(name_or_path)
    _check_family(config, name_or_path)
    positions = context_length(config)
    if 0 < positions < block_size:
        raise ValueError(
            f"block_size={block_size}, but {name_or_path} has {positions} positions; "
            f"give --block_size {positions} or less."
        )
    if tokenizer is not None:
        _check_vocabulary(tokenizer, name_or_path)

    model = load_weights(AutoModelForCausalLM, name_or_path, config, quantize=quantize)
    if model.device.type != "meta" and not _is_causal(model):
        raise ValueError(
            f"{name_or_path} ({architecture(config)}) sees the tokens after the one it predicts, so as a language "
            "model it would only learn to copy; give a causal language model, such as GPT-2 or Llama."
        )
    if tokenizer is not None:
        check_ids(tokenizer, model, name_or_path)
        _set_special_ids(model, tokenizer)
    model.config.use_cache = True  # off in the checkpoint of a run that was stopped, and generation is slow without
    if model.generation_config.max_new_tokens is None and model.generation_config.max_length in (None, 20):
        model.generation_config.max_new_tokens = min(128, positions // 2) if positions else 128
    return model


def load_with_head(
    name_or_path: str,
    auto_class: type,
    *,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str] = (),
    trained: bool = False,  # whether the checkpoint must have the head
    quantize: int = 0,  # bits of the body's matrices: 4 or 8; 0 is full precision
    **options: object,  # of from_pretrained
) -> PreTrainedModel:
    """A checkpoint with the head that `auto_class` gives it, in float32.

    A head that is missing, or has another number of classes, is randomly initialised; with `trained` it is refused.
    `labels` name the classes. Raises OSError where the checkpoint is missing or unreadable, and ValueError where its
    family has no such head, its weights do not fit, or the tokenizer has more ids than the embedding.
    """
    name_or_path = str(name_or_path)
    config = load_config(name_or_path)
    if auto_class is AutoModelForQuestionAnswering:
        config.num_labels = 2  # start and end, whatever number of classes the checkpoint has
    set_labels(config, labels)
    if (pad := target_tokenizer(tokenizer).pad_token_id) is not None:
        config.pad_token_id = pad  # a classification head looks for the last token before it
    served = auto_class._model_mapping.get(type(config), None)
    body, saved = (
        getattr(each, "base_model_prefix", "")
        for each in (served, _saved_as(config)._model_mapping.get(type(config), None))
    )
    model = load_weights(
        auto_class,
        name_or_path,
        config,
        new=() if trained else (HEAD, "pooler"),
        quantize=quantize,
        # Llama's span head calls the body `transformer`, all its other classes `model`: the body would not be loaded.
        key_mapping={rf"^{saved}\.": f"{body}."} if saved != body else None,
        **options,
    )
    if saved != body:
        # else saving undoes the mapping, and loading again loses the body
        model._weight_conversions = []  # pyright: ignore[reportArgumentType] - nn.Module's types allow no list
        _forget_name(model)  # elsewhere the body has its own name, and the adapter does not fit
    check_ids(tokenizer, model, name_or_path)
    return model


def check_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name_or_path: str) -> None:
    """Raise ValueError where a tokenizer gives ids that a model has no embedding for."""
    ids = max(tokenizer.get_vocab().values()) + 1
    rows = embedding_rows(model)
    if ids > rows:
        raise ValueError(
            f"the tokenizer has {ids} ids and {name_or_path} has embeddings for {rows}; "
            "use the tokenizer that was saved with it."
        )


def _saved_as(config: PreTrainedConfig) -> type:
    """The auto class that checkpoints of this family are usually saved as."""
    kind = family(config)
    return {"encoder": AutoModelForMaskedLM, "decoder": AutoModelForCausalLM}.get(kind, AutoModelForSeq2SeqLM)


def load_weights(
    auto_class: type,
    name_or_path: str,
    config: PreTrainedConfig,
    *,
    new: Sequence[str] = (),  # modules that the checkpoint may lack; HEAD is all outside its body
    quantize: int = 0,
    **options: object,
) -> PreTrainedModel:
    """A model in float32; of an adapter's folder, its base with the adapter's updates in its weights.

    Every weight is the checkpoint's own, except in modules of `new`: those are randomly initialised where they are
    missing, a HEAD also where it has another size, and `model.at_random` lists them; `model.loaded_from` is the
    checkpoint. Raises OSError where the weights cannot be read, and ValueError where others are missing, unexpected,
    of another shape or not finite. With torch's default device set to meta, the model is built from its configuration
    and no weight is read.
    """
    if quantize and find_adapter(name_or_path):
        raise ValueError(
            f"--quantize {quantize}: {name_or_path} is an adapter, which is merged in full precision at loading; "
            "merge it first: hf-lm merge ADAPTER FOLDER."
        )
    if type(config) not in auto_class._model_mapping:
        task = auto_class.__name__.removeprefix("AutoModelFor")
        raise ValueError(f"{name_or_path} is a {config.model_type}, for which transformers has no {task} head.")
    if torch.get_default_device().type == "meta":
        model = auto_class.from_config(config)
        model.name_or_path = model.loaded_from = name_or_path
        model.at_random = []
        return model
    model, missing, resized = _read(auto_class, name_or_path, config, quantize=quantize, **options)
    _check_shapes(name_or_path, {k: v for k, v in resized.items() if HEAD not in new or in_body(model, k)})
    lacking = [
        key
        for key in sorted(missing)
        if not (HEAD in new and not in_body(model, key)) and not any(part in key.split(".") for part in new)
    ]
    if lacking:
        raise ValueError(
            f"{name_or_path} was saved as {architecture(config)} and lacks {len(lacking)} weights of "
            f"{type(model).__name__} ({lacking[0]}, ...), which would start at random; give one that was trained as "
            f"{type(model).__name__}."
        )
    if HEAD not in new and has_untrained_head(model):
        raise ValueError(
            f"{name_or_path} is a {type(model).__name__} whose head was never trained: its biases are 0 and its "
            "classes have no names; fine-tune it first."
        )
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"{name_or_path}: {key} holds values that are not finite numbers; give other weights.")
    at_random = [key.removesuffix(".weight") for key in sorted(missing | resized.keys())]
    model.loaded_from, model.at_random = name_or_path, at_random  # pyright: ignore[reportArgumentType] - no tensors
    return model


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _read(
    auto_class: type, name_or_path: str, config: PreTrainedConfig, *, quantize: int = 0, **options: object
) -> tuple[PreTrainedModel, set[str], dict[str, Shapes]]:
    """(model, weights that the checkpoint lacks, weights of another shape). ValueError for unexpected weights."""
    if adapter := find_adapter(name_or_path):
        return _read_adapted(auto_class, name_or_path, adapter, config, **options)
    if quantize:
        with torch.device("meta"):
            options |= quantization_options(quantize, keep=kept_in_full_precision(auto_class.from_config(config)))
    settings = SAFE | options | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    reporter = logging.getLogger("transformers.modeling_utils")  # it prints a table of what is checked here
    reporter.addFilter(_only_errors)  # its level stays: with one of its own it tells of tensor parallelism
    try:
        model, loading = auto_class.from_pretrained(name_or_path, config=config, **settings)
    except Exception as error:  # broken files raise errors of several libraries
        raise OSError(f"cannot load the weights of {name_or_path}: {why(error)}") from error
    finally:
        reporter.removeFilter(_only_errors)
    keep_weights(model)
    extra = [key for key in sorted(loading["unexpected_keys"]) if in_body(model, key) and not UNUSED.search(key)]
    if extra:
        raise ValueError(
            f"{name_or_path} holds {len(extra)} weights that {type(model).__name__} does not have ({extra[0]}, "
            f"...): its {CONFIG} describes another model; restore the one that was saved with the weights."
        )
    return model, loading["missing_keys"], {key: shapes for key, *shapes in loading["mismatched_keys"]}


def _check_shapes(name: str, shapes: dict[str, Shapes], *, remedy: str = "") -> None:
    for key, (saved, needed) in sorted(shapes.items()):
        raise ValueError(
            f"{name}: {key} was saved with the shape {tuple(saved)}, and {tuple(needed)} is needed "
            f"({len(shapes)} such weights); {remedy or f'restore the {CONFIG} that was saved with the weights.'}"
        )


def _read_adapted(
    auto_class: type, name_or_path: str, adapter: dict[str, Any], config: PreTrainedConfig, **options: object
) -> tuple[PreTrainedModel, set[str], dict[str, Shapes]]:
    """An adapter's base as the adapter was trained on it (quantized, then dequantized, if it was), merged with it."""
    from peft import PeftConfig, get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    def plain(key: str) -> str:
        return key.removeprefix("base_model.model.")

    base, kind = adapter["base_model_name_or_path"], adapter.get("peft_type")
    if not hasattr(dict(PEFT_TYPE_TO_TUNER_MAPPING).get(cast(Any, kind)), "merge_and_unload"):
        raise ValueError(
            f"{name_or_path}: {ADAPTER} has the peft_type {kind!r}, which cannot be merged into its base; give one "
            "that can, such as LORA."
        )
    quantization = config.__dict__.pop("quantization_config", None) or {}
    bits = 4 if quantization.get("load_in_4bit") else 8 if quantization.get("load_in_8bit") else 0
    weights = load_file(adapter_weights(name_or_path))
    model, missing, resized = _read(auto_class, base, config, quantize=bits, **options)
    remedy = (
        f"{name_or_path} was trained on another base than {base}, or its {ADAPTER} was changed: set "
        "base_model_name_or_path to the base that it was trained on, and the rest as it was saved."
    )
    own = {plain(key) for key in weights}  # heads among them
    missing, resized = missing - own, {key: shapes for key, shapes in resized.items() if key not in own}
    _check_shapes(base, {key: shapes for key, shapes in resized.items() if in_body(model, key)}, remedy=remedy)
    if bits:
        model = dequantized(model)
    try:
        with time_limit(PATIENCE, f"an expression of its {ADAPTER}"):  # which name the modules
            adapted = add_adapter(model, PeftConfig.from_pretrained(name_or_path))
    except Exception as error:
        raise OSError(f"cannot load the adapter {name_or_path} onto {base}: {why(error)}") from error
    try:
        needed = adapted.state_dict() | get_peft_model_state_dict(adapted, save_embedding_layers=False)
        shapes = {key: (weights[key].shape, needed[key].shape) for key in weights.keys() & needed.keys()}
        wrong = {key: both for key, both in shapes.items() if both[0] != both[1]}
        heads = {plain(key): both for key, both in wrong.items() if not in_body(model, plain(key))}
        _check_shapes(name_or_path, {k: v for k, v in wrong.items() if plain(k) not in heads}, remedy=remedy)
        loading = adapted.load_adapter(name_or_path, "default", ignore_mismatched_sizes=bool(heads))
    except ValueError:
        raise
    except KeyError as error:
        raise ValueError(f"{name_or_path} lacks the weights {error}: {remedy}") from error
    except Exception as error:
        raise OSError(f"cannot load the adapter {name_or_path} onto {base}: {why(error)}") from error
    for keys, what in ((loading.missing_keys, "lacks"), (loading.unexpected_keys, "does not have")):
        if keys:
            raise ValueError(f"{base} with {name_or_path} {what} {min(keys)} ({len(keys)} such weights): {remedy}")
    model = cast(Any, adapted).merge_and_unload().requires_grad_(True)
    if model.can_generate():
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)
    _forget_name(model)
    return model, missing, resized | heads


def add_adapter(model: PreTrainedModel, config: "PeftConfig") -> "PeftModel":
    """A model with the adapter that a configuration describes, its weights as peft begins them."""
    from peft import get_peft_model

    with warnings.catch_warnings():  # peft reads a property by the name that transformers calls deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return cast("PeftModel", get_peft_model(model, config))


def _forget_name(model: PreTrainedModel) -> None:
    """Take its name from a model that no name alone loads, so that an adapter trained on it names no base."""
    model.name_or_path = model.config._name_or_path = ""


def _check_family(config: PreTrainedConfig, name_or_path: str) -> None:
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "an encoder-decoder" if config.is_encoder_decoder else f"of the {config.model_type} family"
        raise ValueError(
            f"{name_or_path} is {kind} ({architecture(config)}), not a causal language model; "
            "give one such as GPT-2 or Llama."
        )


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    """Raise ValueError where ids mean other tokens than in the checkpoint: nothing later would notice."""
    if tokenizer.name_or_path == name_or_path:
        return
    try:
        own = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception:  # no tokenizer beside the weights, or an unreadable one: nothing to compare
        return
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    own_tokens = {token_id: token for token, token_id in own.get_vocab().items()}
    if len(own_tokens) <= len(own.all_special_tokens):
        return  # a model without tokenizer files: transformers makes an empty tokenizer
    different = [i for i in sorted(tokens.keys() & own_tokens.keys()) if tokens[i] != own_tokens[i]]
    if different:
        first = different[0]
        raise ValueError(
            f"the tokenizer and {name_or_path} disagree on {len(different)} of {len(own_tokens)} ids (id {first} is "
            f"{tokens[first]!r}, and {own_tokens[first]!r} to the model); "
            f"use the checkpoint's own tokenizer: --tokenizer {name_or_path}"
        )


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Whether the logits before the last token are independent of that token. The model is in eval mode."""
    ids = torch.arange(6)[None]
    changed = ids.clone()
    changed[0, -1] = 6
    rows = ({"input_ids": each, "attention_mask": torch.ones_like(each)} for each in (ids, changed))  # no padding
    logits = [model(**row, use_cache=False).logits[:, :-1] for row in rows]
    difference = (logits[0] - logits[1]).abs().max()
    return bool(difference <= 1e-5 * logits[0].abs().max())


def _set_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, token_id in special_ids(tokenizer).items():
        for config in (model.config, model.generation_config):
            known = getattr(config, name, None)
            several = known if isinstance(known, list) else [known]  # a chat model has several end tokens
            if token_id is not None and token_id not in several:
                setattr(config, name, token_id)
