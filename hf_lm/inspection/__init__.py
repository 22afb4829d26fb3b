"""What a model will see of its data: read, tokenized, truncated and batched as in training, without training."""
