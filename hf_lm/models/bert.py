"""Fresh BERT-style encoders, for tasks whose demo needs no checkpoint."""

from collections.abc import Sequence

from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase


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

    Pass the tokenizer through `add_frame` first, so that texts begin with the token the head reads.
    """
    config = BertConfig(
        vocab_size=64 * (max(tokenizer.get_vocab().values()) // 64 + 1),
        hidden_size=n_embd,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        intermediate_size=4 * n_embd,
        max_position_embeddings=block_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    if labels:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    return model_class(config)
