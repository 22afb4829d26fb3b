"""What `hf-lm inspect` shows is what training would do: the same tokens, labels, cuts and batches."""

import json
import re

import pytest

from hf_lm.cli import main
from hf_lm.data.demos.opinions import opinions
from hf_lm.data.scripts import languages_of, main_script, script_shares
from hf_lm.dry_run import run_recipe
from hf_lm.inspection.recipe import inspect_recipe, inspect_task
from hf_lm.inspection.terminal import histogram, in_colour, show_inspection
from hf_lm.tasks.rendering import Part, token_pieces
from hf_lm.tokenization.tokenizer import encode_documents


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(parts: list[Part], learned: bool) -> str:
    return "".join(text for part in parts for text, _, marked in part.pieces if marked is learned)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    rows = opinions(120)
    rows += [rows[0], rows[1] | {"label": "positive" if rows[1]["label"] == "negative" else "negative"}]
    return write(tmp_path_factory.mktemp("reviews") / "reviews.jsonl", [*rows, {"text": "", "label": "positive"}])


@pytest.fixture(scope="module")
def sentiment(reviews):
    return run_recipe("sentiment", ["--dataset", reviews, "--max_length", "24", "--per_device_train_batch_size", "8"])


@pytest.fixture(scope="module")
def inspected(sentiment):
    return inspect_task(*sentiment[:3])


def test_the_recipe_itself_runs_with_its_own_defaults_and_nothing_is_written(sentiment, tmp_path, monkeypatch):
    assert type(sentiment.model).__name__ == "BertForSequenceClassification"
    assert sentiment.training_args.train_sampling_strategy == "group_by_length"
    assert sentiment.training_args.run["learning_rate"] == 1e-3  # what the recipe takes for a fresh model
    monkeypatch.chdir(tmp_path)
    inspect_task(*sentiment[:3])
    assert not list(tmp_path.iterdir())


def test_it_says_how_the_file_was_understood(inspected):
    data = inspected["data"]
    assert data["format"] == "rows of .jsonl"
    assert data["columns"] == {"text": "text", "label": "label"}
    assert data["splits"]["train"]["from"] == "reviews.jsonl"
    assert data["splits"]["test"]["from"] == "cut from train"
    assert data["left_out"] == {"rows_without_text": 1}
    assert sum(split["rows"] for split in data["splits"].values()) == 122


def test_cuts_padding_and_classes_are_those_of_training(sentiment, inspected):
    task = sentiment.task
    assert inspected["data"]["splits"]["train"]["truncated"] == task.encoded["train"].report()["truncated"] > 0
    lengths = inspected["lengths"]["train"]["read"]
    assert lengths == [len(feature["input_ids"]) for feature in task.train_dataset]
    padding = inspected["padding"]
    assert padding["maximum"] == 24
    assert padding["to_maximum"] == pytest.approx(1 - sum(lengths) / (24 * len(lengths)))
    assert 0 <= padding["share"] < padding["to_maximum"]
    assert sum(inspected["labels"]["train"].values()) == len(lengths)


def test_copies_and_texts_with_two_answers_are_counted(tmp_path):
    rows = [{"text": f"number {i} of many", "label": "ab"[i % 2]} for i in range(40)]
    rows += [{"text": "Number 1, of MANY!", "label": "b"}, {"text": "number 2 of many", "label": "b"}]
    train = write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"text": "NUMBER 3 of many", "label": "a"}, {"text": "new", "label": "b"}])
    write(tmp_path / "validation.jsonl", [{"text": "newer", "label": "a"}])
    found = inspect_recipe("sentiment", ["--dataset", str(tmp_path)])
    assert found["duplicates"]["rows"] == 2
    assert found["duplicates"]["differing"] == 1
    assert found["overlap"]["test"]["exact"] == 1
    assert found["data"]["splits"]["test"]["from"] == "test.jsonl"
    assert train


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    """A GPT-2 with a vocabulary and 64 positions, as pretrain.py leaves one."""
    from hf_lm.models.gpt2 import new_gpt2

    folder = tmp_path_factory.mktemp("gpt2")
    new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=16, block_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("model", ["", "gpt2"])
