"""The log-likelihood of sentences: token by token under a causal model, one mask at a time under a masked one."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.data.batches import MAX_LOGITS, map_by_length, pad_batch
from hf_lm.models.configuration import family
from hf_lm.tokenization.tokenizer import frame_of, set_pad


def token_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[int]],
    *,
    places: Sequence[Sequence[int]] | None = None,
    max_tokens: int = 2**14,  # in a batch, with its padding
) -> list[np.ndarray]:
    """log p of each token of each sentence, given as ids without special tokens; nats, in float64.

    A causal model gives p(token | those before it), the first one after the begin token. A masked model gives
    p(token | all others), with that token alone masked: their sum is the pseudo-log-likelihood (Salazar et al., arXiv
    1910.14659). `places` asks for some tokens of each sentence only. Like-sized sentences share a batch and at most
    2^24 logits exist at once, so that memory is flat. Raises ValueError where a masked model's tokenizer has no mask.
    """
    set_pad(tokenizer)
    places = [range(len(ids)) for ids in sentences] if places is None else places
    was_training = model.training
    model.eval()
    try:
        work = _masked if family(model.config) == "encoder" else _causal
        return work(model, tokenizer, sentences, places, max_tokens)
    finally:
        model.train(was_training)


@torch.no_grad()
def _causal(model, tokenizer, sentences, places, max_tokens) -> list[np.ndarray]:
    # The end token begins a text where there is no begin token, as in packed training text.
    begin = frame_of(tokenizer, causal=True).before or [
        next(i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None)
    ]
    inputs = [[*begin, *ids] for ids in sentences]
    vocab_size = model.get_output_embeddings().weight.shape[0]

    def score(rows: list[int]) -> list[np.ndarray]:
        batch = pad_batch([{"input_ids": inputs[i]} for i in rows], pad_id=tokenizer.pad_token_id)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        logits = model(**batch, use_cache=False).logits[:, :-1]  # (rows, width - 1, vocab)
        targets = batch["input_ids"][:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        found = -losses.view(targets.shape).double().cpu().numpy()
        start = len(begin) - 1
        return [found[row, start + np.asarray(places[i], int)] for row, i in enumerate(rows)]

    lengths = [len(ids) for ids in inputs]
    limit = min(max_tokens, max(1, MAX_LOGITS // vocab_size))
    return map_by_length(score, lengths, description="likelihood", max_tokens=limit)


@torch.no_grad()
def _masked(model, tokenizer, sentences, places, max_tokens) -> list[np.ndarray]:
    if tokenizer.mask_token_id is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path} has no mask token: masked likelihood needs one.")
    frame = frame_of(tokenizer, causal=False)
    index = [(sentence, place) for sentence, some in enumerate(places) for place in some]
    head, vocab_size = model.get_output_embeddings(), model.get_output_embeddings().weight.shape[0]
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
            ids[place] = tokenizer.mask_token_id
            features.append({"input_ids": [*frame.before, *ids, *frame.after]})
        batch = pad_batch(features, pad_id=tokenizer.pad_token_id)
        masked = torch.tensor(at, device=model.device)
        logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
        logits = logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(rows)), masked]
        losses = torch.nn.functional.cross_entropy(
            logits.float(), torch.tensor(targets, device=model.device), reduction="none"
        )
        return (-losses.double()).tolist()

    lengths = [len(sentences[sentence]) + len(frame.before) + len(frame.after) for sentence, _ in index]
    hook = head.register_forward_pre_hook(only_the_mask)
    try:
        found = map_by_length(
            score,
            lengths,
            description="pseudo-likelihood",
            max_tokens=max_tokens,
            max_rows=max(1, MAX_LOGITS // vocab_size),
        )
    finally:
        hook.remove()
    ends = np.cumsum([len(some) for some in places])
    return [np.asarray(part, np.float64) for part in np.split(np.asarray(found), ends[:-1])] if len(ends) else []
