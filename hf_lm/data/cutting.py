"""Running text cut into documents, and documents into sections."""

import itertools
from collections.abc import Iterable, Iterator

from hf_lm.data.opening import CHUNK
from hf_lm.data.patterns import Pattern


def cut(chunks: Iterable[str], start: Pattern | None, longest: int) -> Iterator[str]:
    """Cut running text at the lines that match `start`, and where a piece would be longer than `longest` characters.

    The pieces joined are the text again.
    """
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        if start is not None and len(buffer) >= CHUNK:
            *documents, buffer = _split_at(buffer, start, whole=buffer.rfind("\n") + 1)
            for document in documents:
                yield from _sections(document, longest)
        while len(buffer) > 2 * longest and (start is None or len(buffer) > 4 * CHUNK):
            end = _end_of_section(buffer, longest)
            yield buffer[:end]
            buffer = buffer[end:]
    for document in [buffer] if start is None else _split_at(buffer, start, whole=len(buffer)):
        yield from _sections(document, longest)


def _split_at(text: str, start: Pattern, whole: int) -> list[str]:
    cuts = [0, *(place for place in start.starts(text, whole) if place > 0), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def _sections(text: str, longest: int) -> Iterator[str]:
    while len(text) > longest:
        end = _end_of_section(text, longest)
        yield text[:end]
        text = text[end:]
    if text:
        yield text


def _end_of_section(text: str, longest: int) -> int:
    """Where to cut: after the last paragraph, line or word in the second half of what fits, or hard."""
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, longest // 2, longest)
        if at > 0:
            return at + len(mark)
    return longest