def test_exactly_the_target_and_its_end_are_marked_as_learned(model, checkpoint, tmp_path):
    pairs = [{"source": f"the fox number {i}", "target": f"第{i}只狐狸"} for i in range(40)]
    arguments = ["--source", "source", "--target", "target"]
    arguments += ["--dataset", write(tmp_path / "pairs.jsonl", pairs)] + (["--model", checkpoint] if model else [])
    call = run_recipe("translation", arguments)
    for row, feature in zip(call.task.table.rows["train"], call.task.train_dataset, strict=True):
        parts = call.task.render(feature)
        assert said(parts, True) == row["targets"][0] + "<|endoftext|>"
        assert row["source"] in said(parts, False)
    found = inspect_task(*call[:3])
    assert len(found["lengths"]["train"]["read"]) == len(found["lengths"]["train"]["written"])
    assert found["scripts"]["source"] == {"Latin": 1.0}
    assert found["scripts"]["targets"] == {"Han": 1.0}
    assert "tokens_per_word" not in found["tokenizer"]["text"]["targets"]  # Chinese parts no words
    shown = show_inspection(found)
    assert "⟦" in shown
    assert "\x1b" not in shown


def test_the_span_that_is_the_answer_is_marked(tmp_path):
    rows = [
        {"question": f"哪{i}里？", "context": f"第{i}座城市叫北京{i}，在中国。", "answers": [f"北京{i}"]}
        for i in range(40)
    ]
    call = run_recipe("question_answering", ["--dataset", write(tmp_path / "facts.jsonl", rows)])
    row, feature = call.task.table.rows["train"][3], call.task.train_dataset[3]
    assert row["answers"][0] in said(call.task.render(feature), True)
    assert inspect_task(*call[:3])["labels"]["train"]["no answer"] == 0


def test_a_block_is_shown_by_document_and_its_first_token_is_not_learned(checkpoint, tmp_path):
    rows = [{"text": f"A short document, number {i}."} for i in range(60)]
    found = inspect_recipe(
        "pretrain", ["--dataset", write(tmp_path / "texts.jsonl", rows), "--model", checkpoint, "--block_size", "64"]
    )
    parts = found["examples"][0]["parts"]
    assert [part.name.split(",")[0] for part in parts] == [f"document {i + 1}" for i in range(len(parts))]
    assert len(parts) > 1
    assert sum(tokens for part in parts for _, tokens, _ in part.pieces) == 64
    assert [marked for part in parts for _, _, marked in part.pieces] == [False] + [True] * (
        sum(len(part.pieces) for part in parts) - 1
    )
    assert found["data"]["columns"] == {"texts.jsonl": "text"}
    assert found["padding"]["share"] == 0
    assert found["leaked"].keys() == {"validation", "test"}


def test_pieces_are_the_text_and_count_every_token(tokenizer):
    text = "The fox 春眠不觉晓\n🦊 龘"
    ids = encode_documents(tokenizer, [text])[0]
    found = token_pieces(tokenizer, ids)
    assert "".join(piece for piece, _, _ in found) == text
    assert sum(tokens for _, tokens, _ in found) == len(ids)
    assert "�" in token_pieces(tokenizer, ids[-1:])[0][0]  # a character that was cut in its middle


def test_scripts_are_shares_of_letters_and_give_some_languages_away():
    assert script_shares(["abc春秋 123 !?", "ж"]) == {"Latin": 0.5, "Han": 1 / 3, "Cyrillic": 1 / 6}
    assert [main_script(text) for text in ("12 ab春秋c", "春秋a", "12 !")] == ["Latin", "Han", ""]
    assert languages_of(script_shares(["春眠不觉晓"])) == ["zh"]
    assert languages_of(script_shares(["春の夜の夢"])) == ["ja"]
    assert languages_of(script_shares(["plain words"])) == []
    assert script_shares(["123"]) == {}


@pytest.mark.parametrize("values", [[5], [1, 2, 3], [0] * 9 + [4000], list(range(100)), [7, 7, 7]])
def test_a_histogram_counts_every_value_once(values):
    lines = histogram(values)
    assert sum(int(line.split()[-1].replace(",", "")) for line in lines) == len(values)
    assert len(lines) <= 16


def test_the_command_prints_and_draws(reviews, tmp_path, capsys, monkeypatch):
    main(["inspect", "sentiment", "--dataset", reviews, "--plots", str(tmp_path / "plots"), "--examples", "2"])
    printed = capsys.readouterr().out
    assert len(re.findall(r"row [\d,]+ of train", printed)) == 2
    assert "learns: " in printed
    assert (tmp_path / "plots" / "lengths.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sentimental"], "Did you mean 'sentiment'"),
        (["sentiment", "--dataste", "x"], "Did you mean --dataset"),
        (["sentiment", "--dataset", "no/such/file"], "no file or folder"),
        (["sentiment", "--model", "./nowhere"], "nowhere"),
        (["./mine.py"], "no file ./mine.py"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_one_line(argv, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *argv])
    assert caught.value.code != 0
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert expected in printed


def test_colour_is_for_terminals_that_want_it(inspected, monkeypatch, capsys):
    assert "\033[2m" in show_inspection(inspected, colour=True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert in_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_colour()
