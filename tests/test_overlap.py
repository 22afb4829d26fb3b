"""Evaluation rows that stand in train are found, however they are spelled, and nothing else is."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lm.data.overlap import WORD, find_overlap, normal_words
from hf_lm.data.tables import Table
from hf_lm.tasks.sentiment import Sentiment, read_sentiment
from hf_lm.tokenization.tokenizer import new_tokenizer

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


@pytest.mark.parametrize("word", ["हिन्दी", "தமிழ்", "مُحَمَّد", "שָׁלוֹם", "한국어", "cafe\u0301", "über"])
def test_a_word_is_not_cut_at_its_vowel_signs_and_accents(word):
    assert normal_words(f"({word}, {word})") == [unicodedata.normalize("NFKC", word)] * 2
    assert WORD.findall(f"{word} {word}!") == [word, word, "!"]


def test_words_that_differ_in_a_vowel_sign_are_no_copies():
    assert not find_overlap(["की"], ["का"]).found.any()


@pytest.mark.parametrize("text", ["ภาษาไทย", "ພາສາລາວ", "မြန်မာ", "ខ្មែរ", "ひらがな", "漢字"])
def test_a_character_of_a_script_without_spaces_is_a_word(text):
    assert normal_words(f"{text} 12") == [*unicodedata.normalize("NFKC", text), "12"]
    assert WORD.findall(f"gpt{text}") == ["gpt", *text]


def sentiment(rows, **options):
    table = Table("x", "", {split: [dict(row) for row in some] for split, some in rows.items()})
    labels = read_sentiment(table)
    tokenizer = new_tokenizer([row["text"] for row in table.rows["train"]], vocab_size=300)
    return Sentiment(table, tokenizer, labels=labels, **{"max_length": 64} | options)


def labelled(*texts):
    return [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]


ROWS = {
    "train": labelled("the sea is calm", "a cold wind blows", "snow on the hills", "the sun is out"),
    "validation": labelled("leaves fall", "rain again"),
    "test": labelled("the sea is calm", "fog at night"),
}


def test_what_was_dropped_from_train_no_longer_overlaps():
    before, after = sentiment(ROWS), sentiment(ROWS, drop_overlap=True)
    assert (before.overlap["test"].found.sum(), after.overlap["test"].found.sum()) == (1, 0)
    assert len(after.table.rows["train"]) == 3
    assert after.table.notes == ["1 training rows that also occur in a held-out split were dropped"]
    with pytest.raises(ValueError, match="--drop_overlap would remove every training row"):
        sentiment(ROWS | {"test": ROWS["train"]}, drop_overlap=True)


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_that_holds_no_text_is_refused(length):
    with pytest.raises(ValueError, match=f"--max_length {length} holds no token of a text beside 2 others: give 3 or"):
        sentiment(ROWS, max_length=length)
    assert {len(feature["input_ids"]) for feature in sentiment(ROWS, max_length=3).train_dataset} == {3}
