"""The likelihood of documents under a causal model: perplexity per token and per word, and bits per byte.

Pretraining maximises L(D; θ), the sum over documents of log p(document; θ); what is reported here is that sum on text
the model has not seen, divided by the tokens, the words or the bytes of the text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from hf_lm.data.batches import MAX_LOGITS
from hf_lm.evaluation.intervals import POSITIVE, Estimate, ratio

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

    Windows are sorted by length, padded on the right (which a causal model cannot see) and batched so that no more
    than `max_logits` logits exist at once: memory does not grow with the evaluation set. With an accelerator the
    windows are shared out among its processes and every process returns the whole result.
    """
    index = []
    for document in range(len(stream)):
        length = len(stream.document(document))
        for start, end, scored in windows(length, block_size=block_size, stride=stride):
            index.append((end - start, document, start, scored))
    index.sort(reverse=True)  # the longest first: if memory is short, it is so at once
    if accelerator is not None:
        index = index[accelerator.process_index :: accelerator.num_processes]

    device = next(model.parameters()).device
    nll = torch.zeros(len(stream), dtype=torch.float64)
    was_training = model.training
    model.eval()
    vocab_size = model.get_output_embeddings().weight.shape[0]
    position = 0
    shown = accelerator is None or accelerator.is_main_process
    bar = tqdm(desc="evaluating", total=len(index), delay=2, leave=False, disable=None if shown else True)
    while position < len(index):
        width = index[position][0]
        rows = index[position : position + max(1, max_logits // (vocab_size * width))]
        position += len(rows)
        bar.update(len(rows))
        input_ids = np.zeros((len(rows), width), np.int64)
        labels = np.full((len(rows), width), -100, np.int64)
        for row, (length, document, start, scored) in enumerate(rows):
            ids = stream.document(document)
            input_ids[row, :length] = ids[start : start + length]
            labels[row, length - scored : length] = ids[start + length - scored + 1 : start + length + 1]
        logits = model(
            input_ids=torch.from_numpy(input_ids).to(device), use_cache=False
        ).logits  # (rows, width, vocab)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), torch.from_numpy(labels).to(device).flatten(), reduction="none"
        )
        sums = losses.view(len(rows), width).double().sum(dim=1).cpu()
        nll.index_add_(0, torch.tensor([document for _, document, _, _ in rows]), sums)
    bar.close()
    model.train(was_training)
    if accelerator is not None and accelerator.num_processes > 1:
        # MPS and some backends have no float64; nothing is lost on those that reach several processes.
        nll = accelerator.reduce(nll.to(accelerator.device), reduction="sum").cpu()
    tokens = np.array([len(stream.document(document)) - 1 for document in range(len(stream))], np.int64)
    return Likelihood(nll.numpy(), tokens, np.asarray(stream.bytes), np.asarray(stream.words))


def unigram_likelihood(train: "TokenStream", stream: "TokenStream", *, vocab_size: int) -> Likelihood:
    """The baseline: the same tokens, each predicted by its frequency in train (add-one smoothing)."""
    counts = np.ones(vocab_size, np.float64)
    for start in range(0, len(train.tokens), 2**22):
        counts += np.bincount(train.tokens[start : start + 2**22], minlength=vocab_size)
    log_probs = np.log(counts / counts.sum())
    nll = np.array([-log_probs[stream.document(i)[1:]].sum() for i in range(len(stream))])
    tokens = np.array([len(stream.document(i)) - 1 for i in range(len(stream))], np.int64)
    return Likelihood(nll, tokens, np.asarray(stream.bytes), np.asarray(stream.words))
