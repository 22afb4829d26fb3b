"""The writing assistant: continue a text, choose among alternatives, undo. For the terminal and the demo page.

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
    """A text and its history. `change` and `add` can be undone; a change after an undo clears what could be redone."""

    def __init__(self, text: str = "") -> None:
        self.states, self.at = [text], 0

    @property
    def text(self) -> str:
        return self.states[self.at]

    def change(self, text: str) -> None:
        """Replace the text."""
        if text != self.text:
            self.states[self.at + 1 :] = [text]
            self.at += 1

    def add(self, text: str) -> None:
        self.change(self.text + text)

    def undo(self) -> bool:
        """Undo the last change; returns whether there was one."""
        self.at = max(0, (was := self.at) - 1)
        return self.at != was

    def redo(self) -> bool:
        """Redo the last undone change; returns whether there was one."""
        self.at = min(len(self.states) - 1, (was := self.at) + 1)
        return self.at != was


def continue_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, **decoding: Any
) -> Generator[str]:
    """A continuation of a text, in pieces as they are generated. Settings as for `stream`.

    A text longer than the context is truncated at its beginning. Spaces at its end are dropped, and so are those at
    the beginning of the continuation: in most tokenizers a space belongs to the following word.
    """
    ids = _prompt(model, tokenizer, text, decoding)
    pieces = stream(model, tokenizer, ids, **decoding)
    return _without_first_spaces(pieces) if text.endswith(" ") else pieces


def alternatives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, count: int = 3, **decoding: Any
) -> list[Continuation]:
    """`count` different continuations, the most likely per token first; fewer where the settings give no more.

    Twice as many are sampled, or with temperature 0 taken from as many beams.
    """
    ids = _prompt(model, tokenizer, text, decoding)
    several: dict[str, Any] = {"num_return_sequences": 2 * count}
    if not Decoding(**decoding).temperature:
        several["num_beams"] = 2 * count
    [drawn] = generate(model, tokenizer, [ids], **decoding | several)
    if text.endswith(" "):  # the model did not see the space: prefer continuations that begin with one, and drop it
        spaced = [candidate for candidate in drawn if candidate.text[:1].isspace()]
        drawn = [replace(each, text=each.text.lstrip(" ")) for each in (spaced if len(spaced) >= count else drawn)]
    different: dict[str, Continuation] = {}
    for candidate in drawn:
        if candidate.text.strip():
            different.setdefault(candidate.text, candidate)
    return sorted(list(different.values())[:count], key=lambda candidate: -candidate.per_token)


def _prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, decoding: dict[str, Any]
) -> list[int]:
    """The ids of a text without the spaces at its end, truncated at its beginning."""
    if family(model.config) != "decoder":
        raise ValueError(f"a {model.config.model_type} maps a source to a target; continuing a text needs a decoder.")
    max_new_tokens = Decoding(**decoding).max_new_tokens
    return encode_prompt(model, tokenizer, text.rstrip(" "), max_new_tokens=max_new_tokens)[0]


def _without_first_spaces(pieces: Generator[str]) -> Generator[str]:
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip(" ")
        if piece:
            begun = True
            yield piece
