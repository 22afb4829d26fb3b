"""Every recipe that fine-tunes, whole on two processes over gloo: measurements and proofs are those of one process.

The rate is next to nothing, so that the model that is measured is the same: its numbers then differ only where rows
are lost, counted twice or generated in another way by several processes.
"""

import pytest
from test_alignment import FAST, base, data  # noqa: F401  (fixtures)
from test_fine_tuning_recipes import data as rows  # noqa: F401
from test_sharded_recipes import SHARED, run

ALIGNMENT = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def same_numbers(recipe, folder, **options):
    """The reports of one process and of two, each of half the rows at a time, whose metrics are compared."""
    options = {"learning_rate": 1e-9, "muon_learning_rate": 0, **SHARED, **options}
    one, two = (
        run(recipe, folder / str(n), processes=n, per_device_train_batch_size=8 // n, **options) for n in (1, 2)
    )
    for split, expected in one["metrics"].items():
        for name, metric in expected.items():
            found = two["metrics"][split][name]
            for key in {"value", "low", "high"} & set(metric):
                assert found[key] == pytest.approx(metric[key], rel=1e-4, abs=1e-6), (split, name, key)
    assert {name: proof["passed"] for name, proof in two["proofs"].items()} == dict.fromkeys(one["proofs"], True)
    predictions = [(folder / str(n) / "predictions.jsonl").read_text() for n in (1, 2)]
    assert len(predictions[0].splitlines()) == len(predictions[1].splitlines())
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "rank"),
    [
        *((recipe, 0) for recipe in ("sentiment", "question_answering", "translation", "summarization")),
        ("sentiment", 4),
        ("question_answering", 4),
    ],
)
def test_a_task_on_two_processes_has_the_numbers_of_one(recipe, rank, rows, base, tmp_path):  # noqa: F811
    options = {"model": base, "lora_rank": rank} if rank else {}
    same_numbers(recipe, tmp_path, dataset=rows[recipe], num_train_epochs=1, **options)


@pytest.mark.slow
def test_token_classification_on_two_processes_has_the_numbers_of_one(tmp_path):
    same_numbers("token_classification", tmp_path, **ALIGNMENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("chat", {"completion": "chosen", "max_length": 32}),
        ("preference", {"answers": 4, "max_new_tokens": 4, "max_length": 48}),
        ("reinforce", {"reference": "chosen", "reward": "length", "target_length": 6, "max_new_tokens": 4}
         | {"num_generations": 4, "answers": 4, "collapse_steps": 0}),
    ],
)  # fmt: skip
def test_chat_and_what_follows_it_on_two_processes_have_the_numbers_of_one(recipe, options, base, data, tmp_path):  # noqa: F811
    same_numbers(recipe, tmp_path, model=base, dataset=data, **ALIGNMENT | options)
