"""What was probably meant by a word that is not known."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """What was typed names nothing that there is: the exit code is 2."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The sentence " Did you mean 'x'?" with the word that is most similar; "" where none is similar enough."""
    near = closest(word, words)
    return f" Did you mean {near!r}?" if near else ""


def closest(word: str, words: Iterable[str]) -> str:
    """The one of `words` that begins with `word`, or the most similar; "" where less than half agrees."""
    words = list(words)
    longer = [each for each in words if each.startswith(word) and len(word.lstrip("-")) > 2]
    return next(iter(longer or difflib.get_close_matches(word, words, n=1, cutoff=0.5)), "")
