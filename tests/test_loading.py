"""Every weight of a model is its checkpoint's own, or the model is refused in one line."""

import json
import logging
import shutil
import signal
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_lm import pipeline
from hf_lm.evaluation.rewards import load_scorer as load_reward_scorer
from hf_lm.hub.fresh_load import fresh_load
from hf_lm.inference.generate import load_writer
from hf_lm.models.adapters import add_lora, load_merged, merge_adapter, save_adapted
from hf_lm.models.devices import device_named
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.loading import load_causal_lm, load_with_head
from hf_lm.safety.scorers import load_scorer
from hf_lm.scoring.score import _on_device
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer

BERT = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
CLASSES, ANSWERS = transformers.AutoModelForSequenceClassification, transformers.AutoModelForQuestionAnswering


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer([f"a text of number {i} and more" for i in range(50)], vocab_size=300)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Folders of small models with their tokenizer; only the head of `unnamed` is as if never trained."""
    transformers.set_seed(0)
    size = max(tokenizer.get_vocab().values()) + 1
    bert = {"vocab_size": size, "hidden_size": 16, "pad_token_id": tokenizer.pad_token_id, **BERT}
    three = {"id2label": {0: "bad", 1: "good", 2: "so-so"}, "label2id": {"bad": 0, "good": 1, "so-so": 2}}
    config = transformers.BertConfig
    models = {
        "gpt2": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        ),
        "masked": transformers.BertForMaskedLM(config(**bert)),
        "wide": transformers.BertForMaskedLM(config(**bert | {"hidden_size": 32})),
        "classes": transformers.BertForSequenceClassification(config(**bert, **three)),
        "answers": transformers.BertForQuestionAnswering(config(**bert)),
        "unnamed": transformers.BertForSequenceClassification(config(**bert)),
    }
    models["answers"].qa_outputs.bias.data += 0.1
    folders = {}
    for name, model in models.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    for name, head in (("adapter", CLASSES), ("writer", None)):
        model = (
            load_with_head(folders["masked"], head, tokenizer=tokenizer, labels=["no", "yes"])
            if head
            else load_causal_lm(folders["gpt2"])
        )
        adapted = add_lora(model, rank=2)
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter)
        folders[name] = tmp_path_factory.mktemp(name)
        adapted.save_pretrained(folders[name])
        save_adapted(adapted, folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def changed(folder: Path, to: Path, *, file: str = "config.json", weights=None, **settings) -> str:
    """A copy of a folder with other settings in a file, or its weights passed through a function."""
    shutil.copytree(folder, to)
    if settings:
        path = to / file
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if weights:
        path = next(to.glob("*model.safetensors"))
        save_file(weights(load_file(path)), path, metadata={"format": "pt"})
    return str(to)


def refused(load, said: str) -> None:
    with pytest.raises((OSError, ValueError), match=said) as raised:
        load()
    assert "\n" not in str(raised.value)


def nan(weights):
    key = next(key for key in weights if weights[key].dim() == 2)
    return weights | {key: torch.full_like(weights[key], float("nan"))}


def test_a_sound_model_is_loaded_without_a_warning(saved, tokenizer, monkeypatch):
    shown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    load_causal_lm(str(saved["gpt2"]), tokenizer=tokenizer)
    assert shown == []


def test_weights_that_do_not_fit_the_configuration_are_refused(saved, tokenizer, tmp_path):
    for number, (settings, said) in enumerate(
        (
            ({"vocab_size": 5000}, r"wte\.weight was saved with the shape \(\d+, 16\), and \(5000, 16\) is needed"),
            ({"vocab_size": 6}, r"wte\.weight was saved with the shape .* restore the config\.json"),
            ({"n_layer": 3}, r"lacks 12 weights of GPT2LMHeadModel \(transformer\.h\.2\.attn\.c_attn\.bias, \.\.\.\)"),
            ({"n_layer": 1}, r"holds 11 weights that GPT2LMHeadModel does not have \(transformer\.h\.1\.attn"),
            ({"n_layer": 10**9}, r"n_layer is 1,000,000,000, more than any model has \(10,000 at most\)"),
            ({"num_labels": 10**9}, r"num_labels is 1,000,000,000, more than any model has"),
            ({"vocab_size": "many"}, "cannot (read|load)|knows no such model"),
        )
    ):
        folder = changed(saved["gpt2"], tmp_path / f"gpt2-{number}", **settings)
        refused(lambda: load_causal_lm(folder, tokenizer=tokenizer), said)  # noqa: B023
        refused(lambda: load_with_head(folder, CLASSES, tokenizer=tokenizer), said.replace("LMHeadModel", r"\w+"))  # noqa: B023
    folder = changed(saved["gpt2"], tmp_path / "nan", weights=nan)
    refused(lambda: load_causal_lm(folder), r"nan: transformer\.\S+ holds values that are not finite numbers")
    masked = changed(saved["masked"], tmp_path / "layers", num_hidden_layers=1)
    refused(lambda: load_text_to_text(masked, tokenizer=tokenizer), "does not have")
    masked = changed(saved["masked"], tmp_path / "more", num_hidden_layers=3)
    refused(lambda: load_text_to_text(masked, tokenizer=tokenizer), "lacks 16 weights of BertModel")


def test_an_adapter_that_does_not_fit_its_base_is_refused(saved, tokenizer, tmp_path):
    file = "adapter_config.json"

    def lacking(weights):
        return {
            key: weight for key, weight in weights.items() if not key.endswith("layer.1.output.dense.lora_B.weight")
        }

    def renamed(weights):
        return {key.replace("layer.1", "layer.7"): weight for key, weight in weights.items()}

    def headless(weights):
        return {key: weight for key, weight in weights.items() if "classifier" not in key}

    def with_rows(weights):
        return weights | {"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(7, 16)}

    wide, itself = str(saved["wide"]), str(tmp_path / "4")
    cases = (
        (
            {"base_model_name_or_path": wide},
            r"/wide\d+: bert\.\S+ was saved with the shape .* set base_model_name_or_path",
        ),
        ({"r": 4}, r"lora_A\.weight was saved with the shape \(2, 16\), and \(4, 16\) is needed"),
        ({"peft_type": "NOPE"}, r"adapter_config\.json has the peft_type 'NOPE', which cannot be merged"),
        ({"peft_type": "PROMPT_TUNING"}, "'PROMPT_TUNING', which cannot be merged into its base"),
        ({"base_model_name_or_path": itself}, "names itself as its base"),
        ({"weights": lacking}, r"lacks \S+layer\.1\.output\.dense\.lora_B\S* \(1 such"),
        ({"weights": renamed}, r"lacks \S+layer\.1\.|does not have \S+layer\.7\."),
        ({"weights": headless}, r"7 lacks the weights '\S*classifier\.\w+'"),
        ({"weights": with_rows}, r"word_embeddings\.weight was saved with the shape \(7, 16\)"),
        ({"weights": nan}, "holds values that are not finite numbers"),
    )
    for number, (settings, said) in enumerate(cases):
        folder = changed(saved["adapter"], tmp_path / str(number), file=file, **settings)
        refused(lambda: load_merged(folder, tokenizer=tokenizer), said)  # noqa: B023
    first = str(tmp_path / "0")
    for load in (
        lambda: pipeline("text-classification", model=first),
        lambda: merge_adapter(first, tmp_path / "merged"),
        lambda: load_scorer(first, labels=["yes"]),
        lambda: load_with_head(first, CLASSES, tokenizer=tokenizer, labels=["no", "yes"]),
    ):
        refused(load, "set base_model_name_or_path to the base that it was trained on")
    assert not (tmp_path / "merged").exists()
    # Without what save_adapted wrote the base's own configuration holds, and the adapter's weights do not fit it.
    (tmp_path / "0" / "adapted_config.json").unlink()
    refused(lambda: load_merged(first, tokenizer=tokenizer), r"lora_A\.weight was saved with the shape \(2, 16\)")
    # Training may replace the head of an adapter, and nothing else of it.
    model = load_with_head(saved["adapter"], CLASSES, tokenizer=tokenizer, labels=["a", "b", "c"])
    assert model.classifier.out_features == 3
    assert "classifier" in model.at_random


ENDLESS = r"(([a-z_.0-9]+)+)+!"


def test_an_expression_of_an_adapter_that_never_ends_is_ended(saved, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lm.models.loading.PATIENCE", 1)
    before = signal.getsignal(signal.SIGALRM)
    for number, settings in enumerate(
        ({"target_modules": ENDLESS}, {"exclude_modules": ENDLESS}, {"rank_pattern": {ENDLESS: 3}})
    ):
        folder = changed(saved["adapter"], tmp_path / str(number), file="adapter_config.json", **settings)
        refused(
            lambda: load_merged(folder, tokenizer=tokenizer),  # noqa: B023
            "cannot load the adapter .* an expression of its adapter_config.json took more than 1 s",
        )
    folder = changed(saved["adapter"], tmp_path / "loftq", file="adapter_config.json", init_lora_weights="loftq")
    refused(lambda: load_merged(folder, tokenizer=tokenizer), "cannot load the adapter .*loftq onto .*loftq_config")
    assert signal.getsignal(signal.SIGALRM) is before
    with pytest.raises(ChildProcessError, match="it took more than 3 s: by a regular expression"):
        fresh_load(folder=str(tmp_path / "0"), adapter=True, trust=False, auto_class="", patience=3)


def test_pickled_weights_are_refused_everywhere(saved, tokenizer, tmp_path):
    adapter = shutil.copytree(saved["writer"], tmp_path / "adapter")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    for load in (
        lambda: load_writer(adapter),
        lambda: merge_adapter(adapter, tmp_path / "merged"),
        lambda: pipeline("summarization", model=str(adapter)),
        lambda: pipeline("text-generation", model=str(adapter)),
    ):
        refused(load, r"has its weights pickled \(adapter_model\.bin\), which can run code")
    (adapter / "adapter_model.bin").unlink()
    refused(lambda: load_writer(adapter), "is an adapter without weights")
    for name, tasks in (
        ("classes", ("text-classification", "sentiment-analysis", "question-answering", "feature-extraction")),
        ("gpt2", ("summarization", "translation", "text-generation")),
    ):
        folder = shutil.copytree(saved[name], tmp_path / name)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        for task in tasks:
            refused(lambda: pipeline(task, model=str(folder)), "has its weights pickled")  # noqa: B023


def test_a_head_that_was_never_trained_answers_nothing(saved, tokenizer):
    for name, said in (
        ("answers", r"saved as BertForQuestionAnswering and lacks \d weights of BertForSequenceClassification"),
        ("masked", r"saved as BertForMaskedLM and lacks \d weights of BertForSequenceClassification"),
        ("unnamed", "head was never trained"),
    ):
        folder = str(saved[name])
        for load in (
            lambda: pipeline("text-classification", model=folder),  # noqa: B023
            lambda: load_reward_scorer(folder, label="LABEL_1"),  # noqa: B023
            lambda: load_scorer(folder, labels=["LABEL_1"]),  # noqa: B023
            lambda: load_with_head(folder, CLASSES, tokenizer=tokenizer, trained=True),  # noqa: B023
        ):
            refused(load, said)
    refused(
        lambda: pipeline("question-answering", model=str(saved["classes"])),
        r"saved as BertForSequenceClassification and lacks 2 weights of BertForQuestionAnswering",
    )
    refused(
        lambda: pipeline("summarization", model=str(saved["classes"])), "is a bert, for which .* no Seq2SeqLM head"
    )
    assert pipeline("text-classification", model=str(saved["classes"]))("a text")[0]["label"] in (
        "bad",
        "good",
        "so-so",
    )
    assert "answer" in pipeline("question-answering", model=str(saved["answers"]))(question="a", context="a text")


def test_training_may_add_or_replace_a_head(saved, tokenizer):
    assert (
        load_with_head(saved["answers"], CLASSES, tokenizer=tokenizer, labels=["a", "b", "c"]).classifier.out_features
        == 3
    )
    assert (
        load_with_head(saved["classes"], CLASSES, tokenizer=tokenizer, labels=["a", "b"]).classifier.out_features == 2
    )
    kept = load_with_head(saved["classes"], CLASSES, tokenizer=tokenizer, labels=["bad", "good", "so-so"])
    assert torch.equal(kept.classifier.weight, load_file(saved["classes"] / "model.safetensors")["classifier.weight"])
    assert not kept.at_random
    assert load_with_head(saved["classes"], ANSWERS, tokenizer=tokenizer).qa_outputs.out_features == 2


def test_a_name_that_is_not_there_is_named(saved):
    for load in (
        lambda: pipeline("text-classification", model="nothere"),
        lambda: pipeline("question-answering", model="nothere"),
        lambda: load_tokenizer("nothere"),
        lambda: load_writer("nothere"),
    ):
        refused(load, "^nothere is neither a folder here nor in the local cache; check the name")


def test_a_build_for_gpus_computes_on_the_cpu_of_a_machine_without_one(monkeypatch):
    monkeypatch.setattr("torch._C._accelerator_getAccelerator", lambda: torch.device("cuda"))  # as such a build says
    assert device_named() == torch.device("cpu")
    assert _on_device(torch.nn.Linear(1, 1)).weight.device == torch.device("cpu")


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match=rf"there is no device '{device}' here; give cpu"):
        device_named(device)
