"""Data that is not what it should be is refused in one line that names file, row and column, or mended and counted."""

import gzip
import json
import lzma
import re
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from hf_lm.data.conversations import read_chat, read_preferences, read_prompts
from hf_lm.data.reading import clean, read_documents, read_rows
from hf_lm.data.sources import load_corpus
from hf_lm.data.tables import Table, load_table
from hf_lm.evaluation.rewards import load_reward
from hf_lm.models.bert import new_bert
from hf_lm.models.encoder_decoder import new_bart
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.proofs import PROOFS, check_skipped
from hf_lm.tasks.question_answering import read_question_answering
from hf_lm.tasks.sentiment import read_sentiment
from hf_lm.tasks.summarization import read_summarization
from hf_lm.tasks.text_to_text import to_sources_and_targets
from hf_lm.tasks.translation import read_translation

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"line {i} of a text that is long enough to be compressed\n" for i in range(20_000)).encode()


def documents(path, **options):
    options = {"text_column": "", "document_start": None, "cleaned": Counter()} | options
    return list(read_documents(path, **options))


def table(rows):
    rows = list(rows) if isinstance(rows, tuple) else [*rows, *rows[:1] * 20]
    return Table("d", "", {"train": [dict(row) if isinstance(row, dict) else row for row in rows]})


@pytest.mark.parametrize("share", [0.2, 0.6, 0.999])
def test_a_truncated_zst_or_gz_is_refused_by_its_name(tmp_path, share):
    for name, packed in (("a.txt.zst", zstandard.compress(TEXT)), ("b.txt.gz", gzip.compress(TEXT))):
        path = tmp_path / name
        path.write_bytes(packed[: int(share * len(packed))])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            documents(path)


@pytest.mark.parametrize("name", ["a.zip", "a.csv", "a.txt", "a.csv.xz", "a.jsonl"])
def test_an_archive_is_no_text_whatever_its_name(name, tmp_path):
    path = tmp_path / name
    if name.endswith("xz"):
        path.write_bytes(lzma.compress(TEXT))
    else:
        with zipfile.ZipFile(path, "w") as archive:  # not compressed: its bytes are UTF-8 for the most part
            archive.writestr("a.csv", TEXT)
    with pytest.raises(ValueError, match=rf"{name} is an archive or a spreadsheet"):
        load_table(str(path), endings="labels")


def test_a_zst_of_several_frames_is_read_to_its_end(tmp_path):
    half = len(TEXT) // 2
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(TEXT[:half]) + zstandard.compress(TEXT[half:]))
    assert "".join(documents(tmp_path / "a.txt.zst")).encode() == TEXT


def test_gbk_utf_16_and_utf_32_are_named_in_every_format(tmp_path):
    chinese = "今天天气很好，我们去公园散步。"
    for name, text in (
        ("a.txt", chinese * 20),
        ("b.csv", f"text,label\n{chinese},1\n" * 5),
        ("c.jsonl", json.dumps({"text": chinese}, ensure_ascii=False) * 3),
        ("d.json", json.dumps([{"text": chinese}], ensure_ascii=False)),
    ):
        path = tmp_path / name
        path.write_bytes(text.encode("gbk"))
        with pytest.raises(ValueError, match=rf"{name} is GBK, not UTF-8"):
            documents(path)
        for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-32-le", "utf-32-be"):
            path.write_bytes(("plain words, in English. " * 50 + text).encode(encoding))
            with pytest.raises(ValueError, match=encoding[:6].upper()):
                documents(path)
        path.write_bytes(text.encode())
        assert path.suffix == ".jsonl" or chinese in documents(path)[0]


def test_a_few_bad_bytes_in_a_text_are_mended(tmp_path):
    (tmp_path / "a.txt").write_bytes("很好 ".encode() * 50 + b"caf\xe9 " * 5)
    assert "caf\ufffd" in documents(tmp_path / "a.txt")[0]


