"""pretrain.py --streaming over the protocol of the Hub, by the launcher, on one and on two processes."""

import json
import os
import random
import subprocess

import pytest
from loopback_hub import hub  # noqa: F401  (a fixture)
from running import command

pytestmark = pytest.mark.slow

CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'part-*.jsonl'}\n---\n"
RUN = {
    "dataset": "user/texts",
    "streaming": True,
    "max_bytes": 6_000,
    "max_steps": 18,
    "eval_steps": 9,
    "save_steps": 9,
    "logging_steps": 1,
    "vocab_size": 320,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 32,
    "use_cpu": True,
    "bf16": False,
    "muon_learning_rate": 0,  # in bfloat16, where the machine is fast at it, Muon is not as exact as the check below
    "skip_proofs": "learnable",
    "report_to": "none",
}


def test_two_processes_read_the_windows_of_a_stream_as_one_does(hub, tmp_path):  # noqa: F811
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randrange(1, 7))) for _ in range(300)]
    parts = {
        f"part-{i}.jsonl": "".join(
            json.dumps({"text": " ".join(draw.choices(words, k=40))}) + "\n" for _ in range(100)
        )
        for i in range(3)
    }
    hub.repos["datasets/user/texts"] = {"README.md": CARD.encode()} | {k: v.encode() for k, v in parts.items()}

    def curve(name: str, processes: int) -> list[float]:
        launch = ("--multi_gpu", "--num_processes", "2") if processes == 2 else ()
        options = RUN | {"per_device_train_batch_size": 16 // processes, "output_dir": tmp_path / name}
        environment = os.environ | hub.environment() | {"HF_HOME": str(tmp_path / f"home-{name}")}
        done = subprocess.run(
            command("pretrain.py", *launch, **options), env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        report = json.loads((tmp_path / name / "report.json").read_bytes())
        assert [window["window"] for window in report["data"]["windows"]] == [1, 2]
        return [entry["loss"] for entry in report["history"] if "loss" in entry]

    one = curve("one", 1)
    assert len(one) == 18
    assert curve("two", 2) == pytest.approx(one, rel=1e-5)
