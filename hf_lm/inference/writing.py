"""The writing assistant: continue a text, choose among alternatives, undo. For the terminal and the page.

draft = Draft("The function returns")
draft.add("".join(continue_text(model, tokenizer, draft.text, max_new_tokens=20)))
best, *others = alternatives(model, tokenizer, draft.text)
draft.add(best.text)
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.inference.decoding import Decoding
from hf_lm.inference.generate import Continuation, encode_prompt, generate, stream
from hf_lm.models.configuration import family


class Draft:
    """A text and its history. `change` and `add` can be undone; a change after an undo ends what could be redone."""

    def __init__(self, text: str = "") -> None:
        self.states, self.at = [text], 0

    @property
    def text(self) -> str:
        return self.states[self.at]

    def change(self, text: str) -> None:
        """Make this the text."""
        if text != self.text:
            self.states[self.at + 1 :] = [text]
            self.at += 1

    def add(self, text: str) -> None:
        self.change(self.text + text)

    def undo(self) -> bool:
        """Whether there was a change to take back."""
        self.at = max(0, (was := self.at) - 1)
        return self.at != was

    def redo(self) -> bool:
        self.at = min(len(self.states) - 1, (was := self.at) + 1)
        return self.at != was


def continue_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, **decoding: Any
) -> Generator[str]:
    """What may follow a text, in pieces as they are written. Settings as for `stream`.

    Of a text longer than the context the end is read. A space at the end is not: models know it as the beginning of
    the next word, so that it is taken off the answer instead.
    """
    read, ids = _read(model, tokenizer, text, decoding)
    pieces = stream(model, tokenizer, ids, **decoding)
    return pieces if read == text else _without_first_spaces(pieces)


def alternatives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, count: int = 3, **decoding: Any
) -> list[Continuation]:
    """`count` different continuations, the one with the likeliest tokens first; fewer where the settings give no more.

    Twice as many are drawn, or without temperature taken from as many beams.
    """
    read, ids = _read(model, tokenizer, text, decoding)
    beams = {} if Decoding(**decoding).temperature else {"num_beams": 2 * count}
    [drawn] = generate(model, tokenizer, [ids], **decoding | beams | {"num_return_sequences": 2 * count})
    if read != text:  # the model did not see the space at the end: better those that begin with one, which is dropped
        spaced = [one for one in drawn if one.text[:1].isspace()]
        drawn = [replace(one, text=one.text.lstrip(" ")) for one in (spaced if len(spaced) >= count else drawn)]
    different: dict[str, Continuation] = {}
    for one in drawn:
        if one.text.strip():
            different.setdefault(one.text, one)
    return sorted(list(different.values())[:count], key=lambda one: -one.per_token)


def _read(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, decoding: dict[str, Any]
) -> tuple[str, list[int]]:
    """What is read of a text: all but the spaces at its end, and the ids of as much of its end as fits."""
    if family(model.config) != "decoder":
        raise ValueError(f"a {model.config.model_type} reads one text and writes another: to go on takes a decoder.")
    read = text.rstrip(" ")
    return read, encode_prompt(model, tokenizer, read, max_new_tokens=Decoding(**decoding).max_new_tokens)[0]


def _without_first_spaces(pieces: Generator[str]) -> Generator[str]:
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip(" ")
        if piece:
            begun = True
            yield piece
