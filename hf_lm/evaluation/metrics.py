"""Metrics of the fine-tuning tasks: `estimates(predictions, references)` gives each number with what an interval and a
paired comparison need. All but mcc (-1 to 1) are in percent.

hf_lm.evaluation.evaluate_metrics has the same numbers as `evaluate.Metric`s.
"""

import difflib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import regex

from hf_lm.data.overlap import NORMAL_WORD, UNSPACED
from hf_lm.evaluation.intervals import LEVEL, PERCENT, POSITIVE, Estimate, Interval, mean, ratio

SENTENCE_ENDS = "。！？।॥؟۔։።፧။។"  # Chinese, Indic, Arabic, Urdu, Armenian, Ethiopic, Burmese and Khmer
CMRC_MARKS = "-:_*^/\\~`+=～"  # beside those of Chinese: punctuation outside ASCII
APART = re.compile(r"""[!"#$%&()<>?@\[\]{};–]|[.'](?!\w)|,(?!\d)""")  # of ASCII, each a token; 3.5 is one too
UNSPACED_LETTER = re.compile(UNSPACED)
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
LATIN = "a-zA-Z0-9\u00aa-\u024f\u1e00-\u1eff"  # and superscripts
OTHER_SCRIPTS = regex.compile(rf"([^\W_\p{{M}}{LATIN}][^\W_{LATIN}]*)")  # a run of letters, not from a mark on


