"""Randomly initialised BERT encoders, for tasks whose demo needs no checkpoint."""

from collections.abc import Sequence

from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.models.configuration import check_memory, set_labels, special_ids


def new_bert(
    tokenizer: PreTrainedTokenizerBase,
    *,
    model_class: type[PreTrainedModel] = BertForSequenceClassification,
    labels: Sequence[str] = (),
    n_layer: int = 2,
    n_head: int = 4,
    n_embd: int = 128,
    block_size: int = 128,  # positions
    dropout: float = 0.1,
) -> PreTrainedModel:
    """A BERT with random weights and the head of `model_class`, for the tokenizer's vocabulary; `labels` name classes.

    Pass the tokenizer through `add_frame` first, so that texts begin with the token that the head reads.
    """
    check_memory((block_size + 12 * n_layer * n_embd) * n_embd, f"block_size={block_size:,}, n_embd={n_embd:,}")
    config = BertConfig(
        vocab_size=64 * (max(tokenizer.get_vocab().values()) // 64 + 1),
        hidden_size=n_embd,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        intermediate_size=4 * n_embd,
        max_position_embeddings=block_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **special_ids(tokenizer),
    )
    set_labels(config, labels)
    return model_class(config)
