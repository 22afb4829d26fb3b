"""The writing assistant: go on, rewrite a passage, choose among alternatives, undo. For the terminal and the page.

draft = Draft("The function returns")
draft.add("".join(continue_text(model, tokenizer, draft.text, max_new_tokens=20)))
start, end = find_passage(draft.text, "the first item")
best, *others = rewrite(model, tokenizer, draft.text, start, end)
draft.replace(start, end, best.text)
"""

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.decoding import Decoding
from hf_lm.generation import Continuation, encode_prompt, generate, log_probabilities, stream
from hf_lm.models.configuration import context_length, family
from hf_lm.tokenizer import encode_documents

Item = TypeVar("Item")

DRAWN = 4  # passages drawn for each that is offered as a rewriting
AHEAD = 64  # tokens of what stands after a passage that judge it
# Where a sentence ends: in Latin script before white space, in Chinese and Japanese anywhere.
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’）]*")
LETTERS_AT_END = re.compile(r"[A-Za-z\u00c0-\u052f]$")  # of scripts that part words by spaces
SENTENCE_OR_LINE_END = re.compile(SENTENCE_END.pattern + r"|\n")


@dataclass(frozen=True)
class Alternative:
    """A text that may stand somewhere. `log_probability` in nats, over its `tokens`.

    `after`: mean nats of each token of what stands after it; None where nothing does.
    """

    text: str
    log_probability: float
    tokens: int
    after: float | None = None

    @property
    def per_token(self) -> float:
        return self.log_probability / max(1, self.tokens)


class Draft:
    """A text and its history. `replace` and `add` can be undone; a change after an undo ends what could be redone."""

    def __init__(self, text: str = "") -> None:
        self.states, self.at = [text], 0

    @property
    def text(self) -> str:
        return self.states[self.at]

    def replace(self, start: int, end: int, text: str) -> None:
        changed = self.text[:start] + text + self.text[end:]
        if changed != self.text:
            self.states[self.at + 1 :] = [changed]
            self.at += 1

    def add(self, text: str) -> None:
        self.replace(len(self.text), len(self.text), text)

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
) -> list[Alternative]:
    """`count` different ways to go on, the likeliest token for token first; fewer where the settings give no more."""
    read, ids = _read(model, tokenizer, text, decoding)
    found: dict[str, Alternative] = {}
    for one in _draw(model, tokenizer, ids, 2, count, decoding, begins_word=read != text):
        said = one.text if read == text else one.text.lstrip(" ")
        if said.strip() and len(found) < count:
            found.setdefault(said, Alternative(said, one.log_probability, len(one.log_probs)))
    return sorted(found.values(), key=lambda each: -each.per_token)


