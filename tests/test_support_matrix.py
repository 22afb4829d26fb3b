"""Cells of the tables in docs/scale.md: a recipe with a feature, whole on two processes, trained and resumed.

One process with the rows of both gives the numbers that are expected: the loss of each step, the measurements, the
proofs that passed, the number of predictions. A checkpoint of the middle then leads to the same numbers again. The
answers that reinforce draws are others on two processes, so its rate is next to nothing and its loss is not compared.
"""

import json

import pytest
import transformers
from test_alignment import data  # noqa: F401  (a fixture)
from test_fine_tuning_recipes import data as rows  # noqa: F401
from test_sharded_recipes import PRETRAIN, SHARED, curve, run, text  # noqa: F401

from hf_lm.data.demos.dialogues import sums
from hf_lm.data.demos.opinions import opinions
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tokenization.chat_template import set_chat_template
from hf_lm.tokenization.tokenizer import train_bpe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a cell took 150 to 290 s on two busy cores
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 9, "learning_rate": 1e-3}
STEPS |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": False}
FEATURES = {"adamw": {"muon_learning_rate": 0}, "muon": {"muon_learning_rate": 1e-3}, "lora": {"lora_rank": 4}}
OTHER = PRETRAIN.keys() - {*STEPS, "per_device_train_batch_size"}
RECIPES = {
    "pretrain": {key: PRETRAIN[key] for key in OTHER} | {"n_head": 2},
    "sentiment": {},
    "token_classification": {},
    "question_answering": {"max_steps": 6},  # the last of 7 rows
    "translation": {},
    "summarization": {},
    "chat": {"completion": "chosen", "max_length": 32},
    "preference": {"max_length": 48, "max_new_tokens": 4, "answers": 4},
    "reinforce": {"reference": "chosen", "reward": "length", "target_length": 6, "max_new_tokens": 4}
    | {"num_generations": 4, "answers": 4, "collapse_steps": 0},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint without dropout, which differs between one process and two."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_bpe((f"{row['prompt']} {row['reference']} a b" for row in sums()), vocab_size=300)
    set_chat_template(tokenizer)
    transformers.set_seed(0)
    model = new_gpt2(tokenizer, n_layer=2, n_head=2, n_embd=32, block_size=128, dropout=0.0)
    model.config.classifier_dropout = 0.0  # of the head of token classification
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def options_of(recipe, feature, request):
    options = SHARED | STEPS | RECIPES[recipe] | FEATURES[feature]
    if recipe == "pretrain":
        return options | {"dataset": request.getfixturevalue("text")}
    options |= {"model": request.getfixturevalue("base")}
    if recipe in ("chat", "preference", "reinforce"):
        options |= {"dataset": request.getfixturevalue("data")}
    elif recipe != "token_classification":
        options |= {"dataset": request.getfixturevalue("rows")[recipe]}
    if recipe == "reinforce":
        options |= {"learning_rate": 1e-9} | ({"muon_learning_rate": 1e-9} if feature == "muon" else {})
    if feature == "lora":
        options |= {"skip_proofs": "learnable"}  # at this rate an adapter of a random model learns little
    return options


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The reports of one process with their folders, each made once."""
    made = {}

    def report(recipe, feature, options):
        if (recipe, feature) not in made:
            folder = tmp_path_factory.mktemp("one")
            made[recipe, feature] = run(recipe, folder, processes=1, per_device_train_batch_size=8, **options), folder
        return made[recipe, feature]

    return report


def check_same(report, expected):
    for key in ("loss", "eval_loss") if expected["recipe"] != "reinforce" else ():
        assert curve(report, key) == pytest.approx(curve(expected, key), rel=1e-3), key
    for split, metrics in expected["metrics"].items():
        for name, metric in metrics.items():
            found = report["metrics"][split][name]
            for key in {"value", "low", "high"} & set(metric):
                assert found[key] == pytest.approx(metric[key], rel=5e-3, abs=1e-3), (split, name, key)
    passed = [{name: proof["passed"] for name, proof in each["proofs"].items()} for each in (report, expected)]
    assert passed[0] == passed[1]


CELLS = [(recipe, feature) for recipe in RECIPES for feature in FEATURES if (recipe, feature) != ("pretrain", "lora")]


@pytest.mark.parametrize(("recipe", "feature"), CELLS)
def test_one_process_resumes_as_if_it_had_not_stopped(recipe, feature, one_process, request):
    options = options_of(recipe, feature, request)
    one, folder = one_process(recipe, feature, options)
    options |= {"per_device_train_batch_size": 8, "resume_from_checkpoint": folder / "checkpoint-2"}
    again = run(recipe, folder, processes=1, **options)
    assert curve(again) == curve(one)
    check_same(again, one)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("recipe", "feature"), CELLS)
def test_two_processes_train_and_resume_as_one(recipe, feature, engine, one_process, request, tmp_path):
    options = options_of(recipe, feature, request)
    one, folder = one_process(recipe, feature, options)
    options |= {"per_device_train_batch_size": 4, "fsdp": "FULL_STATE_DICT" if engine == "fsdp2" else ""}
    two = run(recipe, tmp_path, **options)
    check_same(two, one)
    lines = [(of / "predictions.jsonl") for of in (folder, tmp_path)]
    assert lines[0].exists() == lines[1].exists()
    if lines[0].exists():
        assert len(lines[0].read_text().splitlines()) == len(lines[1].read_text().splitlines())
    again = run(recipe, tmp_path, **options, resume_from_checkpoint=tmp_path / "checkpoint-2")
    check_same(again, one)
    assert curve(again) == pytest.approx(curve(two), rel=1e-6)


def test_self_training_on_two_processes_has_the_curve_of_one(base, tmp_path):
    labelled = tmp_path / "rows.jsonl"
    labelled.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in opinions(200)))
    options = {"model": base, "labelled": labelled, "method": "both", "min_steps": 4, "num_train_epochs": 1}
    options |= {"max_length": 64, "shares": 0.5, "seeds": 2, "rounds": 1, "learning_rate": 1e-3, "threshold": 0.5}
    one, two = (
        run("self_training", tmp_path / str(n), processes=n, per_device_train_batch_size=8 // n, **options)
        for n in (1, 2)
    )
    check_same(two, one)
    points = one["learning_curve"]["points"]
    assert any(found["student"] for point in points for found in point.get("found", []))  # learned pseudo-labels
    for point, expected in zip(two["learning_curve"]["points"], points, strict=True):
        assert point["runs"] == pytest.approx(expected["runs"]), point["method"]


def test_safety_on_two_processes_has_the_findings_of_one(base, tmp_path):
    options = {"model": base, "max_prompts": 4, "samples": 2, "max_new_tokens": 4, "mitigate": "best_of", "best_of": 2}
    one, two = (run("safety", tmp_path / str(n), processes=n, **options) for n in (1, 2))
    assert one["safety"]["models"]["model"]["measures"]
    assert two["safety"]["models"] == one["safety"]["models"]
