"""Every recipe that fine-tunes, whole on two processes over gloo: measurements and proofs are those of one process.

The rate is next to nothing, so that the model that is measured is the same: its numbers then differ only where rows
are lost, counted twice or generated in another way by several processes.
"""

import pytest
from test_alignment import FAST, base, data  # noqa: F401  (fixtures)
from test_fine_tuning_recipes import data as rows  # noqa: F401
from test_sharded_recipes import SHARED, run

ALIGNMENT = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def same_numbers(recipe, folder, *, engine="ddp", **options):
    """The reports of one process and of two, each of half the rows at a time, whose metrics are compared."""
    options = {"learning_rate": 1e-9, "muon_learning_rate": 0, **SHARED, **options}
    fsdp = "FULL_STATE_DICT" if engine == "fsdp2" else ""
    one = run(recipe, folder / "1", processes=1, per_device_train_batch_size=8, **options)
    two = run(recipe, folder / "2", processes=2, per_device_train_batch_size=4, fsdp=fsdp, **options)
    for split, expected in one["metrics"].items():
        for name, metric in expected.items():
            found = two["metrics"][split][name]
            for key in {"value", "low", "high"} & set(metric):
                assert found[key] == pytest.approx(metric[key], rel=1e-4, abs=1e-6), (split, name, key)
    skipped = {name: None for name, proof in one["proofs"].items() if proof["passed"] is None}
    expected = dict.fromkeys(one["proofs"], True) | skipped
    assert {name: proof["passed"] for name, proof in two["proofs"].items()} == expected
    predictions = [(folder / str(n) / "predictions.jsonl").read_text() for n in (1, 2)]
    assert len(predictions[0].splitlines()) == len(predictions[1].splitlines())
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "rank", "engine"),
    [
        (recipe, rank, engine)
        for recipe in ("sentiment", "question_answering", "translation", "summarization")
        for rank in (0, 4)
        for engine in ("ddp", "fsdp2")
    ],
)
def test_a_task_on_two_processes_has_the_numbers_of_one(recipe, rank, engine, rows, base, tmp_path):  # noqa: F811
    options = {"model": base, "lora_rank": rank} if rank else {}
    if rank and recipe in ("translation", "summarization"):
        options["skip_proofs"] = "learnable"  # at such a rate an adapter of a random GPT-2 learns nothing
    same_numbers(recipe, tmp_path, engine=engine, dataset=rows[recipe], num_train_epochs=1, **options)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_token_classification_on_two_processes_has_the_numbers_of_one(engine, tmp_path):
    same_numbers("token_classification", tmp_path, engine=engine, **ALIGNMENT)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("chat", {"completion": "chosen", "max_length": 32}),
        ("preference", {"answers": 4, "max_new_tokens": 4, "max_length": 48}),
        ("reinforce", {"reference": "chosen", "reward": "length", "target_length": 6, "max_new_tokens": 4}
         | {"num_generations": 4, "answers": 4, "collapse_steps": 0}),
    ],
)  # fmt: skip
def test_alignment_on_two_processes_has_the_numbers_of_one(recipe, options, engine, base, data, tmp_path):  # noqa: F811
    same_numbers(recipe, tmp_path, engine=engine, model=base, dataset=data, **ALIGNMENT | options)
