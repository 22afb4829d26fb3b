"""Counterfactual text: words that name a group swapped for those of another, everything else as it was.

Counterfactual data augmentation trains on text and its swapped copy
(Lu et al., arXiv 1807.11714; Zmigrod et al., arXiv 1906.04571).
"""

import re
from collections.abc import Iterator, Sequence

from hf_lm.data.sources import Corpus
from hf_lm.files import hash_text
from hf_lm.safety.sets import read_words

DOMAINS = ("gender", "religion", "ethnicity")
# What follows a word, also in the next line or behind an opening mark: `his 2008 album`, `her "dear" friend`.
_FOLLOWS = re.compile(r"""(?:[ \t]+|[ \t]*\r?\n[ \t]*)(?:["'“‘(<_*][ ]?)*(\d|[^\W\d_]+)""")


class Swapper:
    """Called with a text, swaps the words of some domains in it and changes nothing else.

    A word keeps its case (He, HE). `her` becomes `his` before what looks like a noun and `him` elsewhere, `his`
    becomes `hers` at the end of a clause; `mrs` becomes `mr` and `mom` `dad`, which become `ms` and `mum`. With other
    words a second swap undoes the first. Names are not changed.
    """

    def __init__(self, domains: Sequence[str] = ("gender",)) -> None:
        if unknown := [domain for domain in domains if domain not in DOMAINS]:
            raise ValueError(f"there is no list of words to swap for {unknown[0]!r}; there are {', '.join(DOMAINS)}.")
        self.domains = tuple(domains)
        pairs = [line.split("\t") for domain in domains for line in read_words(f"swap_{domain}")]
        both = dict([*(pair[::-1] for pair in pairs[::-1]), *pairs])  # of two words for one the first is taken
        self.words = {word: swapped for word, swapped in both.items() if word.isascii()}
        # Chinese has no spaces: longer words that hold one of these and have another meaning, or both groups, stay.
        kept = {word: word for word in read_words("swap_kept")} if "gender" in domains else {}
        self.han = {word: swapped for word, swapped in both.items() if not word.isascii()} | kept
        self.no_noun = frozenset(read_words("swap_no_noun"))  # "I saw her at home" has no `his` in it
        special = ["him", "his", "her", "hers"] if "gender" in domains else []
        latin = sorted([*self.words, *special], key=len, reverse=True)
        spaced = "|".join(re.escape(word).replace(r"\ ", r"[ ]") for word in latin)
        longest = "|".join(sorted(map(re.escape, self.han), key=len, reverse=True))
        # Letters next to a word make it another one; Chinese characters next to it do not.
        beside = r"[A-Za-z0-9_\u00c0-\u024f]"
        self.pattern = re.compile(rf"(?<!{beside})(?:{spaced})(?!{beside})|{longest}", re.IGNORECASE)

    def __call__(self, text: str) -> str:
        return self.pattern.sub(self._other, text)

    def _other(self, match: re.Match[str]) -> str:
        word = match[0]
        if word in self.han:
            return self.han[word]
        small = word.lower()
        if small in self.words:
            swapped = self.words[small]
        else:
            follows = _FOLLOWS.match(match.string, match.end(), match.end() + 40)
            noun = follows is not None and follows[1].lower() not in self.no_noun
            if small == "her":
                swapped = "his" if noun else "him"
            else:
                swapped = {"him": "her", "hers": "his"}.get(small) or ("her" if follows else "hers")
        if word.isupper() and len(word) > 1:
            return swapped.upper()
        return swapped[0].upper() + swapped[1:] if word[0].isupper() else swapped


def counterfactual_corpus(corpus: Corpus, swap: Swapper) -> Corpus:
    """A corpus whose training text holds each document and, where swapping changes it, its swapped copy after it.

    Held-out splits stay as they are.
    """

    def train() -> Iterator[str]:
        for text in corpus.documents("train"):
            yield text
            if (swapped := swap(text)) != text:
                yield swapped

    note = f"each training document also with its words of {', '.join(swap.domains)} swapped"
    return Corpus(
        f"{corpus.source}, swapped",
        hash_text(f"{corpus.fingerprint} swapped {sorted(swap.words.items())} {sorted(swap.han.items())}").hex(),
        2 * corpus.size,
        {**corpus.readers, "train": train},
        [*corpus.notes, note],
        corpus.cleaned,
    )
