"""Counterfactual text: words that name a group swapped for those of another, everything else as it was.

The word lists were written for this project. Counterfactual data augmentation trains on text and its swapped copy
(Lu et al., arXiv 1807.11714; Zmigrod et al., arXiv 1906.04571).
"""

import re
from collections.abc import Iterator, Sequence

from hf_lm.data.sources import Corpus, hash_text

_GENDER = """
he she|himself herself|man woman|men women|boy girl|boys girls|father mother|fathers mothers|dad mum|dads mums
daddy mummy|son daughter|sons daughters|brother sister|brothers sisters|husband wife|husbands wives|uncle aunt
uncles aunts|nephew niece|nephews nieces|grandfather grandmother|grandfathers grandmothers|grandson granddaughter
grandpa grandma|stepfather stepmother|king queen|kings queens|prince princess|princes princesses|actor actress
actors actresses|waiter waitress|waiters waitresses|gentleman lady|gentlemen ladies|male female|males females
boyfriend girlfriend|boyfriends girlfriends|groom bride|widower widow|hero heroine|heroes heroines
businessman businesswoman|businessmen businesswomen|policeman policewoman|policemen policewomen
spokesman spokeswoman|chairman chairwoman|landlord landlady|sir madam|monk nun|monks nuns|wizard witch
mr ms|guy gal|guys gals|lad lass|duke duchess|emperor empress|congressman congresswoman|salesman saleswoman
"""
_RELIGION = """
christian muslim|christians muslims|christianity islam|bible quran|church mosque|churches mosques|priest imam
priests imams
"""
_ETHNICITY = """
white_people black_people|white_man black_man|white_men black_men|white_woman black_woman|white_women black_women
white_boy black_boy|white_girl black_girl|europeans africans
"""
_GENDER_ZH = """
他 她|他们 她们|男人 女人|男孩 女孩|男孩子 女孩子|男生 女生|男性 女性|男子 女子|男士 女士|男友 女友|男朋友 女朋友
男 女|父亲 母亲|爸爸 妈妈|爸 妈|儿子 女儿|哥哥 姐姐|弟弟 妹妹|兄弟 姐妹|丈夫 妻子|老公 老婆|爷爷 奶奶|外公 外婆
祖父 祖母|叔叔 阿姨|孙子 孙女|先生 太太|国王 王后|王子 公主|新郎 新娘|小伙子 小姑娘|和尚 尼姑|少爷 小姐
"""
# Chinese has no spaces: words that hold one of the above and are about something else, or about both, stay.
_KEPT_ZH = "其他 吉他 他人 他乡 他国 他日 他杀 利他 排他 维他命 马耳他 犹他 男女 子女 儿女 少女 妇女 处女 父母 爸妈"
_RELIGION_ZH = "基督教 伊斯兰教|基督徒 穆斯林|圣经 古兰经|教堂 清真寺|牧师 阿訇"
_ETHNICITY_ZH = "白人 黑人"

DOMAINS = {
    "gender": (_GENDER, _GENDER_ZH, _KEPT_ZH),
    "religion": (_RELIGION, _RELIGION_ZH, ""),
    "ethnicity": (_ETHNICITY, _ETHNICITY_ZH, ""),
}
# After `her` these begin no noun: "I saw her at home" has no `his` in it.
_NO_NOUN = (
    "a my your his its our their about after again all alone and any are as at away back because before "
    "but by can could did do down each even ever every for from had has have he her here him if in into "
    "is it like may more must near never no nor not now of off on once or out over quite she should so "
    "soon still than that the then there these they this those though through to today together too "
    "toward towards under until up very was we were what when where which while who why will with "
    "without would yesterday yet you"
)
_LETTER = r"[^\W\d_]"


class Swapper:
    """Swaps the words of some domains. Calling it gives the text back unchanged but for them.

    A word keeps its case (He, HE). `her` becomes `his` before what looks like a noun and `him` elsewhere, `his`
    becomes `hers` at the end of a clause; with other words a second swap undoes the first. Names are not changed.
    """

    def __init__(self, domains: Sequence[str] = ("gender",)) -> None:
        if unknown := [domain for domain in domains if domain not in DOMAINS]:
            raise ValueError(f"there is no list of words to swap for {unknown[0]!r}; there are {', '.join(DOMAINS)}.")
        self.domains = tuple(domains)
        self.words, han = {}, {}
        for domain in domains:
            english, chinese, kept = DOMAINS[domain]
            self.words |= _both_ways(english)
            han |= _both_ways(chinese) | {word: word for word in kept.split()}
        self.han, self.no_noun = han, frozenset(_NO_NOUN.split())
        special = ["him", "his", "her", "hers"] if "gender" in domains else []
        latin = sorted([*self.words, *special], key=len, reverse=True)
        spaced = "|".join(re.escape(word).replace(r"\ ", r"[ ]") for word in latin)
        longest = "|".join(sorted(map(re.escape, han), key=len, reverse=True))
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
            other = self.words[small]
        else:
            follows = re.match(rf"[ ]({_LETTER}+)", match.string[match.end() : match.end() + 40])
            noun = follows is not None and follows[1].lower() not in self.no_noun
            if small == "her":
                other = "his" if noun else "him"
            else:
                other = {"him": "her", "hers": "his"}.get(small) or ("her" if follows else "hers")
        if word.isupper() and len(word) > 1:
            return other.upper()
        return other[0].upper() + other[1:] if word[0].isupper() else other


def _both_ways(pairs: str) -> dict[str, str]:
    found = {}
    for pair in re.split(r"[|\n]", pairs.strip()):
        one, other = (word.replace("_", " ") for word in pair.split())
        found |= {one: other, other: one}
    return found


def counterfactual_corpus(corpus: Corpus, swap: Swapper) -> Corpus:
    """A corpus whose training text holds each document and, where swapping changes it, its swapped copy after it.

    Held-out splits stay as they are.
    """

    def train() -> Iterator[str]:
        for text in corpus.documents("train"):
            yield text
            if (swapped := swap(text)) != text:
                yield swapped

    said = f"each training document also with its words of {', '.join(swap.domains)} swapped"
    return Corpus(
        f"{corpus.source}, swapped",
        hash_text(f"{corpus.fingerprint} swapped {sorted(swap.words.items())} {sorted(swap.han.items())}").hex(),
        2 * corpus.size,
        {**corpus.readers, "train": train},
        [*corpus.notes, said],
        corpus.cleaned,
    )
