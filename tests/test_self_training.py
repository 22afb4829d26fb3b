"""Few labels, much text: what is drawn, what a teacher may pass on, and a curve that is that of plain training."""

import json

import numpy as np
import pytest
import torch
from running import here

from hf_lm.data.opinions import opinions
from hf_lm.evaluation.calibration import fit_temperature, negative_log_likelihood, probabilities
from hf_lm.evaluation.intervals import OverRuns, mean
from hf_lm.self_training import (
    LABELS,
    PSEUDO,
    draw_labelled,
    leave_out_known,
    read_labelled,
    read_unlabelled,
    select_confident,
)

FAST = {"use_cpu": True, "bf16": False, "report_to": "none", "min_steps": 4, "num_train_epochs": 1, "max_length": 64}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "few.jsonl", opinions(200))


def test_the_temperature_lowers_the_likelihood_of_held_out_data_that_it_has_not_seen():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 600)
    logits = 6 * (rng.normal(size=(600, 3)) + np.eye(3)[true])  # far too sure
    temperature = fit_temperature(logits[:300], true[:300])
    assert temperature > 1
    before, after = (negative_log_likelihood(logits[300:], true[300:], t) for t in (1.0, temperature))
    assert after < 0.7 * before
    near = [negative_log_likelihood(logits[:300], true[:300], temperature * factor) for factor in (0.98, 1, 1.02)]
    assert near[1] == min(near)
    rows = torch.log_softmax(torch.from_numpy(logits[300:]), -1)[range(300), true[300:]]
    assert before == pytest.approx(-rows.mean().item())
    assert np.array_equal(probabilities(logits, temperature).argmax(1), logits.argmax(1))


def test_selection_keeps_the_proportions_of_the_classes_and_takes_none_below_the_threshold():
    chances = np.random.default_rng(0).dirichlet([0.6, 0.2, 0.3], 2000)
    shares = np.array([0.5, 0.25, 0.25])
    taken = select_confident(chances, shares, threshold=0.8)
    predicted = chances.argmax(1)
    counts = np.bincount(predicted[taken], minlength=3)
    assert chances[taken].max(1).min() >= 0.8
    assert counts[1] == counts[2] == counts[0] // 2 > 0
    others = np.setdiff1d(np.flatnonzero(predicted == 0), taken)
    assert chances[others].max(1).max() <= chances[taken][predicted[taken] == 0].max(1).min()  # the surest first
    assert not len(select_confident(chances[predicted != 1], shares, threshold=0.8))


def test_an_interval_over_seeds_is_wider_than_over_examples_alone_and_pairs_them():
    rng = np.random.default_rng(0)
    easy = rng.random(400) < 0.8
    runs = [mean(100.0 * (easy & (rng.random(400) < share))) for share in (0.7, 0.85, 1.0)]
    together, one = OverRuns(runs), runs[1]
    wide, narrow = together.interval(), one.interval()
    assert together.value == pytest.approx(np.mean([run.value for run in runs]))
    assert wide.high - wide.low > narrow.high - narrow.low
    assert together.minus(together).low == together.minus(together).high == 0


def test_a_larger_share_holds_the_smaller_one_and_each_class():
    rows = [{"label": "a" if i % 5 else "b"} for i in range(100)]
    small, large = (draw_labelled(rows, share, seed=3) for share in (0.05, 0.5))
    assert set(small) < set(large)
    assert len(small) == 5
    assert {rows[i]["label"] for i in small} == {"a", "b"}
    assert draw_labelled(rows, 0.05, seed=4) != small
    with pytest.raises(ValueError, match=r"there are 2 classes; give a share from 0\.02"):
        draw_labelled(rows, 0.01, seed=0)


def test_texts_of_held_out_splits_and_labelled_ones_are_left_out_and_counted(labelled, tmp_path):
    table, _ = read_labelled(str(labelled))
    test, train = table.rows["test"][0]["text"], table.rows["train"][0]["text"]
    (tmp_path / "many.txt").write_text("\n".join([test.upper(), train, "new 新的", "new 新的", ""]) + "\n\n")
    unlabelled = read_unlabelled(str(tmp_path / "many.txt"))
    leave_out_known(unlabelled, table)
    assert unlabelled.texts == ["new 新的"]
    assert unlabelled.left_out["in_a_held-out_split"] == unlabelled.left_out["labelled_in_train"] == 1
    assert unlabelled.left_out["repeated"] == 1


@pytest.fixture(scope="module")
def ran(labelled, tmp_path_factory):
    """A run whose test split stands in the unlabelled file; the rows that its Trainers were given."""
    import hf_lm.self_training as module

    folder = tmp_path_factory.mktemp("ran")
    table, _ = read_labelled(str(labelled))
    texts = [row["text"] for row in table.rows["test"]] + [f"{row['text']} Again!" for row in opinions(260)[200:]]
    (folder / "many.txt").write_text("\n".join(texts), encoding="utf-8")
    seen, build = [], module.supervised_trainer
    module.supervised_trainer = lambda model, args, task, measure: (
        seen.append((task, args)) or build(model, args, task, measure)
    )
    try:
        settings = FAST | {"threshold": 0.5, "rounds": 2, "seeds": 2, "shares": 0.5, "pretraining_epochs": 1}
        settings |= {"labelled": labelled, "unlabelled": folder / "many.txt", "learning_rate": 1e-3, "min_steps": 30}
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "translation"}, "--task translation is not possible yet"),
        ({"unlabelled": "no.txt"}, "--unlabelled: there is no file or folder no.txt"),
        ({"shares": 0.001}, "fewer|there are 2 classes"),
        ({"labelled": "one_class.jsonl"}, "--labelled one_class.jsonl has one class only"),
        ({"unlabelled": "empty.txt"}, "has no text: it is empty"),
        ({"unlabelled": "same.txt"}, "also stands in the labelled data"),
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
