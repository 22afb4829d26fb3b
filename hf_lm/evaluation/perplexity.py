"""The likelihood of documents under a causal model: perplexity per token and per word, and bits per byte.

Pretraining maximises L(D; θ), the sum over documents of log p(document; θ); what is reported here is that sum on text
the model has not seen, divided by the tokens, the words or the bytes of the text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from hf_lm.data.batches import MAX_LOGITS, map_by_length
from hf_lm.evaluation.intervals import POSITIVE, Estimate, ratio
from hf_lm.evaluation.likelihood import evaluating

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from hf_lm.data.packing import TokenStream


@dataclass(frozen=True)
class Likelihood:
    """Per document, each (documents,): negative log-likelihood in nats, predicted tokens, UTF-8 bytes, words.

    Every token of a document is predicted from those before it, the first one from the document marker alone, and the
    end of the document is predicted too (one more token, no more bytes): p is then a distribution over documents.
    """

    nll: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray

    def metrics(self) -> dict[str, Estimate]:
        """Bits per byte, token perplexity and word perplexity (words as white space parts them).

        Text without spaces between its words, as Chinese, has no word perplexity: above 20 bytes a word there is none.
        """
        per = partial(ratio, self.nll, higher_is_better=False, bounds=POSITIVE)
        found = {
            "bits_per_byte": per(self.bytes * math.log(2)),
            "perplexity": per(self.tokens, transform=_exp_or_inf),
        }
        if self.bytes.sum() <= 20 * self.words.sum():
            found["word_perplexity"] = per(self.words, transform=_exp_or_inf)
        return found

    def examples(self) -> list[dict[str, float]]:
        """A row per document, in order."""
        columns = {name: getattr(self, name).tolist() for name in ("nll", "tokens", "bytes", "words")}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return float(self.nll.sum() / self.tokens.sum())


def _exp_or_inf(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(x)


def windows(length: int, *, block_size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Cut a document of `length` ids into (start, end, scored): feed ids[start:end], score the last `scored`.

    The prediction at position i is id i + 1, so ids[1:length] are each scored exactly once. Every window but the first
    scores at most `stride` ids and gives each of them at least block_size - stride ids of context.
    """
    if not 1 <= stride <= block_size:
        raise ValueError(f"--eval_stride is {stride}; it must lie between 1 and the block size, {block_size}.")
    end = min(block_size, length - 1)
    yield 0, end, end
    while end < length - 1:
        scored = min(stride, length - 1 - end)
        end += scored
        yield end - block_size, end, scored


@torch.no_grad()
def score_documents(
    model: "PreTrainedModel",
    stream: "TokenStream",
    *,
    block_size: int,
    stride: int,
    accelerator: "Accelerator | None" = None,
    max_logits: int = MAX_LOGITS,
) -> Likelihood:
    """Score every document of a token stream in sliding windows.

    Windows of like length share a batch, padded on the right (which a causal model cannot see), and no more than
    `max_logits` logits exist at once: memory does not grow with the evaluation set. The tokens that a window only has
    as context get no logits. The processes of an accelerator share the windows and each returns the complete result.
    """
    index = [
        (document, *window)
        for document in range(len(stream))
        for window in windows(len(stream.document(document)), block_size=block_size, stride=stride)
    ]
    index.sort(key=lambda row: row[-1])  # windows of one length that score few tokens do not share a batch with others
    device = next(model.parameters()).device

    def score(rows: list[int]) -> list[float]:
        some = [index[i] for i in rows]
        width = max(end - start for _, start, end, _ in some)
        input_ids = np.zeros((len(rows), width), np.int64)
        labels = np.full((len(rows), width), -100, np.int64)
        for row, (document, start, end, scored) in enumerate(some):
            ids = stream.document(document)
            input_ids[row, : end - start] = ids[start:end]
            labels[row, end - start - scored : end - start] = ids[end - scored + 1 : end + 1]
        kept = width - min(end - start - scored for _, start, end, scored in some)
        logits = model(
            input_ids=torch.from_numpy(input_ids).to(device), use_cache=False, logits_to_keep=kept
        ).logits  # (rows, kept, vocab)
        targets = torch.from_numpy(labels[:, width - kept :]).to(device).flatten()
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
        return losses.view(len(rows), kept).cpu().double().sum(dim=1).tolist()

    head: Any = model.get_output_embeddings()
    with evaluating(model):
        nats = map_by_length(
            score,
            [end - start for _, start, end, _ in index],
            accelerator=accelerator,
            description="evaluating",
            max_tokens=max_logits // head.weight.shape[0],
            max_rows=max(1, max_logits),
        )
    nll = np.bincount([document for document, *_ in index], nats, len(stream))
    tokens = np.array([len(stream.document(document)) - 1 for document in range(len(stream))], np.int64)
    return Likelihood(nll, tokens, np.asarray(stream.bytes), np.asarray(stream.words))


def unigram_likelihood(train: "TokenStream", stream: "TokenStream", *, vocab_size: int) -> Likelihood:
    """The baseline: the same tokens, each predicted by its frequency in train (add-one smoothing)."""
    counts = np.ones(vocab_size, np.float64)
    for start in range(0, len(train.tokens), 2**22):
        counts += np.bincount(train.tokens[start : start + 2**22], minlength=vocab_size)
    log_probs = np.log(counts / counts.sum())
    nll = np.array([-log_probs[stream.document(i)[1:]].sum() for i in range(len(stream))])
    tokens = np.array([len(stream.document(i)) - 1 for i in range(len(stream))], np.int64)
    return Likelihood(nll, tokens, np.asarray(stream.bytes), np.asarray(stream.words))
