"""Tags of words: read as they come, learned on the first token of a word, and measured as conlleval and seqeval do."""

import json
import random
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import transformers
from running import here

from hf_lm.data.tables import Table, _hub_rows
from hf_lm.evaluation.intervals import PERCENT, Interval, mean
from hf_lm.inference.pipelines import pipeline
from hf_lm.inference.predict import predict
from hf_lm.models.bert import new_bert
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.scoring.score import score
from hf_lm.tasks.entities import by_type, entities_of, entity_estimates, normal_tag
from hf_lm.tasks.tagged_words import join_words, load_tagged_words, read_columns, read_tagged_words, words_in
from hf_lm.tasks.token_classification import TokenClassification, first_tokens, tags_from_answer, words_of
from hf_lm.tokenization.tokenizer import new_tokenizer

CITIES = ["Rome", "Oslo", "New York", "Bad Homburg", "Lima", "Quito"]
PEOPLE = ["Ada", "Carl Friedrich Gauss", "Emmy Noether", "Li"]


def sentence(person: str, city: str) -> dict:
    words, tags = [], []
    for text, kind in ((person, "PER"), ("went to", ""), (city, "LOC"), (".", "")):
        for i, word in enumerate(text.split()):
            words.append(word)
            tags.append(f"{'I' if i else 'B'}-{kind}" if kind else "O")
    return {"tokens": words, "ner_tags": tags}


SENTENCES = [sentence(person, city) for person in PEOPLE for city in CITIES]


def table_of(rows: list[dict], **splits: list[dict]) -> Table:
    table = Table("rows", "f", {"train": rows, **(splits or {"validation": rows[:4], "test": rows[4:8]})})
    read_tagged_words(table)
    return table


# Entities


def slow_entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """conlleval's two tables of when a chunk ends and starts, letter by letter."""
    ends = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("B", "S"), ("I", "S")}
    starts = {("O", "E"), ("O", "I"), ("E", "E"), ("E", "I"), ("S", "E"), ("S", "I")}
    chunks, open_at, before = set(), None, "O"
    for i, tag in enumerate([*tags, "O"]):
        other_type = before[1:] != tag[1:]
        end = before[0] in "ES" or (before[0], tag[0]) in ends or (before[0] != "O" and other_type)
        start = tag[0] in "BS" or (before[0], tag[0]) in starts or (tag[0] != "O" and other_type)
        if open_at is not None and end:
            chunks.add((before[2:], open_at, i - 1))
            open_at = None
        open_at = i if start else open_at
        before = tag
    return chunks


def random_tags(rng: random.Random, words: int) -> list[str]:
    return [rng.choice(["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B"]) for _ in range(words)]


def test_entities_of_any_tags_are_those_of_conlleval():
    rng = random.Random(0)
    for _ in range(3000):
        tags = random_tags(rng, rng.randrange(9))
        assert set(entities_of(tags)) == slow_entities(tags), tags


def test_f1_is_that_of_the_published_example():
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    estimates = entity_estimates(predicted, true)  # seqeval's README: 0.50
    assert {name: estimate.value for name, estimate in estimates.items()} == {"f1": 50, "precision": 50, "recall": 50}
    assert by_type(predicted, true)["PER"] == {"precision": 100, "recall": 100, "f1": 100, "rows": 1}
    assert by_type(predicted, true)["MISC"]["f1"] == 0


@pytest.mark.skipif(find_spec("seqeval") is None, reason="seqeval is not installed")
def test_f1_is_seqevals():
    from seqeval.metrics import f1_score, precision_score, recall_score

    rng = random.Random(1)
    true = [random_tags(rng, 8) for _ in range(200)]
    predicted = [[tag if rng.random() < 0.7 else rng.choice(["O", "B-A"]) for tag in tags] for tags in true]
    estimates = entity_estimates(predicted, true)
    for name, scorer in {"f1": f1_score, "precision": precision_score, "recall": recall_score}.items():
        assert estimates[name].value == pytest.approx(100 * scorer(true, predicted))


