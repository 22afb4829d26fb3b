"""A quantized base: what is new stays whole, adapters train on it, and they merge into what they were trained on."""

import functools
import json
import sys

import pytest
import test_families as families
import torch
import transformers
from test_families import answerer, checkpoints, classifier, tokenizer, trainer_of, writer  # noqa: F401
from transformers.pytorch_utils import Conv1D

from hf_lm.arguments import FineTuningArguments
from hf_lm.models.adapters import add_lora, merged
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.loading import load_causal_lm, load_with_head
from hf_lm.models.quantization import quantization_options, quantized_bits
from hf_lm.tasks import proofs

pytest.importorskip("bitsandbytes")


@pytest.fixture
def quantized(monkeypatch, tokenizer, checkpoints):  # noqa: F811
    """A model with its base in some bits, and its task."""

    def make(build, name, bits):
        for loader in (load_with_head, load_text_to_text):
            monkeypatch.setattr(families, loader.__name__, functools.partial(loader, quantize=bits))
        transformers.set_seed(0)
        return build(checkpoints[name], tokenizer)

    return make


def packed(model):
    return {name for name, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}


@pytest.mark.parametrize(
    ("build", "name", "bits"),
    [
        *((classifier, name, 4) for name in ("bert", "gpt2")),
        *((answerer, name, 4) for name in ("bert", "llama")),
        *((writer, name, 4) for name in ("gpt2", "t5", "bart", "bert2bert")),
        (classifier, "bert", 8),
        (writer, "gpt2", 8),
    ],
)
def test_an_adapter_learns_on_a_quantized_base_and_merges_into_it(build, name, bits, quantized, tmp_path):
    model, task = quantized(build, name, bits)
    assert quantized_bits(model) == bits
    whole = ("classifier", "score", "qa_outputs", "lm_head", "crossattention", "pooler", "cls")
    assert packed(model)
    assert not {module for module in packed(model) if any(part in module.split(".") for part in whole)}
    adapted = add_lora(model, rank=4)
    settings = {"max_steps": 4, "learning_rate": 2e-2, "muon_learning_rate": 1e-2, "save_strategy": "no"}
    trainer = trainer_of(adapted, task, tmp_path, gradient_checkpointing=name == "llama", **settings)
    assert proofs.loss_invariance(trainer, task.train_dataset[:4]).passed
    before = proofs.logits_of(adapted, task.probe())
    trainer.train()
    after = proofs.logits_of(adapted, task.probe())
    assert abs(after - before).max() > 1e-4
    plain = merged(adapted)
    found = proofs.merging(after, proofs.logits_of(plain, task.probe()), bits=bits)
    assert found.passed, found.said
    assert f"the {bits}-bit base was dequantized" in found.said
    assert not packed(plain)
    assert any(isinstance(module, Conv1D) for module in plain.modules()) == (name == "gpt2")
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization" not in (tmp_path / "plain" / "config.json").read_text()
    loaded = getattr(transformers, task.auto_class).from_pretrained(tmp_path / "plain").eval()
    assert abs(proofs.logits_of(loaded, task.probe()) - proofs.logits_of(plain, task.probe())).max() < 1e-6


def test_merging_into_the_checkpoint_itself_would_be_found_out(quantized, checkpoints, tmp_path, monkeypatch):  # noqa: F811
    """The silent error: the adapter was trained on what quantization left of the weights, not on the weights."""
    from peft import PeftModel

    large = transformers.AutoModelForMaskedLM.from_pretrained(checkpoints["bert"])
    for weight in large.bert.encoder.parameters():  # as those of a trained model, of which quantization loses more
        weight.data *= 5
    large.save_pretrained(tmp_path / "base")
    monkeypatch.setitem(checkpoints, "bert", tmp_path / "base")
    model, task = quantized(answerer, "bert", 4)
    adapted = add_lora(model, rank=4)
    trainer_of(adapted, task, tmp_path, max_steps=4, learning_rate=2e-2, save_strategy="no").train()
    expected = proofs.logits_of(adapted, task.probe())
    adapted.save_pretrained(tmp_path / "adapter")
    whole, _ = quantized(answerer, "bert", 0)
    wrong = PeftModel.from_pretrained(whole, tmp_path / "adapter").merge_and_unload()
    found = proofs.merging(expected, proofs.logits_of(wrong, task.probe()), bits=4)
    assert not found.passed, found.said


def test_evaluating_leaves_a_4_bit_base_as_it_was(tmp_path):
    """On a CPU that multiplies in bfloat16 bitsandbytes would pack it anew, rounded."""
    config = transformers.GPT2Config(vocab_size=128, n_embd=64, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), quantize=4).eval()
    weight = model.transformer.h[0].mlp.c_fc.weight
    before, ids = weight.data.clone(), torch.arange(8)[None]
    with torch.no_grad():
        logits = model(ids).logits
    assert torch.equal(weight.data, before)
    with torch.enable_grad():
        torch.testing.assert_close(model(ids).logits, logits, atol=1e-5, rtol=1e-5)


def test_a_run_on_a_quantized_base_resumes_to_the_same_adapter(quantized, tmp_path):
    def train(folder, resume=None, steps=4):
        model, task = quantized(classifier, "gpt2", 4)
        adapted = add_lora(model, rank=2)
        settings = {"max_steps": 4, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2, "seed": 3}
        trainer = trainer_of(adapted, task, folder, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return {name: p for name, p in adapted.named_parameters() if p.requires_grad}

    whole = train(tmp_path / "a")
    saved = tmp_path / "a" / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").is_file()
    assert not list(saved.glob("model*.safetensors"))
    assert json.loads((saved / "adapted_config.json").read_text())["quantization_config"]["load_in_4bit"]
    resumed = train(tmp_path / "a", str(saved))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_bits_that_cannot_be_are_said_in_one_line(checkpoints, tokenizer, monkeypatch):  # noqa: F811
    with pytest.raises(ValueError, match="--quantize is 3; it must be 4 or 8, or 0"):
        load_with_head(
            checkpoints["bert"], transformers.AutoModelForQuestionAnswering, tokenizer=tokenizer, quantize=3
        )
    with pytest.raises(ValueError, match="--quantize 4 freezes the base: give what is trained a --lora_rank"):
        FineTuningArguments(quantize=4)
    with pytest.raises(ValueError, match="--quantize 4 needs --model"):
        FineTuningArguments(quantize=4, lora_rank=8)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"--quantize needs bitsandbytes: pip install 'hf-lm\[quantize\]'\."):
        quantization_options(8, keep=[])
