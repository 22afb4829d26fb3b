"""Few labels, much text: what is drawn, what a teacher may pass on, and a curve that is that of plain training."""

import contextlib
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from running import here
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    PreTrainedTokenizerFast,
)

from hf_lm.arguments import TrainingArguments
from hf_lm.data.demos.opinions import opinions
from hf_lm.dry_run import run_recipe
from hf_lm.evaluation.calibration import fit_temperature, label_log_probs
from hf_lm.evaluation.intervals import OverRuns, mean
from hf_lm.inspection.recipe import inspect_recipe
from hf_lm.output_folder import prepare_output
from hf_lm.self_training.curve import learning_curve
from hf_lm.self_training.experiment import LABELS, PSEUDO, SelfTraining, Trained, epochs_for_steps, load_backbone
from hf_lm.self_training.pseudo_labels import select_confident
from hf_lm.self_training.rows import Unlabelled, draw_labelled, leave_out_known, read_unlabelled
from hf_lm.self_training.setups import SETUPS
from hf_lm.tasks.domain import DenoisedText

FAST = {"use_cpu": True, "bf16": False, "report_to": "none", "min_steps": 4, "num_train_epochs": 1, "max_length": 64}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def begin(labelled, task="sentiment", **options):
    options = {"text_column": "", "label_column": "", "source": "", "target": ""} | options
    options = {"model": "", "unlabelled": "", "unlabelled_column": "", "max_target_length": 32} | options
    return SETUPS[task](str(labelled), max_length=64, **options).task


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "few.jsonl", opinions(200))


def nats_of(logits, true):
    log_probs = lambda t: torch.log_softmax(torch.from_numpy(logits) / t, -1)[range(len(true)), true]  # noqa: E731
    return lambda temperatures: np.array([-log_probs(t).mean().item() for t in temperatures])


def test_the_temperature_lowers_the_likelihood_of_held_out_data_that_it_has_not_seen():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 600)
    logits = 6 * (rng.normal(size=(600, 3)) + np.eye(3)[true])  # far too sure
    seen, unseen = nats_of(logits[:300], true[:300]), nats_of(logits[300:], true[300:])
    temperature = fit_temperature(seen)
    assert temperature > 1
    before, after = unseen([1.0, temperature])
    assert after < 0.7 * before
    near = seen([temperature * 0.97, temperature, temperature * 1.03])
    assert near[1] == min(near)
    assert fit_temperature(nats_of(100 * np.eye(3)[true], true)) == pytest.approx(0.05)  # always right


@pytest.mark.parametrize("true", [0.06, 0.3, 1.0, 1.7, 13.0])
def test_the_temperature_is_exact_where_the_likelihood_is_a_parabola_of_its_logarithm(true):
    assert fit_temperature(lambda t: 3 + 2 * np.log(t / true) ** 2) == pytest.approx(true, rel=1e-9)


def test_the_temperature_lies_between_a_twentieth_and_twenty():
    assert fit_temperature(lambda t: t) == pytest.approx(0.05)
    assert fit_temperature(lambda t: -t) == pytest.approx(20)


def test_selection_keeps_the_proportions_of_the_kinds_and_takes_none_below_the_threshold():
    chances = np.random.default_rng(0).dirichlet([0.6, 0.2, 0.3], 2000)
    shares = {"a": 0.5, "b": 0.25, "c": 0.25}
    strata, confidence = np.array(list("abc"))[chances.argmax(1)], chances.max(1)
    taken = select_confident(strata, confidence, shares, threshold=0.8)
    counts = {kind: int((strata[taken] == kind).sum()) for kind in shares}
    assert confidence[taken].min() >= 0.8
    assert counts["b"] == counts["c"] == counts["a"] // 2 > 0
    others = np.setdiff1d(np.flatnonzero(strata == "a"), taken)
    assert confidence[others].max() <= confidence[taken][strata[taken] == "a"].min()  # the surest first
    assert not len(select_confident(strata[strata != "b"], confidence[strata != "b"], shares, threshold=0.8))


def test_an_interval_over_seeds_is_wider_than_over_examples_alone_and_pairs_them():
    rng = np.random.default_rng(0)
    easy = rng.random(400) < 0.8
    runs = [mean(100.0 * (easy & (rng.random(400) < share))) for share in (0.7, 0.85, 1.0)]
    together, one = OverRuns(runs), runs[1]
    wide, narrow = together.interval(), one.interval()
    assert together.value == pytest.approx(np.mean([run.value for run in runs]))
    assert wide.high - wide.low > narrow.high - narrow.low
    assert together.minus(together).report() == {"value": 0.0}


