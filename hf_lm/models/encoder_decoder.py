"""Encoder-decoders: small fresh ones for demos, and warm starts from encoders (BERT2BERT) and decoders."""

from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase


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
