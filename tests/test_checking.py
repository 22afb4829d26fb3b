"""hf-lm check: a good folder passes, and each thing that can be wrong with one is named."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from loopback_hub import hub  # noqa: F401  (a fixture)

from hf_lm.cli import main
from hf_lm.hub import check as checking
from hf_lm.hub.check import check_folder
from hf_lm.models.configuration import find_adapter

CARD = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n# tiny\n"
TOKEN = "hf_" + "x" * 34


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    """What a run leaves, at its smallest."""
    from hf_lm.models.gpt2 import new_gpt2

    transformers.set_seed(0)
    folder = tmp_path_factory.mktemp("checked") / "tiny"
    model = new_gpt2(tokenizer, n_layer=2, n_head=2, n_embd=16, block_size=16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = {"recipe": "pretrain", "data": {}, "metrics": {}}
    report["model"] = {"auto_class": "AutoModelForCausalLM", "parameters": model.num_parameters()}
    report["proofs"] = {"loss_invariance": {"passed": True}, "learnable": {"passed": None}}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_good_folder_is_as_it_should_be(saved, capsys):
    main(["check", str(saved)])
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"{saved}: as it should be"
    assert "wrong" not in shown
    for fact in (
        "GPT2LMHeadModel, decoder: ",
        "a fresh process loads it with AutoModelForCausalLM",
        "the tokenizer fits: ids below 320, 320 embedding rows",
        "padding (<|pad|>) is not the end of text (<|endoftext|>)",
        "generation ends at 0",
        "proofs passed: loss_invariance; switched off: learnable",
        "pipeline_tag text-generation",
    ):
        assert fact in shown


def test_what_loads_but_cannot_be_right_is_listed_with_exit_code_1(folder, capsys):
    edit(folder / "tokenizer_config.json", pad_token="<|endoftext|>")
    edit(folder / "generation_config.json", eos_token_id=7)
    proofs = {"label_coverage": {"passed": None}}
    edit(folder / "report.json", model={"auto_class": "AutoModelForCausalLM", "parameters": 1}, proofs=proofs)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vocab_size = 300
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "smaller")
    (folder / "smaller" / "model.safetensors").rename(folder / "model.safetensors")
    shutil.rmtree(folder / "smaller")
    edit(folder / "config.json", vocab_size=300)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(folder)])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    for wrong in (
        "wrong  the tokenizer has ids up to 319, the embedding 300 rows",
        "wrong  padding is the end of text (<|endoftext|>)",
        "wrong  generation ends at 7, the tokenizer's end of text is 0",
        "parameters, 1 in the report",
    ):
        assert wrong in shown
    assert f"{folder}: 4 things are wrong" in shown


def test_an_end_of_text_that_is_padding_too_is_right_where_the_run_proved_that_it_is_learned(folder):
    edit(folder / "tokenizer_config.json", pad_token="<|endoftext|>")
    edit(folder / "report.json", proofs={"label_coverage": {"passed": True, "said": "labels are the text"}})
    checked = check_folder(folder)
    assert (
        "padding is the end of text (<|endoftext|>), which was learned all the same (label_coverage)" in checked.facts
    )
    assert not [wrong for wrong in checked.wrong if "padding" in wrong]


@pytest.mark.parametrize(
    "proofs", [{"reward": {"passed": True}}, None]
)  # of reinforce; of a merged model or any other
def test_padding_that_is_the_end_of_text_is_wrong_only_where_labels_were_to_teach_it(folder, proofs):
    edit(folder / "tokenizer_config.json", pad_token="<|endoftext|>")
    if proofs:
        edit(folder / "report.json", proofs=proofs)
    else:
        (folder / "report.json").unlink()
    checked = check_folder(folder)
    assert not [wrong for wrong in checked.wrong if "padding" in wrong]
    assert any("padding is the end of text (<|endoftext|>)" in fact for fact in checked.facts)


def test_an_adapter_is_loaded_with_its_base(saved, tokenizer, tmp_path):
    from hf_lm.models.adapters import add_lora
    from hf_lm.models.loading import load_with_head

    model = load_with_head(
        str(saved),
        transformers.AutoModelForSequenceClassification,
        tokenizer=tokenizer,
        labels=["bad", "fair", "good"],
    )
    add_lora(model, rank=2).save_pretrained(tmp_path / "adapter")
    checked = check_folder(tmp_path / "adapter")
    assert checked.wrong == []
    assert checked.facts[0].startswith("GPT2ForSequenceClassification, decoder: ")
    assert any(f"an adapter (LORA, rank 2) of {saved} (a folder of this machine" in fact for fact in checked.facts)
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="/gone/base")
    assert any(
        "base model '/gone/base' is not on this machine" in wrong for wrong in check_folder(tmp_path / "adapter").wrong
    )
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path={"a": 1})
    assert any("{'a': 1}, which is no name of a model" in wrong for wrong in check_folder(tmp_path / "adapter").wrong)
    with pytest.raises(ValueError, match="is an adapter that names no base model"):
        find_adapter(str(tmp_path / "adapter"))


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "pickled":
        (folder / "training_args.bin").write_bytes(b"pickled")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "none":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "shard":
        index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "temporary":
        (folder / "report.json.tmp").write_text("{")
    elif how == "checkpoint":
        (folder / "checkpoint-3").mkdir()
    elif how == "empty":
        (folder / "tokenizer.json").write_text("")
    elif how == "other run":
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        recorded = {"model.safetensors": {"bytes": weights.stat().st_size, "sha256": digest[::-1]}}
        edit(folder / "report.json", files=recorded)
    elif how == "layers":
        edit(folder / "config.json", n_layer=10**9)
    elif how == "deep":
        (folder / "config.json").write_text('{"a":' * 10_000 + "1" + "}" * 10_000)
    elif how == "list":
        (folder / "config.json").write_text("[1]")
    elif how == "index":
        (folder / "model.safetensors.index.json").write_text("{}")
    elif how == "secret":
        (folder / "run.yaml").write_text(f"seed: 1\nhub_token: {TOKEN}\n")
    elif how == "failed":
        edit(folder / "report.json", proofs={"load_back": {"passed": False}})
    elif how == "report":
        (folder / "report.json").write_text("[]")
    elif how == "card":
        (folder / "README.md").write_text("---\nmodel-index: [{results: 3}]\n---\n")
    elif how == "metadata":
        (folder / "README.md").write_text("# tiny\n")
    elif how == "no card":
        (folder / "README.md").unlink()
    elif how == "code":
        edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
        (folder / "evil.py").write_text("raise SystemExit(9)")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pickled", "pickled, which can run code when loaded: training_args.bin"),
        ("cut", "model.safetensors is damaged or half written"),
        ("none", "no weights in safetensors"),
        ("shard", "names model-00002-of-00002.safetensors, which is missing"),
        ("temporary", "half written: report.json.tmp"),
        ("checkpoint", "half written: checkpoint-3"),
        ("empty", "tokenizer.json is no JSON"),
        ("other run", "model.safetensors is not the file of this run"),
        ("list", "config.json holds no settings"),
        ("layers", "config.json: n_layer is 1,000,000,000, more than any model has (10,000 at most)"),
        ("deep", "config.json is no JSON: maximum recursion depth exceeded"),
        ("index", "model.safetensors.index.json names no weights"),
        ("secret", "looks like a secret: run.yaml:2 (a Hugging Face token)"),
        ("failed", "proofs failed: load_back"),
        ("report", "report.json is not what a recipe writes"),
        ("card", "the model card is not valid"),
        ("metadata", "has no metadata"),
        ("no card", "there is no model card"),
        ("code", "needs code of its own (auto_map in config.json), which was not run"),
    ],
)
def test_each_thing_that_can_be_wrong_is_named_and_no_secret_shown(folder, how, said, monkeypatch):
    if how != "code":
        monkeypatch.setattr(checking, "_check_loading", lambda *args: None)
    damage(folder, how)
    wrong = check_folder(folder).wrong
    assert any(said in line for line in wrong), wrong
    assert len(wrong) == (2 if how in ("none", "empty") else 1)
    assert TOKEN not in "".join(wrong)


def test_the_name_of_a_folder_is_inert_in_a_terminal(tmp_path, capsys):
    folder = tmp_path / "model\x1b[31m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["check", str(folder)])
    said = capsys.readouterr().out
    assert re.search("model\u241b\\[31m: .* wrong$", said)
    assert "\x1b" not in said


def test_a_folder_that_is_no_model_is_one_line(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no folder"):
        check_folder(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no model \(config\.json\) and no adapter.*There is one in: tiny"):
        check_folder(tmp_path)


# A stranger's code: a file of the folder that leaves a mark wherever it runs.


def evil(folder: Path, marker: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inner--evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    shutil.copy(folder / "inner--evil.py", folder / "evil.py")
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}')
    return folder


@pytest.fixture(scope="module")
def recurrent(tokenizer, tmp_path_factory) -> Path:
    """A folder with the code of this package's recurrent model, which everybody can copy."""
    from hf_lm.models.recurrent import new_recurrent

    folder = tmp_path_factory.mktemp("recurrent") / "lstm"
    new_recurrent(tokenizer, cell="lstm", n_embd=8, hidden_size=8, n_layer=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_our_own_code_is_trusted_word_for_word(recurrent):
    checked = check_folder(recurrent)
    assert checked.wrong == []
    assert "it carries its own code, byte for byte the recurrent model of hf_lm" in checked.facts


@pytest.mark.parametrize(
    "way", ["auto_map", "module", "tokenizer", "generate", "generate link", "processor", "type", "nested", "changed"]
)
def test_no_code_but_ours_is_trusted(recurrent, tmp_path, way):
    folder = Path(shutil.copytree(recurrent, tmp_path / "dir"))
    marker = tmp_path / "ran"
    evil(tmp_path / "elsewhere" / "inner", marker)
    attack = {"auto_map": {"AutoConfig": f"{tmp_path}/elsewhere/inner--evil.C"}}
    if way == "auto_map":
        edit(folder / "config.json", **attack)
    elif way == "module":  # a name of ours that transformers takes out of another folder
        ours = json.loads((folder / "config.json").read_text())["auto_map"]
        edit(folder / "config.json", auto_map={key: f"{tmp_path}--{name}" for key, name in ours.items()})
    elif way == "tokenizer":
        edit(
            folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [f"{tmp_path}/elsewhere/inner--evil.C", None]}
        )
    elif way.startswith("generate"):  # run by from_pretrained where code is trusted
        target = folder / "custom_generate"
        place = target if way == "generate" else tmp_path / "link"
        place.mkdir()
        (place / "generate.py").write_text(f"open({str(marker)!r}, 'w')\ndef generate(model): pass\n")
        if place != target:
            target.symlink_to(place)
    elif way == "processor":  # a class that a report names
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "C", **attack}))
        (folder / "report.json").write_text(json.dumps({"model": {"auto_class": "AutoProcessor"}, "proofs": {}}))
    elif way == "type":
        edit(folder / "config.json", model_type="gpt2")
    elif way == "nested":
        shutil.copytree(tmp_path / "elsewhere" / "inner", folder / "target_tokenizer")
    elif way == "changed":
        with (folder / "recurrent.py").open("a") as file:
            file.write(f"\nopen({str(marker)!r}, 'w')\n")
    wrong = check_folder(folder).wrong
    assert not marker.exists()
    assert any("needs code of its own" in line and "was not run" in line for line in wrong), wrong


