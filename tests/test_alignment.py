"""Runs through TRL lose nothing: a signal leaves a checkpoint, and going on from it gives the same bits."""

import json
import os
import signal

import pytest
import torch
import transformers
from running import here
from safetensors.torch import load_file

from hf_lm.data.demos.dialogues import sums
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tokenization.chat_template import set_chat_template
from hf_lm.tokenization.tokenizer import train_bpe
from hf_lm.training.safe_trainer import SafeTrainerMixin

pytest.importorskip("trl")

FAST = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 4, "eval_strategy": "no", "logging_steps": 3}
FAST |= {"save_strategy": "steps", "save_steps": 100, "load_best_model_at_end": False, "skip_proofs": "load_back"}
FAST |= {"per_device_train_batch_size": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_bpe((f"{row['prompt']} {row['reference']} a b" for row in sums()), vocab_size=300)
    set_chat_template(tokenizer)
    transformers.set_seed(0)
    new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=32, block_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One file for all three: a prompt, its answer, and a worse one."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"prompt": row["prompt"], "chosen": row["reference"], "rejected": "none"} for row in sums(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def untimed(history):
    timed = ("_runtime", "_per_second", "utilisation", "step_time")
    return [{key: value for key, value in entry.items() if not key.endswith(timed)} for entry in history]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("chat.py", {"completion": "chosen", "max_length": 32}),
        ("preference.py", {"answers": 4, "max_new_tokens": 4, "max_length": 48}),
        ("reinforce.py", {"reference": "chosen", "reward": "length", "target_length": 6, "max_new_tokens": 4}
         | {"num_generations": 4, "answers": 4, "collapse_steps": 0}),
    ],
)  # fmt: skip
def test_a_terminated_run_goes_on_to_the_same_bits_and_the_same_report(
    recipe, options, base, data, tmp_path, monkeypatch
):
    settings = FAST | options | {"model": base, "dataset": data}
    first = here(recipe, output_dir=tmp_path / "whole", **settings)
    step = SafeTrainerMixin.training_step

    def terminated(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SafeTrainerMixin, "training_step", terminated)
        with pytest.raises(SystemExit) as stopped:
            here(recipe, output_dir=tmp_path / "stopped", **settings)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    again = here(recipe, output_dir=tmp_path / "stopped", resume_from_checkpoint="latest", **settings)
    assert untimed(again["history"]) == untimed(first["history"])
    assert any("loss" in entry for entry in first["history"])
    again = here(recipe, output_dir=tmp_path / "stopped", resume_from_checkpoint="latest", **settings)
    assert untimed(again["history"]) == untimed(first["history"])  # of a finished run
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
