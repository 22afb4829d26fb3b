"""What a model will really see of its data, without training: read, tokenized, cut and batched as training would."""
