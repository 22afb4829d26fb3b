"""The best span is the best of all there are, and every answer can be pointed to in some window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers.normalizers import BertNormalizer
from transformers import BertForQuestionAnswering

from hf_lm.data.tables import Table
from hf_lm.evaluation.metrics import answer_score
from hf_lm.models.bert import new_bert
from hf_lm.tasks.question_answering import QuestionAnswering, read_question_answering
from hf_lm.tasks.spans import best_spans, best_threshold, top_spans
from hf_lm.tokenization.tokenizer import new_tokenizer


@given(st.integers(0, 2**32 - 1), st.integers(3, 24), st.integers(1, 9), st.data())
def test_the_best_spans_are_those_that_a_search_over_all_finds(seed, time, longest, data):
    rows = data.draw(st.integers(1, 3))
    firsts = [data.draw(st.integers(0, time - 2)) for _ in range(rows)]
    lengths = [data.draw(st.integers(0, time - first)) for first in firsts]  # a context may have no token
    start, end = torch.randn(2, rows, time, generator=torch.Generator().manual_seed(seed))
    given_ = {"first": torch.tensor(firsts), "length": torch.tensor(lengths), "longest": longest}
    best, tops = best_spans(start, end, **given_), top_spans(start, end, count=3, **given_)
    for row, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        assert len(tops[row][0]) == min(3, length)  # whatever the other rows have
        if not length:
            continue
        places = range(first, first + length)
        scores = {(b, e): float(start[row, b] + end[row, e]) for b in places for e in places if 0 <= e - b < longest}
        score, begin, stop = (value[row].item() for value in best)
        assert score == pytest.approx(max(scores.values()), abs=1e-6)
        assert scores[begin, stop] == pytest.approx(score, abs=1e-6)
        # Of different ends the k best, each with its best beginning.
        best_by_end = sorted((max(s for (_, e), s in scores.items() if e == end_) for end_ in places), reverse=True)
        found, begins, ends, null = tops[row]
        assert found == pytest.approx(best_by_end[: len(found)], abs=1e-6)
        assert [scores[pair] for pair in zip(begins, ends, strict=True)] == pytest.approx(found, abs=1e-6)
        assert null == pytest.approx(float(start[row, 0] + end[row, 0]))


def test_an_answer_has_at_most_thirty_tokens_as_in_the_squad_scripts():
    start, end = torch.zeros(1, 40), torch.zeros(1, 40)
    start[0, 2], end[0, 31], end[0, 32] = 5.0, 1.0, 2.0
    score, first, last = best_spans(start, end, first=torch.tensor([0]), length=torch.tensor([40]))
    assert (score.item(), first.item(), last.item()) == (6.0, 2, 31)


ANSWERS = ["Rome", "in Rome", "Oslo", "the"]  # the last normalises to nothing, which is no answer


@given(
    st.lists(
        st.tuples(
            st.integers(-3, 3), st.sampled_from(ANSWERS), st.lists(st.sampled_from(ANSWERS), max_size=2, unique=True)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_answering_above_the_threshold_gives_the_highest_f1_of_all_thresholds(rows):
    margins, texts, answers = (list(column) for column in zip(*rows, strict=True))

    def f1(threshold):
        answered = [text if margin > threshold else "" for text, margin in zip(texts, margins, strict=True)]
        pairs = zip(answered, answers, strict=True)
        return sum(answer_score(text, some, by_character=False)[1] for text, some in pairs)

    threshold = best_threshold(np.array(margins, np.float64), texts, answers)
    assert f1(threshold) == pytest.approx(max(f1(one) for one in np.arange(-4, 4)))


def test_the_threshold_lies_half_way_between_what_is_answered_and_what_is_not():
    texts, answers = ["Rome", "Oslo", "x", "y"], [["Rome"], ["Oslo"], [], []]
    assert best_threshold(np.array([3.0, 1.0, 0.0, -2.0]), texts, answers) == 0.5
    assert best_threshold(np.array([-2.0, 0.0, 1.0, 3.0]), texts[::-1], answers[::-1]) == 0.5
    assert best_threshold(np.array([3.0, 1.0]), ["x", "y"], [[], []]) == 4.0  # nothing is answered, by one nat
    assert best_threshold(np.array([3.0, 1.0]), texts[:2], answers[:2]) == 0.0  # all is, and what is one nat below
    # No threshold parts equal margins: two right answers outweigh the one that is wrong.
    assert best_threshold(np.array([2.0, 1.0, 1.0, 1.0]), ["Rome"] * 4, [["Rome"], ["Rome"], ["Rome"], []]) == 0.0
    assert best_threshold(np.zeros(2), ["Rome or so"] * 2, [["Rome"]] * 2) == -1.0


WORDS = ["alpha", "beta", "Gamma", "δέλτα", "春眠", "不觉晓", "42", "don't", "x=1", "end."]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(WORDS), min_size=12, max_size=120), st.integers(20, 40), st.data())
def test_windows_recover_every_answer_whatever_the_script(words, max_length, data):
    context = " ".join(words)
    begin = data.draw(st.integers(0, len(words) - 3))
    answer = " ".join(words[begin : begin + data.draw(st.integers(1, 2))])
    start = len(" ".join(words[:begin])) + (begin > 0)
    row = {"question": "which?", "context": context, "answers": {"text": [answer], "answer_start": [start]}}
    others = [row | {"context": f"{i} {context}", "answers": {"text": [], "answer_start": []}} for i in range(9)]
    table = Table("x", "", {"train": [row], "validation": others[:4], "test": others[4:]})
    read_question_answering(table)
    tokenizer = new_tokenizer(WORDS * 3, vocab_size=320)
    task = QuestionAnswering(table, tokenizer, causal=False, max_length=max_length, stride=max_length // 3)
    encoded, found = task.encoded["train"], []
    covered = np.zeros(len(context), bool)
    for window, feature in zip(encoded.windows, encoded.features, strict=True):
        assert len(feature["input_ids"]) <= max_length
        for low, high in window.offsets:
            covered[low:high] = True
        first, last = feature["labels"]
        if last:
            low, high = window.offsets[first - window.first, 0], window.offsets[last - window.first, 1]
            found.append(context[low:high])
    assert all(covered[i] or context[i].isspace() for i in range(len(context)))  # no text is in no window
    assert all(answer in text and len(text) <= len(answer) + 2 for text in found)
    if not found:  # then it is longer than what two windows share
        assert len(tokenizer(answer, add_special_tokens=False).input_ids) >= max_length // 3


def test_the_proof_counts_answers_whose_tokens_hold_more():
    rows = [{"question": "who?", "context": f"{i} 并且四次入选", "answers": ["四次"]} for i in range(9)]
    rows += [{"question": "who?", "context": f"it is {i} blue", "answers": ["blue"]} for i in range(9)]
    table = Table("x", "", {split: [dict(row) for row in rows] for split in ("train", "validation", "test")})
    read_question_answering(table)
    tokenizer = new_tokenizer(["并且四次入选 blue"] * 9, vocab_size=320)
    task = QuestionAnswering(table, tokenizer, causal=False, max_length=40, stride=10)
    said = (
        "the labels of 18 questions give back their answers, each whole in a window; 9 of them with characters beside"
    )
    assert task.label_proof().said.startswith(said)


def test_a_context_of_which_the_tokenizer_leaves_nothing_has_no_answer():
    rows = [
        {"question": "who?", "context": f"number {i}", "answers": {"text": [str(i)], "answer_start": [7]}}
        for i in range(9)
    ]
    silent = {"question": "who?", "context": "\u200b\u200b", "answers": {"text": [], "answer_start": []}}
    table = Table("x", "", {"train": rows, "validation": [*rows[:4], silent], "test": rows[4:]})
    read_question_answering(table)
    tokenizer = new_tokenizer([row["context"] for row in rows], vocab_size=300)
    tokenizer.backend_tokenizer.normalizer = BertNormalizer()  # which takes such characters out
    model = new_bert(tokenizer, model_class=BertForQuestionAnswering, block_size=32)
    task = QuestionAnswering(table, tokenizer, causal=False, max_length=32, stride=8)
    assert len(task.windows("validation")[-1].offsets) == 0
    texts, margins = task._texts("validation", task.predict(model, "validation", None))
    assert texts[-1] == ""
    assert margins[-1] < margins[:-1].min()


def test_questions_about_one_context_count_as_one_in_an_interval():
    right = [True, True, False, True, False, False, True, False, True, True]
    rows = [
        {"context": f"text {i}", "reference": ["yes"], "prediction": "yes" if one else "no"}
        for i, one in enumerate(right)
        for _ in range(4)
    ]
    for name, found in QuestionAnswering.estimates_of(rows, []).items():
        low, high = stats.binomtest(6, 10).proportion_ci(method="exact")
        assert found.value == pytest.approx(60), name
        assert [found.interval().low, found.interval().high] == pytest.approx([100 * low, 100 * high], abs=0.1)
        assert len(found.statistics) == 40


def test_the_baseline_of_questions_is_the_better_of_two_constant_answers():
    def row(*answers):
        return {"id": "", "question": "where?", "context": "Rome. Oslo.", "answers": list(answers)}

    task = QuestionAnswering.__new__(QuestionAnswering)
    task.table = Table("x", "", {"test": [row("Rome"), row("Rome"), row()], "validation": [row("Rome"), row(), row()]})
    name, first = task.baseline("test")
    assert (name, first.estimates["f1"].value) == ("first sentence", pytest.approx(200 / 3))
    name, none = task.baseline("validation")
    assert (name, none.estimates["f1"].value) == ("never answer", pytest.approx(200 / 3))