def test_accents_in_latin_1_are_not_taken_for_gbk(tmp_path):
    """An accent and the letter after it are one character of GBK; in Chinese both bytes of most are above ASCII."""
    french = "Nous c\xe2usames longtemps; elle \xe9tait simple et bonne. "
    (tmp_path / "a.txt").write_bytes(b"Words in English, as a novel has them. " * 50 + 3 * french.encode("latin-1"))
    assert "c\ufffdusames" in documents(tmp_path / "a.txt")[0]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,text\na,1,b\n")
    (tmp_path / "b.tsv").write_text("text\ttext\na\tb\n")
    repeated = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(repeated, tmp_path / "c.parquet")
    for name in ("a.csv", "b.tsv", "c.parquet"):
        for read in (documents, read_rows):
            with pytest.raises(ValueError, match=f"{name} has 2 columns called 'text'"):
                read(tmp_path / name)


@pytest.mark.parametrize("cell", ['"never closed', '"closed" too early', r'"a \" escaped"', '"a" 5" w'])
def test_a_stray_quote_in_a_csv_is_refused_with_its_row(tmp_path, cell):
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "fine\n" * 5 + f"{cell}\n" + "fine\n" * 100)
    for read in (documents, read_rows):
        with pytest.raises(ValueError, match=r"a\.csv, row 7: a cell begins with a quote .*doubled"):
            read(path)
    path.write_text('text\n5" wide\n"a ""b"", c"\n')
    assert documents(path) == ['5" wide', 'a "b", c']


def test_a_row_with_other_cells_than_the_first_is_refused_by_every_reader(tmp_path):
    for name, text in (
        ("a.csv", "text\nHello, world\n"),
        ("b.csv", "text,label\na,1\n\nb\n"),
        ("c.tsv", "text\tlabel\na\tb\tc\n"),
    ):
        (tmp_path / name).write_text(text)
        for read in (documents, read_rows):
            with pytest.raises(ValueError, match=rf"{name}, row \d: \d columns, where the first row has \d"):
                read(tmp_path / name)
    for mark in ";|\t":
        (tmp_path / "d.csv").write_text(f"id{mark}text\n1{mark}Hello\n")
        for read in (documents, read_rows):
            with pytest.raises(
                ValueError, match=r"d\.csv has one column, 'id.*text': separate the cells of a .csv by"
            ):
                read(tmp_path / "d.csv")


def test_quotes_around_the_cells_of_a_tsv_are_read_in_one_way(tmp_path):
    path = tmp_path / "a.tsv"
    for text, first in (
        ('text\tlabel\n"a ""b"", c"\tneg\nplain\tpos\n', 'a "b", c'),  # as Excel and pandas write it
        ('text\tlabel\n"a, b"\tneg\nplain\tpos\n', "a, b"),  # as Excel does
        ('"text"\t"label"\n"a"\t1\n', "a"),  # as R does
        ('text\tlabel\n"a"\tneg\nplain\tpos\n', '"a"'),  # no program quotes one of these cells alone
        ('text\tlabel\n"a\tb"\tneg\n"a\nb"\tpos\n', "a\tb"),
        ('text\n"a\nb"\n', "a\nb"),
        ('text\n"a"\nplain\n', '"a"'),
        ('text\tlabel\n"a"\tneg\n"Yes!" she said\tpos\n', '"a"'),  # as spoken: no syntax
        ('text\tlabel\n"a\tneg\nb"\tpos\n', '"a'),
    ):
        path.write_text(text)
        assert read_rows(path)[0]["text"] == documents(path)[0] == first


def test_a_column_of_bytes_or_objects_is_no_text(tmp_path):
    path = tmp_path / "a.parquet"
    for value, kind in ((b"bytes", "bytes"), ({"a": 1}, "an object")):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": value}]), path)
        with pytest.raises(ValueError, match=f"row 1: 'text' holds {kind} where a text is needed"):
            documents(path, text_column="text")


