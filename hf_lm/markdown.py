"""Markdown of text that may hold anything: tables and code blocks that it cannot break out of."""

import re
from collections.abc import Iterable, Sequence


def in_table(text: str) -> str:
    """Text as one line that is shown as it is, in a cell or anywhere else."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table. Cells are taken as they are: what comes from data or a model goes through `in_table` first."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def fenced(text: str, language: str = "") -> str:
    """A code block that no text can end early: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
