"""Labelled data as it comes: every form gives the same rows, and what cannot be read is said in one line."""

import json

import pytest

from hf_lm.data.tables import hold_out, load_table, pick_column
from hf_lm.tasks.sentiment import read_sentiment
from hf_lm.tasks.translation import read_translation

ROWS = [
    {"text": f"good number {i}" if i % 2 else f"bad number {i}", "label": "pos" if i % 2 else "neg"} for i in range(40)
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    write(tmp_path / f"reviews{suffix}", ROWS)
    assert load_table(str(tmp_path / f"reviews{suffix}")).rows["train"] == ROWS


def test_a_table_without_a_header_has_columns_by_position(tmp_path):
    path = tmp_path / "reviews.tsv"
    path.write_text('He said "no".\tneg\n"Yes!" she said\tpos\n')
    table = load_table(str(path), header=False)
    assert table.rows["train"] == [{"0": 'He said "no".', "1": "neg"}, {"0": '"Yes!" she said', "1": "pos"}]


def test_lines_of_different_length_are_refused_with_their_number(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\nfine\tpos\nbroken\n")
    with pytest.raises(ValueError, match=r"a\.tsv, row 3: 1 columns, where the first row has 2"):
        load_table(str(tmp_path / "a.tsv"))


def test_aligned_files_are_columns_and_must_be_equally_long(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test_2016_flickr", 1)):
        (tmp_path / f"{split}.en").write_text("".join(f"{split} {i}\n" for i in range(count)))
        (tmp_path / f"{split}.de").write_text("".join(f"{split} {i} auf Deutsch\n" for i in range(count)))
    table = load_table(str(tmp_path))
    assert {split: len(rows) for split, rows in table.rows.items()} == {"test": 1, "train": 3, "validation": 2}
    assert table.rows["train"][1] == {"de": "train 1 auf Deutsch", "en": "train 1"}
    (tmp_path / "train.de").write_text("nur eine\n")
    with pytest.raises(ValueError, match=r"train\.de has 1 lines, train\.en has 3 lines"):
        load_table(str(tmp_path))


def test_files_and_folders_can_be_classes(tmp_path):
    for label in ("pos", "neg"):
        (tmp_path / "lines").mkdir(exist_ok=True)
        (tmp_path / "lines" / f"reviews.{label}").write_text(f"{label} one\n{label} two\n")
        for split in ("train", "test"):
            (tmp_path / "folders" / split / label).mkdir(parents=True)
            (tmp_path / "folders" / split / label / "1.txt").write_text(f"{label} in\n{split}")
    lines = load_table(str(tmp_path / "lines"), endings="labels")
    assert lines.rows["train"] == [
        {"text": f"{label} {n}", "label": label} for label in ("neg", "pos") for n in ("one", "two")
    ]
    folders = load_table(str(tmp_path / "folders"), endings="labels")
    assert folders.rows["test"] == [{"text": f"{label} in\ntest", "label": label} for label in ("neg", "pos")]


def test_a_translation_column_holds_both_languages(tmp_path):
    rows = [{"id": str(i), "translation": {"en": f"number {i}", "de": f"Nummer {i}"}} for i in range(30)]
    write(tmp_path / "train.jsonl", rows)
    table = load_table(str(tmp_path / "train.jsonl"))
    read_translation(table, source="en", target="de")
    assert {"source": "number 4", "targets": ["Nummer 4"]} in [row for rows in table.rows.values() for row in rows]


def test_held_out_rows_share_no_text_with_train_and_stay_when_rows_come(tmp_path):
    rows = ROWS + [{"text": row["text"], "label": row["label"]} for row in ROWS]  # every text twice
    write(tmp_path / "a.jsonl", rows)
    table = load_table(str(tmp_path / "a.jsonl"))
    hold_out(table, {"validation": 0.2, "test": 0.2}, group=lambda row: row["text"], unit="text")
    found = {split: {row["text"] for row in table.rows[split]} for split in table.splits}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert len(found["test"]) == len(found["validation"]) == 8
    assert sum(map(len, table.rows.values())) == 80
    assert "cut from train by text" in table.notes[0]


def test_columns_are_guessed_or_listed():
    rows = [{"review": "a", "stars": 1}]
    assert pick_column(rows, "", ("text", "review"), option="--text_column", where="x") == "review"
    with pytest.raises(ValueError, match=r"\['review', 'stars'\]; say which one to read with --label_column"):
        pick_column(rows, "", ("label",), option="--label_column", where="x")
    with pytest.raises(ValueError, match=r"no column 'reveiw'.*Did you mean 'review'"):
        pick_column(rows, "reveiw", (), option="--text_column", where="x")


def table_of(tmp_path, rows):
    write(tmp_path / "train.jsonl", rows)
    return load_table(str(tmp_path / "train.jsonl"))


def test_labels_may_be_strings_or_numbers_and_rows_without_are_counted(tmp_path):
    rows = [{"text": row["text"], "label": int(row["label"] == "pos")} for row in ROWS]
    table = table_of(
        tmp_path, [*rows, {"text": "", "label": 1}, {"text": "no label", "label": None}, {"text": "x", "label": -1}]
    )
    assert read_sentiment(table) == ["0", "1"]
    assert table.left_out == {"rows_without_text": 1, "rows_without_label": 2}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row | {"label": "pos"} for row in ROWS], "one class only, 'pos'"),
        ([{"text": "", "label": "pos"}], "no training row with both"),
        (ROWS[:2], "2 different rows, too few to hold out validation and test"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        read_sentiment(table_of(tmp_path, rows))


def test_a_label_that_train_has_not_is_named(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [{"text": "so so", "label": "mixed"}])
    with pytest.raises(ValueError, match=r"test has labels that train has not: \['mixed'\]"):
        read_sentiment(load_table(str(tmp_path)))
