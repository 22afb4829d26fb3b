"""Generation with decoders and encoder-decoders: `generate` for many prompts at once, `stream` for one, in pieces.

    model, tokenizer = load_writer("out/pretrain")
    generate(model, tokenizer, ["The function returns"], temperature=0)[0][0].text

The settings are those of hf_lm.inference.decoding.Decoding. A prompt of text follows the marker that begins a
document, as in training; a prompt of ids is used unchanged.
"""

import logging
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from hf_lm.data.batches import pad_batch
from hf_lm.evaluation.completions import generate_ids
from hf_lm.evaluation.likelihood import labelled, token_log_probs
from hf_lm.inference.decoding import Decoding
from hf_lm.inference.sampling import BEFORE, Interrupt, Stop, before_stop, logits_processors
from hf_lm.models.configuration import context_length, family, find_adapter, load_config, special_ids
from hf_lm.models.devices import device_named
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.loading import load_causal_lm
from hf_lm.models.target_tokenizer import target_tokenizer
from hf_lm.tokenization.tokenizer import INCOMPLETE, encode_documents, load_tokenizer, set_pad, special_tokens_around

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]
LONGEST = 128  # new tokens at most, where max_new_tokens is 0


@dataclass(frozen=True)
class Continuation:
    """What a model generated after a prompt.

    `log_probs`: nats per token under the model itself, without the settings. They include the end marker and the
    tokens of a stop string, which are not part of `text`.
    `ended`: by the "end" marker, by a "stop" string, or at the maximal "length".
    """

    text: str
    log_probs: list[float]
    ended: Literal["end", "stop", "length"]

    @property
    def log_probability(self) -> float:
        """Nats of all tokens together."""
        return sum(self.log_probs)

    @property
    def per_token(self) -> float:
        """Mean nats per token; 0 where there is none."""
        return self.log_probability / max(1, len(self.log_probs))


