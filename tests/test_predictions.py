"""Rows of predictions.jsonl give back the numbers of the run that wrote them."""

import json
import math

import numpy as np
import pytest

from hf_lm.evaluation.metrics import Classification, QuestionAnswering, Summarization, Translation
from hf_lm.scoring.predictions import METRICS, estimates_of, read_predictions


def values(estimates):
    return {name: estimate.value for name, estimate in estimates.items()}


@pytest.mark.parametrize(
    ("task", "metric", "references"),
    [
        ("question_answering", QuestionAnswering, [["Rome", "in Rome"], [], ["Oslo"]]),
        ("translation", Translation, ["in Rome it rains", "", "Oslo"]),
        ("summarization", Summarization, ["in Rome it rains", "no rain", "Oslo"]),
    ],
)
def test_text_is_measured_by_the_metric_of_its_task_in_the_order_of_the_table(task, metric, references):
    said = ["Rome", "", "in Oslo"]
    rows = [
        {"prediction": text, "reference": meant, "id": i}
        for i, (text, meant) in enumerate(zip(said, references, strict=True))
    ]
    found = values(estimates_of(task, rows))
    assert found == values(metric().estimates(said, references))
    assert list(found) == list(METRICS[task])


def test_documents_are_measured_by_their_sums():
    rows = [{"nll": 8.0, "tokens": 4, "bytes": 20, "words": 3}, {"nll": 4.0, "tokens": 2, "bytes": 4, "words": 1}]
    found = values(estimates_of("pretrain", rows))
    expected = {"bits_per_byte": 0.5 / math.log(2), "word_perplexity": math.exp(3), "perplexity": math.exp(2)}
    assert found == pytest.approx(expected)
    assert list(found) == list(METRICS["pretrain"])


def test_a_prediction_that_is_no_class_is_wrong_and_its_probability_is_kept():
    labels, true, said = ["bad", "good"], ["bad", "good", "good"], ["bad", "other", "good"]
    chances = [{"bad": 0.9, "good": 0.1}, {"bad": 0.1, "good": 0.2, "other": 0.7}, {"good": 0.08}]
    rows = [
        {"prediction": text, "reference": label, "probabilities": some}
        for text, label, some in zip(said, true, chances, strict=True)
    ]
    found = values(estimates_of("sentiment", rows, labels=labels))
    assert list(found) == ["accuracy", "macro_f1", "mcc", "calibration_error"]
    classes = Classification(classes=2)
    matrix = np.array([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.0, 0.08, 0.0]])  # none for a class that is not among them
    assert found == values(classes.estimates([0, -1, 1], [0, 1, 1], probabilities=matrix))
    assert found["calibration_error"] == pytest.approx(100 * (0.1 + 0.7 + 0.92) / 3)
    del rows[1]["probabilities"]  # without those of all there is no calibration error
    assert values(estimates_of("sentiment", rows, labels=labels)) == values(classes.estimates([0, -1, 1], [0, 1, 1]))


def test_a_last_line_that_was_cut_short_is_left_out_and_other_files_are_refused(tmp_path):
    rows = [{"text": "一\u2028行"}, {"text": "b"}]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + '{"text": "c', encoding="utf-8"
    )
    assert read_predictions(tmp_path / "rows.jsonl") == rows
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    assert read_predictions(tmp_path / "rows.jsonl") == []
    (tmp_path / "card.md").write_text("# A card\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.md is no file of JSON lines"):
        read_predictions(tmp_path / "card.md")
