"""The log-probability of given tokens: one after the other under a causal model or a decoder, one mask at a time under
a masked model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import MAX_LOGITS, Feature, Processes, TokenId, map_by_length, pad_batch
from hf_lm.models.configuration import family
from hf_lm.tokenization.tokenizer import set_pad, special_tokens_around

MAX_TOKENS = 2**14  # in a batch, with its padding


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; the model's mode is restored afterwards, whatever happens."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def labelled(prompt: Sequence[int], continuation: Sequence[int], *, causal: bool = True) -> Feature:
    """The feature in which `continuation` is predicted after `prompt`; an encoder-decoder reads the prompt apart."""
    if causal:
        return {"input_ids": [*prompt, *continuation], "labels": [-100] * len(prompt) + list(continuation)}
    return {"input_ids": list(prompt), "labels": list(continuation)}


def unwrapped(model: torch.nn.Module) -> Any:
    """The model inside DDP, which has no `generate` and no configuration; any other as it is."""
    return getattr(model, "module", model)


@torch.no_grad()
def token_log_probs(
    model: torch.nn.Module,  # a PreTrainedModel, also inside an adapter or DDP
    features: Sequence[Feature],
    *,
    processes: Processes | None = None,
    max_logits: int = MAX_LOGITS,
    max_rows: int = 512,
) -> list[np.ndarray]:
    """log p of each label of each feature {"input_ids", "labels"}, -100 left out: (labels,) in nats, float64.

    The labels of a causal model lie on its `input_ids` and each is predicted from those before it; an encoder-decoder
    reads `input_ids` and generates the labels. Like-sized features share a batch, in which padding changes nothing,
    and at most `max_logits` logits exist at once. `processes` share the work; each returns the complete result.
    """
    network = unwrapped(model)
    causal = family(network.config) == "decoder"
    start = None if causal else _decoder_start(network)
    device = next(model.parameters()).device

    def score(rows: list[int]) -> list[np.ndarray]:
        batch = [dict(features[i]) for i in rows]
        for feature in batch if not causal else ():
            feature["decoder_input_ids"] = [start, *feature["labels"]][: max(1, len(feature["labels"]))]
        inputs: dict[str, Any] = {key: value.to(device) for key, value in pad_batch(batch, pad_id=0).items()}
        labels = inputs.pop("labels").long()  # of nothing, they would be floats
        if causal:  # the logits of what all prompts share are not needed
            labels = F.pad(labels[:, 1:], (0, 1), value=-100)
            labels = labels[:, int((labels != -100).any(0).int().argmax()) :]
            inputs["logits_to_keep"] = labels.shape[1]
        logits = model(**inputs, use_cache=False).logits
        logits = logits[:, logits.shape[1] - labels.shape[1] :]  # (rows, width, vocab)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        nats, known = -losses.double().cpu().numpy(), (labels != -100).cpu().numpy()
        return [row[kept] for row, kept in zip(nats, known, strict=True)]

    lengths = [len(feature["input_ids"]) + (0 if causal else len(feature["labels"])) for feature in features]
    limit = min(MAX_TOKENS, max(1, max_logits // network.get_output_embeddings().weight.shape[0]))
    with evaluating(model):
        return map_by_length(
            score, lengths, accelerator=processes, description="likelihood", max_tokens=limit, max_rows=max_rows
        )


def _decoder_start(model: PreTrainedModel) -> int:
    start = model.generation_config.decoder_start_token_id
    return model.config.decoder_start_token_id if start is None else start


def sentence_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[int]],
    *,
    places: Sequence[Sequence[int]] | None = None,
    max_logits: int = MAX_LOGITS,
) -> list[np.ndarray]:
    """log p of each token of each sentence, given as ids without special tokens: (tokens,) in nats, float64.

    A causal model gives p(token | those before it), the first one after the begin token. A masked model gives
    p(token | all others), with that token alone masked: their sum is the pseudo-log-likelihood (Salazar et al., arXiv
    1910.14659). `places` asks for some tokens of each sentence only. Raises ValueError where a masked model's
    tokenizer has no mask.
    """
    set_pad(tokenizer)
    places = [range(len(ids)) for ids in sentences] if places is None else places
    if family(model.config) == "encoder":
        with evaluating(model):
            return _masked(model, tokenizer, sentences, places, max_logits)
    # The end token begins a text where there is no begin token, as in packed training text.
    ends: list[TokenId] = [i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None]
    begin = special_tokens_around(tokenizer, causal=True).before or ends[:1]
    log_probs = token_log_probs(model, [labelled(begin, ids) for ids in sentences], max_logits=max_logits)
    return [row[np.asarray(some, int)] for row, some in zip(log_probs, places, strict=True)]


@torch.no_grad()
def _masked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    max_logits: int,
) -> list[np.ndarray]:
    mask: TokenId = tokenizer.mask_token_id
    if mask is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no mask token: masked likelihood needs one.")
    mask_id, pad_id = cast(int, mask), cast(int, tokenizer.pad_token_id)
    frame = special_tokens_around(tokenizer, causal=False)
    index = [(sentence, place) for sentence, some in enumerate(places) for place in some]
    head: Any = model.get_output_embeddings()
    masked = torch.zeros(0)

    def only_the_mask(module: torch.nn.Module, inputs: tuple) -> tuple:
        """The head's product with the vocabulary, most of the work of a small model, for the masked token alone."""
        hidden = inputs[0]  # (rows, width, n_embd)
        return (hidden[torch.arange(len(hidden), device=hidden.device), masked][:, None], *inputs[1:])

    def score(rows: list[int]) -> list[float]:
        nonlocal masked
        features, targets, at = [], [], []
        for i in rows:
            sentence, place = index[i]
            ids = list(sentences[sentence])
            targets.append(ids[place])
            at.append(len(frame.before) + place)
            ids[place] = mask_id
            features.append({"input_ids": [*frame.before, *ids, *frame.after]})
        batch = pad_batch(features, pad_id=pad_id)
        masked = torch.tensor(at, device=model.device)
        logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
        logits = logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(rows)), masked]
        losses = F.cross_entropy(logits.float(), torch.tensor(targets, device=model.device), reduction="none")
        return (-losses.double()).tolist()

    lengths = [len(sentences[sentence]) + len(frame.before) + len(frame.after) for sentence, _ in index]
    hook = head.register_forward_pre_hook(only_the_mask)
    try:
        rows = max(1, max_logits // head.weight.shape[0])
        nats = map_by_length(score, lengths, description="pseudo-likelihood", max_tokens=MAX_TOKENS, max_rows=rows)
    finally:
        hook.remove()
    ends = np.cumsum([len(some) for some in places])
    return np.split(np.asarray(nats, np.float64), ends[:-1]) if len(ends) else []
