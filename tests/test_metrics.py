"""Metrics equal the reference implementations; their intervals come from the same sums."""

import re
import string

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lm.data.tables import Table
from hf_lm.evaluation import evaluate_metrics, metrics
from hf_lm.evaluation.intervals import PERCENT, interval_of
from hf_lm.evaluation.metrics import (
    Classification,
    QuestionAnswering,
    Summarization,
    Translation,
    answer_score,
    sentences,
)
from hf_lm.tasks.translation import Translation as TranslationTask

words = st.lists(
    st.sampled_from(["the", "a", "cat", "sat", "on", "mat", ".", "Dogs,", "dog", "run", "running", "12", "naïve"]),
    min_size=0,
    max_size=12,
)
texts = words.map(" ".join)
pairs = st.lists(st.tuples(texts, texts.filter(bool)), min_size=1, max_size=8)


def values(metric, *, predictions, references):
    return {name: estimate.value for name, estimate in metric.estimates(predictions, references).items()}


def close(one, other):
    assert one == pytest.approx(other, abs=1e-9)


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_classification_equals_scikit_learn(rows):
    """A prediction of -1 is wrong, and to the correlation a class that no reference has."""
    from sklearn import metrics

    predictions, references = map(list, zip(*rows, strict=True))
    found = values(Classification(classes=4), predictions=predictions, references=references)
    labels = sorted({*predictions, *references} - {-1})
    close(found["accuracy"], 100 * metrics.accuracy_score(references, predictions))
    f1 = metrics.f1_score(references, predictions, average="macro", labels=labels, zero_division=0)
    close(found["macro_f1"], 100 * f1)
    close(found["mcc"], metrics.matthews_corrcoef(references, predictions) if len(rows) > 1 else 0.0)


def test_a_prediction_that_is_no_class_is_wrong_and_counts_for_no_class():
    from sklearn import metrics

    references, predictions = [0, 1, 2, 0, 1, 2, 2], [0, 1, 2, -1, 1, 0, -1]
    found = values(Classification(classes=3), predictions=predictions, references=references)
    close(found["accuracy"], 100 * 4 / 7)
    close(found["macro_f1"], 100 * metrics.f1_score(references, predictions, average="macro", labels=[0, 1, 2]))
    close(found["mcc"], metrics.matthews_corrcoef(references, predictions))


def test_a_correlation_beats_a_constant_answer_where_its_interval_is_above_0_and_six_answers_differ():
    metric = Classification(classes=2)
    true = np.tile([0, 1], 60)
    answers = np.r_[true[:76], 1 - true[76:]]  # 76 of 120 are right
    model, constant = metric.estimates(answers, true)["mcc"], metric.estimates([0] * 120, true)["mcc"]
    assert constant.value == 0
    assert model.interval().low > 0
    assert model.beats(constant)
    assert model.beats(metric.estimates([-1] * 120, true)["mcc"])  # answers that are no class are constant as well
    assert not constant.beats(model)
    assert not constant.beats(constant)
    assert not metric.estimates(1 - answers, true)["mcc"].beats(constant)
    few = np.zeros(120, int)
    few[np.flatnonzero(true == 1)[:5]] = 1
    assert metric.estimates(few, true)["mcc"].interval().low > 0
    assert not metric.estimates(few, true)["mcc"].beats(constant)


def test_a_rare_class_that_is_always_right_or_always_wrong_is_not_taken_for_known():
    unseen = 1 - 0.025 ** (1 / 50)  # the share that 50 examples miss in 2.5 %
    right, wrong = 48 * [0] + 2 * [1], 48 * [0] + 2 * [1]
    found = Classification(2).estimates(right, wrong)["macro_f1"].interval()
    f1 = [2 * hits / (2 * hits + 50 * unseen) for hits in ((1 - unseen) * 48, (1 - unseen) * 2)]
    assert (found.value, found.high) == (100, 100)
    close(found.low, 50 * sum(f1))  # 73.6, where the examples alone say 92.9
    found = Classification(2).estimates(50 * [0], wrong)
    close(found["mcc"].value, 0)
    assert found["mcc"].interval().high > 0.7
    assert found["macro_f1"].interval().high > 80
    only = Classification(2).estimates(50 * [0], 50 * [0])["mcc"].interval()  # of the second class nothing is known
    assert (only.value, only.high) == (0, 1)
    assert only.low <= 0
    both = Classification(2).estimates([0, 1] * 25 + [1, 0] * 5, [0, 1] * 30)["macro_f1"]
    close(both.interval().low, interval_of(both.value, both.left_out(), PERCENT).low)