@pytest.mark.parametrize("rows", [1, 16, 17, 200, 4000])
def test_few_rows_are_read_as_often_as_the_least_number_of_steps_asks(rows, tmp_path):
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    steps = -(-rows // 16)  # of an epoch
    epochs = epochs_for_steps(args, rows, 100)
    assert epochs >= 3
    assert epochs * steps >= 100
    assert epochs == 3 or (epochs - 1) * steps < 100


def test_a_larger_share_holds_the_smaller_one_and_each_class():
    strata = ["a" if i % 5 else "b" for i in range(100)]
    small, large = (draw_labelled(strata, share, seed=3) for share in (0.05, 0.5))
    assert set(small) < set(large)
    assert len(small) == 5
    assert {strata[i] for i in small} == {"a", "b"}
    assert draw_labelled(strata, 0.05, seed=4) != small
    with pytest.raises(ValueError, match=r"there are 2 kinds of them \(classes, lengths\); give a share from 0\.02"):
        draw_labelled(strata, 0.01, seed=0)


def test_texts_of_held_out_splits_and_labelled_ones_are_left_out_and_counted(labelled, tmp_path):
    task = begin(labelled)
    table = task.table
    test, train = table.rows["test"][0]["text"], table.rows["train"][0]["text"]
    (tmp_path / "many.txt").write_text("\n".join([test.upper(), train, "new 新的", "new 新的", ""]) + "\n\n")
    unlabelled = read_unlabelled(str(tmp_path / "many.txt"))
    leave_out_known(unlabelled, task)
    assert unlabelled.texts == ["new 新的"]
    assert unlabelled.left_out["in_a_held-out_split"] == unlabelled.left_out["labelled_in_train"] == 1
    assert unlabelled.left_out["repeated"] == 1


@pytest.fixture(scope="module")
def ran(labelled, tmp_path_factory):
    """A run whose test split stands in the unlabelled file; the rows that its Trainers were given."""
    import hf_lm.self_training.experiment as module

    folder = tmp_path_factory.mktemp("ran")
    table = begin(labelled).table
    texts = [row["text"] for row in table.rows["test"]] + [f"{row['text']} Again!" for row in opinions(260)[200:]]
    (folder / "many.txt").write_text("\n".join(texts), encoding="utf-8")
    seen, build = [], module.supervised_trainer
    module.supervised_trainer = lambda model, args, task, measure: (
        seen.append((task, args)) or build(model, args, task, measure)
    )
    try:
        settings = FAST | {"threshold": 0.5, "rounds": 2, "seeds": 2, "shares": 0.5, "pretraining_epochs": 1}
        settings |= {"labelled": labelled, "unlabelled": folder / "many.txt", "learning_rate": 1e-3, "min_steps": 12}
        report = here("self_training.py", output_dir=folder / "out", **settings)
    finally:
        module.supervised_trainer = build
    return report, seen, table, folder


def test_no_text_of_the_test_split_enters_a_training(ran):
    report, seen, table, _ = ran
    tokenizer = seen[0][0].tokenizer
    held_out = {tuple(tokenizer(row["text"]).input_ids[:64]) for row in table.rows["test"]}
    read = [tuple(feature["input_ids"]) for task, _ in seen for feature in task.train_dataset]
    assert len(read) > 300
    assert not held_out & set(read)
    assert report["learning_curve"]["unlabelled"]["left_out"]["in_a_held-out_split"] >= len(table.rows["test"])


def test_the_best_training_made_once_more_by_fit_has_the_number_of_the_curve(ran):
    report, _, _, folder = ran
    curve = report["learning_curve"]
    chosen = curve["chosen"]
    point = next(point for point in curve["points"] if point["method"] == chosen["method"])
    assert report["recipe"] == "self_training"
    assert report["metrics"]["validation"]["accuracy"]["value"] == pytest.approx(chosen["validation"])
    at = curve["seeds"].index(chosen["seed"])
    assert report["metrics"]["test"]["accuracy"]["value"] == pytest.approx(point["runs"][at])
    for name in ("config.json", "model.safetensors", "plots/learning_curve.png", "learning_curve.json"):
        assert (folder / "out" / name).is_file()
    assert "## With fewer labels" in (folder / "out" / "README.md").read_text()


def test_rounds_end_and_the_curve_has_every_method_with_an_interval(ran):
    curve = ran[0]["learning_curve"]
    assert [point["method"] for point in curve["points"]] == [LABELS, "pretraining on the text", PSEUDO]
    for point in curve["points"]:
        assert point["low"] <= point["value"] <= point["high"]
        assert point["value"] == pytest.approx(np.mean(point["runs"]))
    for found in curve["points"][2]["found"]:
        assert 1 <= len(found["rounds"]) <= 2
        assert all(0 < one["pseudo_labels"] <= one["of"] for one in found["rounds"][: found["student"]])


def test_the_folder_is_held_and_steps_have_the_rows_that_were_asked_for(labelled, tmp_path, monkeypatch):
    out, steps = tmp_path / "out", []
    learn = SelfTraining.learn

    def watched(self, *args):
        with pytest.raises(FileExistsError, match="is written by a run that has not ended"):
            prepare_output(out, resume=False, overwrite=False, lock=contextlib.ExitStack())
        steps.append(self.training_args.gradient_accumulation_steps * self.training_args.train_batch_size)
        return learn(self, *args)

    monkeypatch.setattr(SelfTraining, "learn", watched)
    report = here(
        "self_training.py", labelled=labelled, output_dir=out, method="pseudo_labels", rows_per_step=32,
        per_device_train_batch_size=8, shares=0.5, seeds=1, rounds=1, skip_proofs="load_back", **FAST,
    )  # fmt: skip
    assert set(steps) == {32}
    assert report["arguments"]["rows_per_step"] == 32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "language_modelling", "method": "pseudo_labels"}, "text is its own label here"),
        ({"max_hours": 1}, "--max_hours and --max_cost do not stop"),
        ({"unlabelled": "no.txt"}, "--unlabelled: there is no file or folder no.txt"),
        ({"shares": 0.001}, "there are 2 kinds"),
        ({"labelled": "one_class.jsonl"}, "--labelled one_class.jsonl has one class only"),
        ({"unlabelled": "empty.txt"}, "has no text: it is empty"),
        ({"unlabelled": "same.txt"}, "also occurs in the labelled data"),
    ],
)
def test_bad_input_is_one_line(labelled, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "same.txt").write_text("\n".join(row["text"] for row in opinions(200)), encoding="utf-8")
    write(tmp_path / "one_class.jsonl", [row | {"label": "good"} for row in opinions(40)])
    with pytest.raises((ValueError, OSError), match=said) as caught:
        here("self_training.py", **{"labelled": labelled, "output_dir": tmp_path / "out"} | FAST | arguments)
    assert "\n" not in str(caught.value)