def test_half_a_surrogate_pair_becomes_a_replacement_character_and_is_counted():
    counted = Counter()
    assert clean("a\ud800b\udfff", counted) == "a\ufffdb\ufffd"
    assert counted == {"lone_surrogates": 2}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_damaged_file_is_named(tmp_path, name):
    rows = pyarrow.table({"text": [f"words {i} " * 50 for i in range(500)]})
    if name == "a.parquet":
        pyarrow.parquet.write_table(rows, tmp_path / name)
    else:
        with pyarrow.ipc.new_stream(str(tmp_path / name), rows.schema) as writer:
            writer.write_table(rows)
    whole = (tmp_path / name).read_bytes()
    for data in (whole[: len(whole) // 2], whole[:40] + b"\xff" * 200 + whole[240:]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            documents(tmp_path / name)


def test_json_that_is_nested_or_has_endless_numbers_is_one_line(tmp_path):
    for text in ('{"a":' * 9000, '{"text": ' + "9" * 5000 + "}"):
        for name in ("a.jsonl", "b.json"):
            (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match=name):
                read_rows(tmp_path / name)


def test_json_that_is_one_value_is_no_table(tmp_path):
    for text, said in (("3", "a int"), ('"words"', "a str"), ("null", "a NoneType")):
        (tmp_path / "a.json").write_text(text)
        for read in (documents, read_rows):
            with pytest.raises(ValueError, match=rf"a\.json: expected a list of objects, got {said}"):
                read(tmp_path / "a.json")


@pytest.mark.parametrize("columns", [{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}, {"0": {"text": "a"}}])
def test_json_as_pandas_writes_it_by_default_is_refused_with_what_to_write(tmp_path, columns):
    (tmp_path / "a.json").write_text(json.dumps(columns))
    for read in (documents, read_rows):
        with pytest.raises(ValueError, match=r"a\.json holds columns.* orient='records'"):
            read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"translation": {"en": "a", "de": "b"}}')
    assert len(read_rows(tmp_path / "a.json")) == 1


def test_a_folder_that_holds_only_a_test_split_is_not_trained_on(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": "b"}\n' * 30)
    with pytest.raises(ValueError, match="no training"):
        load_table(str(tmp_path))
    with pytest.raises(ValueError, match="no training"):
        load_corpus(str(tmp_path))
    assert len(load_table(str(tmp_path / "test.jsonl")).rows["train"]) == 30  # named itself, it is what was asked for


def test_labels_that_are_null_or_nan_are_no_class():
    rows = tuple({"text": f"text {i}", "label": i % 2} for i in range(60))
    labels = table((*rows, {"text": "x", "label": float("nan")}, {"text": "y", "label": None}, {"text": "z"}))
    assert read_sentiment(labels) == ["0", "1"]
    assert labels.left_out["rows_without_label"] == 3
    for value in (["a"], {"a": 1}, b"a"):
        with pytest.raises(ValueError, match="train row 61: 'label' holds"):
            read_sentiment(table((*rows, {"text": "x", "label": value})))
        with pytest.raises(ValueError, match="train row 61: 'text' holds"):
            read_sentiment(table((*rows, {"text": value, "label": 1})))


def test_a_thousand_labels_or_texts_for_labels_are_not_all_printed():
    numbers = [{"text": f"text {i}", "label": i / 1000} for i in range(1000)]
    texts = [{"text": f"text {i} " + "long " * 100, "label": f"text {i} " + "long " * 100} for i in range(100)]
    for rows, shown in ((numbers, "and 7.. more"), (texts, "…'")):
        with pytest.raises(ValueError, match="numbers or text") as refused:
            read_sentiment(table(tuple(rows)))
        assert re.search(shown, str(refused.value))
        assert len(str(refused.value)) < 600


def test_of_several_answers_those_that_stand_in_the_context_are_learned():
    row = {"question": "who?", "answers": ["Ann Lee", "Ann", "A. Lee"]}
    rows = [row | {"context": f"{i}: Ann came."} for i in range(30)]
    absent = row | {"context": "Bob came.", "answers": ["Ann", "Lee"]}
    found = Table("d", "", {"train": [*rows[:20], absent], "validation": rows[20:25], "test": rows[25:]})
    read_question_answering(found)
    assert [(each["answers"], each["starts"]) for each in found.rows["train"]][-1] == (["Ann"], [4])
    assert len(found.rows["train"]) == 20
    assert found.left_out["answers_not_in_their_context"] == 1
    assert found.rows["test"][0]["answers"] == row["answers"]


def test_a_held_out_file_with_other_columns_is_refused_and_one_without_labels_is_not(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))
    (tmp_path / "test.csv").write_text("sentence,class\nother,1\n")
    with pytest.raises(ValueError, match=r"test has no column 'text'; it has \['sentence', 'class'\]"):
        read_sentiment(load_table(str(tmp_path)))
    (tmp_path / "test.csv").write_text("id,text\n1,other\n")
    found = load_table(str(tmp_path))
    read_sentiment(found)
    assert "the split test has no row with both 'text' and 'label' and was left out" in found.notes


def test_a_table_without_a_header_is_told_how_its_columns_are_called(tmp_path):
    (tmp_path / "a.txt").write_text("Hi.\t嗨。\n" * 40)
    for read, columns in ((read_sentiment, {}), (read_translation, {"source": "en", "target": "zh"})):
        with pytest.raises(ValueError, match=r"In a file without a header columns are called 0, 1"):
            read(load_table(str(tmp_path / "a.txt")), **columns)


def test_an_offset_that_is_no_integer_is_refused_with_its_row_and_one_that_is_absent_is_found():
    row = {"question": "what?", "context": "it is blue", "answers": {"text": ["blue"], "answer_start": [None]}}
    others = tuple(row | {"context": f"{i} it is blue"} for i in range(30))
    found = table((row, *others))
    read_question_answering(found)
    kept = [row for rows in found.rows.values() for row in rows]
    assert all(row["context"][row["starts"][0] :] == "blue" for row in kept)
    assert len(kept) == 31
    for start in ("3", 3.0, True, [3]):
        wrong = row | {"answers": {"text": ["blue"], "answer_start": [start]}}
        with pytest.raises(ValueError, match="train row 2: answer_start is"):
            read_question_answering(table((row, wrong, *others)))
    with pytest.raises(ValueError, match="train row 1: the answers' text and answer_start"):
        read_question_answering(table((row | {"answers": {"text": ["blue"], "answer_start": 3}}, *others)))
    with pytest.raises(ValueError, match="article 1: not of SQuAD's form"):
        read_question_answering(table(({"paragraphs": [{"qas": 3}]},)))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (["hello"], "a message is 'hello'"),
        ("hello", "messages are 'hello'"),
        ([{"role": "robot", "content": "x"}], "the role 'robot'"),
        ([{"role": ["user"], "content": "x"}], "the role"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], r"a part that is no text \(image\)"),
        ([{"role": "user", "content": {"a": 1}}], "content holds an object"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], r"a message calls a tool \(tool_calls\)"),
        ([{"role": "assistant", "content": "x", "weight": 0}, {"role": "user", "content": "y"}], "not to be learned"),
        ([{"from": "gpt", "value": "x", "train": False}], "not to be learned"),
        (
            [{"role": "assistant", "content": "x", "reasoning_content": "y"}],
            r"its reasoning apart \(reasoning_content\)",
        ),
    ],
)
def test_messages_of_another_form_are_refused_with_their_row(messages, said):
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    with pytest.raises(ValueError, match=f"train row 2: .*{said}"):
        read_chat(table((good, {"messages": messages}, good)))