def test_resampled_sums_have_the_values_that_each_of_them_has_alone():
    rng = np.random.default_rng(0)
    classes, chances = rng.integers(0, 4, (2, 30)), rng.dirichlet([1.0] * 4, 30)
    said, meant = (["the cat sat", "a mat.", "Dogs run on", "12"] * 3 for _ in range(2))
    said = said[5:] + said[:5]
    found = {
        **Classification(classes=4).estimates(*classes, probabilities=chances),
        **Translation().estimates(said, meant),
        **Summarization().estimates(said, meant),
        **QuestionAnswering().estimates(said, [[text] if i % 3 else [] for i, text in enumerate(meant)]),
    }
    assert len(found) == 17
    for name, estimate in found.items():
        n = len(estimate.statistics)
        sums = rng.multinomial(n, np.full(n, 1 / n), size=(2, 3)) @ estimate.statistics  # (2, 3, k)
        alone = [[estimate.value_of(row) for row in some] for some in sums]
        np.testing.assert_allclose(estimate.value_of(sums), alone, err_msg=name)
        assert estimate.higher_is_better == (name not in ("ter", "calibration_error"))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy_in_fifteen_equal_bins():
    """Guo et al., arXiv 1706.04599, section 2: bins of 1/15, weighted by how many examples fall into each."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5, 0.5], 60)
    probabilities[:4] = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [2 / 3, 1 / 3]]  # certain, and at the bounds of bins
    true = (rng.random(60) < probabilities[:, 1]).astype(int)  # some bins are too sure, some not sure enough
    error = 0.0
    for i in range(15):
        inside = [
            (max(row), int(row.argmax() == label))
            for row, label in zip(probabilities, true, strict=True)
            if i / 15 <= max(row) < (i + 1) / 15 or (i == 14 and max(row) == 1)
        ]
        error += abs(sum(right for _, right in inside) - sum(confidence for confidence, _ in inside)) / 60
    found = Classification(classes=2).estimates(probabilities.argmax(1), true, probabilities=probabilities)
    close(found["calibration_error"].value, 100 * error)
    assert not found["calibration_error"].higher_is_better
    perfect = Classification(classes=2).estimates([0, 1], [0, 1], probabilities=np.eye(2))["calibration_error"]
    assert perfect.value == 0


def calibration_error(confidence, right):
    probabilities = np.stack([confidence, 1 - np.asarray(confidence)], axis=1)
    metric = Classification(classes=2)
    return metric.estimates(right, 1 - np.asarray(right), probabilities=probabilities)["calibration_error"]


@pytest.mark.parametrize("right", [0, 1, 40, 64, 68, 119, 120])
def test_in_one_bin_the_calibration_error_is_known_as_well_as_the_accuracy(right):
    from scipy import stats

    found = calibration_error(np.linspace(0.54, 0.58, 120), np.repeat([1, 0], [right, 120 - right])).interval()
    accuracy = stats.binomtest(right, 120).proportion_ci(method="exact")
    assert found.high == pytest.approx(100 * max(accuracy.high - 0.56, 0.56 - accuracy.low), abs=0.01)
    noise = np.sqrt(2 / np.pi * 0.56 * 0.44 / 120)
    nearest = max(0.0, accuracy.low - 0.56, 0.56 - accuracy.high)
    assert found.low == pytest.approx(100 * max(0.0, nearest - noise), abs=0.01)


def test_errors_that_no_example_shows_may_be_as_many_as_the_examples_leave_room_for():
    found = calibration_error(np.linspace(0.99, 1.0, 50), np.ones(50, int)).interval()
    close(found.value, 0.5)
    assert found.low == 0
    assert found.high == pytest.approx(100 * (0.995 - 0.025 ** (1 / 50)))


@settings(max_examples=30)
@given(pairs)
def test_translation_equals_sacrebleu(rows):
    from sacrebleu.metrics import BLEU, CHRF, TER

    predictions, references = map(list, zip(*rows, strict=True))
    metric = Translation()
    found = values(metric, predictions=predictions, references=[[one] for one in references])
    close(found["bleu"], BLEU().corpus_score(predictions, [references]).score)
    close(found["chrf"], CHRF().corpus_score(predictions, [references]).score)
    close(found["ter"], TER().corpus_score(predictions, [references]).score)


def test_translation_into_chinese_is_compared_by_character():
    from sacrebleu.metrics import BLEU

    predictions, references = ["今天天气很好。", "我去学校"], ["今天天气真好。", "我到学校去"]
    metric = Translation()
    found = values(metric, predictions=predictions, references=[[one] for one in references])
    close(found["bleu"], BLEU(tokenize="zh").corpus_score(predictions, [references]).score)
    assert "tok:zh" in metric.signatures["bleu"]
    assert found["bleu"] > 10


@pytest.mark.parametrize(
    ("reference", "tokenizer"),
    [
        ("用GPU训练模型", "zh"),  # 5 of 8 letters
        ("ab春", "13a"),  # a third is not more than a third
        ("ab春风 2024!", "zh"),  # half of the letters: digits and marks are none
        ("the opera of 北京", "13a"),
        ("今日は雨です。", "char"),
        ("東京の天気予報", "char"),  # a seventh is kana
        ("我喜欢看电影和听音乐スー", "char"),
        ("我今天很喜欢看电影和听音乐ー", "zh"),  # less than a tenth
        ("วันนี้ฝนตก", "char"),
        ("ມື້ນີ້ຝົນຕົກ", "char"),
        ("ថ្ងៃនេះភ្លៀង", "char"),
        ("ဒီနေ့မိုးရွာတယ်", "char"),
        ("오늘 비가 온다.", "13a"),
        ("Сегодня идёт дождь.", "13a"),
        ("", "13a"),
    ],
)
def test_a_third_of_the_letters_of_the_references_chooses_how_bleu_and_ter_part_words(reference, tokenizer):
    metric = Translation()
    metric.estimates(["x"], [[reference]])
    assert f"tok:{tokenizer}|" in metric.signatures["bleu"]
    assert ("asian:yes" in metric.signatures["ter"]) == (tokenizer != "13a")
    assert ("unspaced:char" in metric.signatures["ter"]) == (tokenizer == "char")


def test_errors_in_chinese_are_counted_by_character_as_sacrebleu_does():
    from sacrebleu.metrics import TER

    said, meant = "今天天气很好。", "今天天气真好。"
    found = Translation().estimates([said], [meant])["ter"].value
    close(found, TER(asian_support=True, normalized=True).corpus_score([said], [[meant]]).score)
    close(found, 100 / 7)


def test_errors_in_japanese_and_thai_are_counted_by_character():
    close(Translation().estimates(["今日は雨です。"], ["今日は雪です。"])["ter"].value, 100 / 7)
    close(Translation().estimates(["วันนี้ฝนตก"], ["วันนั้ฝนตก"])["ter"].value, 100 / 10)
    close(Translation().estimates(["スーパーで買う"], ["スーパーに行く"])["ter"].value, 100 * 3 / 7)


@pytest.mark.parametrize("reference", ["今日は雨です。", "วันนี้ฝนตก"])
def test_a_translation_that_shares_most_characters_has_a_bleu_by_characters(reference):
    from sacrebleu.metrics import BLEU

    said = reference[:-1] + "x"
    found = Translation().estimates([said], [reference])["bleu"].value
    close(found, BLEU(tokenize="char").corpus_score([said], [[reference]]).score)
    assert found > 50


def test_a_run_and_its_score_choose_the_same_words():
    rows = [{"source": "it rains", "targets": ["今日は雨です。"]}] * 3
    task = TranslationTask.__new__(TranslationTask)
    task.table = Table("x", "", {"test": rows})
    in_run = task.score("test", [("今日は雪です。", 0.0, 0)] * 3).estimates
    scored = TranslationTask.estimates_of(
        [{"prediction": "今日は雪です。", "reference": row["targets"]} for row in rows], []
    )
    assert {name: one.value for name, one in in_run.items()} == {name: one.value for name, one in scored.items()}
    assert "tok:char" in task.measured_by.signatures["bleu"]


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
    found = values(Summarization(), predictions=predictions, references=[[one] for one in references])
    for kind, value in found.items():
        scores = [scorer.score(sentences(r), sentences(p))[kind].fmeasure for p, r in rows]
        close(value, 100 * np.mean(scores))


def test_a_chinese_summary_is_compared_by_character():
    rouge1, rouge2, rouge_l, _ = Summarization().score("今天下雨", "今天下大雨")
    close(rouge1, 100 * 2 * (4 / 4) * (4 / 5) / (4 / 4 + 4 / 5))
    close(rouge2, 100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    close(rouge_l, rouge1)
    assert Summarization().score("今天下雨", ["rain today", "今天下大雨"])[0] == rouge1  # the best of several


@pytest.mark.parametrize(
    "text",
    [
        "Сегодня идёт дождь.",
        "오늘 비가 온다.",
        "تمطر اليوم.",
        "आज बारिश हो रही है।",
        "Βρέχει σήμερα.",
        "วันนี้ฝนตก",
        "ມື້ນີ້ຝົນຕົກ",
        "ថ្ងៃនេះភ្លៀង",
    ],
)
def test_a_perfect_summary_has_all_points_in_every_script(text):
    assert Summarization().score(text, text) == pytest.approx([100.0] * 4)
    assert Summarization().score("none of it", text) == [0.0] * 4


def test_words_of_other_scripts_are_compared_whole_and_characters_where_there_are_no_spaces():
    close(Summarization().score("मौसम की", "मौसम का है")[0], 100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    close(Summarization().score("ДОМА", "дом")[0], 0)  # in small letters, without a stemmer
    close(Summarization().score("Дом", "дом")[0], 100)
    close(Summarization().score("ไทย", "ไท")[0], 100 * 2 * (2 / 3) / (2 / 3 + 1))
    close(Summarization().score("trains GPT 모델", "train gpt 모델이")[0], 100 * 2 / 3)  # Latin words have their stems


@pytest.mark.parametrize("text", ["für", "naïve Café", "n\u0303", "Łódź 1²", "x_y", "don’t — stop…"])
def test_accented_latin_letters_part_words_as_rouge_score_has_it(text):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    for said in ("f r", "na ve caf", text, "dz 1 x y", "don t stop"):
        close(Summarization().score(said, text)[0], 100 * scorer.score(text, said)["rouge1"].fmeasure)


def test_sentences_stand_on_lines_of_their_own_for_rouge_lsum():
    assert sentences(" It rains.  Is it 1.5 mm? Yes!\nNo ") == "It rains.\nIs it 1.5 mm?\nYes!\nNo"
    assert sentences("下雨了。是吗？是！ 不") == "下雨了。\n是吗？\n是！\n不"
    assert sentences("बारिश हुई। क्यों? हाँ!") == "बारिश हुई।\nक्यों?\nहाँ!"
    assert sentences("هل تمطر؟ نعم۔ لا") == "هل تمطر؟\nنعم۔\nلا"
    assert sentences("មេឃភ្លៀង។ ဟုတ်တယ်။ဘာလဲ") == "មេឃភ្លៀង។\nဟုတ်တယ်။\nဘာလဲ"
    *_, rouge_l, rouge_lsum = Summarization().score("b c. a.", "a. b c.")
    close(rouge_l, 100 * 2 / 3)
    close(rouge_lsum, 100)  # each sentence is found, whatever their order


@given(texts, st.lists(texts, max_size=3))
def test_answers_score_as_the_squad_script_has_it(prediction, answers):
    gold = [answer for answer in answers if squad_words(answer)] or [""]
    exact, f1 = answer_score(prediction, answers, by_character=False)
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
    assert answer_score("1998年", ["1998年。"], by_character=True) == (1.0, 1.0)
    exact, f1 = answer_score("在北京大学", ["北京大学"], by_character=True)
    assert exact == 0.0
    close(f1, 2 * (4 / 5) * (4 / 4) / (4 / 5 + 4 / 4))


def test_marks_do_not_count_in_chinese_answers():
    """Every mark that the CMRC 2018 script takes out of both answers before it compares them."""
    for mark in "-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』":
        assert answer_score(f"{mark}北{mark}京{mark}", ["北京"], by_character=True) == (1.0, 1.0), mark
        assert answer_score("北京", [f"北{mark}京"], by_character=True) == (1.0, 1.0), mark
    assert answer_score("3 GPU卡", ["3GPU 卡"], by_character=True)[0] == 1.0
    close(
        answer_score("用 A+B 计算", ["用 ab"], by_character=True)[1], 2 * 2 / (4 + 2)
    )  # 用 ab 计 算: words in lower case


def test_a_number_is_not_right_without_its_point_or_percent_sign():
    """The CMRC 2018 script keeps both, and answers that differ in them differ."""
    for said, right in (("35米", "3.5米"), ("占5", "占5%"), ("占5", "占5％"), ("25度", "25℃")):
        exact, f1 = answer_score(said, [right], by_character=True)
        assert exact == 0.0, right
        assert f1 < 1.0, right
        assert answer_score(right, [right], by_character=True) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [  # what the CMRC 2018 script gives, with nltk's word tokenizer
        ("擒抱 (118)", "118", 0.0, 2 * 1 / (5 + 1)),
        ("55.1", "55.1%", 0.0, 2 * 1 / (1 + 2)),
        ("20–", "20–18", 0.0, 2 * 2 / (2 + 3)),
        ("2018", "20–18", 0.0, 0.0),
        ("集用DTIME(f(n))表示", "DTIME(f(n))", 0.0, 2 * 7 / (11 + 7)),
        ("约1,388 (0.9", "1,388", 0.0, 2 * 1 / (4 + 1)),
        ("T. Tsui画廊", "T. Tsui画廊", 1.0, 1.0),
    ],
)
def test_marks_of_ascii_stand_apart_from_words_and_numbers_in_chinese_answers(said, right, exact, f1):
    found = answer_score(said, [right], by_character=True)
    assert found[0] == exact
    close(found[1], f1)


@given(
    st.text("春夏秋", min_size=1, max_size=7),
    st.lists(st.text("春夏秋", min_size=1, max_size=7), min_size=1, max_size=3),
)
def test_the_longest_common_run_is_that_of_a_search_over_all(prediction, answers):
    def f1(answer):
        runs = {answer[i:j] for i in range(len(answer)) for j in range(i, len(answer) + 1)}
        return 2 * max(len(run) for run in runs if run in prediction) / (len(prediction) + len(answer))

    exact, found = answer_score(prediction, [*answers, "spring"], by_character=True)
    assert exact == (prediction in answers)
    close(found, max(f1(answer) for answer in answers))


@pytest.mark.parametrize(
    ("answer", "said", "f1"),
    [
        ("กรุงเทพ", "กรุงเทพมหานคร", 2 * 7 / (7 + 13)),
        ("とうきょう", "とうきょうと", 2 * 5 / (5 + 6)),
        ("서울 대학교", "서울", 2 / 3),  # by word: these scripts have spaces
        ("नई दिल्ली", "दिल्ली", 2 / 3),
        ("الرياض", "مدينة الرياض", 2 / 3),
        ("город Москва", "москва", 2 / 3),
    ],
)
def test_answers_are_compared_by_word_in_scripts_with_spaces_and_by_character_in_others(answer, said, f1):
    found = QuestionAnswering().estimates([said, answer], [[answer], [answer]])
    close(found["f1"].value, 100 * (f1 + 1) / 2)
    close(found["exact_match"].value, 50)


def test_questions_without_an_answer_stand_apart():
    found = values(
        QuestionAnswering(),
        predictions=["", "Rome Italy", "Oslo", "x", "y"],
        references=[[], ["Rome"], ["Oslo"], [], []],
    )
    assert found == pytest.approx(
        {
            "exact_match": 100 * 2 / 5,
            "f1": 100 * (1 + 2 / 3 + 1) / 5,
            "has_answer_exact_match": 100 * 1 / 2,
            "has_answer_f1": 100 * (2 / 3 + 1) / 2,
            "no_answer_exact_match": 100 / 3,
            "no_answer_f1": 100 / 3,
        }
    )
    assert len(QuestionAnswering().estimates(["Rome", ""], [["Rome"], []])) == 6
    for references in (["Rome"], ["Oslo"]), ([], []):  # of one kind only
        assert set(values(QuestionAnswering(), predictions=["Rome", ""], references=references)) == {
            "exact_match",
            "f1",
        }


def test_metrics_work_as_any_other_of_evaluate():
    metric = evaluate_metrics.Classification(classes=2)
    for batch in ([0, 1], [1]):
        metric.add_batch(predictions=batch, references=[0] * len(batch))
    close(metric.compute()["accuracy"], 100 / 3)
    both = evaluate.combine([evaluate_metrics.Summarization(), evaluate_metrics.QuestionAnswering()])
    found = both.compute(predictions=["a cat"], references=[["a cat"]])
    assert found["rouge1"] == found["exact_match"] == 100


@pytest.mark.parametrize(
    ("name", "options", "predictions", "references"),
    [
        ("Classification", {"classes": 3}, [0, 1, 1, 2], [0, 1, 2, 2]),
        ("Translation", {}, ["今天下雨", "b"], [["今天下大雨"], ["b"]]),
        ("Summarization", {}, ["a cat sat", "b"], [["the cat sat", "a cat"], ["c"]]),
        ("QuestionAnswering", {}, ["", "Rome", "x"], [[], ["Rome"], ["Oslo"]]),
    ],
)
def test_compute_gives_the_values_of_the_estimates(name, options, predictions, references):
    computed = getattr(evaluate_metrics, name)(**options).compute(predictions=predictions, references=references)
    metric = getattr(metrics, name)(**options)
    assert computed == values(metric, predictions=predictions, references=references)
    assert len(computed) >= 2


def test_estimates_resample_whole_corpora():
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(list("abcdefgh"), 12)) for _ in range(60)]
    predictions = [one if rng.random() < 0.5 else " ".join(rng.choice(list("abcdefgh"), 12)) for one in references]
    estimate = Translation().estimates(predictions, references)["bleu"]
    interval = estimate.interval()
    assert interval.low < interval.value < interval.high
    copied = Translation().estimates(references, references)["bleu"]
    assert copied.minus(estimate).low > 0


def test_one_chinese_name_does_not_make_an_english_question_chinese():
    answers, english = ["Yuán Cháo", "元朝"], ["the Thames"]
    found = QuestionAnswering().estimates(["元朝 its Genghisid", *["Thames"] * 5], [answers, *[english] * 5])
    assert found["f1"].value == pytest.approx((50 + 5 * 100) / 6)
    assert QuestionAnswering().estimates(["北京大学"], [["北京"]])["f1"].value == pytest.approx(200 * 2 / 6)


def test_an_empty_translation_beats_nothing():
    rows = [{"source": "der Hund lief sehr weit fort", "targets": ["a dog ran"]}] * 30
    task = TranslationTask.__new__(TranslationTask)
    task.table = Table("x", "", {"test": rows})
    _, baseline = task.baseline("test")
    empty = Translation().estimates([""] * 30, [row["targets"] for row in rows])
    assert baseline.estimates["ter"].value == empty["ter"].value == 100
    assert not any(empty[name].beats(estimate) for name, estimate in baseline.estimates.items())
