"""Labelled data as it comes: every form gives the same rows, and what cannot be read is said in one line."""

import json
from functools import partial

import pytest

from hf_lm.data.conversations import read_chat, read_preferences, read_prompts
from hf_lm.data.paths import find_files
from hf_lm.data.sources import SPLITS, load_corpus
from hf_lm.data.tables import Table, hold_out, load_table, pick_column
from hf_lm.dry_run import run_recipe
from hf_lm.output_folder import save_run
from hf_lm.tasks.question_answering import read_question_answering
from hf_lm.tasks.sentiment import read_sentiment
from hf_lm.tasks.summarization import read_summarization
from hf_lm.tasks.tagged_words import load_tagged_words, read_tagged_words
from hf_lm.tasks.translation import read_translation

ROWS = [
    {"text": f"good number {i}" if i % 2 else f"bad number {i}", "label": "pos" if i % 2 else "neg"} for i in range(40)
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
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


def test_a_quoted_field_keeps_its_line_ends(tmp_path):
    for suffix, mark in ((".csv", ","), (".tsv", "\t")):
        path = tmp_path / f"reviews{suffix}"
        path.write_text(f'text{mark}label\n"one\ntwo"{mark}pos\nplain{mark}neg\n')
        assert load_table(str(path)).rows["train"][0] == {"text": "one\ntwo", "label": "pos"}


def test_lines_of_different_length_are_refused_with_their_number(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\nfine\tpos\nbroken\n")
    with pytest.raises(ValueError, match=r"a\.tsv, row 3: 1 columns, where the first row has 2"):
        load_table(str(tmp_path / "a.tsv"))


def test_what_a_run_wrote_below_the_folder_is_not_its_data(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "out" / "checkpoint-2" / "state.json", [{"a": 1}])
    assert len(find_files(str(tmp_path))) == 2
    save_run({}, tmp_path / "out")
    assert find_files(str(tmp_path)) == [tmp_path / "train.jsonl"]
    assert len(find_files(str(tmp_path / "out"))) == 1  # named itself, it is what was asked for


def test_a_folder_that_datasets_saved_is_its_data_with_the_names_of_its_classes(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict

    rows = Dataset.from_list([row | {"label": row["label"] == "pos"} for row in ROWS])
    rows = rows.cast_column("label", ClassLabel(names=["neg", "pos"]))
    DatasetDict(train=rows.select(range(30)), test=rows.select(range(30, 40))).save_to_disk(str(tmp_path / "saved"))
    train = tmp_path / "saved" / "train"
    for name in ("cache-1a2b.arrow", "data-00001-of-00002.arrow"):  # of a map, and of an earlier save
        (train / name).write_bytes((train / "data-00000-of-00001.arrow").read_bytes())
    assert load_table(str(tmp_path / "saved")).rows == {"train": ROWS[:30], "test": ROWS[30:]}
    assert load_table(str(train / "*.arrow")).rows["train"] == ROWS[:30]
    corpus = load_corpus(str(tmp_path / "saved"))
    assert list(corpus.documents("test")) == [row["text"] for row in ROWS[30:]]
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    assert load_table(str(tmp_path / "rows.parquet")).rows["train"] == ROWS


def test_the_folders_of_a_glob_are_its_splits(tmp_path):
    for split, rows in (("test", ROWS[30:]), ("train", ROWS[:30])):
        write(tmp_path / split / "rows.jsonl", rows)
        tagged = "".join(f"{row['text'].split()[0]} O\nRome B-LOC\n\n" for row in rows)
        (tmp_path / split / "words.conll").write_text(tagged)
    assert load_table(str(tmp_path / "*" / "*.jsonl")).rows == {"train": ROWS[:30], "test": ROWS[30:]}
    assert load_table(str(tmp_path / "test" / "*.jsonl")).rows == {"train": ROWS[30:]}  # named itself
    corpus = load_corpus(str(tmp_path / "*" / "*.jsonl"))
    assert list(corpus.documents("test")) == [row["text"] for row in ROWS[30:]]
    assert len(load_tagged_words(str(tmp_path / "*" / "*.conll")).rows["test"]) == 10


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


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("source", "target"), ("en_XX", "de_DE")])
def test_columns_called_source_and_target_are_read_whatever_their_languages(tmp_path, source, target):
    rows = [{"source": "x"}, *({"source": f"number {i}", "target": f"Nummer {i}"} for i in range(30))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load_table(str(tmp_path / "pairs.jsonl"))
    read_translation(table, source=source, target=target)
    assert table.columns == {"source": "source", "target": "target"}
    assert {"source": "number 7", "targets": ["Nummer 7"]} in [row for split in table.rows.values() for row in split]
    assert table.languages == (["en", "de"] if source == "en" else [])


def test_sentences_of_a_list_are_joined_as_their_script_does():
    rows = [{"document": [f"Ann {i} came.", "She left."], "summary": "x"} for i in range(20)]
    rows += [{"document": [f"小安来了{i}次。", "她走了！", "Bye."], "summary": "x"} for i in range(20)]
    table = Table("x", "", {"train": rows})
    read_summarization(table)
    sources = {row["source"] for split in table.rows.values() for row in split}
    assert {"Ann 3 came. She left.", "小安来了3次。她走了！Bye."} < sources
    assert len(sources) == 40


def test_a_column_is_not_translated_into_itself(tmp_path):
    write(tmp_path / "pairs.jsonl", [{"en": f"number {i}", "de": f"Nummer {i}"} for i in range(30)])
    with pytest.raises(ValueError, match="the column 'en' is read and learned: give another --source or --target"):
        read_translation(load_table(str(tmp_path / "pairs.jsonl")), source="en", target="en")


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


def test_a_few_groups_of_many_rows_leave_no_split_empty():
    for seed in range(30):
        rows = [{"text": f"{seed} {i % 20}", "label": str(i)} for i in range(500)]
        table = Table("x", "", {"train": rows})
        hold_out(table, {"validation": 0.1, "test": 0.1}, group=lambda row: row["text"], unit="text")
        assert [len({row["text"] for row in table.rows[split]}) for split in table.splits] == [16, 2, 2]


def test_columns_are_guessed_or_listed():
    rows = [{"review": "a", "stars": 1}]
    assert pick_column(rows, "", ("text", "review"), option="--text_column", where="x") == "review"
    with pytest.raises(ValueError, match=r"\['review', 'stars'\]; say which one to read with --label_column"):
        pick_column(rows, "", ("label",), option="--label_column", where="x")
    with pytest.raises(ValueError, match=r"no column 'reveiw'.*Did you mean 'review'"):
        pick_column(rows, "reveiw", (), option="--text_column", where="x")


def test_an_integer_that_is_written_as_a_float_is_the_same_class(tmp_path):
    labels = [-1, -1.0, 1, 1.0]
    write(tmp_path / "a.jsonl", [{"text": f"number {i}", "label": labels[i % 4]} for i in range(80)])
    assert read_sentiment(load_table(str(tmp_path / "a.jsonl"))) == ["1", "-1"]
    rows = [f"number {i},{['-1.0', '0.0', '1', '1.0', '2.5', 'v1.0'][i % 6]}" for i in range(120)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))  # as pandas writes a column with missing values
    assert read_sentiment(load_table(str(tmp_path / "a.csv"))) == ["0", "1", "-1", "2.5", "v1.0"]
    write(tmp_path / "a.jsonl", [{"text": "x", "score": value} for value in (0.5, 1e300, float("nan"))])
    rows = load_table(str(tmp_path / "a.jsonl")).rows["train"]
    assert [str(row["score"]) for row in rows] == ["0.5", "1e+300", "nan"]


def test_a_column_that_the_first_row_lacks_is_found():
    rows = [{"text": "a"}, {"text": "b", "label": "pos"}]
    assert pick_column(rows, "", ("label",), option="--label_column", where="x") == "label"
    asked = [{"prompt": "q"}, *({"prompt": f"q{i}", "reference": "r"} for i in range(40))]
    table = Table("x", "", {"train": asked})
    read_prompts(table)
    assert "r" in {row["reference"] for row in table.rows["train"]}
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for first in ({"messages": None}, {}):
        table = Table("x", "", {split: [first, {"messages": said}] for split in ("train", "validation", "test")})
        read_chat(table)
        assert table.rows["test"] == [{"messages": said}]


def test_columns_that_are_not_read_are_named():
    wide = ", ".join(f"'z{i}'" for i in range(8))
    for read, row in (
        (read_sentiment, {"text": "a", "label": "pos"}),
        (read_chat, {"prompt": "q", "response": "a", "system": "s", "history": []}),
        (read_chat, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
        (read_prompts, {"instruction": "q", "input": "i", "answer": "a"}),
        (read_preferences, {"prompt": "q", "chosen": "a", "rejected": "b"}),
        (read_summarization, {"document": "d", "summary": "s"}),
        (partial(read_translation, source="en", target="de"), {"translation": {"en": "a", "de": "b"}}),
        (read_tagged_words, {"tokens": ["a", "b"], "tags": ["O", "B-X"]}),
        (read_question_answering, {"id": "1", "question": "q", "context": "c", "answers": []}),
    ):
        for more, said in (
            ({}, []),
            ({"z": 1, "text_pair": "b"}, ["columns that are not read: 'z', 'text_pair'"]),
            ({f"z{i}": 1 for i in range(11)}, [f"columns that are not read: {wide} and 3 more"]),
        ):
            two = [row | more, row | more | ({"label": "neg"} if read is read_sentiment else {})]
            table = Table("x", "", {split: list(two) for split in SPLITS})
            read(table)
            assert [note for note in table.notes if "not read" in note] == said


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


def test_a_column_of_numbers_is_no_column_of_classes(tmp_path):
    table = table_of(tmp_path, [{"text": f"text {i}", "label": i / 7} for i in range(60)])
    with pytest.raises(ValueError, match=r"'label' has 4\d different values in 4\d training rows .*numbers or text\?"):
        read_sentiment(table)


def test_minus_one_is_a_class_where_many_rows_have_it(tmp_path):
    table = table_of(tmp_path, [{"text": f"text {i}", "label": i % 3 - 1} for i in range(60)])
    table.rows["test"] = [{"text": f"test {i}", "label": -1} for i in range(5)]  # which has no labels
    assert read_sentiment(table) == ["0", "1", "-1"]
    assert table.left_out["rows_without_label"] == 5
    assert sum(map(len, table.rows.values())) == 60


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


PAIRS = [{"source": f"number {i}", "target": f"第{i}"} for i in range(40)]
ASKED = [{"question": f"Which {i}?", "context": f"It is {i} here.", "answers": [f"{i}"]} for i in range(100, 140)]


@pytest.mark.parametrize(
    ("recipe", "rows", "arguments", "said"),
    [
        ("sentiment", ROWS, {"text_column": "txet"}, "no column 'txet'.*Did you mean 'text'.*--text_column"),
        ("sentiment", ROWS, {"label_column": "stars"}, r"no column 'stars'; it has \['text', 'label'\]. Set --label"),
        ("sentiment", [row | {"label": "pos"} for row in ROWS], {}, "one class only, 'pos'"),
        ("sentiment", [row | {"text": " "} for row in ROWS], {}, "no training row with both 'text' and 'label'"),
        ("sentiment", [row["text"] for row in ROWS], {}, "row 1: expected an object with named columns, got a str"),
        ("translation", PAIRS, {"source": "soruce", "target": "target"}, "Did you mean 'source'.*--source"),
        ("translation", [row | {"target": ""} for row in PAIRS], {"source": "source", "target": "target"}, "no train"),
        ("summarization", [{"a": "x", "b": "y"}], {}, r"columns \['a', 'b'\]; say which one to read with --source"),
        ("summarization", [row | {"source": None} for row in PAIRS], {}, "no training row with both"),
        ("question_answering", ASKED, {"context": "contxt"}, "Did you mean 'context'.*--context"),
        ("question_answering", [row | {"answers": ["Ann"]} for row in ASKED], {}, "an answer that stands in it"),
        ("question_answering", [row | {"question": ""} for row in ASKED], {}, "no training row with a question"),
        (
            "question_answering",
            [row | {"answers": {"text": ["It", "is"], "answer_start": [0]}} for row in ASKED],
            {},
            "row 1: the answers' text and answer_start must be lists of one length",
        ),
    ],
)
def test_a_recipe_refuses_data_that_it_cannot_learn_in_one_line(tmp_path, recipe, rows, arguments, said):
    write(tmp_path / "train.jsonl", rows)
    options = [token for key, value in arguments.items() for token in (f"--{key}", value)]
    with pytest.raises(ValueError, match=said) as caught:
        run_recipe(recipe, ["--dataset", str(tmp_path), *options])
    assert "\n" not in str(caught.value)


def test_rows_without_an_answer_in_their_context_are_left_out_of_train_and_kept_in_test(tmp_path):
    wrong = [row | {"answers": ["Ann"]} for row in ASKED[:3]]
    moved = [ASKED[4] | {"answers": {"text": ["104"], "answer_start": [0]}}]  # stands once, elsewhere
    twice = [row | {"answers": ["is"], "context": f"{row['context']} It is."} for row in ASKED[:2]]
    write(tmp_path / "train.jsonl", [*wrong, *twice, *moved, *ASKED[5:]])
    write(tmp_path / "test.jsonl", wrong)
    write(tmp_path / "validation.jsonl", ASKED[:2])
    table = load_table(str(tmp_path))
    read_question_answering(table)
    assert len(table.rows["train"]) == 36
    assert table.rows["train"][0]["starts"] == [6]
    expected = {"answers_not_in_their_context": 3, "answers_in_several_places": 2, "wrong_offsets_repaired": 1}
    assert table.left_out == expected
    assert len(table.rows["test"]) == 3


@pytest.mark.parametrize("false", ["False", "false", "0", "0.0", "", False, None, float("nan")])
def test_an_answer_stands_unless_its_question_is_marked_as_impossible(tmp_path, false):
    rows = [row | {"answers": "104", "is_impossible": false} for row in ASKED[4:5]]  # False as pandas writes it
    rows += [
        row | {"answers": "1", "is_impossible": true} for row, true in zip(ASKED, ("True", "1", True), strict=False)
    ]
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", rows)
    table = load_table(str(tmp_path))
    read_question_answering(table)
    assert [row["answers"] for row in table.rows["train"]] == [["104"], [], [], []]


@pytest.mark.parametrize("answers", ["answers", "answer", "answer_text"])
def test_the_start_of_an_answer_may_be_a_column(tmp_path, answers):
    context = "Ann asks Ann."
    rows = [f'"{context}",Who {i}?,Ann,{("9", "9.0", " 9")[i % 3]}' for i in range(20)]  # 9.0 beside missing values
    (tmp_path / "train.csv").write_text("\n".join([f"context,question,{answers},answer_start", *rows]))
    nothing = {"context": context, "question": "Who?", answers: None, "answer_start": None}
    write(tmp_path / "validation.jsonl", [nothing | {answers: ["Ann"], "answer_start": [9]}])
    several = nothing | {answers: ["asks", "Ann"], "answer_start": [4, 9]}
    write(tmp_path / "test.jsonl", [nothing | {answers: ["Ann"], "answer_start": 9.0}, nothing, several])
    table = load_table(str(tmp_path))
    read_question_answering(table)
    assert [row["starts"] for row in table.rows["train"]] == [[9]] * 20
    assert [row["starts"] for row in table.rows["validation"] + table.rows["test"]] == [[9], [9], [], [4, 9]]
    assert not any("not read" in note for note in table.notes)


def test_rows_with_an_empty_source_or_target_are_counted_and_a_split_of_them_is_cut_anew(tmp_path):
    write(tmp_path / "train.jsonl", [*PAIRS, {"source": "", "target": "x"}, {"source": "x", "target": None}])
    write(tmp_path / "validation.jsonl", [{"source": "x", "target": " "}])
    table = load_table(str(tmp_path))
    read_translation(table, source="source", target="target")
    assert table.left_out == {"rows_without_source_or_target": 3}
    assert "validation has no row with both" in table.notes[0]
    assert table.rows["validation"]
    assert table.origins["validation"] == "cut from train"
