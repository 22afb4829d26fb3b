"""Metrics equal the reference implementations; their intervals come from the same sums."""

import re
import string

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lm.evaluation.metrics import (
    Classification,
    QuestionAnswering,
    Summarization,
    Translation,
    answer_score,
    sentences,
)

words = st.lists(
    st.sampled_from(["the", "a", "cat", "sat", "on", "mat", ".", "Dogs,", "run", "12", "naïve"]),
    min_size=0,
    max_size=12,
)
texts = words.map(" ".join)
pairs = st.lists(st.tuples(texts, texts.filter(bool)), min_size=1, max_size=8)


def close(one, other):
    assert one == pytest.approx(other, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_classification_equals_scikit_learn(rows):
    from sklearn import metrics

    predictions, references = map(list, zip(*rows, strict=True))
    found = Classification(classes=4).compute(predictions=predictions, references=references)
    close(found["accuracy"], 100 * metrics.accuracy_score(references, predictions))
    close(found["macro_f1"], 100 * metrics.f1_score(references, predictions, average="macro", zero_division=0))
    close(found["mcc"], metrics.matthews_corrcoef(references, predictions))


def test_a_prediction_that_is_no_class_is_wrong_and_counts_for_no_class():
    from sklearn import metrics

    references, predictions = [0, 1, 2, 0, 1, 2, 2], [0, 1, 2, -1, 1, 0, -1]
    found = Classification(classes=3).compute(predictions=predictions, references=references)
    close(found["accuracy"], 100 * 4 / 7)
    close(found["macro_f1"], 100 * metrics.f1_score(references, predictions, average="macro", labels=[0, 1, 2]))
    close(found["mcc"], metrics.matthews_corrcoef(references, predictions))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy_by_bin():
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.35, 0.65]] * 10)
    true = np.array([0] * 7 + [1] * 3 + [1] * 8 + [0] * 2)
    found = Classification(classes=2).estimates(probabilities.argmax(1), true, probabilities=probabilities)
    close(found["calibration_error"].value, 100 * (0.5 * abs(0.7 - 0.9) + 0.5 * abs(0.8 - 0.65)))
    assert not found["calibration_error"].higher_is_better


@settings(max_examples=30)
@given(pairs)
def test_translation_equals_sacrebleu(rows):
    from sacrebleu.metrics import BLEU, CHRF, TER

    predictions, references = map(list, zip(*rows, strict=True))
    metric = Translation()
    found = metric.compute(predictions=predictions, references=[[one] for one in references])
    close(found["bleu"], BLEU().corpus_score(predictions, [references]).score)
    close(found["chrf"], CHRF().corpus_score(predictions, [references]).score)
    close(found["ter"], TER().corpus_score(predictions, [references]).score)


def test_translation_into_chinese_is_compared_by_character():
    from sacrebleu.metrics import BLEU

    predictions, references = ["今天天气很好。", "我去学校"], ["今天天气真好。", "我到学校去"]
    metric = Translation()
    found = metric.compute(predictions=predictions, references=[[one] for one in references])
    close(found["bleu"], BLEU(tokenize="zh").corpus_score(predictions, [references]).score)
    assert "tok:zh" in metric.signatures["bleu"]
    assert found["bleu"] > 10


def test_several_references_count_and_their_number_may_differ():
    from sacrebleu.metrics import BLEU

    predictions, references = (
        ["a cat sat on the mat", "dogs run"],
        [["the cat sat", "a cat sat on a mat"], ["dogs ran"]],
    )
    streams = [["the cat sat", "dogs ran"], ["a cat sat on a mat", None]]
    found = Translation().estimates(predictions, references)
    close(found["bleu"].value, BLEU().corpus_score(predictions, streams).score)


@settings(max_examples=30)
@given(pairs)
def test_summarization_equals_rouge_score(rows):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    predictions, references = map(list, zip(*rows, strict=True))
    found = Summarization().compute(predictions=predictions, references=[[one] for one in references])
    for kind, value in found.items():
        scores = [scorer.score(sentences(r), sentences(p))[kind].fmeasure for p, r in rows]
        close(value, 100 * np.mean(scores))


def test_a_chinese_summary_is_compared_by_character():
    rouge1, rouge2, rouge_l, _ = Summarization().score("今天下雨", "今天下大雨")
    close(rouge1, 100 * 2 * (4 / 4) * (4 / 5) / (4 / 4 + 4 / 5))
    close(rouge2, 100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    close(rouge_l, rouge1)


@given(texts, st.lists(texts, max_size=3))
def test_answers_score_as_the_squad_script_has_it(prediction, answers):
    gold = [answer for answer in answers if squad_words(answer)] or [""]
    exact, f1 = answer_score(prediction, answers)
    close(exact, max(float(squad_words(answer) == squad_words(prediction)) for answer in gold))
    close(f1, max(squad_f1(answer, prediction) for answer in gold))


def squad_words(text):
    """The script's steps, in its order: lower case, punctuation out, articles to spaces, white space split."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article}\b", " ", text)
    return text.split()


def squad_f1(answer, prediction):
    gold, said = squad_words(answer), squad_words(prediction)
    if not gold or not said:
        return float(gold == said)
    rest, same = list(gold), 0
    for word in said:
        if word in rest:
            rest.remove(word)
            same += 1
    precision, recall = same / len(said), same / len(gold)
    return 2 * precision * recall / (precision + recall) if same else 0.0


def test_chinese_answers_score_by_the_longest_common_run_of_characters():
    assert answer_score("1998年", ["1998年。"]) == (1.0, 1.0)
    exact, f1 = answer_score("在北京大学", ["北京大学"])
    assert exact == 0.0
    close(f1, 2 * (4 / 5) * (4 / 4) / (4 / 5 + 4 / 4))


def test_questions_without_an_answer_stand_apart():
    found = QuestionAnswering().compute(
        predictions=["", "Rome", "Paris", "x"], references=[[], ["Rome"], ["Oslo"], []]
    )
    assert found["exact_match"] == 50
    assert found["has_answer_exact_match"] == 50
    assert found["no_answer_exact_match"] == 50
    assert "no_answer_f1" not in QuestionAnswering().compute(predictions=["Rome"], references=[["Rome"]])


def test_metrics_work_as_any_other_of_evaluate(tmp_path):
    metric = Classification(classes=2)
    for batch in ([0, 1], [1]):
        metric.add_batch(predictions=batch, references=[0] * len(batch))
    close(metric.compute()["accuracy"], 100 / 3)
    both = evaluate.combine([Summarization(), QuestionAnswering()])
    found = both.compute(predictions=["a cat"], references=[["a cat"]])
    assert found["rouge1"] == found["exact_match"] == 100


def test_estimates_resample_whole_corpora():
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(list("abcdefgh"), 12)) for _ in range(60)]
    predictions = [one if rng.random() < 0.5 else " ".join(rng.choice(list("abcdefgh"), 12)) for one in references]
    estimate = Translation().estimates(predictions, references)["bleu"]
    interval = estimate.interval(resamples=200)
    assert interval.low < interval.value < interval.high
    copied = Translation().estimates(references, references)["bleu"]
    assert copied.minus(estimate, resamples=200).low > 0
