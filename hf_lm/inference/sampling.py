"""Choice of tokens and stopping, each row independent of its batch: arguments of transformers' `generate`."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_lm.inference.decoding import Decoding
from hf_lm.tokenization.tokenizer import INCOMPLETE

BEFORE = 8  # tokens of the prompt that are decoded with the continuation: they decide whether it begins with a space


def logits_processors(
    settings: Decoding, rows: Sequence[tuple[list[int], int]], padding: Sequence[int]
) -> LogitsProcessorList:
    """The processors of these settings, for rows of (prompt's ids, number of the text), padded on the left."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(WithoutPadding(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty), padding))
    if settings.no_repeat_ngram_size:
        processors.append(WithoutPadding(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size), padding))
    if settings.temperature > 0:
        if settings.temperature != 1:
            processors.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            processors.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(settings.top_p))
        if settings.min_p:
            processors.append(MinPLogitsWarper(settings.min_p))
        processors.append(Draw([seed_of(settings.seed, *row) for row in rows]))
    return processors


class Draw(LogitsProcessor):
    """Leaves one token to choose, drawn from the scores with a generator per row.

    transformers draws the batch from one generator, so that a row's text depends on the other rows.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        draws = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in self.generators])
        precise = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
        cumulative = scores.to(precise).softmax(-1).cumsum(-1)  # (rows, vocab)
        draws = draws.to(scores.device, precise) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, draws, right=True)  # right: never a token of probability 0
        chosen = chosen.clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class WithoutPadding(LogitsProcessor):
    """A processor of transformers, row by row without padding, which it would treat as text."""

    def __init__(self, processor: Callable[..., torch.Tensor], padding: Sequence[int]) -> None:
        self.processor, self.padding = processor, padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        beams = len(input_ids) // len(self.padding)
        rows = [
            self.processor(input_ids[i : i + 1, self.padding[i // beams] :], scores[i : i + 1])
            for i in range(len(input_ids))
        ]
        return torch.cat(rows)


class Stop(StoppingCriteria):
    """Whether a row contains a stop string. transformers' own also matches one that begins in the prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        # A token may be one byte, and the tail may begin inside a character or with a special token.
        self.tail = max(len(each.encode()) for each in stop) + BEFORE

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        rows = input_ids[:, self.start :][:, -self.tail :].tolist()
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return torch.tensor([any(stop in text for stop in self.stop) for text in texts], device=input_ids.device)


class Interrupt(StoppingCriteria, threading.Event):
    """Ends generation after the current token, once it is set."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        return torch.full(input_ids.shape[:1], self.is_set(), device=input_ids.device)


def seed_of(seed: int, prompt: Sequence[int], number: int) -> int:
    """The seed of one text: it depends on the run's seed, the prompt's ids and the number of the text."""
    digest = hashlib.blake2b(f"{seed} {number} {list(prompt)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits


def before_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Pieces up to the first stop string; a possible beginning of one, or of a character, is held back."""
    held = ""
    for piece in pieces:
        held += piece
        places = [place for each in stop if (place := held.find(each)) >= 0]
        if places:
            if before := held[: min(places)]:
                yield before
            return
        keep = max(
            [len(held) - len(held.rstrip(INCOMPLETE))]
            + [n for each in stop for n in range(1, len(each)) if held.endswith(each[:n])]
        )
        if keep < len(held):
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held := held.rstrip(INCOMPLETE):
        yield held
