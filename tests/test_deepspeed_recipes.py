"""Recipes run whole under DeepSpeed's ZeRO-2 on two processes without a GPU: with DDP's numbers, and resumed.

`pip install 'hf-lm[deepspeed]'`, a C++ compiler and ninja: DeepSpeed builds its communication when it starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from running import LAUNCH, ROOT
from safetensors.torch import load_file
from test_alignment import base, data  # noqa: F401  (fixtures)
from test_fine_tuning_recipes import data as rows  # noqa: F401
from test_sharded_recipes import PRETRAIN, SHARED, curve, text  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow
ZERO2 = yaml.safe_load((ROOT / "recipes" / "launch" / "zero2.yaml").read_text()) | {
    "num_processes": 2,
    "use_cpu": True,
}
ADAMW = PRETRAIN | {"n_head": 2, "muon_learning_rate": 0, "use_cpu": True}


def run(recipe, folder, *, config=None, **options):
    """Run a recipe on two processes, of DeepSpeed with a file of accelerate or DDP; returns its report."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if config is not None:
        pytest.importorskip("deepspeed", reason="pip install 'hf-lm[deepspeed]'")
        file = folder.parent / "zero2.yaml"
        file.write_text(yaml.safe_dump(config))
        launch = [*LAUNCH[1:], "--config_file", str(file)]
    tokens = [token for key, value in (SHARED | options).items() for token in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / "recipes" / f"{recipe}.py"), *tokens, "--output_dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((Path(folder) / "report.json").read_text())


def test_pretraining_under_zero2_gives_the_numbers_and_the_folder_of_ddp_and_resumes(text, tmp_path):  # noqa: F811
    options = ADAMW | {"dataset": text}
    zero2 = run("pretrain", tmp_path / "zero2", config=ZERO2, **options)
    ddp = run("pretrain", tmp_path / "ddp", **options)
    assert curve(zero2) == pytest.approx(curve(ddp), rel=1e-4)
    assert curve(zero2, "eval_loss") == pytest.approx(curve(ddp, "eval_loss"), rel=1e-4)
    assert zero2["proofs"]["load_back"]["passed"]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("zero2", "ddp"))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4)
    again = run(
        "pretrain",
        tmp_path / "zero2",
        config=ZERO2,
        **options,
        resume_from_checkpoint=tmp_path / "zero2" / "checkpoint-3",
    )
    assert curve(again)[-3:] == pytest.approx(curve(zero2)[-3:], rel=1e-5)


def test_in_bf16_the_folder_holds_the_float32_weights_of_the_optimizer(text, tmp_path):  # noqa: F811
    report = run("pretrain", tmp_path / "out", config=ZERO2, **ADAMW | {"dataset": text, "bf16": True})
    assert report["proofs"]["load_back"]["passed"]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert any((weight != weight.bfloat16().float()).any() for weight in weights.values())


@pytest.mark.parametrize(("recipe", "rank"), [("sentiment", 0), ("sentiment", 4), ("translation", 0)])
def test_fine_tuning_lora_and_generation_have_the_numbers_of_ddp(recipe, rank, rows, base, tmp_path):  # noqa: F811
    options = {"use_cpu": True, "dataset": rows[recipe], "num_train_epochs": 1, "muon_learning_rate": 0}
    options |= {"model": base, "lora_rank": rank} if rank else {}
    zero2, ddp = (run(recipe, tmp_path / str(i), config=config, **options) for i, config in enumerate((ZERO2, None)))
    assert curve(zero2) == pytest.approx(curve(ddp), rel=1e-3)
    assert {name: proof["passed"] for name, proof in zero2["proofs"].items()} == dict.fromkeys(ddp["proofs"], True)
    for split, expected in ddp["metrics"].items():
        for name, metric in expected.items():
            assert zero2["metrics"][split][name]["value"] == pytest.approx(metric["value"], rel=1e-2, abs=1e-2), name
