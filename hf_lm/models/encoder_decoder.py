"""Encoder-decoders: small fresh ones for demos, and two halves that start from checkpoints (BERT2BERT, BERT2GPT)."""

import inspect

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

from hf_lm.models.configuration import architecture, family, load_config
from hf_lm.models.loading import BETWEEN, HEAD, check_ids, load_causal_lm, load_weights, load_with_head
from hf_lm.models.target_tokenizer import written_by


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


def load_text_to_text(
    name_or_path: str, *, tokenizer: PreTrainedTokenizerBase, decoder: str = "", quantize: int = 0
) -> PreTrainedModel:
    """A checkpoint that writes text: a decoder and an encoder-decoder as they are, an encoder with a decoder.

    An encoder's decoder is the checkpoint `decoder`, or the encoder itself once more. Both start from their weights
    (BERT2GPT, BERT2BERT: Rothe et al., arXiv 1907.12461); only what leads from one to the other is new. `tokenizer`
    holds the decoder's where that is another (load_tokenizer). `quantize` as in load_causal_lm. Raises OSError or
    ValueError in one line.
    """
    config = load_config(name_or_path)
    kind = family(config)
    if decoder and kind != "encoder":
        both = kind == "encoder-decoder"
        raise ValueError(
            f"--model {name_or_path} is {'an' if both else 'a'} {kind} ({architecture(config)}), which "
            f"{'has a half that writes' if both else 'writes by itself'}: leave --decoder out, or give a --model that "
            "reads, such as BERT or RoBERTa."
        )
    if kind == "decoder":
        return load_causal_lm(name_or_path, tokenizer=tokenizer, quantize=quantize)
    if kind == "encoder-decoder":
        return load_with_head(name_or_path, AutoModelForSeq2SeqLM, tokenizer=tokenizer, quantize=quantize)
    writes = decoder or name_or_path
    check_decoder(writes, option="--decoder " if decoder else "")
    reader = load_weights(AutoModel, name_or_path, config, new=("pooler",), quantize=quantize)
    writer = _load_decoder(writes, quantize=quantize)
    target = written_by(tokenizer)
    for side, one, name in ((tokenizer, reader, name_or_path), (target, writer, writes)):
        check_ids(side, one, name)
    model = EncoderDecoderModel(encoder=reader, decoder=writer)
    model.at_random = [f"{side}.{name}" for side in ("encoder", "decoder") for name in getattr(model, side).at_random]
    if quantize:  # as Trainer and peft ask the model itself
        for name in ("is_quantized", "quantization_method", "hf_quantizer", f"is_loaded_in_{quantize}bit"):
            setattr(model, name, getattr(reader, name))
    end = target.eos_token_id if target.eos_token_id is not None else target.sep_token_id
    starts = (target.bos_token_id, target.cls_token_id, end)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = next((one for one in starts if one is not None), None)
        settings.eos_token_id, settings.pad_token_id = end, target.pad_token_id
    model.generation_config.suppress_tokens = writer.generation_config.suppress_tokens  # rows that no token has
    return model


def check_decoder(name_or_path: str, *, option: str = "") -> None:
    """Raise ValueError where a checkpoint's class cannot read what an encoder made of a text."""
    config = load_config(name_or_path)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if config.is_encoder_decoder:
        said = "is an encoder-decoder, which has a half that reads"
    elif model_class is None or "encoder_hidden_states" not in inspect.signature(model_class.forward).parameters:
        said = f"is a {config.model_type}, which cannot serve as a decoder: its class has no cross attention"
    else:
        return
    raise ValueError(f"{option}{name_or_path} {said}; take a GPT-2, BERT, RoBERTa, XLM-R, ELECTRA or XGLM.")


def _load_decoder(name_or_path: str, *, quantize: int) -> PreTrainedModel:
    config = load_config(name_or_path)
    kind = family(config)
    config.is_decoder = config.add_cross_attention = config.use_cache = True
    # An encoder's own head is often left out, and its body is no worse for it.
    new = (*BETWEEN, HEAD) if kind == "encoder" else BETWEEN
    return load_weights(AutoModelForCausalLM, name_or_path, config, new=new, quantize=quantize)
