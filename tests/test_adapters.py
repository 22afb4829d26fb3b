"""An adapter's folder is a model where its base is there, and says so in one line where it is not."""

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from test_families import answerer, checkpoints, classifier, tokenizer, trainer_of, writer  # noqa: F401

from hf_lm import pipeline
from hf_lm.arguments import TrainingArguments
from hf_lm.cli import main
from hf_lm.models.adapters import add_lora, has_base, load_merged, merge_adapter
from hf_lm.models.bert import new_bert
from hf_lm.models.configuration import load_config
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.loading import load_causal_lm, load_with_head
from hf_lm.models.recurrent import RecurrentConfig, RecurrentLMHeadModel
from hf_lm.tasks import proofs
from hf_lm.training.fit import announce, fit


@pytest.fixture(scope="module")
def adapters(checkpoints, tokenizer, tmp_path_factory):  # noqa: F811
    """Per kind of task a trained adapter: its folder, its model, and the inputs to compare logits on."""
    found = {}
    for build, name in ((classifier, "bert"), (answerer, "gpt2"), (writer, "bart"), (writer, "gpt2")):
        model, task = build(checkpoints[name], tokenizer)
        adapted, folder = add_lora(model, rank=2), tmp_path_factory.mktemp("adapter")
        trainer = trainer_of(adapted, task, folder, max_steps=3, learning_rate=2e-2, save_strategy="no")
        trainer.train()
        trainer.save_model(str(folder))
        tokenizer.save_pretrained(folder)
        logits = proofs.logits_of(adapted, task.probe())
        found[build.__name__, name] = SimpleNamespace(folder=folder, task=task, logits=logits)
    return found


def test_an_adapter_is_loaded_merged_and_its_classes_and_prompts_with_it(adapters, tokenizer):  # noqa: F811
    for (kind, name), saved in adapters.items():
        loaded = load_merged(str(saved.folder), tokenizer=tokenizer)
        assert type(loaded).__name__ == type(load_plain(kind, saved, tokenizer)).__name__
        assert abs(proofs.logits_of(loaded, saved.task.probe()) - saved.logits).max() < 1e-4, (kind, name)
    assert load_config(adapters["classifier", "bert"].folder).id2label == {0: "negative", 1: "positive"}
    written = load_merged(str(adapters["writer", "gpt2"].folder), tokenizer=tokenizer)
    assert written.config.task_specific_params["summarization"]["cue"] == "\n\nTL;DR: "
    assert written.generation_config.max_new_tokens == adapters["writer", "gpt2"].task.generation.max_new_tokens


def load_plain(kind, saved, tokenizer):  # noqa: F811
    """As a recipe loads `--model`."""
    if kind == "writer":
        return load_text_to_text(str(saved.folder), tokenizer=tokenizer)
    auto_class = getattr(transformers, saved.task.auto_class)
    return load_with_head(str(saved.folder), auto_class, tokenizer=tokenizer, labels=getattr(saved.task, "labels", ()))


def test_the_same_adapter_is_the_same_file_in_every_process(adapters):
    for saved in adapters.values():
        names = json.loads((saved.folder / "adapter_config.json").read_text())["target_modules"]
        assert names == sorted(names)
        assert len(names) > 3


@pytest.mark.filterwarnings("error:fan_in_fan_out", "error:`is_gradient_checkpointing`")
def test_the_layers_of_a_gpt2_are_adapted_as_what_they_are(checkpoints):  # noqa: F811
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"])
    assert add_lora(model, rank=2).peft_config["default"].fan_in_fan_out


def test_a_model_without_linear_layers_takes_no_lora_and_says_so():
    model = RecurrentLMHeadModel(RecurrentConfig(vocab_size=32, n_embd=8, hidden_size=8))
    with pytest.raises(ValueError, match=r"--lora_rank 4: the body of RecurrentLMHeadModel has no linear layer"):
        add_lora(model, rank=4)


