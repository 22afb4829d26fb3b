"""A model is scored as its run measured it, whoever asks; runs are compared on the same examples or not at all."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from loopback_hub import hub  # noqa: F401  (a fixture)
from safetensors.torch import load_file, save
from transformers import BertConfig

from hf_lm.cli import main
from hf_lm.data.demos.opinions import opinions
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.scoring.compare_runs import compare_runs
from hf_lm.scoring.restore import SETTINGS, Checkpoint, head_labels, open_checkpoint
from hf_lm.scoring.score import check_task, read_data, score
from hf_lm.tokenization.tokenizer import add_frame, train_bpe, train_word_level

RECIPES = Path(__file__).parent.parent / "recipes"
PROOFS = ["load_back", "adapter_load_back", "learnable", "loss_invariance", "leakage", "packing_isolation"]
QUICK = {
    "max_steps": 3,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "use_cpu": True,
}


def train(recipe: str, folder: Path, **arguments) -> str:
    options = {"output_dir": folder, "use_cpu": True, "disable_tqdm": True} | QUICK | arguments
    before = sys.argv, sys.excepthook
    sys.argv = [recipe, *(t for k, v in options.items() for t in (f"--{k}", str(v))), "--skip_proofs", *PROOFS]
    try:
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    finally:
        sys.argv, sys.excepthook = before
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("scored")


@pytest.fixture(scope="module")
def reviews(place):
    path = place / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in opinions(200)))
    return str(path)


@pytest.fixture(scope="module")
def documents(place):
    path = place / "documents.jsonl"
    rows = [{"document": row["text"], "summary": " ".join(row["text"].split()[-3:])} for row in opinions(150)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def causal(place, documents):
    """A causal model that the recipe trained, in bfloat16 and with a tokenizer of its own."""
    sizes = {"vocab_size": 300, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 64, "bf16": True}
    return train("pretrain", place / "causal", dataset=documents, text_column="document", **sizes)


@pytest.fixture(scope="module")
def classifier(place, reviews):
    return train("sentiment", place / "classifier", dataset=reviews, bf16=False)


@pytest.fixture(scope="module")
def summarizer(place, documents, causal):
    """An adapter of the causal model, merged, and the adapter alone in a folder beside it."""
    return train("summarization", place / "summarizer", dataset=documents, model=causal, lora_rank=2, bf16=False)


def report(folder: str) -> dict:
    return json.loads((Path(folder) / "report.json").read_text())


def measured(result: dict, name: str) -> dict:
    return {key: found["value"] for key, found in result["models"][name]["metrics"].items()}


def assert_same(result: dict, name: str) -> None:
    """Numbers, bounds and all are those of the report, which keeps eight digits."""
    for key, found in result["models"][name]["metrics"].items():
        expected = report(name)["metrics"]["test"][key]
        for part in {"value", "low", "high"} & expected.keys():
            assert found[part] == pytest.approx(expected[part], rel=1e-6), (key, part)


def quietly(*models, **options):
    return score(list(models), say=lambda said: None, **options)


def test_a_causal_model_is_scored_as_its_run_measured_it(causal, documents):
    result = quietly(causal, dataset=documents, metrics=["perplexity"])
    assert set(measured(result, causal)) == {"bits_per_byte", "word_perplexity", "perplexity"}
    assert_same(result, causal)


def test_a_classifier_is_scored_as_its_run_measured_it(classifier, reviews):
    result = quietly(classifier, dataset=reviews)
    assert set(measured(result, classifier)) == {"accuracy", "macro_f1", "mcc", "calibration_error"}
    assert_same(result, classifier)


def test_a_summarizer_its_adapter_and_a_plain_model_are_scored_together(
    summarizer, causal, documents, monkeypatch, capsys
):
    adapter = str(Path(summarizer) / "adapter")
    result = quietly(summarizer, adapter, causal, dataset=documents, task="summarization", metrics=["rouge"])
    assert_same(result, summarizer)
    assert measured(result, adapter) == pytest.approx(measured(result, summarizer), abs=1e-6)
    assert result["models"][summarizer]["how"] == "text that it writes"
    assert result["models"][causal]["how"].startswith("prompted with 'TL;DR:'")
    assert len(result["comparisons"]) == 3 * 4
    monkeypatch.setattr("hf_lm.scoring.score.build_task", lambda *args, **options: pytest.fail("it was scored before"))
    again = quietly(summarizer, adapter, causal, dataset=documents, task="summarization", metrics=["rouge"])
    assert again == result


def test_a_changed_weight_file_is_scored_anew(causal, documents, tmp_path):
    copy = shutil.copytree(causal, tmp_path / "copy")
    model = transformers.AutoModelForCausalLM.from_pretrained(copy)
    model.transformer.wpe.weight.data[:, 0] += 1  # of all entries: the norm would take it out again
    model.save_pretrained(copy)
    result = quietly(causal, str(copy), dataset=documents, task="perplexity")
    assert measured(result, str(copy)) != measured(result, causal)


SCORE_THREE_TIMES = """
import json, sys
from hf_lm.cli import main
for _ in range(3):
    main(["score", "user/name", "--dataset", sys.argv[1], "--text_column", "document", "--metrics", "perplexity"])
    print(json.load(open("scores.json"))["models"]["user/name"]["metrics"]["bits_per_byte"]["value"])
    print("next?", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow  # of a folder it is tested above
def test_a_model_on_the_hub_is_scored_anew_when_its_repository_changed(causal, documents, tmp_path, hub):  # noqa: F811
    files = {
        path.name: path.read_bytes() for path in Path(causal).iterdir() if path.suffix in (".json", ".safetensors")
    }
    hub.repos["user/name"] = {name: files[name] for name in files if name not in ("report.json", "scores.json")}
    child = subprocess.Popen(
        [sys.executable, "-c", SCORE_THREE_TIMES, documents],
        env=os.environ | hub.environment() | {"HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def next_score() -> tuple[bool, float]:
        lines = []
        while (line := child.stdout.readline()) not in ("next?\n", ""):
            lines.append(line.strip())
        assert line, child.stderr.read()[-2000:]
        return any("scored before" in line for line in lines), float(lines[-1])

    try:
        known, first = next_score()
        assert not known
        child.stdin.write("\n")
        child.stdin.flush()
        assert next_score() == (True, first)
        weights = load_file(Path(causal) / "model.safetensors")
        hub.repos["user/name"]["model.safetensors"] = save(
            weights | {"transformer.wpe.weight": -20 * weights["transformer.wpe.weight"]}, metadata={"format": "pt"}
        )
        hub.commits.append({"repo": "user/name"})
        child.stdin.write("\n")
        child.stdin.flush()
        known, changed = next_score()
        assert not known
        assert changed != first
    finally:
        child.kill()
        child.communicate()


def test_likelihoods_are_compared_only_where_they_are_of_the_same_text(causal, documents, tmp_path):
    texts = [row["text"] for row in opinions(150)]
    for name, tokenizer in (("other", train_bpe(texts, vocab_size=280)), ("words", train_word_level(texts[:20]))):
        new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=16, block_size=64).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    other, words = str(tmp_path / "other"), str(tmp_path / "words")
    column = {"text_column": "document"}
    result = quietly(causal, other, words, dataset=documents, metrics=["perplexity"], columns=column)
    pairs = {(found["metric"], found["model_a"], found["model_b"]) for found in result["comparisons"]}
    assert pairs == {("bits_per_byte", causal, other), ("word_perplexity", causal, other)}
    assert "same tokens" in result["not_compared"]["perplexity"]
    assert words in result["not_compared"]["bits_per_byte"]
    assert "as other text" in result["models"][words]["notes"][0]
    copy = str(shutil.copytree(words, tmp_path / "copy"))
    result = quietly(words, copy, dataset=documents, metrics=["perplexity"], columns=column)
    assert not result["not_compared"]  # the same unknown words to both
    assert len(result["comparisons"]) == 3


def test_a_limit_draws_examples_of_all_classes_in_whatever_order_they_stand(classifier, reviews, tmp_path):
    result = quietly(classifier, dataset=reviews, limit=7)
    assert result["data"]["examples"] == 7
    assert "7 examples drawn at random" in result["data"]["notes"]
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"text": f"{i} {label}", "label": label}) for label in ("bad", "good") for i in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    rows = read_data("sentiment", str(tmp_path), "test", {}, [], 20).rows
    assert {row["label"] for row in rows} == {"bad", "good"}
    assert rows == read_data("sentiment", str(tmp_path), "test", {}, [], 20).rows