class Classification:
    """Accuracy, macro F1 and the Matthews correlation (Gorodkin 2004, several classes) of class indices.

    Macro F1 is the mean over the classes that occur among references or predictions, as scikit-learn has it.
    `classes`: how many there are; a prediction of -1 is none of them, and wrong. With `probabilities` (examples,
    classes) in `estimates`, the expected calibration error in 15 equal bins too (Guo et al., arXiv 1706.04599).
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def estimates(
        self, predictions: Sequence[int], references: Sequence[int], *, probabilities: np.ndarray | None = None
    ) -> dict[str, Estimate]:
        predicted, true = np.asarray(predictions, np.int64), np.asarray(references, np.int64)
        eye = np.eye(self.classes + 1, self.classes)  # the last row, which -1 takes, is no class
        right = eye[true] * (predicted == true)[:, None]
        counts = np.concatenate([right, eye[predicted], eye[true]], axis=1)  # (examples, 3 classes)
        found = {
            "accuracy": mean(100.0 * (predicted == true), bounds=PERCENT),
            "macro_f1": OfClasses(counts, _macro_f1, bounds=PERCENT),
            "mcc": OfClasses(counts, _mcc, bounds=(-1.0, 1.0), of_constant=0.0),
        }
        if probabilities is not None:
            found["calibration_error"] = _calibration_error(np.asarray(probabilities, np.float64), true)
        return found


class OfClasses(Estimate):
    """The statistics are, for each class: whether an example was right, was predicted as it, and is of it."""

    def interval(self) -> Interval:
        """The jackknife's, with room for what no example shows: a class that is never right, or never wrong.

        A rare class of which two of two are right weighs as much as a frequent one, and leaving one out changes
        nothing. Up to the share of examples that so many miss in 2.5 % may be of such a class and be otherwise.
        """
        found, n = super().interval(), len(self.statistics)
        if found.low is None or found.high is None:
            return found
        sums = self.statistics.sum(axis=0)
        different = np.unique(sums.reshape(3, -1), axis=1, return_index=True)[1]  # classes of other counts
        right, predicted, true = np.split(sums, 3)
        eye, order = np.eye(len(true)), np.argsort(-true, kind="stable")
        other = np.where(np.arange(len(true)) == order[0], order[min(1, len(true) - 1)], order[0])
        hits = [np.tile(eye[i], 3) for i in different if not right[i]]
        misses = [
            np.concatenate([0 * eye[i], eye[other[i]], eye[i]])
            for i in different
            if right[i] == predicted[i] == true[i]
        ]
        unseen = n * (1 - (LEVEL / 2) ** (1 / n))
        values = self.value_of((1 - unseen / n) * sums + unseen * np.array([*hits, *misses]).reshape(-1, len(sums)))
        return replace(found, low=float(min([found.low, *values])), high=float(max([found.high, *values])))


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    right, predicted, true = np.split(sums, 3, axis=-1)
    occurring = predicted + true
    f1 = np.divide(2 * right, occurring, out=np.zeros_like(right, dtype=np.float64), where=occurring > 0)
    return 100 * f1.sum(-1) / np.maximum(1, (occurring > 0).sum(-1))


def _mcc(sums: np.ndarray) -> np.ndarray:
    right, predicted, true = np.split(sums, 3, axis=-1)
    n = true.sum(-1)
    none = n - predicted.sum(-1)  # predictions of no class are as a class of their own
    covariance = right.sum(-1) * n - (predicted * true).sum(-1)
    size = np.sqrt((n**2 - (predicted**2).sum(-1) - none**2) * (n**2 - (true**2).sum(-1)))
    return np.divide(covariance, size, out=np.zeros_like(covariance, dtype=np.float64), where=size > 0)


@dataclass(frozen=True)
class CalibrationError(Estimate):
    """The statistics are, for each bin: whether an example is in it, was right, its confidence c, and c (1 - c).

    By chance alone the value is above the population's, most with few examples in many bins: where the confidence is
    right it is not 0. The interval allows for that on its lower side only, so it holds the truth more often than said.
    """

    def interval(self) -> Interval:
        """That of the share of answers on their bin's side of the confidence, less the share that confidence expects.

        The side is "right" where more answers of a bin are right than its confidence says, else "wrong". In one bin
        this is the interval of the accuracy (Clopper and Pearson 1934) around the confidence.
        """
        places, right, confidence, _ = np.split(self.statistics, 4, axis=1)
        raised = (right - confidence).sum(axis=0) >= 0  # bins
        share = mean(np.where(raised, right, places - right).sum(axis=1), bounds=(0.0, 1.0)).interval()
        expected = float(np.where(raised, confidence, places - confidence).sum(axis=1).mean())
        if share.low is None or share.high is None:
            return Interval(self.value)
        low = 100 * (share.low - expected) - self._noise()
        return Interval(self.value, max(0.0, low), 100 * max(share.high - expected, expected - share.low))

    def _noise(self) -> float:
        """How far answers stray from a confidence that is right, in percent, by the normal law."""
        spread = np.split(self.statistics.sum(axis=0), 4)[3]
        return 100 * float(np.sqrt(2 / np.pi * spread).sum()) / len(self.statistics)


def _calibration_error(probabilities: np.ndarray, true: np.ndarray, bins: int = 15) -> CalibrationError:
    confidence = probabilities.max(axis=1)[:, None]
    right = (probabilities.argmax(axis=1) == true)[:, None]
    place = np.eye(bins)[np.minimum((confidence[:, 0] * bins).astype(int), bins - 1)]  # (examples, bins)
    statistics = np.concatenate(
        [place, place * right, place * confidence, place * confidence * (1 - confidence)], axis=1
    )

    def value_of(sums: np.ndarray) -> np.ndarray:
        """Not a number where there is no example, as without the only one."""
        places, right, confidence, _ = np.split(sums, 4, axis=-1)
        total = np.where(places.sum(-1) > 0, places.sum(-1), np.nan)
        return 100 * np.abs(right - confidence).sum(-1) / total

    return CalibrationError(statistics, value_of, higher_is_better=False, bounds=PERCENT)


class Translation:
    """Corpus BLEU, chrF and TER by sacreBLEU (Post, arXiv 1804.08771); `signatures` says with which settings.

    A reference is a string or a list of them. The references choose how BLEU and TER part words, see `_tokenizer`.
    """

    def __init__(self) -> None:
        self.signatures: dict[str, str] = {}

    def estimates(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, Estimate]:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
        from sacrebleu.metrics.ter import TER

        references = [[one] if isinstance(one, str) else list(one) for one in references]
        most = max(len(some) for some in references)
        tokenize = _tokenizer(references)
        asian = tokenize != "13a"
        scorers = {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF(), "ter": TER(asian_support=asian, normalized=asian)}
        found = {}
        for name, scorer in scorers.items():
            apart = name == "ter" and tokenize == "char"  # sacreBLEU's TER parts Han only
            read = _spaced if apart else str
            said = [read(text) for text in predictions]
            streams = [[read(some[i]) if i < len(some) else None for some in references] for i in range(most)]
            statistics = np.array(scorer._extract_corpus_statistics(said, streams), np.float64)
            found[name] = (
                Estimate(statistics, _scores(scorer), higher_is_better=False, bounds=POSITIVE)
                if name == "ter"
                else Estimate(statistics, _scores(scorer), bounds=PERCENT)
            )
            self.signatures[name] = str(scorer.get_signature()) + ("|unspaced:char" if apart else "")
        return found


def _tokenizer(references: Sequence[Sequence[str]]) -> str:
    """sacreBLEU's for the script of references: `zh` for Han, `char` for others without spaces, else `13a`.

    With a tenth as many kana as Han, text is Japanese. Korean has spaces (sacreBLEU's `ko-mecab` needs a package).
    """
    if not lack_spaces(references):
        return "13a"
    text = _first_texts(references)
    return "char" if len(UNSPACED_LETTER.findall(text)) > 1.1 * len(HAN.findall(text)) else "zh"


def lack_spaces(references: Sequence[Sequence[str]]) -> bool:
    """Whether more than a third of the letters of the first references are of a script without spaces.

    Taken together: a Chinese name in an English answer does not make the answers Chinese.
    """
    text = _first_texts(references)
    return len(UNSPACED_LETTER.findall(text)) > sum(character.isalpha() for character in text) / 3


def _first_texts(references: Sequence[Sequence[str]]) -> str:
    return "".join(islice(chain.from_iterable(references), 1000))


def _spaced(text: str) -> str:
    """White space around each character of a script without spaces."""
    return re.sub(UNSPACED, r" \g<0> ", text)


def _scores(scorer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """sacreBLEU's own arithmetic from summed statistics (..., k) to scores (...)."""

    def value_of(sums: np.ndarray) -> np.ndarray:
        rows = sums.reshape(-1, sums.shape[-1])
        return np.array([scorer._compute_score_from_stats(list(row)).score for row in rows]).reshape(sums.shape[:-1])

    return value_of


class Summarization:
    """ROUGE-1, -2, -L and -Lsum F by rouge_score, mean over examples; of several references the best counts.

    Latin text is compared as rouge_score does: words of a to z and 0 to 9 by their Porter stems, cut at accented
    letters ("für" is f and r), so that the numbers are those that others publish. The words of other scripts, which
    rouge_score drops, are compared whole in small letters, and scripts without spaces by character. ROUGE-Lsum parts
    sentences at line ends and after . ! ? and their forms in other scripts.
    """

    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")

    def estimates(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, Estimate]:
        scores = np.array([self.score(*pair) for pair in zip(predictions, references, strict=True)])
        return {kind: mean(scores[:, i], bounds=PERCENT) for i, kind in enumerate(self.kinds)}

    def score(self, prediction: str, reference: str | Sequence[str]) -> list[float]:
        """ROUGE-1, -2, -L and -Lsum of one example, in percent."""
        references = [reference] if isinstance(reference, str) else list(reference)
        found = self._scorer.score_multi([sentences(text) for text in references], sentences(prediction))
        return [100 * found[kind].fmeasure for kind in self.kinds]

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(list(self.kinds), tokenizer=_Words())


class _Words:
    """rouge_score's tokenizer interface: its own words of Latin text, and those of other scripts beside them."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self.latin = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        parts = OTHER_SCRIPTS.split(text.lower())  # Latin text and what is between it, in turn
        words = (NORMAL_WORD.findall(part) if i % 2 else self.latin.tokenize(part) for i, part in enumerate(parts))
        return list(chain.from_iterable(words))


def sentences(text: str) -> str:
    """A sentence a line: split after . ! ? before a space, and after the marks of other scripts."""
    return re.sub(rf"(?<=[.!?])\s+|(?<=[{SENTENCE_ENDS}])\s*", "\n", text.strip()).strip()


class QuestionAnswering:
    """Exact match and F1 of answers as the SQuAD script computes them, or for scripts without spaces CMRC 2018's.

    A reference is a list of right answers, empty where the question has none; the prediction is then right if it is
    empty too. `has_answer_...` and `no_answer_...` stand beside the whole where both kinds occur (SQuAD v2).
    The language of all references decides which script. Rajpurkar et al., arXiv 1806.03822; Cui et al., arXiv
    1810.07366.
    """

    def estimates(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Estimate]:
        by_character = lack_spaces(references)
        pairs = zip(predictions, references, strict=True)
        scores = 100 * np.array([answer_score(*pair, by_character=by_character) for pair in pairs])
        found = {"exact_match": mean(scores[:, 0], bounds=PERCENT), "f1": mean(scores[:, 1], bounds=PERCENT)}
        answerable = np.array([bool(some) for some in references], np.float64)
        if 0 < answerable.sum() < len(answerable):
            for name, those in (("has_answer", answerable), ("no_answer", 1 - answerable)):
                found[f"{name}_exact_match"] = ratio(scores[:, 0] * those, those, bounds=PERCENT)
                found[f"{name}_f1"] = ratio(scores[:, 1] * those, those, bounds=PERCENT)
        return found


def answer_score(prediction: str, answers: Sequence[str], *, by_character: bool) -> tuple[float, float]:
    """Exact match and F1, 0 to 1, of an answer against the best of several right ones; none means no answer.

    `by_character`: whether the data are in a script without spaces, see `lack_spaces`.
    """
    right = [answer for answer in answers if normalize_answer(answer)]
    if not right:  # the script takes an answer that normalises to nothing for no answer
        same = float(normalize_answer(prediction) == "")
        return same, same
    score = _cmrc_score if by_character else _squad_score
    scores = [score(prediction, answer) for answer in right]
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def normalize_answer(text: str) -> str:
    """SQuAD's: lower case, without punctuation and English articles, white space made single."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _squad_score(prediction: str, answer: str) -> tuple[float, float]:
    one, other = normalize_answer(prediction).split(), normalize_answer(answer).split()
    return float(one == other), _f1((Counter(one) & Counter(other)).total(), len(one), len(other))


def _cmrc_score(prediction: str, answer: str) -> tuple[float, float]:
    one, other = _mixed_tokens(prediction), _mixed_tokens(answer)
    return float("".join(one) == "".join(other)), _f1(_longest_common_run(one, other), len(one), len(other))


def _f1(common: int, predicted: int, true: int) -> float:
    return 2 * common / (predicted + true) if common else 0.0


def _mixed_tokens(text: str) -> list[str]:
    """Scripts without spaces by character, others by word, lower case, without the marks that CMRC's script drops.

    Of other scripts' marks all are dropped; those that change a number are kept (3.5, 5%, 20–18), as that script keeps
    them. A mark of ASCII is a token of its own, as in its tokenizer, nltk's.
    """
    return APART.sub(r" \g<0> ", _spaced("".join(c for c in text.lower() if not _is_mark(c)))).split()


def _is_mark(c: str) -> bool:
    return c in CMRC_MARKS or (c > "\x7f" and c not in "％‰．–" and unicodedata.category(c)[0] == "P")


def _longest_common_run(one: list[str], other: list[str]) -> int:
    """The length of the longest run of tokens that both have."""
    return difflib.SequenceMatcher(None, one, other, autojunk=False).find_longest_match().size