def test_what_is_trained_on_a_merged_adapter_has_no_base_of_one_name(adapters, tokenizer):  # noqa: F811
    model = load_plain("writer", adapters["writer", "bart"], tokenizer)
    assert all(p.requires_grad for p in model.parameters())
    assert not has_base(add_lora(model, rank=2))


def test_a_span_head_of_llama_has_no_base_of_one_name(checkpoints, tokenizer):  # noqa: F811
    """Its body is called otherwise: whoever loads the adapter by transformers would get a body at random."""
    model, _ = answerer(checkpoints["llama"], tokenizer)
    assert not has_base(add_lora(model, rank=2))
    model, _ = answerer(checkpoints["gpt2"], tokenizer)
    assert has_base(add_lora(model, rank=2))


def test_a_base_of_this_machine_is_named_so_that_peft_cannot_ask_the_hub_for_it(tokenizer, tmp_path, monkeypatch):  # noqa: F811
    """out/pretrain is a folder here and, from anywhere else, the repository of a stranger called out."""
    from peft import AutoPeftModelForCausalLM

    from hf_lm.models.gpt2 import new_gpt2

    monkeypatch.chdir(tmp_path)
    model = new_gpt2(tokenizer, n_layer=1, n_head=1, n_embd=8, block_size=16)
    assert add_lora(model, rank=2).peft_config["default"].base_model_name_or_path in (None, "")
    model = new_gpt2(tokenizer, n_layer=1, n_head=1, n_embd=8, block_size=16)
    model.save_pretrained("out/pretrain")
    model = add_lora(load_causal_lm("out/pretrain"), rank=2)
    model.save_pretrained("out/adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = AutoPeftModelForCausalLM.from_pretrained("../out/adapter")
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "out" / "pretrain")
    assert has_base(model)


def test_pipelines_take_an_adapter(adapters, tokenizer):  # noqa: F811
    text = "The plot was a mess."
    found = pipeline("text-classification", model=str(adapters["classifier", "bert"].folder))(text)
    assert found[0]["label"] in ("negative", "positive")
    written = pipeline("summarization", model=str(adapters["writer", "bart"].folder))(text)
    assert list(written[0]) == ["summary_text"]
    answer = pipeline("question-answering", model=str(adapters["answerer", "gpt2"].folder))(
        question="What?", context=text
    )
    assert answer["answer"] in text


def test_merge_adapter_writes_an_ordinary_folder_and_replaces_nothing(adapters, tmp_path):
    saved = adapters["classifier", "bert"]
    out = merge_adapter(saved.folder, tmp_path / "merged")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert abs(proofs.logits_of(model, saved.task.probe()) - saved.logits).max() < 1e-4
    assert transformers.AutoTokenizer.from_pretrained(out).encode("a plot")
    assert not list(out.glob("adapter*"))
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="exists; choose another folder"):
        merge_adapter(saved.folder, out)
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="holds no adapter"):
        merge_adapter(out, tmp_path / "again")
    assert not list(tmp_path.glob(".merging-*"))


def test_the_command_merge_prints_its_line_and_nothing_of_transformers_and_peft(adapters, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["merge", str(adapters["classifier", "bert"].folder), str(tmp_path / "merged")])
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out == f"merged into {tmp_path}/merged; hf-lm check {tmp_path}/merged checks it\n"


def test_an_adapter_made_elsewhere_says_its_classes_by_its_weights(adapters, tokenizer, tmp_path):  # noqa: F811
    saved = adapters["classifier", "bert"]
    shutil.copytree(saved.folder, tmp_path / "bare")
    (tmp_path / "bare" / "adapted_config.json").unlink()
    loaded = load_merged(str(tmp_path / "bare"), tokenizer=tokenizer)
    assert abs(proofs.logits_of(loaded, saved.task.probe()) - saved.logits).max() < 1e-4