def test_a_column_of_labels_in_the_unlabelled_file_is_said_and_not_read(tmp_path):
    found = read_unlabelled(str(write(tmp_path / "many.jsonl", opinions(8))))
    assert len(found.texts) == 8
    assert "'label', which looks like labels" in found.notes[0]


def pairs(count):
    """Texts to translate: counted, a few words long, of several lengths."""
    words = {"red": "rot", "blue": "blau", "green": "grün", "one": "eins", "two": "zwei", "wind": "风"}
    drawn = np.random.default_rng(0).choice(list(words), size=(count, 9))
    said = [list(row[: 2 + i % 7]) for i, row in enumerate(drawn)]
    return [
        {"en": f"{i} " + " ".join(row), "de": f"{i} " + " ".join(map(words.get, row))} for i, row in enumerate(said)
    ]


def questions(count):
    places = ["Oslo", "Lima", "Rome", "Cairo", "Kyoto", "Quito"]
    rows = []
    for i in range(count):
        context = f"House number {i} stands in {places[i % 6]}, beside the river of street {i * 7}."
        rows.append({"question": f"Where is house {i}?", "context": context, "answers": [places[i % 6]]})
    return rows


def labelled_task(task, folder):
    rows = {"sentiment": lambda: opinions(120), "question_answering": lambda: questions(90)}.get(task)
    return begin(write(folder / f"{task}.jsonl", rows() if rows else pairs(90)), task)


