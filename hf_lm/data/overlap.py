"""Evaluation rows that also occur in the training rows: word for word, or for the most part."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex

# Letters of scripts without spaces, each of which is a word: kana, Han, Thai, Lao, Burmese, Khmer; digits are not.
UNSPACED = (
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"
    r"\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3\u17d7\u17dc\u17dd]"
)
LETTERS = rf"[^\W_{UNSPACED[1:-1]}]"  # of other scripts; to `regex`, unlike `re`, vowel signs of Hindi are of a word
WORD = regex.compile(rf"{UNSPACED}|(?:{LETTERS}|_)+|[^\w\s]")  # or another sign: all of a text but white space
NORMAL_WORD = regex.compile(rf"{UNSPACED}|{LETTERS}+")
RUN = 8  # words that two texts must share in a row before it counts


@dataclass(frozen=True)
class Overlap:
    """Of `rows` evaluation rows, those that occur in train: (rows,) each. `train` are the training rows they match."""

    exact: np.ndarray
    partly: np.ndarray
    train: np.ndarray

    @property
    def found(self) -> np.ndarray:
        return self.exact | self.partly

    def report(self, texts: Sequence[str], *, examples: int = 3) -> dict:
        rows = int(self.found.sum())
        shown = [texts[i][:200] for i in np.flatnonzero(self.found)[:examples]]
        said = {"rows": rows, "exact": int(self.exact.sum()), "share": rows / max(1, len(texts))}
        return said | ({"examples": shown} if shown else {})


def find_overlap(train: Sequence[str], held_out: Sequence[str]) -> Overlap:
    """Which of `held_out` stand in `train`: exactly, after case, punctuation and spacing are taken away, or partly.

    Partly: at least half of the runs of 8 words (characters, in scripts without spaces) of a text also occur in
    training texts; GPT-3's appendix C (arXiv 2005.14165) looks for 13, too many for a sentence.
    """
    keys = [" ".join(normal_words(text)) for text in held_out]
    wanted = set(keys) - {""}
    runs = [set(_runs(key.split())) for key in keys]
    looked_for = set().union(*runs) if runs else set()
    train_keys, seen, having = set(), set(), np.zeros(len(train), bool)
    for i, text in enumerate(train):
        words = normal_words(text)
        key = " ".join(words)
        shared = looked_for.intersection(_runs(words))
        seen |= shared
        having[i] = bool(shared) or key in wanted
        if key in wanted:
            train_keys.add(key)
    exact = np.array([key in train_keys for key in keys], bool)
    partly = np.array([bool(some) and 2 * len(some & seen) >= len(some) for some in runs], bool) & ~exact
    matched = {run for some, found in zip(runs, exact | partly, strict=True) if found for run in some}
    exactly = {key for key, found in zip(keys, exact, strict=True) if found}
    for i in np.flatnonzero(having).tolist():
        words = normal_words(train[i])
        having[i] = " ".join(words) in exactly or not matched.isdisjoint(_runs(words))
    return Overlap(exact, partly, having)


def normal_words(text: str) -> list[str]:
    """Words in small letters without punctuation; a character of a script without spaces is a word."""
    return NORMAL_WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _runs(words: Sequence[str]) -> Iterator[int]:
    return (hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1))