def test_an_adapter_whose_base_is_missing_is_said_in_one_line(adapters, tokenizer, tmp_path):  # noqa: F811
    shutil.copytree(adapters["classifier", "bert"].folder, tmp_path / "lost")
    path = tmp_path / "lost" / "adapter_config.json"
    config = json.loads(path.read_text())
    cases = {
        "./moved/bert": r"lost is an adapter for \./moved/bert, which is not there .* set base_model_name_or_path in",
        "someone/bert": "lost is an adapter for someone/bert, which is not there .* HF_HUB_OFFLINE",
        None: "lost is an adapter that names no base model: set base_model_name_or_path",
    }
    for base, said in cases.items():
        path.write_text(json.dumps(config | {"base_model_name_or_path": base}))
        for load in (load_config, lambda name: load_causal_lm(name), lambda name: merge_adapter(name, tmp_path / "o")):
            with pytest.raises((OSError, ValueError), match=said) as raised:
                load(str(tmp_path / "lost"))
            assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"--quantize 4: .* is an adapter, .* merge it first: hf-lm merge"):
        load_text_to_text(str(adapters["writer", "bart"].folder), tokenizer=tokenizer, quantize=4)


TAGS = ["trackio", "trackio:https://huggingface.co/spaces/me/runs"]  # by which the Hub shows a run


def tags(folder) -> list[str]:
    return ModelCard.load(folder / "README.md").data.tags


def run(build, folder, tokenizer, out, *, merge=True, **options):  # noqa: F811
    transformers.set_seed(0)
    model, task = build(folder, tokenizer)
    arguments = TrainingArguments(
        output_dir=str(out), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=2, learning_rate=1e-2,
        save_strategy="no",
    )  # fmt: skip
    adapted = add_lora(model, rank=2)
    adapted.model_tags = TAGS  # as a callback of the Trainer sets them, on the model that it is given
    return fit(adapted, task, arguments, merge=merge)


def test_a_frozen_random_base_is_not_said_to_learn(tmp_path, tokenizer, capsys):  # noqa: F811
    trainer = SimpleNamespace(args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"))
    task = SimpleNamespace(recipe="sentiment", warnings=[])
    model = new_bert(tokenizer, n_layer=1, n_head=1, n_embd=8, block_size=16, labels=["a", "b"])
    for rank, said in ((0, "learns from these examples alone"), (2, "--lora_rank keeps most of its weights")):
        announce(trainer, task, add_lora(model, rank=rank), 8, started=0.0, resumed=True)
        assert said in capsys.readouterr().out


@pytest.mark.slow  # test_quantization trains and merges one, without the fresh processes
def test_the_three_ways_of_loading_are_proved_on_a_quantized_base(checkpoints, tokenizer, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    import functools

    import test_families

    monkeypatch.setattr(test_families, "load_with_head", functools.partial(load_with_head, quantize=4))
    report = run(classifier, checkpoints["gpt2"], tokenizer, tmp_path / "out")
    for name in ("merging", "load_back", "adapter_load_back"):
        assert report["proofs"][name]["passed"], name
    assert "quantization" not in (tmp_path / "out" / "config.json").read_text()
    assert tags(tmp_path / "out") == ["hf_lm", *TAGS]
    # The adapter, its base quantized and dequantized again, is the merged model.
    again = load_merged(str(tmp_path / "out" / "adapter"), tokenizer=tokenizer)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = {"input_ids": torch.arange(2, 30)[None]}
    assert abs(proofs.logits_of(again, ids) - proofs.logits_of(plain, ids)).max() < 1e-5


@pytest.mark.slow  # the recipe with LoRA proves one beside its model
def test_an_adapter_alone_is_proved_and_needs_a_base(checkpoints, tokenizer, tmp_path):  # noqa: F811
    report = run(writer, checkpoints["bart"], tokenizer, tmp_path / "out", merge=False)
    assert report["proofs"]["load_back"]["passed"]
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert not (tmp_path / "out" / "config.json").exists()
    assert tags(tmp_path / "out") == ["hf_lm", *TAGS]
    with pytest.raises(ValueError, match="--merge false saves an adapter alone"):
        run(writer, checkpoints["bert2bert"], tokenizer, tmp_path / "none", merge=False)
    assert not (tmp_path / "none").exists()