def adapter(folder: Path, base: str, recurrent: Path, **changes) -> Path:
    """An adapter with copies of this package's code, which once lent their trust to its base."""
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["c_attn"], "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    save_file({"base_model.model.a.lora_A.weight": np.zeros((2, 2), "float32")}, folder / "adapter_model.safetensors")
    for path in recurrent.glob("*.py"):
        shutil.copy(path, folder)
    return folder


def test_an_adapter_and_its_base_are_never_trusted(recurrent, tmp_path):
    marker = tmp_path / "ran"
    base = evil(tmp_path / "inner", marker)
    for name, changes, said in (
        ("a", {"auto_map": {}}, "needs code of its own (auto_map in adapter_config.json)"),
        ("b", {}, "its base needs code of its own (auto_map)"),
        ("c", {"megatron_config": {"a": 1}, "megatron_core": "evil"}, "needs code of its own (megatron_core)"),
    ):
        wrong = check_folder(adapter(tmp_path / name, str(base), recurrent, **changes)).wrong
        assert not marker.exists(), name
        assert any(said in line for line in wrong), wrong


def test_a_base_on_the_hub_is_not_fetched(recurrent, tmp_path, hub, monkeypatch):  # noqa: F811
    hub.repos["attacker/evil"] = {
        path.name: path.read_bytes() for path in evil(tmp_path / "base", tmp_path / "ran").iterdir()
    }
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    for name, changes in (("a", {}), ("b", {"auto_map": {}})):
        folder = adapter(tmp_path / name, "attacker/evil", recurrent, **changes)
        wrong = check_folder(folder).wrong
        assert hub.requests == []
        assert not (tmp_path / "ran").exists()
        assert any(
            "auto_map" in line if changes else "'attacker/evil' is not on this machine" in line for line in wrong
        )
