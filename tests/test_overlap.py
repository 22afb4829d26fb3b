"""Evaluation rows that stand in train are found, however they are spelled, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("shared", range(7))
def test_a_row_overlaps_from_half_of_its_runs_on(shared):
    words = [f"w{i}" for i in range(13)]  # six runs of eight words
    train = " ".join(words[: 7 + shared] if shared else words[:7])  # it has the first `shared` of them
    found = find_overlap([train], [" ".join(words)])
    assert found.found.tolist() == [shared >= 3]
    assert found.exact.tolist() == [shared == 6]
    assert found.train.tolist() == [shared >= 3]


@given(st.lists(st.text(alphabet="ab cd", max_size=12), max_size=12), st.lists(st.text(alphabet="ab cd", max_size=12)))
def test_every_exact_copy_is_found_and_dropping_train_rows_removes_all(train, held_out):
    found = find_overlap(train, held_out)
    kept = [text for text, drop in zip(train, found.train, strict=True) if not drop]
    assert not find_overlap(kept, held_out).found.any()
    for text, exact in zip(held_out, found.exact, strict=True):
        assert exact or not text.split() or text not in train


def test_overlap_is_found_by_meaning_of_characters_not_by_code_points():
    assert find_overlap(["ｆｕｌｌ ｗｉｄｔｈ"], ["Full Width"]).exact.all()
    assert np.array_equal(find_overlap(["straße"], ["STRASSE"]).exact, [True])
