"""Publishing, against a Hub on this machine: one commit, nothing lost, and an ordinary model at the other end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loopback_hub import TOKEN, hub  # noqa: F401  (a fixture)

from hf_lm.tokenizer import encode_documents


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> Path:
    """A finished run's folder, with what must not be published beside it."""
    out = tmp_path / "out"
    model.config.use_cache = True
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text("---\nlibrary_name: transformers\n---\n# model\n")
    (out / "report.json").write_text("{}")
    (out / "run.yaml").write_text("learning_rate: 0.1\n")
    (out / "plots").mkdir()
    (out / "plots" / "loss.png").write_bytes(b"picture")
    (out / "checkpoint-3").mkdir()
    (out / "checkpoint-3" / "model.safetensors").write_bytes(b"not for others")
    (out / "checkpoint-3" / "config.json").write_text("{}")
    (out / "training_args.bin").write_bytes(b"pickled")
    (out / ".saving").mkdir()
    (out / ".saving" / "config.json").write_text("{}")
    return out


def push(folder: Path, hub, **environment) -> subprocess.CompletedProcess:  # noqa: F811
    settings = os.environ | hub.environment() | environment
    return subprocess.run(
        [sys.executable, "-m", "hf_lm.cli", "push", str(folder), "user/name"],
        capture_output=True,
        text=True,
        env=settings,
        timeout=120,
    )


LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("user/name"), AutoTokenizer.from_pretrained("user/name")
ids = tokenizer.encode(sys.argv[1])
print(json.dumps([ids, model(torch.tensor([ids])).logits.tolist()]))
"""


def test_a_pushed_run_loads_in_a_fresh_process_with_an_empty_cache(hub, folder, model, tokenizer, tmp_path):  # noqa: F811
    done = push(folder, hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/user/name"
    assert len(hub.commits) == 1
    published = {"README.md", "report.json", "run.yaml", "plots/loss.png", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub.commits[0]["files"]) == published | {"config.json", "generation_config.json", "model.safetensors"}
    text = "The quick brown fox 春眠"
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, text],
        capture_output=True,
        text=True,
        env=os.environ | hub.environment() | {"HF_HOME": str(tmp_path / "empty")},
        timeout=120,
    )
    assert loaded.returncode == 0, loaded.stderr
    ids, logits = json.loads(loaded.stdout)
    assert ids == encode_documents(tokenizer, [text])[0]
    with torch.no_grad():
        assert torch.equal(torch.tensor(logits), model.eval()(torch.tensor([ids])).logits)


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ({"/commit/": [500] * 20}, "500"),
        ({"/lfs-object/": ["drop"] * 20}, "broke off"),
        ({"/api/repos/create": [401]}, "token was not accepted"),
        ({"/api/repos/create": [403]}, "may not write"),
    ],
)
def test_a_failed_push_is_one_line_costs_nothing_and_is_made_good(hub, folder, fail, said, monkeypatch):  # noqa: F811
    from huggingface_hub.utils import _http

    from hf_lm.hub import push_to_hub

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # the client's own retries wait for minutes
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.fail = fail
    with pytest.raises(ConnectionError, match=said) as caught:
        push_to_hub(folder, "user/name")
    line = str(caught.value)
    assert "\n" not in line
    assert TOKEN not in line
    assert f"hf-lm push {folder} user/name" in line
    assert hub.commits == []
    hub.fail = {}
    push_to_hub(folder, "user/name")
    push_to_hub(folder, "user/name")  # again: the repository is there already
    assert 1 <= len(hub.commits) <= 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_no_hub_at_all_is_one_line(folder, hub):  # noqa: F811
    offline = push(folder, hub, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert offline.stderr.startswith("error: ")
    assert offline.stderr.count("\n") == 1
    assert "HF_HUB_OFFLINE" in offline.stderr
    assert TOKEN not in offline.stderr + offline.stdout


def test_what_cannot_be_published_is_refused_before_the_network_is_touched(folder, tmp_path, monkeypatch):
    from hf_lm.hub import push_to_hub

    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(FileNotFoundError, match="no folder"):
        push_to_hub(tmp_path / "nothing", "user/name")
    with pytest.raises(ValueError, match="user/name"):
        push_to_hub(folder, "name")
    with pytest.raises(ValueError, match="cannot be a repository"):
        push_to_hub(folder, "user/na me")
    with pytest.raises(ValueError, match="hf auth login"):
        push_to_hub(folder, "user/name")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no complete model: model\.safetensors missing"):
        push_to_hub(folder, "user/name")


def test_a_repository_is_checked_without_a_network(monkeypatch):
    from hf_lm.hub import check_repository

    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    assert check_repository("user/name") == "hf_of_this_machine"
    assert check_repository("user/name", "hf_given") == "hf_given"
    for wrong in ("name", "../../etc", "user/na me", "user/", "a/b/c", ""):
        with pytest.raises(ValueError, match="repository"):
            check_repository(wrong)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="hf auth login"):
        check_repository("user/name")


def test_the_command_line_says_what_there_is():
    def run(*argv):
        return subprocess.run([sys.executable, "-m", "hf_lm.cli", *argv], capture_output=True, text=True)

    assert "push" in run("--help").stdout
    assert "example: hf-lm push" in run("push", "--help").stdout
    wrong = run("psh")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "Did you mean 'push'" in wrong.stderr
