"""Markdown of text that may hold anything: tables and code blocks that it cannot break out of."""

import re
from collections.abc import Iterable, Sequence

from hf_lm.hub.credentials import printable


def in_table(text: str) -> str:
    """Text as one line that is shown as it is, in a cell or anywhere else: no link, no image, no emphasis, no HTML.

    An address in it is not made a link, and its start begins no list, heading or quotation.
    """
    text = re.sub(r"[\\`*~\[\]|]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|^[#>+=-]", r"\\\g<0>", _one_line(text).strip())
    text = re.sub(r"^(\d+)(?=[.)])|(?<=www)(?=\.)", r"\1\\", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


def in_code(text: str) -> str:
    """Text as one line of code within a sentence; a backtick, which would end it, becomes an apostrophe."""
    return f"`{_one_line(text).replace('`', chr(39))}`"


def _one_line(text: str) -> str:
    return printable(re.sub(r"\s+", " ", text))  # a card is read in terminals too


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table. Cells are taken as they are: what comes from data or a model goes through `in_table` first."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def fenced(text: str, language: str = "") -> str:
    """A code block that no text can end early: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"
