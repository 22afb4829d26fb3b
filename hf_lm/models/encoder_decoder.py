"""Encoder-decoders: small fresh ones for demos, and warm starts from encoders (BERT2BERT) and decoders."""

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

from hf_lm.models.checkpoints import load_causal_lm, load_weights, load_with_head
from hf_lm.models.configuration import family, load_config


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
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        tie_word_embeddings=True,
    )
    return BartForConditionalGeneration(config)


def load_text_to_text(name_or_path: str, *, tokenizer: PreTrainedTokenizerBase, quantize: int = 0) -> PreTrainedModel:
    """A checkpoint that writes text: a decoder and an encoder-decoder as they are, an encoder as both of its sides.

    An encoder becomes an encoder-decoder whose halves start from it (BERT2BERT, Rothe et al., arXiv 1907.12461); only
    the attention from one to the other is new. `quantize` as in load_causal_lm. Raises OSError or ValueError.
    """
    config = load_config(name_or_path)
    kind = family(config)
    if kind == "decoder":
        return load_causal_lm(name_or_path, tokenizer=tokenizer, quantize=quantize)
    if kind == "encoder-decoder":
        return load_with_head(name_or_path, AutoModelForSeq2SeqLM, tokenizer=tokenizer, quantize=quantize)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{name_or_path} is a {config.model_type}, which cannot serve as a decoder; take a BERT or RoBERTa."
        )
    encoder, _ = load_weights(AutoModel, name_or_path, config, quantize=quantize)
    config = load_config(name_or_path)
    config.is_decoder = config.add_cross_attention = True
    decoder, _ = load_weights(AutoModelForCausalLM, name_or_path, config, quantize=quantize)
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.at_random = [f"{side}.{name}" for side in ("encoder", "decoder") for name in getattr(model, side).at_random]
    if quantize:  # as Trainer and peft ask the model itself
        for name in ("is_quantized", "quantization_method", "hf_quantizer", f"is_loaded_in_{quantize}bit"):
            setattr(model, name, getattr(encoder, name))
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id = start, end
        settings.pad_token_id = tokenizer.pad_token_id
    return model
