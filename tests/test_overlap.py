"""Evaluation rows that stand in train are found, however they are spelled, and nothing else is."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_lm.data.batches import by_length, map_by_length, pad_batch
from hf_lm.data.overlap import find_overlap

LONG = "one two three four five six seven eight nine ten eleven twelve"


def test_exact_and_partial_overlap_and_the_rows_of_train_they_match():
    train = ["Hello, WORLD!", LONG + " thirteen", "something else entirely", "", "今天天气很好我们去公园玩吧"]
    held_out = [
        "hello world",
        "zero " + LONG,
        "something new",
        "",
        LONG.replace("six", "6"),
        "今天天气很好我们去公园玩",
    ]
    found = find_overlap(train, held_out)
    assert found.exact.tolist() == [True, False, False, False, False, False]
    assert found.partly.tolist() == [False, True, False, False, False, True]
    assert found.train.tolist() == [True, True, False, False, True]
    report = found.report(held_out)
    assert report["rows"] == 3
    assert report["exact"] == 1
    assert report["share"] == 0.5


@given(st.lists(st.text(alphabet="ab cd", max_size=12), max_size=12), st.lists(st.text(alphabet="ab cd", max_size=12)))
def test_every_exact_copy_is_found_and_dropping_train_rows_removes_all(train, held_out):
    found = find_overlap(train, held_out)
    kept = [text for text, drop in zip(train, found.train, strict=True) if not drop]
    assert not find_overlap(kept, held_out).found.any()
    for text, exact in zip(held_out, found.exact, strict=True):
        assert exact or not text.split() or text not in train


def test_padding_follows_the_longest_row_and_labels_are_ignored_there():
    features = [{"input_ids": [5, 6, 7], "labels": [1, 2]}, {"input_ids": [8], "labels": [3]}]
    batch = pad_batch(features, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2], [3, -100]]
    left = pad_batch([{"input_ids": [5, 6]}, {"input_ids": [8]}], pad_id=9, left=True)
    assert left["input_ids"].tolist() == [[5, 6], [9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert torch.equal(pad_batch([{"input_ids": [1], "labels": 0}] * 2, pad_id=0)["labels"], torch.tensor([0, 0]))


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 3))
def test_batches_by_length_hold_every_row_once_within_their_budget(lengths, processes):
    seen = []
    for process in range(processes):
        for rows in by_length(lengths, max_tokens=100, share=(process, processes)):
            assert len(rows) * max(lengths[i] for i in rows) <= 100
            seen += rows
    assert sorted(seen) == list(range(len(lengths)))
    doubled = map_by_length(lambda rows: [2 * lengths[i] for i in rows], lengths, description="", max_tokens=100)
    assert doubled == [2 * length for length in lengths]


def test_overlap_is_found_by_meaning_of_characters_not_by_code_points():
    assert find_overlap(["ｆｕｌｌ ｗｉｄｔｈ"], ["Full Width"]).exact.all()
    assert np.array_equal(find_overlap(["straße"], ["STRASSE"]).exact, [True])