def test_the_interval_of_f1_is_over_sentences_and_no_entity_at_all_is_zero():
    true, predicted = [["B-A"], ["B-A"], ["B-A"], ["O"]] * 10, [["B-A"], ["O"], ["B-A"], ["O"]] * 10
    interval = entity_estimates(predicted, true)["f1"].interval()
    assert interval.value == pytest.approx(80)
    assert interval.low < 80 < interval.high
    for number in entity_estimates([["O"], ["O"]], [["O"], ["O"]]).values():
        assert number.interval() == Interval(0.0)
        assert not number.beats(number)


def test_a_sentence_in_which_nothing_is_found_says_nothing_of_precision():
    true = [["B-A"]] * 40 + [["O"]] * 5
    right = entity_estimates([*true[:3], *[["O"]] * 42], true)
    assert right["precision"].interval() == mean([100.0] * 3, bounds=PERCENT).interval()  # 29.2 to 100
    wrong = entity_estimates([*[["O"]] * 40, *[["B-A"]] * 2, *[["O"]] * 3], true)
    assert wrong["precision"].interval() == mean([0.0] * 2, bounds=PERCENT).interval()
    assert wrong["recall"].interval() == mean([0.0] * 40, bounds=PERCENT).interval()


def test_bilou_and_bmes_are_read_as_iobes_and_tags_without_a_place_are_refused():
    assert [normal_tag(tag) for tag in ("B-A", "L-A", "U-A", " O")] == ["B-A", "E-A", "S-A", "O"]
    assert [normal_tag(tag) for tag in ("B-地名", "M-地名", "E-地名", "S-地名", "M")] == [
        "B-地名", "I-地名", "E-地名", "S-地名", "I"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'NOUN' is not a tag of an entity"):
        normal_tag("NOUN")


def test_an_answer_is_found_in_long_texts_in_time():
    words = [f"word{i}" for i in range(4000)]
    spans = [[6 * i, 6 * i + 5] for i in range(4000)]
    row = {"text": " ".join(f"{word[:5]:5}" for word in words), "spans": spans, "tags": ["O"] * 4000}
    started = time.perf_counter()
    assert set(tags_from_answer(row, "PER: somebody else", {"per": "PER"})) == {"O"}
    assert time.perf_counter() - started < 1  # 0.01 s; all spans of all lengths took minutes


def test_a_file_of_one_long_sentence_is_read_in_time(tmp_path):
    (tmp_path / "a.conll").write_text("word O\n" * 100_000)
    started = time.perf_counter()
    [row] = read_columns(tmp_path / "a.conll")
    assert len(row["tokens"]) == 100_000
    assert time.perf_counter() - started < 5  # 0.2 s; new lists for each word took a minute


# Reading


def test_conll_columns_give_sentences_without_marks_of_documents(tmp_path):
    text = "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VB O\n\n# id 7\nPeter\tNNP\tB-PER\n#\tNN\tO\n\n\n"
    (tmp_path / "a.txt").write_text(text + "-DOCSTART- -X- -X- O\n\nBonn NNP B-LOC")
    rows = list(read_columns(tmp_path / "a.txt"))
    assert [row["tokens"] for row in rows] == [["EU", "rejects"], ["Peter", "#"], ["Bonn"]]
    assert [row["ner_tags"] for row in rows] == [["B-ORG", "O"], ["B-PER", "O"], ["B-LOC"]]
    assert [row["document"] for row in rows] == [1, 1, 2]
    assert next(read_columns(tmp_path / "a.txt", tag="1"))["ner_tags"] == ["NNP", "VB"]
    (tmp_path / "b.txt").write_text("10\u00a0000 B-NUM\n\u3000 O\n# M-NUM\n", encoding="utf-8")
    row = table_of(list(read_columns(tmp_path / "b.txt")) * 9).rows["train"][0]  # a word that is white space is none
    assert (row["text"], row["tags"]) == ("10\u00a0000 #", ["B-NUM", "I-NUM"])
    (tmp_path / "b.txt").write_text("EU B-ORG\n\nalone\n")
    with pytest.raises(ValueError, match=r"b\.txt, line 3: one column"):
        list(read_columns(tmp_path / "b.txt"))


def test_a_folder_of_conll_files_has_their_splits(tmp_path):
    for name, city in (("eng.train", "Rome"), ("eng.testa", "Oslo"), ("eng.testb", "Lima")):
        (tmp_path / name).write_text(f"in O\n{city} I-LOC\n\n" * 3)
    table = load_tagged_words(str(tmp_path))
    assert {split: rows[0]["text"] for split, rows in table.rows.items()} == {
        "train": "in Rome", "validation": "in Oslo", "test": "in Lima"
    }  # fmt: skip
    assert table.labels == ["O", "I-LOC"]


def test_numbers_are_named_by_the_features_of_a_dataset_and_refused_without():
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-LOC"]))})
    rows = _hub_rows(Dataset.from_dict({"tokens": [["in", "Rome"]], "ner_tags": [[0, 1]]}, features=features))
    assert rows == [{"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}]
    with pytest.raises(ValueError, match="row 1 of train: tags are numbers without names"):
        table_of([{"tokens": ["in", "Rome"], "ner_tags": [0, 1]}])
    with pytest.raises(ValueError, match="row 1 of train has 2 words and 1 tags"):
        table_of([{"tokens": "in Rome", "ner_tags": "O"}])


def test_a_word_that_is_null_is_none():
    row = table_of([{"tokens": ["New", None, "x"], "ner_tags": ["B-LOC", "I-LOC", "O"]}] * 9).rows["train"][0]
    assert (row["text"], row["tags"]) == ("New x", ["B-LOC", "O"])


def test_words_are_joined_as_their_script_is_written():
    text, spans = join_words(["In", "2008", "北", "京", "."])
    assert text == "In 2008 北京 ."
    assert [text[a:b] for a, b in spans] == ["In", "2008", "北", "京", "."]
    text = "St. Kitts在北京"
    assert [text[a:b] for a, b in words_in(text)] == ["St", ".", "Kitts", "在", "北", "京"]


def test_the_demo_tags_the_answers_to_its_questions_and_holds_out_whole_countries():
    table = TokenClassification.load("demo:countries")
    row = next(row for row in table.rows["train"] if "B-currency" in row["tags"] and "I-country" in row["tags"])
    found = {kind: row["text"][row["spans"][a][0] : row["spans"][b][1]] for kind, a, b in entities_of(row["tags"])}
    assert f"Things are paid for in {found['currency']}." in row["text"]
    assert row["text"].startswith(f"This is about {found['country']}.")
    train, test = ({row["document"] for row in table.rows[split]} for split in ("train", "test"))
    assert not train & test


# Labels


@pytest.fixture(scope="module")
def words_tokenizer():
    return new_tokenizer((" ".join(row["tokens"]) for row in SENTENCES), vocab_size=300)


def task_of(table, tokenizer, **options) -> TokenClassification:
    return TokenClassification(table, tokenizer, **{"labels": table.labels, "max_length": 64} | options)


def test_a_label_is_on_the_first_token_of_its_word_and_nowhere_else(words_tokenizer):
    task = task_of(table_of(SENTENCES), words_tokenizer)
    row, feature = task.table.rows["train"][2], task.train_dataset[2]
    text = ""
    for token, label in zip(feature["input_ids"], feature["labels"], strict=True):
        text += f"[{task.labels[label]}]" if label != -100 else ""
        text += words_tokenizer.decode([token]).strip().replace("<|endoftext|>", "")
    assert text == "[B-PER]Ada[O]went[O]to[B-LOC]New[I-LOC]York[O]."
    assert len([i for i in feature["labels"] if i != -100]) == len(row["tags"]) < len(feature["input_ids"]) - 2
    proof = task.label_proof()
    assert proof.passed
    assert "with B-PER" in proof.said or "with B-LOC" in proof.said


@pytest.mark.parametrize("change", ["shifted", "other tag"])
def test_the_proof_sees_labels_that_are_beside_their_word_or_another_tag(words_tokenizer, change):
    task = task_of(table_of(SENTENCES), words_tokenizer)
    labels = task.train_dataset[0]["labels"]
    task.train_dataset[0]["labels"] = (
        [-100, *labels[:-1]] if change == "shifted" else [2 if label == 0 else label for label in labels]
    )
    assert not task.label_proof().passed


def test_chinese_characters_have_a_label_each_though_a_tokenizer_joins_them():
    rows = [{"tokens": list("我在北京工作"), "ner_tags": ["O", "O", "B-LOC", "I-LOC", "O", "O"]}] * 20
    tokenizer = new_tokenizer(("我在北京工作" for _ in rows), vocab_size=300)
    assert len(tokenizer("我在北京工作").input_ids) < 2 + 6  # several characters are one token
    task = task_of(table_of(rows, validation=rows, test=rows), tokenizer)
    assert [task.labels[i] for i in task.train_dataset[0]["labels"] if i != -100] == rows[0]["ner_tags"]
    assert task.label_proof().passed


def test_a_token_that_reaches_into_the_next_word_is_taken_apart():
    learned = ["\u597d\u4e16" + end for end in "\u5929\u5730"] * 200  # a token of three characters each
    tokenizer = new_tokenizer(learned, vocab_size=300)
    row = {"text": "\u5b99\u597d\u4e16\u5929", "spans": [[0, 2], [2, 4]], "tags": ["O", "B-LOC"]}
    whole = tokenizer(row["text"], add_special_tokens=False).input_ids
    [(ids, firsts)] = first_tokens(tokenizer, [row])
    assert ids != whole
    assert tokenizer.decode(ids[: firsts[1]]) == "\u5b99\u597d"
    assert tokenizer.decode(ids[firsts[1] :]) == "\u4e16\u5929"


def test_a_word_that_the_tokenizer_drops_has_no_label(words_tokenizer):
    row = {"text": "Ada  Rome", "spans": [[0, 3], [4, 4], [5, 9]], "tags": ["B-PER", "O", "B-LOC"]}
    [(ids, firsts)] = first_tokens(words_tokenizer, [row])
    assert firsts[1] is None
    assert firsts[0] == 0
    assert firsts[2] < len(ids)


def test_truncated_words_are_counted_and_predicted_as_none(words_tokenizer):
    task = task_of(table_of(SENTENCES), words_tokenizer, max_length=6)
    report = task.encoded["train"].report()
    assert report["truncated"] > 0.5
    answers = [([task.index[row["tags"][w]] for w in words], 0.0) for row, words in zip(
        task.table.rows["test"], task.encoded["test"].words, strict=True)]  # fmt: skip
    assert task.score("test", answers).estimates["recall"].value < 100
    assert task.label_proof().passed


def test_the_baseline_is_the_most_frequent_tag_of_a_word(words_tokenizer):
    rows = [{"tokens": ["May", "came"], "ner_tags": [tag, "O"]} for tag in ("B-PER", "B-PER", "O")]
    test = [{"tokens": ["May", "Ann"], "ner_tags": ["O", "B-PER"]}]
    task = task_of(table_of(rows, validation=test, test=test), words_tokenizer)
    name, scores = task.baseline("test")
    assert name == "most frequent tag"
    assert scores.examples[0]["predicted_tags"] == ["B-PER", "O"]


def test_an_answer_of_an_api_is_read_back_as_it_was_asked_for():
    for row in table_of(SENTENCES).rows["train"]:
        types = {"per": "PER", "loc": "LOC"}
        tags = tags_from_answer(row, TokenClassification.as_answer(row), types)
        assert entities_of(tags) == entities_of(row["tags"])
    assert set(tags_from_answer(row, "PLANET: Rome\nLOC: Mars\nnone", types)) == {"O"}
    examples, invalid = TokenClassification.examples_of([row, row], ["None.", "no idea"], ["O", "B-LOC"])
    assert (examples[0]["prediction"], invalid) == ("none", 1)


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The recipe's folder after a minute's worth of steps on sentences of six cities, and its data."""
    place = tmp_path_factory.mktemp("tags")
    data = place / "data.jsonl"
    rows = [sentence(person, f"{city}") for person in PEOPLE for city in (*CITIES, *(f"Port {c}" for c in "ABCDEFGH"))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"num_train_epochs": 10, "per_device_train_batch_size": 8, "max_length": 32, "use_cpu": True}
    settings |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "learning_rate": 3e-3}
    here("token_classification.py", dataset=data, output_dir=place / "out", skip_proofs="load_back", **settings)
    return place / "out", data


def test_the_numbers_of_a_run_are_those_of_its_predictions(trained):
    folder, _ = trained
    report = json.loads((folder / "report.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    test = [row for row in rows if row["split"] == "test"]
    right, ours, theirs = np.sum(
        [
            [len(a & b), len(a), len(b)]
            for row in test
            for a, b in [(slow_entities(row["predicted_tags"]), slow_entities(row["tags"]))]
        ],
        axis=0,
    )
    assert report["metrics"]["test"]["f1"]["value"] == pytest.approx(200 * right / (ours + theirs))
    assert report["metrics"]["test"]["f1"]["value"] > 50
    assert report["metrics"]["test"]["f1"]["baseline"]["name"] == "most frequent tag"
    assert set(report["classes"]) == {"PER", "LOC"}
    card = (folder / "README.md").read_text()
    assert "A model that finds named entities" in card
    assert 'pipeline("token-classification", model=".")' in card


def test_predict_the_pipelines_and_score_agree_with_the_run(trained, tmp_path):
    folder, data = trained
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    row = next(row for row in rows if entities_of(row["predicted_tags"]))
    (tmp_path / "texts.txt").write_text(row["input"] + "\n")
    predict("token_classification", str(folder), str(tmp_path / "texts.txt"), str(tmp_path / "out.jsonl"))
    found = json.loads((tmp_path / "out.jsonl").read_text())["prediction"]
    assert ", ".join(f"{one['text']} ({one['entity']})" for one in found) == row["prediction"]
    assert all(row["input"][one["start"] : one["end"]] == one["text"] for one in found)
    theirs = transformers.pipeline("token-classification", model=str(folder), ignore_labels=[])(row["input"])
    ours = pipeline("ner", model=str(folder), ignore_labels=[])(row["input"])
    assert [token["entity"] for token in theirs] == [token["entity"] for token in ours]
    scored = score([str(folder)], dataset=str(data), say=lambda text: None)
    report = json.loads((folder / "report.json").read_text())
    measured = scored["models"][str(folder)]["metrics"]["f1"]["value"]
    assert scored["task"] == "token_classification"
    assert measured == pytest.approx(report["metrics"]["test"]["f1"]["value"])


def test_an_encoder_decoder_is_refused_in_one_line(tmp_path, words_tokenizer):
    from hf_lm.models.encoder_decoder import new_bart

    new_bart(words_tokenizer, n_layer=1, n_head=1, n_embd=16, block_size=32).save_pretrained(tmp_path)
    words_tokenizer.save_pretrained(tmp_path)
    table = table_of(SENTENCES)
    start = TokenClassification.prepare_model(table, str(tmp_path), block_size=32)
    with pytest.raises(ValueError, match="give an encoder or a decoder"):
        TokenClassification.from_start(table, start, max_length=32)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_lora_on_a_checkpoint_of_either_family_is_proved_and_loads(family, tmp_path, words_tokenizer):
    transformers.set_seed(0)
    if family == "encoder":
        base = new_bert(words_tokenizer, model_class=transformers.BertForMaskedLM, n_embd=32, block_size=64)
    else:
        base = new_gpt2(words_tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=64)
    base.save_pretrained(tmp_path / "base")
    words_tokenizer.save_pretrained(tmp_path / "base")
    data = tmp_path / "train.conll"
    lines = ["".join(f"{w} {t}\n" for w, t in zip(r["tokens"], r["ner_tags"], strict=True)) for r in SENTENCES]
    data.write_text("\n".join(lines))
    report = here(
        "token_classification.py",
        model=tmp_path / "base",
        dataset=data,
        output_dir=tmp_path / "out",
        lora_rank=4,
        max_steps=4,
        use_cpu=True,
    )
    assert all(proof["passed"] for proof in report["proofs"].values())
    assert {"merging", "load_back", "adapter_load_back"} <= set(report["proofs"])
    assert words_of(load_tagged_words(str(data)).rows["train"][0])
