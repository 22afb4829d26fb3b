"""The probabilities that a text classifier gives."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import map_by_length, pad_batch
from hf_lm.models.configuration import context_length
from hf_lm.models.loading import load_with_head
from hf_lm.tokenization.tokenizer import encode_documents, load_tokenizer, set_pad, special_tokens_around


def load_classifier(name: str, *, device: str | torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A text classifier, a folder or a Hub id, and its tokenizer. Raises OSError or ValueError in one line."""
    tokenizer = load_tokenizer(name)
    set_pad(tokenizer)
    model = load_with_head(name, AutoModelForSequenceClassification, tokenizer=tokenizer, trained=True)
    model.to(device)  # pyright: ignore[reportArgumentType]  (decorated without its type)
    return model.eval(), tokenizer


@torch.no_grad()
def class_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> np.ndarray:
    """The probability of each class for each text, (texts, classes), in float64; long texts are truncated.

    They add up to 1, or are independent where the classifier is one of several labels (see `has_several_labels`).
    """
    frame = special_tokens_around(tokenizer, causal=False)
    length = min(512, context_length(model.config) or 512) - len(frame.before) - len(frame.after)
    inputs = [[*frame.before, *ids[:length], *frame.after] for ids in encode_documents(tokenizer, list(texts))]
    inputs = [ids or [tokenizer.pad_token_id] for ids in inputs]

    def classify(rows: list[int]) -> list[np.ndarray]:
        batch = pad_batch([{"input_ids": inputs[i]} for i in rows], pad_id=tokenizer.pad_token_id)
        logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits.double()
        return list((logits.sigmoid() if has_several_labels(model) else logits.softmax(-1)).cpu().numpy())

    rows = map_by_length(classify, [len(ids) for ids in inputs], description="classifying")
    return np.array(rows).reshape(len(inputs), model.config.num_labels or 1)


def has_several_labels(model: PreTrainedModel) -> bool:
    """Whether a text may have several labels or none, each with a probability of its own, as transformers decides."""
    return model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1
