"""Recipes run whole under DeepSpeed's ZeRO-2 and 3 on two processes without a GPU: with DDP's numbers, and resumed.

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
ZERO = {
    stage: yaml.safe_load((ROOT / "recipes" / "launch" / f"zero{stage}.yaml").read_text())
    | {"num_processes": 2, "use_cpu": True}
    for stage in (2, 3)
}
ADAMW = PRETRAIN | {"n_head": 2, "muon_learning_rate": 0, "use_cpu": True}


def run(recipe, folder, *, config=None, **options):
    """Run a recipe on two processes, of DeepSpeed with a file of accelerate or DDP; returns its report."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if config is not None:
        pytest.importorskip("deepspeed", reason="pip install 'hf-lm[deepspeed]'")
        file = folder.parent / "zero.yaml"
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


@pytest.fixture(scope="module")
def ddp(text, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "ddp"
    return folder, run("pretrain", folder, **ADAMW | {"dataset": text})


@pytest.mark.parametrize("stage", ZERO)
def test_pretraining_has_the_numbers_and_the_folder_of_ddp_and_resumes(stage, ddp, text, tmp_path):  # noqa: F811
    options, (folder, expected) = ADAMW | {"dataset": text}, ddp
    report = run("pretrain", tmp_path / "zero", config=ZERO[stage], **options)
    assert curve(report) == pytest.approx(curve(expected), rel=1e-4)
    assert curve(report, "eval_loss") == pytest.approx(curve(expected, "eval_loss"), rel=1e-4)
    assert report["proofs"]["load_back"]["passed"]
    for name in ("model.safetensors", "checkpoint-6/model.safetensors"):
        ours, theirs = load_file(tmp_path / "zero" / name), load_file(folder / name)
        assert ours.keys() - theirs.keys() <= ({"lm_head.weight"} if "checkpoint" in name else set())  # the tied one
        for key, weight in theirs.items():
            torch.testing.assert_close(ours[key], weight, rtol=1e-3, atol=1e-4)
    checkpoint = tmp_path / "zero" / "checkpoint-3"
    again = run("pretrain", tmp_path / "zero", config=ZERO[stage], **options, resume_from_checkpoint=checkpoint)
    assert curve(again)[-3:] == pytest.approx(curve(report)[-3:], rel=1e-5)


@pytest.mark.parametrize("stage", ZERO)
def test_in_bf16_the_folder_holds_the_float32_weights_of_the_optimizer(stage, text, tmp_path):  # noqa: F811
    report = run("pretrain", tmp_path / "out", config=ZERO[stage], **ADAMW | {"dataset": text, "bf16": True})
    assert report["proofs"]["load_back"]["passed"]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert any((weight != weight.bfloat16().float()).any() for weight in weights.values())


@pytest.mark.parametrize(("recipe", "rank"), [("sentiment", 0), ("sentiment", 4), ("translation", 0)])
def test_fine_tuning_lora_and_generation_have_the_numbers_of_ddp(recipe, rank, rows, base, tmp_path):  # noqa: F811
    options = {"use_cpu": True, "dataset": rows[recipe], "num_train_epochs": 1, "muon_learning_rate": 0}
    options |= {"model": base, "lora_rank": rank} if rank else {}
    ddp = run(recipe, tmp_path / "ddp", **options)
    for stage, config in ZERO.items():
        report = run(recipe, tmp_path / str(stage), config=config, **options)
        assert curve(report) == pytest.approx(curve(ddp), rel=1e-3)
        assert {name: proof["passed"] for name, proof in report["proofs"].items()} == dict.fromkeys(
            ddp["proofs"], True
        )
        for split, expected in ddp["metrics"].items():
            for name, metric in expected.items():
                assert report["metrics"][split][name]["value"] == pytest.approx(metric["value"], rel=1e-2, abs=1e-2)