@pytest.mark.parametrize("task", ["sentiment", "question_answering", "translation"])
def test_how_sure_a_model_is_equals_a_loop_over_its_labels(task, tmp_path):
    options = {"text_column": "", "label_column": "", "source": "en", "target": "de", "unlabelled_column": ""}
    options |= {"model": "", "unlabelled": "", "max_target_length": 32, "max_length": 64}
    labelled_task(task, tmp_path)
    start = SETUPS[task](str(tmp_path / f"{task}.jsonl"), **options)
    task, model = start.task, start.new_model().double().eval()
    features = task.encoded["validation"].features[:5]
    sums, counts = label_log_probs(model, task, features, temperatures=(1.0, 2.0))
    for feature, found, count in zip(features, sums, counts, strict=True):
        batch = task.collate([feature])
        with torch.no_grad():
            outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        if "logits" in outputs:
            logits, labels = outputs.logits.reshape(-1, outputs.logits.shape[-1]), batch["labels"].reshape(-1)
        else:
            logits, labels = torch.cat([outputs.start_logits, outputs.end_logits]), batch["labels"][0]
        assert count == len(labels)
        for temperature, one in zip((1.0, 2.0), found, strict=True):
            loop = [torch.log_softmax(row / temperature, -1)[label] for row, label in zip(logits, labels, strict=True)]
            assert one == pytest.approx(float(sum(loop)), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "data", "unlabelled", "metric", "kind"),
    [
        ("question_answering", questions, questions(120)[90:], "f1", "masked"),
        pytest.param(
            *("translation", pairs, [row | {"text": row["en"] + " wind"} for row in pairs(20)], "bleu", "denoising"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("language_modelling", opinions, [{"text": row["en"]} for row in pairs(20)], "bits_per_byte", "causal"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_task_learns_from_text_and_its_curve_says_what_it_gained(task, data, unlabelled, metric, kind, tmp_path):
    few = write(tmp_path / "few.jsonl", data(90))
    many = write(tmp_path / "many.jsonl", unlabelled)
    settings = FAST | {"shares": 0.5, "seeds": 1, "rounds": 1, "threshold": 0.001, "pretraining_epochs": 1}
    settings |= {"skip_proofs": "load_back"}  # a fresh process, which test_fine_tuning_recipes starts for each task
    report = here(
        "self_training.py", task=task, labelled=few, unlabelled=many, output_dir=tmp_path / "out", **settings
    )
    curve = report["learning_curve"]
    assert curve["metric"] == metric
    assert curve["pretraining"]["kind"] == kind
    methods = [point["method"] for point in curve["points"]]
    assert methods[:2] == [LABELS, "pretraining on the text"]
    assert (PSEUDO in methods) == (task != "language_modelling")
    made_again = report["metrics"]["validation"][metric]["value"]
    assert made_again == pytest.approx(curve["chosen"]["validation"], rel=1e-4)
    if task == "question_answering":
        first = curve["points"][2]["found"][0]["rounds"][0]
        assert 0 < first["pseudo_labels"] <= first["of"]
        assert {"temperature", "nats_per_label", "nats_per_label_calibrated", "right"} <= set(first)


def test_documents_are_batched_with_a_tokenizer_that_has_no_padding_token(model, tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None  # as GPT-2's own
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    few = write(tmp_path / "few.jsonl", [{"text": row["text"]} for row in opinions(60)])
    settings = {"unlabelled": str(few), "unlabelled_column": "text", "text_column": "text", "max_length": 16}
    task = SETUPS["language_modelling"](str(few), model=str(tmp_path / "base"), **settings).task
    assert task.collate([task.train_dataset[0], task.train_dataset[1]])["input_ids"].ndim == 2
    assert task.tokenizer.pad_token_id is not None


def test_questions_without_answers_are_read_and_what_is_held_out_is_not(tmp_path):
    few = write(tmp_path / "few.jsonl", questions(60))
    task = begin(few, "question_answering")
    held_out = task.table.rows["test"][0]
    asked = [{"question": held_out["question"], "context": held_out["context"]}, *questions(64)[60:]]
    unlabelled = read_unlabelled(str(write(tmp_path / "many.jsonl", asked)), questions=True)
    leave_out_known(unlabelled, task)
    assert [row["question"] for row in unlabelled.questions] == [row["question"] for row in asked[1:]]
    assert not any(row["answers"] for row in unlabelled.questions)
    texts = tmp_path / "many.txt"
    texts.write_text("A text that asks nothing.\n")
    assert "serve pretraining alone" in read_unlabelled(str(texts), questions=True).notes[0]


def test_a_short_context_of_a_held_out_question_is_left_out_of_the_text(tmp_path):
    task = begin(write(tmp_path / "few.jsonl", questions(60)), "question_answering")
    row = task.table.rows["test"][0]
    row["context"] = "It lies in Oslo."
    row["question"] += " " + " ".join(f"or {i}" for i in range(20))
    unlabelled = Unlabelled("many.txt", [row["context"], "It lies nowhere."])
    leave_out_known(unlabelled, task)
    assert unlabelled.texts == ["It lies nowhere."]


def test_training_rows_that_occur_in_a_held_out_split_can_be_removed(tmp_path):
    rows = opinions(60)
    for split, some in (("train", rows), ("validation", opinions(80)[60:]), ("test", rows[:5])):
        write(tmp_path / f"{split}.jsonl", some)
    before, after = (begin(tmp_path, drop_overlap=drop).table.rows["train"] for drop in (False, True))
    assert {row["text"] for row in before} - {row["text"] for row in after} >= {row["text"] for row in rows[:5]}
    with pytest.raises(ValueError, match="--drop_overlap is for rows with labels"):
        begin(tmp_path, "language_modelling", drop_overlap=True)


def trainings(folder, seeds, methods=(LABELS, PSEUDO)):
    """A SelfTraining whose trainings read six of sixty rows, of which test holds one, and five others."""
    rows = opinions(80)
    for split, some in (("train", rows[:60]), ("validation", rows[60:]), ("test", [rows[0], *rows[10:15]])):
        write(folder / f"{split}.jsonl", some)
    start = SETUPS["sentiment"](
        str(folder), model="", unlabelled="", unlabelled_column="", max_length=64, max_target_length=32
    )
    args = TrainingArguments(output_dir=str(folder / "out"), use_cpu=True, bf16=False, report_to="none")
    learned = SelfTraining(**vars(start), training_args=args, shares=[0.1], seeds=seeds, method="pseudo_labels")
    right = {LABELS: 100.0 * (np.arange(400) < 200), PSEUDO: 100.0 * (np.arange(400) < 300)}
    for seed in learned.seed_values:
        for method in methods:
            estimates = {split: mean(right[method]) for split in ("validation", "test")}
            learned.trained.append(Trained(method, 0.1, seed, learned.train[:6], 6, estimates, 1.0))
    return learned


@pytest.mark.parametrize(
    ("seeds", "over"), [(1, "the examples of test, for this seed alone"), (3, "3 seeds and the examples of test")]
)
def test_a_gain_is_said_with_what_its_interval_is_over(seeds, over, tmp_path):
    said = learning_curve(trainings(tmp_path, seeds))["said"]
    assert said[-1].endswith(f"against labels alone: better by more than chance explains over {over}")


def test_the_overlap_is_that_of_the_rows_that_the_best_training_read(tmp_path):
    learned = trainings(tmp_path, 1, methods=(LABELS,))
    (tmp_path / "out").mkdir()
    assert learned.task.overlap["test"].exact.sum() == 6
    _, task, _ = learned.begin_best({"said": []})
    assert task.overlap["test"].exact.tolist() == [True] + [False] * 5
    assert task.overlap["test"].train.tolist() == [True] + [False] * 5


def test_a_model_that_cannot_read_the_text_is_refused_before_the_first_training(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, "good": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "base")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=4, **shape)).save_pretrained(tmp_path / "base")
    rows = write(tmp_path / "few.jsonl", opinions(120))
    with pytest.raises(ValueError, match="the proof vocabulary failed"):
        here("self_training.py", model=tmp_path / "base", labelled=rows, output_dir=tmp_path / "out", **FAST, shares=1)
    assert not (tmp_path / "out" / "learning_curve.json").exists()


def test_each_drawing_of_the_labels_is_proved_before_the_first_training(tmp_path):
    rows = questions(460)  # a proof reads the first 400
    for row in rows[400:]:
        row["context"] += " " + " ".join(f"w{i}" for i in range(80))
        row["answers"] = [row["context"]]
    (tmp_path / "data").mkdir()
    for split, some in (("train", rows), ("validation", questions(480)[460:]), ("test", questions(500)[480:])):
        write(tmp_path / "data" / f"{split}.jsonl", some)
    settings = FAST | {"task": "question_answering", "labelled": tmp_path / "data", "shares": 0.3}
    with pytest.raises(ValueError, match=r"answers do not fit completely into any window: raise --max_length"):
        here("self_training.py", output_dir=tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "learning_curve.json").exists()


def test_it_is_looked_at_and_planned_without_a_training(labelled, tmp_path):
    (tmp_path / "many.txt").write_text("one more text\nand another one\n")
    arguments = ["--labelled", labelled, "--unlabelled", tmp_path / "many.txt", "--output_dir", tmp_path / "out"]
    found = run_recipe("self_training", arguments)
    assert found.task.labels == ["negative", "positive"]
    assert found.options["assumed"] == [
        "one training, on all labelled rows, of up to 32 that the curve and its best take"
    ]
    assert found.task.table.notes[-1].startswith("many.txt gives 2 texts without labels")
    assert inspect_recipe("self_training", arguments)["labels"]["train"].keys() == {"negative", "positive"}
    assert not (tmp_path / "out").exists()


def test_an_answer_that_stands_twice_is_no_label_and_no_answer_is_one(tmp_path):
    task = labelled_task("question_answering", tmp_path)
    row = {"id": "1", "question": "Which?", "context": "Oslo or Oslo or Lima", "answers": ["Rome"], "starts": [0]}
    assert task.with_label(row, "Oslo") is None
    assert task.with_label(row, "Lima") == row | {"answers": ["Lima"], "starts": [16]}
    assert task.with_label(row, "")["answers"] == []


def test_holes_take_three_tenths_of_a_text_and_what_is_written_fills_them(tmp_path):
    task = labelled_task("translation", tmp_path)
    texts = [row["en"] * 4 for row in pairs(40)]
    denoised = DenoisedText(texts, task, max_length=64)
    mask = task.tokenizer.mask_token_id
    for feature in denoised.train_dataset:
        ids = feature["input_ids"]
        read, written = denoised.holes(ids)
        assert written == ids
        missing = len(ids) - sum(token != mask for token in read)
        assert missing == max(1, round(0.3 * len(ids)))
        assert is_subsequence([token for token in read if token != mask], ids)
    batch = denoised.collate(denoised.train_dataset[:4])
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    denoised.sentinels = [900, 901, 902, 903, 904, 905]  # as T5 has them
    for feature in denoised.train_dataset:
        read, written = denoised.holes(feature["input_ids"])
        holes, key = {}, None
        for token in written:
            key = token if token >= 900 else key
            holes.setdefault(key, []).extend([token] if token < 900 else [])
        assert [one for token in read for one in holes.get(token, [token])] == feature["input_ids"]


def is_subsequence(some, all_of_them):
    rest = iter(all_of_them)
    return all(token in rest for token in some)


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForQuestionAnswering, EncoderDecoderModel])
def test_what_was_pretrained_is_what_a_training_begins_with(model_class):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=64, **shape)
    pretrained = BertForMaskedLM(config)
    if model_class is EncoderDecoderModel:
        decoder = BertConfig(vocab_size=64, is_decoder=True, add_cross_attention=True, **shape)
        model = EncoderDecoderModel(encoder=BertModel(config), decoder=BertLMHeadModel(decoder))
        bodies = [model.encoder, model.decoder.bert]
    else:
        model = model_class(config)
        bodies = [model.bert]
    load_backbone(model, pretrained)
    for body in bodies:
        for name, tensor in pretrained.bert.state_dict().items():
            assert torch.equal(body.state_dict()[name], tensor)


def test_documents_taken_from_a_stream_are_those_documents(stream):
    chosen = [3, 0, len(stream) - 1]
    few = stream.take(chosen)
    assert [few.document(i).tolist() for i in range(3)] == [stream.document(i).tolist() for i in chosen]
    assert few.bytes.tolist() == [stream.bytes[i] for i in chosen]
    assert few.total == sum(len(stream.document(i)) - 1 for i in chosen) + 1
    apart = replace(stream, begin=stream.begin + 1, end=stream.end)  # two markers: documents share none
    assert [apart.take([1]).document(0).tolist()] == [apart.document(1).tolist()]