def rewrite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    start: int,
    end: int,
    *,
    count: int = 3,
    **decoding: Any,
) -> list[Alternative]:
    """`count` other passages for text[start:end], the best first; fewer where the settings give no more.

    The model is not told what to say. Passages of about the same length are drawn from what stands before, and those
    are best after which the text that follows is likeliest; where none follows, those that are likeliest themselves.
    Raises ValueError for an empty passage.
    """
    passage = text[start:end]
    if not passage.strip():
        raise ValueError("there is nothing to rewrite: the passage is empty.")
    head, tail = len(passage) - len(passage.lstrip()), len(passage.rstrip())
    before, kept, after = text[:start] + passage[:head], passage[head:tail], passage[tail:] + text[end:]

    positions, size = context_length(model.config), len(encode_documents(tokenizer, [kept])[0])
    longest = size + size // 2 + 2
    decoding = decoding | {"max_new_tokens": min(longest, positions // 2) if positions else longest}
    read, ids = _read(model, tokenizer, before, decoding)
    drawn = _draw(model, tokenizer, ids, DRAWN, count, decoding, begins_word=read != before)
    texts = dict.fromkeys(cut_like(kept, one.text.strip(), whole=one.ended != "length") for one in drawn)
    texts = [each for each in texts if each and each != kept]
    if ends_sentence(kept):
        texts = _preferred(texts, [ends_sentence(each) for each in texts], count)
    texts = _preferred(texts, [2 * len(each) >= len(kept) for each in texts], count)

    # Judged as the text would stand there: the passage after what is before it, what follows after both.
    parts = encode_documents(tokenizer, [before[len(read) :] + each for each in texts])
    follows = encode_documents(tokenizer, [after[: 8 * AHEAD] if after.strip() else ""])[0][
        : min(AHEAD, positions // 4 or AHEAD)
    ]
    room = max(map(len, parts), default=0) + len(follows)
    ids, _ = encode_prompt(model, tokenizer, read, max_new_tokens=max(1, room))
    nats = log_probabilities(model, [ids] * len(texts), [part + follows for part in parts])
    found = []
    for each, part, of in zip(texts, parts, nats, strict=True):
        then = sum(of[len(part) :]) / len(follows) if follows else None
        found.append(Alternative(passage[:head] + each + passage[tail:], sum(of[: len(part)]), len(part), then))
    return sorted(found, key=lambda each: -(each.per_token if each.after is None else each.after))[:count]


def find_passage(text: str, words: str = "") -> tuple[int, int]:
    """Where a passage stands, as (start, end): the last place with these words, or "from these ... to those".

    Without words it is the last sentence. Raises ValueError where the text has none.
    """
    words = words.strip()
    if not words:
        whole = len(text.rstrip())
        ends = [match.end() for match in SENTENCE_OR_LINE_END.finditer(text[:whole]) if match.end() < whole]
        start = ends[-1] if ends else 0
        start += len(text[start:whole]) - len(text[start:whole].lstrip())
        if start == whole:
            raise ValueError("there is no text yet.")
        return start, whole
    first, dots, last = (part.strip() for part in words.partition("..."))
    start = text.rfind(first if dots else words)
    end = text.find(last, start + len(first)) if dots else start
    if start < 0 or end < 0:
        raise ValueError(f"the text has no passage {words!r}.")
    return start, end + len(last if dots else words)


def cut_like(passage: str, text: str, *, whole: bool = False) -> str:
    """A text cut to take the passage's place: one line if it was one, at a sentence's end if it ended there.

    Where the text ends no sentence, or none was asked for, it is cut after its last whole word; `whole`: its writer
    ended it, so that its last word is one.
    """
    if "\n" not in passage and "\n" in text:
        text, whole = text.partition("\n")[0].rstrip(), True
    if ends_sentence(passage):
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        if ends:
            return text[: next((end for end in ends if end >= len(passage) // 2), ends[-1])]
    if whole or len(text.split()) < 2 or not LETTERS_AT_END.search(text):
        return text
    return text[: -len(text.split()[-1])].rstrip()


def ends_sentence(text: str) -> bool:
    return any(match.end() == len(text) for match in SENTENCE_END.finditer(text))


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


def _draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    times: int,
    count: int,
    decoding: dict[str, Any],
    *,
    begins_word: bool,
) -> list[Continuation]:
    """`times` as many texts as the `count` wanted: drawn, or without temperature the best of as many beams.

    `begins_word`: what was read ended with a space that the model did not see: texts had better begin with one.
    """
    beams = {} if Decoding(**decoding).temperature else {"num_beams": times * count}
    settings = decoding | beams | {"num_return_sequences": times * count}
    [drawn] = generate(model, tokenizer, [ids], **settings)
    return _preferred(drawn, [one.text[:1].isspace() or not begins_word for one in drawn], count)


def _preferred(items: list[Item], fits: list[bool], count: int) -> list[Item]:
    """The items that fit, if they are as many as are wanted; else all."""
    kept = [item for item, fit in zip(items, fits, strict=True) if fit]
    return kept if len(kept) >= count else items
