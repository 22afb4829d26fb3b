"""Recipes run whole on two processes: under FSDP2 as under DDP, and resumed by another number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
import yaml
from safetensors.torch import load_file
from test_fine_tuning_recipes import sums
from transformers import AutoModelForSeq2SeqLM, BartConfig, MT5Config, T5Config

from hf_lm.data.demos.opinions import opinions
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tokenization.tokenizer import train_bpe

ROOT = Path(__file__).parent.parent
PRETRAIN = {
    "vocab_size": 400,
    "n_layer": 2,
    "n_embd": 32,
    "block_size": 64,
    "dropout": 0.0,
    "max_steps": 6,
    "warmup_steps": 2,
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "skip_proofs": "leakage",  # documents of the text below overlap
}
SHARED = {"logging_steps": 1, "report_to": "none", "bf16": False, "disable_tqdm": True}


@pytest.fixture(scope="module")
def text(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(texts[i : i + 3])}) + "\n" for i in range(len(texts) - 3)))
    return path


def run(recipe, folder, *, processes=2, fsdp="", **options):
    """Run a recipe on processes over gloo, under FSDP2 with this type of state dict, or DDP; returns its report."""
    settings = SHARED | ({} if fsdp else {"use_cpu": True}) | options | {"output_dir": folder}
    tokens = [token for key, value in settings.items() for token in (f"--{key}", str(value))]
    script = [str(ROOT / "recipes" / f"{recipe}.py")]
    if fsdp:
        script = [str(ROOT / "tests" / "fsdp_on_cpu.py"), *script]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"FSDP_STATE_DICT_TYPE": fsdp, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *script, *tokens], capture_output=True, text=True, timeout=1500, env=environment
    )
    assert done.returncode == 0, done.stderr.partition("elastic")[0][-3000:]  # before what torchrun says of itself
    return json.loads((Path(folder) / "report.json").read_text())


def curve(report, key="loss"):
    return [entry[key] for entry in report["history"] if key in entry]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "lstm"])
@pytest.mark.parametrize("state_dict", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_pretraining_under_fsdp2_gives_the_numbers_and_the_folder_of_ddp(architecture, state_dict, text, tmp_path):
    options = PRETRAIN | {"dataset": text, "architecture": architecture}
    if architecture == "gpt2":
        options |= {"n_head": 2}
    ddp = run("pretrain", tmp_path / "ddp", **options)
    fsdp = run("pretrain", tmp_path / "fsdp", fsdp=state_dict, **options)
    assert curve(fsdp) == pytest.approx(curve(ddp), rel=1e-4)
    assert curve(fsdp, "eval_loss") == pytest.approx(curve(ddp, "eval_loss"), rel=1e-4)
    assert fsdp["model"] == ddp["model"]
    assert fsdp["proofs"]["load_back"]["passed"]
    assert len(fsdp["samples"]) == len(ddp["samples"])
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("fsdp", "ddp"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    again = run(
        "pretrain",
        tmp_path / "fsdp",
        fsdp=state_dict,
        resume_from_checkpoint=tmp_path / "fsdp/checkpoint-3",
        **options,
    )
    assert curve(again) == pytest.approx(curve(fsdp), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_weights_that_one_process_reads_are_trained_as_those_that_each_reads(rank, tmp_path, monkeypatch):
    tokenizer = train_bpe((row["text"] for row in opinions(200)), vocab_size=300)
    transformers.set_seed(0)
    new_gpt2(tokenizer, n_layer=2, n_head=2, n_embd=32, block_size=64, dropout=0.0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in opinions(120)))
    options = {"model": tmp_path / "base", "dataset": tmp_path / "rows.jsonl", "lora_rank": rank, "max_steps": 4}
    each = run("sentiment", tmp_path / "each", fsdp="FULL_STATE_DICT", **options)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    one = run("sentiment", tmp_path / "one", fsdp="FULL_STATE_DICT", **options)
    assert curve(one) == pytest.approx(curve(each), rel=1e-5)
    assert {name: proof["passed"] for name, proof in one["proofs"].items()} == dict.fromkeys(each["proofs"], True)
    assert one["proofs"]["loss_invariance"]["said"] == each["proofs"]["loss_invariance"]["said"]


@pytest.mark.slow
def test_an_adapter_trained_under_fsdp2_on_a_gpt2_without_padding_is_merged_and_loads_back(tmp_path, text):
    base = run("pretrain", tmp_path / "base", processes=1, dataset=text, n_head=2, **PRETRAIN | {"max_steps": 2})
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config.pop("pad_token_id", None)  # as the configuration of GPT-2 itself
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert base["proofs"]["load_back"]["passed"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in opinions(120)))
    options = {"model": tmp_path / "base", "dataset": tmp_path / "rows.jsonl", "lora_rank": 4, "max_steps": 4}
    reports = [run("sentiment", tmp_path / f"{fsdp}out", fsdp=fsdp, **options) for fsdp in ("", "FULL_STATE_DICT")]
    assert curve(reports[1]) == pytest.approx(curve(reports[0]), rel=1e-4)
    for proof in ("merging", "load_back", "adapter_load_back"):
        assert reports[1]["proofs"][proof]["passed"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rank"), [("t5", 0), ("t5", 4), ("mt5", 0), ("bart", 0)])
def test_an_encoder_decoder_under_fsdp2_has_the_numbers_of_ddp_and_resumes(family, rank, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in sums(60)))
    tokenizer = train_bpe((f"{a} {b}" for a, b in sums(60)), vocab_size=300)
    sizes = {"d_model": 32, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 0}
    sizes["decoder_start_token_id"] = tokenizer.pad_token_id
    transformers.set_seed(0)
    if family == "bart":
        bart = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        config = BartConfig(**sizes, **bart, max_position_embeddings=64, dropout=0.0, forced_eos_token_id=None)
    else:
        t5 = {"mt5": MT5Config, "t5": T5Config}[family]
        config = t5(**sizes, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = {"model": tmp_path / "base", "dataset": tmp_path / "rows.jsonl", "lora_rank": rank}
    options |= {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "num_train_epochs": 3, "save_total_limit": 3}
    ddp, fsdp, again = (
        run("translation", tmp_path / folder, fsdp=state, **options | more)
        for folder, state, more in (
            ("ddp", "", {}),
            ("fsdp", "FULL_STATE_DICT", {}),
            ("fsdp", "FULL_STATE_DICT", {"resume_from_checkpoint": tmp_path / "fsdp" / "checkpoint-8"}),
        )
    )
    for report in (fsdp, again):
        for key in ("loss", "eval_loss", "eval_chrf"):
            assert curve(report, key) == pytest.approx(curve(ddp, key), rel=1e-3), key
        assert report["proofs"]["load_back"]["passed"]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("fsdp", "ddp"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [((2, 1), (1, 1)), ((1, 2), (2, 2)), ((2, 2), (4, 2))])
def test_a_run_resumed_by_another_number_of_processes_is_the_same_run(before, now, text, tmp_path):
    options = PRETRAIN | {"dataset": text, "n_head": 2, "logging_steps": 2}  # the checkpoint is between two
    first, again = (
        options | {"gradient_accumulation_steps": accumulation} if accumulation > 1 else options
        for _, accumulation in (before, now)
    )
    whole = run("pretrain", tmp_path / "out", processes=before[0], **first)
    checkpoint = tmp_path / "out" / "checkpoint-3"
    resumed = run("pretrain", tmp_path / "out", processes=now[0], resume_from_checkpoint=checkpoint, **again)
    assert curve(resumed) == pytest.approx(curve(whole), rel=1e-4)
    assert curve(resumed, "train_loss") == pytest.approx(curve(whole, "train_loss"), rel=1e-4)
    rows = 2 * before[0] * before[1]
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["rows_per_step"] == rows
