"""The text on which an exported file is compared with its folder, and the difference of logits."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

LINES = 1000
LOCALES = ("ar", "bn", "de", "el", "fr", "he", "hi", "ja", "ko", "ru", "th", "tr", "vi", "zh")
EDGES = (  # where the rules that cut text into words meet
    *("I'm, you're, they'll; it's: WE'VE", "  two  spaces ", "\ttab\tand\u00a0no-break", "1234567 12,345.67 1e-05"),
    *("a\r\n\r\nb", "end \n", "<|endoftext|> as text", "snake_case camelCase"),
    *("👩‍👩‍👧 🇩🇪 ✌🏽", "e\u0301 \u1e69 \ufb01"),
    *("春眠不觉晓，处处闻啼鸟。", "۱۲۳ ४५६ Ⅻ ½ x²", "\u200bzero\u200dwidth\ufeff", "...---!!!???", "\x00\x7f control"),
)


def lines() -> list[str]:
    """A thousand lines that each installation has: Python's manual, names in fourteen languages, and edge cases."""
    from pydoc_data.topics import topics

    import babel

    names = [
        ", ".join(itertools.islice(babel.Locale.parse(locale).territories.values(), first, first + 6))
        for locale in LOCALES
        for first in range(0, 120, 6)
    ]
    manual = itertools.chain.from_iterable(text.splitlines() for _, text in sorted(topics.items()))
    sentences = (line for line in manual if line.strip())
    chosen = [*EDGES, *names, *itertools.islice(sentences, LINES)]
    return chosen[:LINES]


@dataclass(frozen=True)
class Difference:
    """The largest difference between two sets of logits, and the largest logit."""

    absolute: float
    largest: float
    allowed: float  # share of the largest

    @property
    def within(self) -> bool:
        return self.absolute <= self.allowed * self.largest  # not so where either is NaN

    def __str__(self) -> str:
        return f"{self.absolute:.2g} in logits up to {self.largest:.3g} (allowed: {self.allowed:g} of the largest)"


def difference(
    expected: list[torch.Tensor],
    computed: list[np.ndarray],
    *,
    allowed: float,
    where: list[torch.Tensor] | None = None,
) -> Difference:
    """Of logits in pairs of one shape, at the positions (batch, time) that `where` marks; None is everywhere.

    Raises ValueError where two shapes differ.
    """
    absolute = largest = 0.0
    for i, (mine, theirs) in enumerate(zip(expected, computed, strict=True)):
        if tuple(mine.shape) != tuple(theirs.shape):
            raise ValueError(
                f"the exported file gives logits of shape {theirs.shape}, the folder {tuple(mine.shape)}."
            )
        other = torch.from_numpy(np.asarray(theirs))
        if where is not None and mine.ndim > 1 and mine.shape[:2] == where[i].shape:
            mine, other = mine[where[i].bool()], other[where[i].bool()]
        absolute = float(np.maximum(absolute, (mine - other).abs().max().item()))  # NaN stays
        largest = float(np.maximum(largest, mine.abs().max().item()))
    return Difference(absolute, largest, allowed)