def load_writer(
    name_or_path: str, *, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder or encoder-decoder and its tokenizer, from a folder, an adapter's folder or the Hub.

    `device` None is the accelerator, if there is one, which keeps the precision that the model was saved in; a CPU
    computes in float32. Raises OSError or ValueError in one line.
    """
    name_or_path = str(name_or_path)
    config = load_config(name_or_path)
    kind = family(config)
    if kind == "encoder":
        raise ValueError(
            f"{name_or_path} is a {config.model_type}, an encoder, which cannot generate text; give a decoder (GPT-2, "
            "Llama, ...) or an encoder-decoder (T5, BART, ...)."
        )
    place = device_named(device)
    tokenizer = load_tokenizer(name_or_path)
    set_pad(tokenizer)
    load = load_causal_lm if kind == "decoder" else load_text_to_text
    model = load(name_or_path, tokenizer=tokenizer)
    if adapter := find_adapter(name_or_path):  # an adapter's updates are float32; the base's dtype counts
        config = load_config(adapter["base_model_name_or_path"])
    half = config.dtype in (torch.bfloat16, torch.float16) and place.type != "cpu"
    cast(nn.Module, model).to(place, cast(torch.dtype, config.dtype) if half else None)
    return model.eval(), tokenizer


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    end_ids: Sequence[int] = (),  # ids that end a text, besides the model's own
    **decoding: Any,
) -> list[list[Continuation]]:
    """`num_return_sequences` continuations of each prompt, in the prompts' order; of beams the most likely first.

    A text depends on the model, the prompt, the settings and its number among the prompt's texts, not on the other
    rows of its batch: each row has a seed of its own. (In float32; half precision rounds differently in batches of
    another shape.) Equal prompts get equal texts. `decoding` are the fields of Decoding. `encode_prompt` truncates a
    prompt that is too long.
    """
    settings = Decoding(**decoding)
    writer = _Writer(model, tokenizer, settings, end_ids)
    copies = settings.num_return_sequences if settings.num_beams == 1 else 1  # beams come from one search
    rows = [(ids, copy) for ids in map(writer.encode, prompts) for copy in range(copies)]
    sequences = generate_ids(
        model,
        [ids for ids, _ in rows],
        pad_id=writer.prompt_pad_id,
        options=lambda batch, inputs: writer.options([rows[i] for i in batch], inputs),
        max_rows=settings.batch_size,
    )
    written = [(ids, *writer.read(ids, each)) for (ids, _), some in zip(rows, sequences, strict=True) for each in some]
    features = [labelled(prompt, ids, causal=writer.causal) for prompt, _, ids, _ in written]
    log_probs = token_log_probs(model, features, max_rows=settings.batch_size)
    texts = [Continuation(row[1], nats.tolist(), row[3]) for row, nats in zip(written, log_probs, strict=True)]
    each = settings.num_return_sequences
    return [texts[i : i + each] for i in range(0, len(texts), each)]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    end_ids: Sequence[int] = (),
    **decoding: Any,
) -> Generator[str]:
    """The text that `generate` gives for one prompt, in pieces of complete characters, as they are generated.

    A thread generates. It ends after the current token when the iterator is closed, deleted, or left by an exception
    such as KeyboardInterrupt. Raises ValueError for beams, which cannot be streamed.
    """
    settings = Decoding(**decoding)
    if settings.num_beams > 1 or settings.num_return_sequences > 1:
        raise ValueError("only one text can be streamed: give num_beams 1 and num_return_sequences 1.")
    writer = _Writer(model, tokenizer, settings, end_ids)
    return writer.stream(writer.encode(prompt))


def encode_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, max_new_tokens: int = 0
) -> tuple[list[int], int]:
    """(ids of the prompt, number of tokens truncated at its beginning to fit the context).

    Text follows the marker that begins a document, so that an empty prompt is the marker alone; a special token in it
    is text. Raises ValueError where `max_new_tokens` leaves no token for the prompt.
    """
    causal = family(model.config) == "decoder"
    frame = special_tokens_around(tokenizer, causal=causal)
    before, after = (frame.before, frame.after) if isinstance(prompt, str) else ([], [])
    ids = encode_documents(tokenizer, [prompt])[0] if isinstance(prompt, str) else list(prompt)
    positions = context_length(model.config)
    if positions:
        budget = positions - len(before) - len(after) - (tokens_to_write(model, max_new_tokens) if causal else 0)
        if budget < 1:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}, but the model's context is {positions} tokens, the prompt among "
                f"them: give {positions - len(before) - len(after) - 1} or less."
            )
        ids, left_out = ids[-budget:], max(0, len(ids) - budget)
    else:
        left_out = 0
    ids = [*before, *ids, *after]
    if not ids:
        raise ValueError("the prompt is empty, and the tokenizer has no token that begins a text: give some text.")
    return ids, left_out


def tokens_to_write(model: PreTrainedModel, max_new_tokens: int = 0) -> int:
    """New tokens at most: `max_new_tokens`, or half the context and at most 128 where that is 0."""
    return max_new_tokens or min(LONGEST, context_length(model.config, written=True) // 2 or LONGEST)


class _Writer:
    """A model, its tokenizer and the settings, as arguments of transformers' `generate`."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Decoding, end_ids: Sequence[int]
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.causal = family(model.config) == "decoder"
        self.generate = cast(Any, model).generate
        own = model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [own]
        self.target = target_tokenizer(tokenizer)
        ids = special_ids(self.target)
        self.end_ids = sorted({i for i in (*own, ids["eos_token_id"], *end_ids) if i is not None})
        self.max_new_tokens = tokens_to_write(model, settings.max_new_tokens)
        self.pad_id = next(i for i in (ids["pad_token_id"], *self.end_ids, 0) if i is not None)
        self.prompt_pad_id: int = self.pad_id if self.causal else special_ids(tokenizer)["pad_token_id"] or 0

    def encode(self, prompt: Prompt) -> list[int]:
        ids, left_out = encode_prompt(self.model, self.tokenizer, prompt, max_new_tokens=self.settings.max_new_tokens)
        if left_out:
            logger.warning(
                "the prompt's first %s tokens were truncated: the context is %s tokens, %s of them for new ones.",
                f"{left_out:,}",
                f"{context_length(self.model.config):,}",
                f"{self.max_new_tokens:,}",
            )
        return ids

    def stream(self, prompt: list[int]) -> Generator[str]:
        batch = pad_batch([{"input_ids": prompt}], pad_id=self.prompt_pad_id)
        inputs = {key: value.to(self.model.device) for key, value in batch.items()}
        streamer = TextIteratorStreamer(
            self.target, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if self.causal:  # the streamer continues after the end of the prompt, as _text does
            streamer.token_cache = prompt[-BEFORE:]
            streamer.print_len = len(self._decode(streamer.token_cache))
        interrupt, errors = Interrupt(), []

        def run() -> None:
            try:
                options = self.options([(prompt, 0)], inputs, interrupt)
                self.generate(**inputs, **options, streamer=streamer)
            except BaseException as error:  # raised again in the caller's thread
                errors.append(error)
                streamer.end()

        thread = threading.Thread(target=run, name="writing", daemon=True)
        thread.start()
        try:
            yield from before_stop(streamer, self.settings.stop)
        finally:
            interrupt.set()
            thread.join()
        if errors:
            raise errors[0]

    def options(
        self,
        rows: Sequence[tuple[list[int], int]],
        inputs: dict[str, torch.Tensor],
        interrupt: StoppingCriteria | None = None,
    ) -> dict[str, Any]:
        given = self.settings
        padding = [inputs["input_ids"].shape[1] - len(ids) if self.causal else 0 for ids, _ in rows]
        stopping = StoppingCriteriaList()
        if given.stop:
            start = inputs["input_ids"].shape[1] if self.causal else 1
            stopping.append(Stop(self.target, given.stop, start))
        if interrupt is not None:
            stopping.append(interrupt)
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": False,  # Draw samples
            "num_beams": given.num_beams,
            "num_return_sequences": given.num_return_sequences if given.num_beams > 1 else 1,
            "repetition_penalty": 1.0,  # WithoutPadding applies both
            "no_repeat_ngram_size": 0,
            "eos_token_id": self.end_ids or None,
            "pad_token_id": self.pad_id,
            "use_cache": True,
            "logits_processor": logits_processors(given, rows, padding),
            "stopping_criteria": stopping,
        }

    def read(self, prompt: list[int], ids: list[int]) -> tuple[str, list[int], Literal["end", "stop", "length"]]:
        """(text, its ids, how it ended) of a sequence that `generate_ids` returned, with its padding."""
        ids = ids if self.causal else ids[1:]  # the decoder's start
        end = next((place for place, i in enumerate(ids) if i in self.end_ids), None)
        ids = ids if end is None else ids[: end + 1]
        text = self._text(prompt, ids)
        stops = [place for stop in self.settings.stop if (place := text.find(stop)) >= 0]
        if not stops:
            return text, ids, "length" if end is None else "end"
        taken = next(
            n for n in range(len(ids) + 1) if any(stop in self._text(prompt, ids[:n]) for stop in self.settings.stop)
        )
        return text[: min(stops)], ids[:taken], "stop"

    def _text(self, prompt: list[int], ids: list[int]) -> str:
        """What `ids` add to the text of the prompt, without an incomplete last character."""
        before = prompt[-BEFORE:] if self.causal else []
        return self._decode([*before, *ids])[len(self._decode(before)) :].rstrip(INCOMPLETE)

    def _decode(self, ids: list[int]) -> str:
        return cast(str, self.target.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
