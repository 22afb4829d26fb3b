"""Which scripts a text is written in, and the languages that follow from them alone."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from fontTools import unicodedata

# Scripts that one language, or nearly one, is written in. Latin, Cyrillic and Arabic tell no language.
LANGUAGES = {
    "Hangul": "ko",
    "Thai": "th",
    "Hebrew": "he",
    "Greek": "el",
    "Georgian": "ka",
    "Armenian": "hy",
    "Khmer": "km",
    "Lao": "lo",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Sinhala": "si",
}
COMMON = ("Common", "Inherited", "Unknown")


def script_shares(texts: Iterable[str]) -> dict[str, float]:
    """The share of each Unicode script in the letters of texts, the largest first; digits and marks have none.

    Chinese characters are Han, whatever the language.
    """
    characters: Counter = Counter()
    for text in texts:
        characters.update(text)
    counts: Counter = Counter()
    for character, count in characters.items():
        counts[_script(character)] += count
    letters = {script: count for script, count in counts.most_common() if script not in COMMON}
    return {script: count / sum(letters.values()) for script, count in letters.items()}


def main_script(text: str, *, read: int = 1000) -> str:
    """The Unicode script of most letters among the first `read` characters; "" where there are none."""
    counts = Counter(map(_script, text[:read]))
    return next((script for script, _ in counts.most_common() if script not in COMMON), "")


@lru_cache(2**16)
def _script(character: str) -> str:
    return unicodedata.script_name(unicodedata.script(character))


def languages_of(shares: dict[str, float], *, least: float = 0.05) -> list[str]:
    """Language codes that scripts with at least `least` of the letters give away; none for Latin."""
    kana = shares.get("Hiragana", 0) + shares.get("Katakana", 0)
    found = [LANGUAGES[script] for script, share in shares.items() if script in LANGUAGES and share >= least]
    if shares.get("Han", 0) + kana >= least:
        found.insert(0, "ja" if kana >= 0.1 * shares.get("Han", 0) else "zh")
    return found