def test_marks_of_messages_that_change_nothing_are_no_error():
    asked = {"role": "user", "content": "q", "weight": 0, "tool_calls": None}
    answer = {"role": "assistant", "weight": 1, "reasoning_content": None}
    rows = table(tuple({"messages": [asked, answer | {"content": f"{i}"}], "label": True} for i in range(9)))
    rows.rows["validation"] = rows.rows["test"] = [{"messages": []}]
    read_chat(rows)
    assert len(rows.rows["train"]) == 9


def test_a_bad_answer_is_not_learned_as_a_good_one():
    """KTO's rows: an answer, and whether it is one to give."""
    for bad in (False, "False", "false"):  # a .csv holds texts
        rows = tuple({"prompt": f"q{i}", "completion": "a", "label": bad if i == 3 else True} for i in range(9))
        with pytest.raises(ValueError, match=r"train row 4: its label is false.*leave such rows out"):
            read_chat(table(rows))


@pytest.mark.parametrize("write", [str, json.dumps])
def test_messages_that_are_written_as_text_are_no_text(write):
    turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}] for i in range(40)]
    with pytest.raises(ValueError, match="'messages' holds text where lists of messages"):
        read_chat(table(tuple({"messages": write(each)} for each in turns)))
    with pytest.raises(ValueError, match=r"messages are written as text|lists or objects as Python prints"):
        read_chat(table(tuple({"prompt": write(each[:1]), "completion": "a"} for each in turns)))
    other = [[*each[:1], {"role": "assistant", "content": "b"}] for each in turns]
    pairs = zip(turns, other, strict=True)
    with pytest.raises(ValueError, match=r"messages are written as text|lists or objects as Python prints"):
        read_preferences(table(tuple({"chosen": write(a), "rejected": write(b)} for a, b in pairs)))
    with pytest.raises(ValueError, match=r"messages are written as text|lists or objects as Python prints"):
        read_prompts(table(tuple({"messages": write(each), "reference": "1"} for each in turns)))


