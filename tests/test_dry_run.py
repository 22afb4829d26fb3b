"""A dry run is a recipe up to `fit`: its own arguments, nothing trained, written or deleted, nothing left changed."""

import json
import sys
from pathlib import Path

import pytest

from hf_lm import dry_run
from hf_lm.cli import main
from hf_lm.dry_run import parse_recipe, run_recipe
from hf_lm.planning import resolve as resolving
from hf_lm.planning.resolve import resolve
from hf_lm.tasks.sentiment import Sentiment

RECIPE = """
import sys
from dataclasses import dataclass

from hf_lm.arguments import TrainingArguments, bf16_is_fast, parse_arguments
from hf_lm.training.fit import fit
from hf_lm.training.chat_model import warm_up


@dataclass
class Arguments:
    model: str = "none"


def main(args, training_args):
    warm_up(None, None, [], steps=10)  # would fail if it trained
    try:
        fit(args.model, sys.argv[1:], training_args, merge=False)
    except Exception as error:
        raise AssertionError("the recipe went on after fit") from error


if __name__ == "__main__":
    main(*parse_arguments(Arguments, TrainingArguments, output_dir="out", bf16=bf16_is_fast(), learning_rate=3e-4))
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(RECIPE)
    monkeypatch.setattr(sys, "argv", ["hf-lm", "of", "the process"])
    monkeypatch.chdir(tmp_path)
    return "mine.py"


def test_a_recipe_of_ones_own_runs_up_to_fit_and_changes_nothing_of_the_process(recipe, tmp_path):
    hook = sys.excepthook
    call = run_recipe(recipe, ["--model", "gpt2", "--use_cpu", "true", "--debug"])
    assert (call.model, call.options["merge"]) == ("gpt2", False)
    assert call.task == sys.argv[1:] == ["of", "the process"]
    assert call.training_args.run["learning_rate"] == 3e-4
    assert sys.excepthook is hook
    assert not dry_run.active()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    assert parse_recipe(recipe, ["--model", "bert", "--use_cpu", "true"]).model == "bert"
    with pytest.raises(ValueError, match="Did you mean --model"):
        run_recipe(recipe, ["--modle", "gpt2"])
    assert not dry_run.active()


def test_the_devices_bf16_is_a_default_that_the_users_own_arguments_replace(recipe, tmp_path):
    (tmp_path / "half.yaml").write_text("bf16: true\n")
    for fast in (True, False):
        assert run_recipe(recipe, ["--use_cpu", "true"], bf16=fast).training_args.bf16 is fast
    assert run_recipe(recipe, ["--use_cpu", "true", "--config", "half.yaml"], bf16=False).training_args.bf16
    assert not run_recipe(recipe, ["--use_cpu", "true", "--bf16", "false"], bf16=True).training_args.bf16


def test_no_trainer_is_built_before_fit(tmp_path):
    code = "Trainer(None, None, loss=None, shifts_labels=True, measure=None, context=0)"
    (tmp_path / "mine.py").write_text(f"from hf_lm.training.trainer import Trainer\n{code}")
    with pytest.raises(ValueError, match="mine trains or writes before it calls fit"):
        run_recipe(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("command", ["plan", "inspect"])
def test_a_recipe_that_opens_its_output_folder_itself_ends_in_one_line_before_it_does(command, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "checkpoint-1").mkdir(parents=True)
    (out / "report.json").write_text("{}")
    options = ["--output_dir", str(out), "--overwrite_output_dir", "true", "--use_cpu", "true"]
    with pytest.raises(SystemExit) as ended:
        main([command, "safety", "--model", str(tmp_path / "none"), *options])
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "safety trains or writes before it calls fit" in printed
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "report.json"]


def test_a_plan_of_the_demos_text_leaves_the_data_of_the_next_run_alone(texts, monkeypatch):
    long = [{"module": str(i), "text": " ".join(texts[i:] + texts[:i])} for i in range(len(texts))]
    monkeypatch.setattr("hf_lm.data.demos.documentation.documentation", lambda: long)
    options = ["--labelled", "someone/unreachable", "--unlabelled", "someone/else", "--shares", "1"]
    planned = resolve("self_training", [*options, "--use_cpu", "true"], tokens=100_000)
    assert len(planned.task.table.rows["train"]) == len(long) - 20
    table = Sentiment.load("demo:opinions")
    assert table.source == "demo:opinions"
    assert {row["label"] for row in table.rows["train"]} == {"positive", "negative"}


@pytest.mark.parametrize(
    ("recipe", "columns"),
    [
        ("sentiment", ["--text_column", "0", "--label_column", "1"]),
        ("translation", ["--source", "en", "--target", "zh"]),
    ],
)
def test_the_demos_text_has_the_columns_that_were_asked_for(recipe, columns, texts, monkeypatch):
    long = [{"module": str(i), "text": " ".join(texts[i:] + texts[:i])} for i in range(30)]
    monkeypatch.setattr("hf_lm.data.demos.documentation.documentation", lambda: long)
    run = resolve(recipe, ["--dataset", "someone/unreachable", *columns, "--use_cpu", "true"], tokens=100_000)
    assert list(run.task.table.columns.values()) == columns[1::2]


def test_of_a_large_corpus_the_first_documents_are_tokenized_and_the_rest_is_counted_by_its_size(
    tmp_path, monkeypatch
):
    rows = [{"text": f"document {i} " + "the quick brown fox " * 20} for i in range(500)]
    data = tmp_path / "many.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--dataset", str(data), "--vocab_size", "300", "--block_size", "32", "--use_cpu", "true"]
    monkeypatch.setattr(resolving, "SAMPLED", 100_000)
    monkeypatch.setattr(resolving, "SAMPLE", 20_000)
    run = resolve("pretrain", options)
    read = int(run.task.streams["train"].bytes.sum())
    assert 20_000 <= read < 20_500  # up to the end of a document
    assert run.scales["train"] == pytest.approx(data.stat().st_size / read)
    assert run.scales["test"] == 1  # is shorter than the sample
    assert "MB tokenized" in run.assumed[0]


RECIPES = sorted(path.stem for path in (Path(__file__).parent.parent / "recipes").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "inspect"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_trains_writes_or_deletes_when_it_is_looked_at(command, recipe, tmp_path, monkeypatch, capsys):
    """In a folder that holds a finished run of the same name, with the option that would replace it."""
    out = tmp_path / "out" / recipe
    (out / "checkpoint-1").mkdir(parents=True)
    for name in ("report.json", "README.md", "model.safetensors", "run.yaml", "checkpoint-1/trainer_state.json"):
        (out / name).write_text("# hf_lm run\n" if name == "run.yaml" else "{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hf-lm"])

    def tree():
        return {
            str(path): path.is_dir() or (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")
        }

    before, trained = tree(), []
    monkeypatch.setattr("torch.Tensor.backward", lambda *args, **options: trained.append(args))
    options = ["--overwrite_output_dir", "true", "--use_cpu", "true"]
    code = _exit_code([command, recipe, *options, *(["--tokens", "20000"] if command == "plan" else [])])
    assert trained == []
    assert tree() == before
    assert code == 0 or recipe in ("safety", "reinforce", "self_training", "preference")  # said in one line
    assert capsys.readouterr().err.count("error: ") == code


def _exit_code(argv):
    try:
        main(argv)
    except SystemExit as ended:
        return ended.code
    return 0
