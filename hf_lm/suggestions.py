"""What was probably meant by a word that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The sentence " Did you mean 'x'?" with the word that is most similar; "" where none is similar enough."""
    near = closest(word, words)
    return f" Did you mean {near!r}?" if near else ""


def closest(word: str, words: Iterable[str]) -> str:
    """The most similar of `words`; "" where less than about half of its letters are the same, in the same order."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)), "")
