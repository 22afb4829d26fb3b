"""How a task begins: a tokenizer, and a model that is new, has a head or writes text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import transformers
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.models.bert import new_bert
from hf_lm.models.configuration import context_length, family, load_config
from hf_lm.models.encoder_decoder import load_text_to_text, new_bart
from hf_lm.models.loading import load_with_head
from hf_lm.tokenization.languages import set_languages
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer, set_pad


@dataclass
class Start:
    """A tokenizer and a model for a task; `new_model` makes the model anew each time, `model` is the first one.

    `family`: encoder, decoder or encoder-decoder. `as_text`: the task is learned as text to write, else by a head.
    `positions`: tokens that the model can read, 0 where it has no limit. `labels`: the classes of the head, in its
    order. `languages`: source and target of a translation.
    """

    tokenizer: PreTrainedTokenizerBase
    family: str
    as_text: bool
    positions: int
    labels: Sequence[str]
    languages: tuple[str, str] | None
    new_model: Callable[[], PreTrainedModel]

    @cached_property
    def model(self) -> PreTrainedModel:
        return self.new_model()

    def at_most(self, length: int) -> int:
        """`length`, or the model's positions where those are fewer."""
        return min(length, self.positions or length)


def start_fresh(
    texts: Iterable[str],
    *,
    auto_class: str,
    block_size: int,
    labels: Sequence[str] = (),
    languages: tuple[str, str] | None = None,
    vocab_size: int = 2048,
    sizes: Mapping[str, int] | None = None,
) -> Start:
    """A tokenizer trained on `texts`, and a small BERT with the head of `auto_class`; a BART where that is "".

    `block_size`: positions; `sizes`: further arguments of `new_bert` or `new_bart`, such as n_embd.
    """
    tokenizer, size = new_tokenizer(texts, vocab_size=vocab_size), {"block_size": block_size, **(sizes or {})}
    if not auto_class:
        new_model = lambda: new_bart(tokenizer, **size)  # noqa: E731
        return Start(tokenizer, "encoder-decoder", True, block_size, labels, languages, new_model)
    head = head_of(auto_class)._model_mapping[BertConfig]
    new_model = lambda: new_bert(tokenizer, model_class=head, labels=labels, **size)  # noqa: E731
    return Start(tokenizer, "encoder", False, block_size, labels, languages, new_model)


def start_from(
    model: str,
    *,
    auto_class: str,
    as_text: bool = False,
    labels: Sequence[str] = (),
    tokenizer: str = "",
    decoder: str = "",
    languages: tuple[str, str] | None = None,
    quantize: int = 0,
    trained: bool = False,
) -> Start:
    """A checkpoint's tokenizer, and the checkpoint with the head of `auto_class`, or as a model that writes.

    An encoder-decoder always writes; so does every family where `auto_class` is "", and a decoder with `as_text`.
    `tokenizer`: where it is loaded from, "" is the checkpoint. `decoder`: see `load_text_to_text`. `languages`: source
    and target of a translation. `trained`: the checkpoint must have the head. Raises OSError or ValueError in one line
    where the checkpoint cannot be loaded or has no such head.
    """
    loaded = load_tokenizer(tokenizer or model, decoder=decoder)
    set_pad(loaded)
    if languages:
        set_languages(loaded, *languages)
    config = load_config(model)
    kind, positions = family(config), context_length(config)
    if not auto_class or kind == "encoder-decoder" or (kind == "decoder" and as_text):
        new_model = lambda: load_text_to_text(model, tokenizer=loaded, decoder=decoder, quantize=quantize)  # noqa: E731
        return Start(loaded, kind, True, positions, labels, languages, new_model)

    def with_head() -> PreTrainedModel:
        head = head_of(auto_class)
        return load_with_head(model, head, tokenizer=loaded, labels=labels, trained=trained, quantize=quantize)

    return Start(loaded, kind, False, positions, labels, languages, with_head)


def head_of(auto_class: str) -> Any:
    """The auto class of transformers by its name; Any, as its mapping from configurations has no type."""
    return getattr(transformers, auto_class)
