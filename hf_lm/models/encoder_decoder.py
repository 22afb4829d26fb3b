"""Encoder-decoders: small new ones for demos, and pairs of two checkpoints (BERT2BERT, BERT2GPT)."""

import inspect
from typing import cast

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    EncoderDecoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_lm.models.configuration import architecture, check_memory, family, load_config, special_ids
from hf_lm.models.loading import HEAD, check_ids, load_causal_lm, load_weights, load_with_head
from hf_lm.models.parts import BETWEEN
from hf_lm.models.target_tokenizer import target_tokenizer


def new_bart(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_layer: int = 2,
    n_head: int = 4,
    n_embd: int = 256,
    block_size: int = 256,  # positions
    dropout: float = 0.1,
) -> PreTrainedModel:
    """A BART with random weights, `n_layer` layers on each side, for the tokenizer's vocabulary."""
    check_memory((2 * block_size + 28 * n_layer * n_embd) * n_embd, f"block_size={block_size:,}, n_embd={n_embd:,}")
    config = BartConfig(
        vocab_size=64 * (max(tokenizer.get_vocab().values()) // 64 + 1),
        d_model=n_embd,
        encoder_layers=n_layer,
        decoder_layers=n_layer,
        encoder_attention_heads=n_head,
        decoder_attention_heads=n_head,
        encoder_ffn_dim=4 * n_embd,
        decoder_ffn_dim=4 * n_embd,
        max_position_embeddings=block_size,
        dropout=dropout,
        **(ids := special_ids(tokenizer)),
        decoder_start_token_id=ids["eos_token_id"],
        forced_eos_token_id=None,
        tie_word_embeddings=True,
    )
    return BartForConditionalGeneration(config)


def load_text_to_text(
    name_or_path: str, *, tokenizer: PreTrainedTokenizerBase, decoder: str = "", quantize: int = 0
) -> PreTrainedModel:
    """A checkpoint that generates text: a decoder and an encoder-decoder as they are, an encoder with a decoder.

    An encoder's decoder is the checkpoint `decoder`, or the encoder itself a second time. Both keep their weights
    (BERT2GPT, BERT2BERT: Rothe et al., arXiv 1907.12461); only the cross attention is new. `tokenizer` carries the
    target tokenizer where the decoder has its own (load_tokenizer). `quantize` as in load_causal_lm. Raises OSError
    or ValueError in one line.
    """
    config = load_config(name_or_path)
    kind = family(config)
    if decoder and kind != "encoder":
        what = "an encoder-decoder" if kind == "encoder-decoder" else "a decoder"
        raise ValueError(
            f"--model {name_or_path} is {what} ({architecture(config)}), which takes no other decoder: omit "
            "--decoder, or give an encoder as --model, such as BERT or RoBERTa."
        )
    if kind == "decoder":
        return load_causal_lm(name_or_path, tokenizer=tokenizer, quantize=quantize)
    if kind == "encoder-decoder":
        return load_with_head(name_or_path, AutoModelForSeq2SeqLM, tokenizer=tokenizer, quantize=quantize)
    check_decoder(decoder or name_or_path, option="--decoder " if decoder else "")
    encoder_model = load_weights(AutoModel, name_or_path, config, new=("pooler",), quantize=quantize)
    decoder_model = _load_decoder(decoder or name_or_path, quantize=quantize)
    target = target_tokenizer(tokenizer)
    check_ids(tokenizer, encoder_model, name_or_path)
    check_ids(target, decoder_model, decoder or name_or_path)
    model = EncoderDecoderModel(encoder=encoder_model, decoder=decoder_model)
    at_random = [f"{side}.{name}" for side in ("encoder", "decoder") for name in getattr(model, side).at_random]
    model.at_random = at_random  # pyright: ignore[reportArgumentType] - nn.Module's types allow no list
    if quantize:  # Trainer and peft look for these on the model itself
        for name in ("is_quantized", "quantization_method", "hf_quantizer", f"is_loaded_in_{quantize}bit"):
            setattr(model, name, getattr(encoder_model, name))
    end = target.eos_token_id if target.eos_token_id is not None else target.sep_token_id
    starts = (target.bos_token_id, target.cls_token_id, end)
    ids = {
        "decoder_start_token_id": next((token_id for token_id in starts if token_id is not None), None),
        "eos_token_id": end,
        "pad_token_id": target.pad_token_id,
    }
    for settings in (model.config, model.generation_config):
        for name, token_id in ids.items():
            setattr(settings, name, token_id)
    # ids that no token has
    model.generation_config.suppress_tokens = decoder_model.generation_config.suppress_tokens
    return model


def check_decoder(name_or_path: str, *, option: str = "") -> None:
    """Raise ValueError where a checkpoint's class has no cross attention, so that it cannot follow an encoder."""
    config = load_config(name_or_path)
    model_class = cast(type[PreTrainedModel] | None, MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None))
    if config.is_encoder_decoder:
        problem = "is an encoder-decoder, which has an encoder of its own"
    elif model_class is None or "encoder_hidden_states" not in inspect.signature(model_class.forward).parameters:
        problem = f"is a {config.model_type}, which cannot serve as a decoder: its class has no cross attention"
    else:
        return
    raise ValueError(f"{option}{name_or_path} {problem}; take a GPT-2, BERT, RoBERTa, XLM-R, ELECTRA or XGLM.")


def _load_decoder(name_or_path: str, *, quantize: int) -> PreTrainedModel:
    config = load_config(name_or_path)
    kind = family(config)
    config.is_decoder = config.add_cross_attention = config.use_cache = True
    # Encoders are often published without their language modelling head.
    new = (*BETWEEN, HEAD) if kind == "encoder" else BETWEEN
    return load_weights(AutoModelForCausalLM, name_or_path, config, new=new, quantize=quantize)
