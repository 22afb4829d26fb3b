"""Publishing, against a Hub on this machine: one commit, nothing lost, and an ordinary model at the other end."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from loopback_hub import TOKEN, hub  # noqa: F401  (a fixture)

from hf_lm.tokenization.tokenizer import encode_documents


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> Path:
    """A finished run's folder, with what must not be published beside it."""
    out = tmp_path / "out"
    model.config.use_cache = True
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text("---\nlibrary_name: transformers\n---\n# model\n")
    report = {"recipe": "pretrain", "arguments": {"learning_rate": 0.1}, "proofs": {"load_back": {"passed": True}}}
    (out / "report.json").write_text(json.dumps(report))
    (out / "run.yaml").write_text("learning_rate: 0.1\nseed: 1\n")
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


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def reached(hub, monkeypatch):  # noqa: F811
    """The Hub of this machine as this process's own."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # the client's own retries wait for minutes
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub


PLACES = ("/api/repos/create", "/preupload/", "/lfs-object/", "/commit/")


@pytest.mark.parametrize(
    ("place", "status", "said"),
    [
        *((place, 503, "503") for place in PLACES),
        *((place, "drop", "broke off") for place in PLACES),
        *((place, 401, "token was not accepted") for place in PLACES[:2]),
        *((place, 403, "may not write") for place in (PLACES[0], PLACES[3])),
        ("/api/repos/create", 409, "409: user/name cannot be made"),
        ("/commit/", 409, "409: told to answer 409"),
    ],
)
def test_a_failed_push_is_one_line_costs_nothing_and_is_made_good(reached, folder, place, status, said, capsys):
    from hf_lm.cli import main

    renamed = folder.rename(folder.with_name("my run"))
    before = contents(renamed)
    reached.fail = {place: [status] * 20}
    with pytest.raises(SystemExit):
        main(["push", str(renamed), "user/name", "--private"])
    shown = capsys.readouterr()
    line = shown.err.splitlines()[-1]  # below the client's bars
    assert line.startswith("error: ")
    assert shown.err.count("error: ") == 1
    assert said in line
    assert TOKEN not in shown.err + shown.out
    assert reached.commits == []
    reached.fail = {}
    again = line.split("try again with: ")[1]
    assert shlex.split(again) == ["hf-lm", "push", str(renamed), "user/name", "--private"]
    main(shlex.split(again)[1:])
    main(shlex.split(again)[1:])  # the repository is there already
    assert 1 <= len(reached.commits) <= 2
    assert reached.private == {"user/name"}
    assert contents(renamed) == before


def test_a_second_push_leaves_nothing_of_the_first_model(reached, folder, model, capsys):
    """Transformers would load the old model.safetensors before new shards, and apply the old chat template."""
    from hf_lm.hub.push import push_to_hub

    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    push_to_hub(folder, "user/name")
    reached.repos["user/name"] |= {"LICENSE": b"mine", "onnx/model.safetensors": b"mine", ".gitattributes": b"mine"}
    assert capsys.readouterr().err.count("deleted") == 0
    for name in ("chat_template.jinja", "model.safetensors", "plots/loss.png"):
        (folder / name).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    push_to_hub(folder, "user/name")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    held = set(reached.repos["user/name"])
    assert {name for name in held if name.startswith("model")} == shards | {"model.safetensors.index.json"}
    assert held & {"chat_template.jinja", "plots/loss.png"} == set()
    assert held >= {"LICENSE", "onnx/model.safetensors", ".gitattributes", "README.md"}
    assert len(reached.commits) == 2
    said = "deleted in user/name, as this run has none: chat_template.jinja, model.safetensors, plots/loss.png"
    assert said in capsys.readouterr().err


def test_a_licence_that_was_given_on_the_hub_stays(reached, folder):
    """The card of a run names none; whoever gave one in the browser lost it with the next push."""
    from hf_lm.hub.push import push_to_hub

    card = folder / "README.md"
    card.write_text("---\n# license: apache-2.0   <- the licence\nlibrary_name: transformers\n---\n# model\n")
    push_to_hub(folder, "user/name")
    assert reached.repos["user/name"]["README.md"] == card.read_bytes()
    given = b"---\nlicense: other\nlicense_name: ours\ntags: [x]\n---\n# model, edited\n"
    reached.move_on("user/name", reached.repos["user/name"] | {"README.md": given})
    for _ in range(2):
        push_to_hub(folder, "user/name")
        kept = "---\nlicense: other\nlicense_name: ours\nlibrary_name: transformers\n---\n# model\n"
        assert reached.repos["user/name"]["README.md"].decode() == kept
    card.write_text("---\nlicense: mit\nlibrary_name: transformers\n---\n# model\n")
    push_to_hub(folder, "user/name")
    assert reached.repos["user/name"]["README.md"] == card.read_bytes()
    for broken in (b"no metadata", b"---\n[}\n---\n"):
        reached.move_on("user/name", reached.repos["user/name"] | {"README.md": broken})
        push_to_hub(folder, "user/name")
        assert reached.repos["user/name"]["README.md"] == card.read_bytes()


def test_no_hub_at_all_is_one_line(folder, hub):  # noqa: F811
    offline = push(folder, hub, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert offline.stderr.startswith("error: ")
    assert offline.stderr.count("\n") == 1
    assert "HF_HUB_OFFLINE" in offline.stderr
    assert TOKEN not in offline.stderr + offline.stdout


def test_what_cannot_be_published_is_refused_before_the_network_is_touched(folder, tmp_path, monkeypatch):
    from hf_lm.hub.push import push_to_hub

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


def recorded(folder: Path, *more: str) -> dict:
    """The files of a run as its report records them."""
    names = ("model.safetensors", "config.json", "tokenizer.json", "run.yaml", *more)
    return {
        name: {
            "bytes": len(content := (folder / name).read_bytes()),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for name in names
    }


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNFINISHED = {
    "half": (lambda out: halve(out / "model.safetensors"), r"model\.safetensors is damaged or half written"),
    "empty": (lambda out: (out / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged"),
    "config": (lambda out: halve(out / "config.json"), r"config\.json is no JSON"),
    "tokenizer": (lambda out: (out / "tokenizer.json").unlink(), r"tokenizer\.json missing"),
    "report": (lambda out: (out / "report.json").unlink(), r"run\.yaml and no report\.json: its run did not end"),
    "half report": (lambda out: halve(out / "report.json"), r"report\.json is no JSON"),
    "run": (lambda out: (out / "run.yaml").write_text("learning_rate: 0.2\n"), "learning_rate is 0.2 in run.yaml"),
    "half run": (lambda out: (out / "run.yaml").write_text("{"), r"run\.yaml is not what a run writes"),
    "odd proof": (lambda out: edit(out / "report.json", proofs={"load_back": True}), "load_back failed"),
    "odd proofs": (lambda out: edit(out / "report.json", proofs=[1]), "no proof says that it loads"),
    "failed": (lambda out: edit(out / "report.json", proofs={"load_back": {"passed": False}}), "load_back failed"),
    "unproved": (lambda out: edit(out / "report.json", proofs={}), r"no proof says that it loads \(load_back\)"),
    "code": (lambda out: edit(out / "config.json", auto_map={"AutoConfig": "mine.C"}), "needs code of its own"),
}
# What only a report that records the files can tell.
CHANGED = {
    "weights": (
        lambda out: (out / "other").rename(out / "model.safetensors"),
        r"model\.safetensors is not the file",
    ),
    "shard": (
        lambda out: (out / "other").rename(out / "model-2.safetensors"),
        r"model-2\.safetensors is of another",
    ),
    "settings": (lambda out: edit(out / "config.json", n_ctx=1), r"config\.json is not the file of this run"),
    "seed": (lambda out: (out / "run.yaml").write_text("learning_rate: 0.1\nseed: 2\n"), r"run\.yaml is not the file"),
}


@pytest.mark.parametrize("how", [*UNFINISHED, *CHANGED])
def test_what_no_run_finished_is_not_published(reached, folder, how):
    from safetensors.numpy import load_file, save_file

    from hf_lm.hub.push import push_to_hub

    change, said = (UNFINISHED | CHANGED)[how]
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "other", {"format": "pt"})
    if how in CHANGED:
        edit(folder / "report.json", files=recorded(folder))
    change(folder)
    with pytest.raises(ValueError, match=said) as caught:
        push_to_hub(folder, "user/name")
    assert "\n" not in str(caught.value)
    assert reached.requests == []


def test_a_load_back_that_was_switched_off_and_a_folder_of_no_run_are_published(reached, folder):
    from hf_lm.hub.push import push_to_hub

    edit(folder / "report.json", proofs={"load_back": {"passed": None}}, files=recorded(folder), sweep=[1])
    push_to_hub(folder, "user/name")
    (folder / "report.json").unlink()
    (folder / "run.yaml").unlink()
    push_to_hub(folder, "user/plain")
    assert [commit["repo"] for commit in reached.commits] == ["user/name", "user/plain"]


def test_only_what_a_run_writes_is_published_and_no_secret_and_no_link(reached, folder, tmp_path):
    from hf_lm.hub.push import push_to_hub

    key = "AKIA" + "A" * 16
    (folder / "keys").mkdir()
    (folder / "keys" / "secret.json").write_text(json.dumps({"key": key}))
    (folder / "notes.txt").write_text(f"mine {key}")
    (folder / "train.py").write_text("")
    (folder / "data.json").write_text("{}")
    (folder / "link.txt").symlink_to("/etc/hostname")
    (folder / "elsewhere").symlink_to(tmp_path)
    push_to_hub(folder, "user/name")
    published = set(reached.commits[0]["files"])
    assert not published & {"keys/secret.json", "notes.txt", "train.py", "data.json", "link.txt"}
    assert all(name.count("/") == name.startswith("plots/") for name in published)

    for line in (f"token: {key}", f"url: https://user:{TOKEN}@host"):  # one by its form, one that is known
        (folder / "predictions.jsonl").write_text(f"{{}}\n{line}\n")
        with pytest.raises(ValueError, match=r"looks like a secret: predictions\.jsonl:2") as caught:
            push_to_hub(folder, "user/name")
        assert key not in str(caught.value)
        assert TOKEN not in str(caught.value)
    (folder / "predictions.jsonl").unlink()
    for name in ("plots/link.png", "tokenizer_config.json"):
        (tmp_path / "target").write_bytes((folder / "tokenizer_config.json").read_bytes())
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "target")
        with pytest.raises(ValueError, match=f"symbolic links, which are not followed: {name}"):
            push_to_hub(folder, "user/name")
        (folder / name).unlink()
    assert len(reached.commits) == 1


@pytest.mark.parametrize("base", ["a/b", "folder"])
def test_an_adapter_of_a_folder_of_this_machine_is_left_here(reached, folder, tokenizer, tmp_path, base, capsys):
    from safetensors.numpy import load_file, save_file

    from hf_lm.hub.push import push_to_hub

    adapter = folder / "adapter"
    adapter.mkdir()
    tokenizer.save_pretrained(adapter)
    save_file(load_file(folder / "model.safetensors"), adapter / "adapter_model.safetensors")
    base = str(tmp_path) if base == "folder" else base
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (adapter / "README.md").write_text(f"---\nbase_model: {base}\n---\n")  # by peft
    edit(folder / "report.json", files=recorded(folder, "adapter/adapter_config.json"))
    push_to_hub(folder, "user/name")
    names = {name for name in reached.commits[0]["files"] if name.startswith("adapter/")}
    there = json.loads(reached.repos["user/name"]["report.json"])["files"]
    assert set(there) <= set(reached.commits[0]["files"])
    assert "model.safetensors" in there
    kept = f"not uploaded: adapter/, whose base {tmp_path} is a folder of this machine" in capsys.readouterr().err
    if base == "a/b":
        files = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json")
        assert (names, kept) == ({f"adapter/{name}" for name in files}, False)
        push_to_hub(adapter, "user/adapter")  # an adapter alone is a model where its base has a name
    else:
        assert (names, kept) == (set(), True)
        with pytest.raises(ValueError, match=r"is an adapter of .* push the merged model \(hf-lm merge"):
            push_to_hub(adapter, "user/adapter")


def test_no_path_of_this_machine_is_published(reached, folder, tmp_path, monkeypatch):
    from hf_lm.hub.push import push_to_hub

    home = tmp_path / "home" / "me"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    run = {
        "learning_rate": 0.1,
        "dataset": "/mnt/corpora/my reviews.tsv",
        "files": ["text:/mnt/corpora/a.txt", "https://example.org/mnt/corpora/a.txt"],
        "output_dir": str(folder),
        "model": "out/base",
        "prefix": "/think",
    }
    (folder / "run.yaml").write_text("# hf_lm\n" + yaml.safe_dump(run))
    report = json.loads((folder / "report.json").read_text()) | {
        "arguments": {"dataset": run["dataset"], "learning_rate": 0.1},
        "files": recorded(folder),
        "data": {"source": run["dataset"], "notes": [f"read {home}/cache/x and {tmp_path}/data/y, not {home}lands/z"]},
        "samples": [{"prompt": "#!/usr/bin/python", "continuation": " /mnt/corpora/my reviews.tsv.gz"}],
    }
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "README.md").write_text(
        f"---\ntags: []\n---\nfrom {run['dataset']}, in {folder}/plots\n```bash\nhf-lm reproduce out/name\n```\n"
    )
    before = contents(folder)
    push_to_hub(folder, "user/name")
    assert contents(folder) == before
    files = reached.repos["user/name"]
    assert files["run.yaml"].startswith(b"# hf_lm\n")
    there = yaml.safe_load(files["run.yaml"])
    assert there == run | {
        "dataset": "my reviews.tsv",
        "files": ["text:a.txt", "https://example.org/mnt/corpora/a.txt"],
        "output_dir": "out",
    }
    there = json.loads(files["report.json"])
    assert there["data"]["source"] == "my reviews.tsv"
    assert there["data"]["notes"] == [f"read ~/cache/x and data/y, not {'home/me'}lands/z"]
    assert there["samples"] == report["samples"]
    assert (
        files["README.md"]
        .decode()
        .endswith("from my reviews.tsv, in out/plots\n```bash\nhf-lm reproduce user/name\n```\n")
    )
    # What was published can be published again from where it was downloaded.
    copy = tmp_path / "copy"
    for name, content in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    push_to_hub(copy, "user/copy")
    card = files["README.md"].replace(b"user/name", b"user/copy")
    assert reached.repos["user/copy"] == files | {"README.md": card}


def test_a_repository_is_checked_without_a_network(monkeypatch):
    from hf_lm.hub.push import check_repository

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