def test_a_row_that_asks_nothing_is_counted():
    for empty in (None, " ", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}]):
        prompts = [*(f"question {i}" for i in range(40)), empty]
        chats = table(tuple({"prompt": prompt, "completion": "a"} for prompt in prompts))
        read_chat(chats)
        assert +chats.left_out == {"rows_without_a_prompt": 1}
        pairs = table(tuple({"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts))
        read_preferences(pairs)
        assert +pairs.left_out == {"pairs_without_a_prompt": 1}


def test_a_pair_without_a_side_is_counted_and_a_null_reference_is_empty():
    pairs = table((*({"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(40)), {"prompt": "q"}))
    read_preferences(pairs)
    assert pairs.left_out.total() == 1
    prompts = table(tuple({"prompt": f"q{i}", "reference": None} for i in range(40)))
    read_prompts(prompts)
    assert {row["reference"] for row in prompts.rows["train"]} == {""}


def test_sources_may_be_lists_of_texts_and_nothing_else():
    rows = table(({"source": ["a", "b"], "target": "c"},))
    to_sources_and_targets(rows, "source", "target")
    assert rows.rows["train"][0] == {"source": "a b", "targets": ["c"]}
    with pytest.raises(ValueError, match="train row 1: 'source' holds an object"):
        to_sources_and_targets(table(({"source": [{"a": 1}], "target": "c"},)), "source", "target")


def test_lists_that_went_through_a_csv_are_no_texts(tmp_path):
    pandas = pytest.importorskip("pandas")
    answers = [{"text": [f"blue {i}"] * (i % 2), "answer_start": [6] * (i % 2)} for i in range(40)]
    rows = {"question": "what?", "context": [f"it is blue {i}" for i in range(40)], "answers": answers}
    rows["summaries"] = [[f"it's {i}", "blue"] for i in range(40)]
    rows["json"] = [json.dumps([*each["text"], "it's"]) for each in answers]
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=r"'answers' holds lists or objects as Python prints them .*\.jsonl"):
        read_question_answering(load_table(str(tmp_path / "a.csv")))
    with pytest.raises(ValueError, match=r"'summaries' holds lists or objects"):
        read_summarization(load_table(str(tmp_path / "a.csv")), source="context", target="summaries")
    read_summarization(load_table(str(tmp_path / "a.csv")), source="context", target="json")


def test_an_expression_that_would_take_years_is_refused_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lm.data.patterns.SECONDS", 0.2)
    endless = r"(a+)+$"
    (tmp_path / "a.txt").write_text("b" + "a" * 50_000 + "!\n")
    with pytest.raises(ValueError, match=r"--document_start .* took more than"):
        load_corpus(str(tmp_path / "a.txt"), document_start=endless)
    with pytest.raises(ValueError, match=r"--document_start .* is not a regular expression"):
        load_corpus(str(tmp_path / "a.txt"), document_start="(")
    rows = tuple({"prompt": f"q{i}", "reference": "a" * 50_000 + "!"} for i in range(9))
    with pytest.raises(ValueError, match=r"--answer_pattern .* took more than"):
        read_prompts(table(rows), answer_pattern=endless)
    with pytest.raises(ValueError, match="took more than"):
        load_reward("format", pattern=r"(a+)+b")([""], ["a" * 50_000 + "!"], [""])


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(tokenizer):
    for make in (
        lambda: new_gpt2(tokenizer, n_embd=1_000_000, n_head=4),
        lambda: new_bert(tokenizer, block_size=2**31 - 1),
        lambda: new_bart(tokenizer, block_size=2**31 - 1),
    ):
        with pytest.raises(ValueError, match="this machine has"):
            make()


def test_a_misspelt_proof_is_refused_and_one_of_another_task_is_not():
    check_skipped(["leakage", "mine"], ["mine"])
    with pytest.raises(ValueError, match=r"no such proof.*Did you mean 'load_back'"):
        check_skipped(["load_bak"], [])


def test_every_proof_of_a_task_can_be_skipped_by_name():
    source = "".join(path.read_text() for path in (ROOT / "hf_lm").rglob("*.py"))
    named = set(re.findall(r'"(\w+)": lambda: (?:proofs|load_back)', source)) | {"reward", "merging", "label_coverage"}
    assert named <= set(PROOFS)
    assert all(f'"{name}"' in source for name in PROOFS)


@pytest.mark.parametrize(
    ("dataset", "said"), [("a=0,b=0", "every weight is 0"), ("json", "is a format"), ("text", "is a")]
)
def test_a_mixture_of_nothing_and_the_name_of_a_format_are_named(dataset, said):
    with pytest.raises(ValueError, match=f"--dataset {dataset}.*{said}"):
        load_corpus(dataset)


def test_answers_without_a_text_are_refused():
    row = {"question": "what?", "context": "it is blue", "answers": {"answer": "blue"}}
    with pytest.raises(ValueError, match="train row 1: the answers have no text; they have 'answer'"):
        read_question_answering(table((row,)))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_bytes_that_are_no_utf8_are_counted_in_every_format(suffix, tmp_path):
    rows = [{"text": f"caf\u00e9 number {i} of many with more words \ufffd", "label": str(i % 2)} for i in range(30)]
    mark = {".csv": ",", ".tsv": "\t"}.get(suffix)
    lines = (
        [mark.join(row.values()) for row in rows] if mark else [json.dumps(row, ensure_ascii=False) for row in rows]
    )
    text = "\n".join([f"text{mark}label"] * bool(mark) + lines)
    text = f"[{','.join(lines)}]" if suffix == ".json" else text
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(text.encode().replace("\u00e9".encode(), b"\xe9"))
    table = load_table(str(path))
    assert table.rows["train"][0]["text"] == "caf\ufffd number 0 of many with more words \ufffd"
    assert table.left_out == {"invalid_utf8": 30}  # and not the U+FFFD that were there
    cleaned = Counter()
    assert len(list(read_documents(path, text_column="text", document_start=None, cleaned=cleaned))) == 30
    assert cleaned == {"invalid_utf8": 30}