def test_the_name_of_a_model_is_inert_in_a_terminal(classifier, reviews, tmp_path, capsys):
    folder = tmp_path / "model\x1b[31m"
    shutil.copytree(classifier, folder)
    score([str(folder)], dataset=str(reviews), limit=7)
    assert "model\u241b[31m: scor" in capsys.readouterr().out


def test_a_causal_model_without_a_head_is_asked_for_the_likelihood_of_each_class(causal, reviews):
    result = quietly(causal, dataset=reviews, task="sentiment", limit=10)
    assert result["models"][causal]["how"] == "the likelihood of each class's name"


@pytest.fixture(scope="module")
def encoder(place):
    """A BERT without a head."""
    folder = place / "encoder"
    tokenizer = add_frame(train_bpe((row["text"] for row in opinions(150)), vocab_size=280))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertForMaskedLM(BertConfig(vocab_size=320, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_models_of_a_recipe_that_score_does_not_know_are_pointed_to_their_reports():
    with pytest.raises(ValueError, match=r"with --task: .*\. What reinforce measures is in the report of each run"):
        check_task("", [], [SimpleNamespace(recipe="reinforce")])


def test_what_cannot_be_scored_is_refused_in_one_line(classifier, encoder, reviews, documents, tmp_path, capsys):
    def said(*argv):
        with pytest.raises(SystemExit) as ended:
            main(["score", *map(str, argv), "--output", str(tmp_path / "scores.json")])
        assert ended.value.code == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        return line

    assert "has no config.json" in said(tmp_path, "--dataset", reviews, "--task", "sentiment")
    assert "was trained for sentiment, not for summarization" in said(
        classifier, "--dataset", documents, "--task", "summarization"
    )
    assert "has no head for this: fine-tune it first with recipes/sentiment.py" in said(
        encoder, "--dataset", reviews, "--task", "sentiment"
    )
    assert "writes no text" in said(encoder, "--dataset", documents, "--task", "summarization")
    assert "gives a text no likelihood" in said(encoder, "--dataset", documents, "--task", "perplexity")
    assert "Did you mean 'accuracy'?" in said(classifier, "--dataset", reviews, "--metrics", "acuracy")
    assert "say what to measure with --task" in said(encoder, "--dataset", reviews)
    assert "there is no task 'sentimnt'" in said(classifier, "--dataset", reviews, "--task", "sentimnt")
    assert "--num_beams means nothing for sentiment" in said(classifier, "--dataset", reviews, "--num_beams", 2)
    assert "--source means nothing for sentiment" in said(classifier, "--dataset", reviews, "--source", "text")
    assert "does not tell the likelihood" in said("api:m", "--dataset", documents, "--task", "perplexity")
    assert "no split 'tset'" in said(classifier, "--dataset", reviews, "--split", "tset")
    assert not (tmp_path / "scores.json").exists()


def test_the_command_leaves_a_table_a_file_and_a_picture(classifier, reviews, tmp_path, capsys):
    command = ["score", classifier, "--dataset", reviews, "--output", str(tmp_path / "scores.json")]
    main(command)
    printed, said = capsys.readouterr()
    assert "replaces" not in said
    assert "accuracy" in printed
    assert "a classification head for" in printed
    assert json.loads((tmp_path / "scores.json").read_text())["main_metric"] == "accuracy"
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    main(command)
    assert "scores.json holds an earlier result, which this one replaces: --output" in capsys.readouterr().err


def named(*labels: str) -> Checkpoint:
    config = BertConfig(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    return Checkpoint("m", None, config, {}, {})


def test_the_classes_of_a_head_are_found_by_their_names():
    assert head_labels(named("POSITIVE", "NEGATIVE"), ["neg", "pos"]) == ["pos", "neg"]
    assert head_labels(named("LABEL_0", "LABEL_1"), ["0", "1"]) == ["0", "1"]
    assert head_labels(named("negative", "neutral", "positive"), ["neg", "pos"]) == ["neg", "neutral", "pos"]
    with pytest.raises(ValueError, match="m tells apart sports, politics; the data has neg, pos"):
        head_labels(named("sports", "politics"), ["neg", "pos"])
    with pytest.raises(ValueError, match="tells apart"):
        head_labels(named("pos", "position"), ["neg", "pos"])


def test_models_that_no_recipe_trained_are_measured_with_the_recipes_own_lengths():
    for task, settings in SETTINGS.items():
        defaults = runpy.run_path(str(RECIPES / f"{task}.py"))["Arguments"]()
        own = settings.keys() - {"eval_tokens"}  # the length of a run decides it
        assert {name: settings[name] for name in own} == {name: getattr(defaults, name) for name in own}


def test_an_adapter_names_its_base_and_belongs_to_the_run_around_it(summarizer, causal):
    opened = open_checkpoint(str(Path(summarizer) / "adapter"))
    assert opened.adapter["base_model_name_or_path"] == causal
    assert opened.recipe == "summarization"


# Runs compared by what they said


def copied(folder: str, to: Path, change) -> str:
    """The run with its predictions changed: `change` maps all rows to others."""
    to.mkdir()
    shutil.copy(Path(folder) / "report.json", to)
    rows = [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]
    (to / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    return str(to)


@pytest.mark.parametrize("kind", ["classifier", "summarizer", "causal"])
def test_runs_are_compared_by_numbers_that_are_those_of_their_reports(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    other = copied(folder, tmp_path / "other", lambda rows: rows)
    result = compare_runs([folder, other])
    for name, found in result["models"][folder]["metrics"].items():
        assert found["value"] == pytest.approx(report(folder)["metrics"]["test"][name]["value"], rel=1e-5)
    assert all(found["p"] == 1 and not found["better"] for found in result["comparisons"])


def test_a_run_whose_tokenizer_loses_text_is_not_compared_with_another(tmp_path):
    rows = [{"split": "test", "nll": 90.0 + i, "tokens": 20, "bytes": 80, "words": 15} for i in range(8)]
    for name, lost in (("all", 0.0), ("small", 0.5)):
        (tmp_path / name).mkdir()
        about = {"recipe": "pretrain", "tokenizer": {"text": {"test": {"unknown": 0.0, "lost": lost}}}}
        (tmp_path / name / "report.json").write_text(json.dumps(about))
        (tmp_path / name / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = compare_runs([str(tmp_path / "all"), str(tmp_path / "small")])
    assert not result["comparisons"]
    assert f"not comparable for {tmp_path / 'small'}, whose tokenizer loses text" in result["not_compared"].values()


def test_a_better_run_is_found_whatever_the_order_of_its_rows(classifier, tmp_path):
    def better(rows):
        return [row | {"prediction": row["reference"]} for row in reversed(rows)]

    def worse(rows):
        other = {row["reference"]: row["prediction"] for row in rows if row["reference"] != row["prediction"]}
        return [row | {"prediction": other.get(row["reference"], "none")} for row in rows]

    good, bad = copied(classifier, tmp_path / "good", better), copied(classifier, tmp_path / "bad", worse)
    result = compare_runs([bad, good], metrics=["accuracy"])
    assert result["comparisons"][0]["better"] == good
    assert result["models"][good]["metrics"]["accuracy"]["value"] == 100
    assert f"{good} is better than {bad} by " in result["comparisons"][0]["said"]


def test_runs_that_cannot_be_compared_are_refused_in_one_line(classifier, summarizer, causal, tmp_path):
    other = copied(classifier, tmp_path / "other", lambda rows: [*rows[:-2], rows[-1] | {"input": "something else"}])
    rows = (Path(classifier) / "predictions.jsonl").read_text().count('"split": "test"')
    with pytest.raises(ValueError, match=f"{rows - 2} of the {rows} of .* are among the {rows - 1} of"):
        compare_runs([classifier, other])
    with pytest.raises(ValueError, match="of different tasks"):
        compare_runs([classifier, summarizer])
    with pytest.raises(FileNotFoundError, match=r"has no report.json.*hf-lm score"):
        compare_runs([classifier, str(tmp_path)])
    with pytest.raises(ValueError, match="give two different folders"):
        compare_runs([classifier, classifier])
    fewer = copied(causal, tmp_path / "fewer", lambda rows: rows[1:])
    with pytest.raises(ValueError, match="measured on different documents"):
        compare_runs([causal, fewer])
    only = copied(classifier, tmp_path / "only", lambda rows: [row for row in rows if row["split"] == "validation"])
    with pytest.raises(ValueError, match="were not all measured on test"):
        compare_runs([classifier, only], split="test")
    assert compare_runs([classifier, only])["data"]["split"] == "validation"


GOOD = {"split": "test", "input": "a", "reference": "x", "prediction": "y"}


@pytest.mark.parametrize(
    ("report", "row", "says"),
    [
        ("{", GOOD, "report.json is not what a run writes"),
        ("[]", GOOD, "report.json is not what a run writes"),
        ("{}", GOOD, "report.json is not what a run writes"),
        ('{"recipe": "sentiment"}', [], "does not hold the predictions of a sentiment run"),
        ('{"recipe": "sentiment"}', {"split": "test", "input": "a"}, "does not hold the predictions of a sentiment"),
        ('{"recipe": "summarization"}', GOOD | {"split": None}, "does not hold the predictions of a summ"),
        ('{"recipe": "pretrain"}', GOOD, "does not hold the predictions of a pretrain run"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_in_one_line(report, row, says, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report)
        (tmp_path / name / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "one"), str(tmp_path / "two")])
    [line] = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: ")
    assert says in line


def test_rows_with_the_same_text_are_all_kept(tmp_path):
    rows = [{"split": "test", "input": "same", "reference": "a", "prediction": said} for said in ("a", "b", "a")]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text('{"recipe": "sentiment"}')
        (tmp_path / name / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = compare_runs([str(tmp_path / "one"), str(tmp_path / "two")], metrics=["accuracy"])
    assert result["data"]["examples"] == 3


def test_a_model_of_self_training_is_measured_as_its_run_measured_the_task(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"recipe": "self_training"}))
    (tmp_path / "run.yaml").write_text("task: question_answering\nmax_length: 48\n")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.recipe == "question_answering"
    assert (checkpoint.run["stride"], checkpoint.run["max_source_length"]) == (16, 48)
    (tmp_path / "run.yaml").write_text("task: language_modelling\n")
    assert open_checkpoint(str(tmp_path)).recipe == "pretrain"
    for longest, block in ((16, 16), (256, 32)):  # the model has 32 positions
        (tmp_path / "run.yaml").write_text(f"task: language_modelling\nmax_length: {longest}\nlabelled: texts.txt\n")
        run = open_checkpoint(str(tmp_path)).run
        assert (run["block_size"], run["dataset"]) == (block, "texts.txt")
