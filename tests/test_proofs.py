"""Every proof passes on a sound run and fails on the error it is there to find."""

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_lm.arguments import TrainingArguments
from hf_lm.data.packing import Blocks, collate_blocks
from hf_lm.hub import fresh_load
from hf_lm.tasks import proofs
from hf_lm.tasks.losses import next_token_loss
from hf_lm.tasks.proofs import Proof, prove
from hf_lm.tokenization.tokenizer import encode_documents, train_word_level
from hf_lm.training.trainer import Trainer


@pytest.fixture
def trainer(model, stream, tmp_path):
    return Trainer(
        model,
        TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True),
        loss=next_token_loss,
        shifts_labels=True,
        measure=lambda model: {},
        context=32,
        train_dataset=Blocks(stream, block_size=32, isolate=True),
        data_collator=collate_blocks,
    )


def first(trainer, n=4):
    return [trainer.train_dataset[i] for i in range(n)]


def test_loss_invariance_finds_a_mean_of_means(trainer, monkeypatch):
    model, before = trainer.model, torch.random.get_rng_state()
    weights = [p.clone() for p in model.parameters()]
    model.train()
    assert proofs.loss_invariance(trainer, first(trainer)).passed
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))

    def mean_of_batch(model, inputs, num_items_in_batch=None):
        return transformers.Trainer.compute_loss(trainer, model, inputs)

    monkeypatch.setattr(trainer, "compute_loss", mean_of_batch)
    proof = proofs.loss_invariance(trainer, first(trainer))
    assert not proof.passed
    assert proof.largest_difference > 0.5  # four batches summed: about 3
    assert "the loss is no sum over rows, or a row is read with its padding" in proof.said


def block_of_two(length=16):
    ids = torch.randint(0, 300, (2 * length,))
    return {"input_ids": ids, "position_ids": torch.arange(length).repeat(2), "starts": [length]}


def test_packing_isolation_finds_a_mask_of_ones_and_a_cache(trainer):
    model = trainer.model
    assert proofs.packing_isolation(model, collate_blocks, block_of_two(), isolate=True).passed

    def collate_with_mask(features):
        batch = collate_blocks(features)
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    assert not proofs.packing_isolation(model, collate_with_mask, block_of_two(), isolate=True).passed
    model.config.use_cache = True
    assert not proofs.packing_isolation(model, collate_blocks, block_of_two(), isolate=True).passed


@pytest.mark.parametrize("deviation", [0.02, 0.3])  # of a fresh model, whose leak is small
def test_packing_isolation_finds_a_convolution_that_reads_a_few_tokens_back(deviation):
    """LFM2: attention keeps documents apart, and the convolutions between reach over the last tokens of a document."""
    config = transformers.Lfm2Config(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, layer_types=["conv", "full_attention"], use_cache=False, initializer_range=deviation,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    proof = proofs.packing_isolation(model, collate_blocks, block_of_two(), isolate=True)
    assert not proof.passed, proof.said
    config.layer_types = ["full_attention", "full_attention"]
    model = transformers.AutoModelForCausalLM.from_config(config)
    proof = proofs.packing_isolation(model, collate_blocks, block_of_two(), isolate=True)
    assert proof.passed, proof.said


def test_packing_isolation_says_how_much_concatenated_documents_see(trainer):
    feature = block_of_two()
    del feature["position_ids"]
    proof = proofs.packing_isolation(trainer.model, collate_blocks, feature, isolate=False)
    assert proof.passed
    assert proof.largest_difference > 1e-3
    assert "see each other" in proof.said


def test_label_coverage_finds_a_masked_end_of_text(trainer, stream):
    def masking(features):  # what DataCollatorForLanguageModeling does when pad = eos
        batch = collate_blocks(features)
        return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == stream.end, -100)}

    sound = proofs.label_coverage(collate_blocks, first(trainer), stream.tokens, end=stream.end, pad=1)
    assert sound.passed, sound.said
    assert not proofs.label_coverage(masking, first(trainer), stream.tokens, end=stream.end, pad=1).passed


def test_tokenizer_round_trip_finds_lost_text_and_ids_without_a_row(tokenizer, texts):
    encode = lambda batch: encode_documents(tokenizer, batch)  # noqa: E731
    assert proofs.tokenizer_round_trip(tokenizer, texts, encode, rows=320, lossless=True).passed
    few_rows = proofs.tokenizer_round_trip(tokenizer, texts, encode, rows=100, lossless=True)
    assert not few_rows.passed
    assert "embedding rows" in few_rows.said
    words = train_word_level(texts, min_frequency=1, lowercase=True)
    encode_words = lambda batch: encode_documents(words, batch)  # noqa: E731
    assert not proofs.tokenizer_round_trip(words, texts, encode_words, rows=9999, lossless=True).passed
    assert proofs.tokenizer_round_trip(words, texts, encode_words, rows=9999, lossless=False).passed


def test_learnable_finds_gradients_that_do_not_arrive(trainer):
    weights = [p.clone() for p in trainer.model.parameters()]
    assert proofs.learnable(trainer, first(trainer, 1)).passed
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))
    for p in trainer.model.parameters():
        p.register_hook(torch.zeros_like)
    assert not proofs.learnable(trainer, first(trainer, 1)).passed


def test_a_batch_of_a_proof_goes_where_the_model_is():
    host = SimpleNamespace(model=torch.nn.Linear(1, 1, device="meta"), _prepare_inputs=lambda batch: batch)
    host.model.device = torch.device("meta")
    assert proofs._where_it_is(host, {"labels": torch.ones(1)})["labels"].is_meta


def test_load_back_finds_weights_and_tokenizers_that_changed_on_the_way(model, tokenizer, texts, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def check():
        encoded = encode_documents(tokenizer, texts[:3])
        return proofs.load_back(tmp_path, model, {"input_ids": torch.arange(20)[None]}, texts[:3], encoded)()

    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"] *= 1.5
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not check().passed
    (tmp_path / "model.safetensors").unlink()
    missing = check()
    assert not missing.passed
    assert "could not load" in missing.said


def test_load_back_passes_and_needs_no_temporary_folder(model, tokenizer, texts, tmp_path, monkeypatch):
    """One that is full is no sign of a bad model, and a run that is killed would leave its own there."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))  # nothing can be written into it
    monkeypatch.setenv("TMPDIR", str(tmp_path / "full"))
    encoded = encode_documents(tokenizer, texts[:3])
    assert proofs.load_back(tmp_path, model, {"input_ids": torch.arange(20)[None]}, texts[:3], encoded)().passed


def test_load_back_compares_nothing_at_padding(model, tokenizer, tmp_path, monkeypatch):
    answers = []  # of the fresh process, which is the same for both

    def once(**request):
        answers.append(answers[0] if answers else fresh_load.fresh_load(**request))
        return lambda: answers[0]

    monkeypatch.setattr(proofs, "begin_fresh_load", once)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, 12:] = 0

    def check(moved):
        def move(module, args, output):
            output.logits[0, moved] += 1.0

        hook = model.register_forward_hook(move)
        inputs = {"input_ids": torch.arange(40).view(2, 20), "attention_mask": mask}
        found = proofs.load_back(tmp_path, model, inputs, [], [])()
        hook.remove()
        return found.passed

    assert check(moved=15)
    assert not check(moved=11)
    assert len(answers) == 2


def test_a_failed_proof_stops_the_run_and_a_skipped_one_is_reported():
    bad = {"one": lambda: Proof(True, "fine", 1e-7), "two": lambda: Proof(False, "logits differ")}
    with pytest.raises(ValueError, match="the proof two failed: logits differ"):
        prove(bad, skip=[], say=lambda line: None)
    found = prove(bad, skip=["two"], say=lambda line: None)
    assert found["one"] == {"passed": True, "said": "fine", "largest_difference": 1e-7}
    assert found["two"] == {"passed": None, "said": "switched off"}


def test_the_first_proof_of_another_process_begins_at_once_and_the_others_in_their_turn():
    happened = []

    def proof(name):
        def start():
            happened.append(f"{name} begins")
            return lambda: happened.append(f"{name} ends") or Proof(True, name)

        return start

    all_ = {name: proof(name) for name in ("skipped", "one", "two")}
    waiting = proofs.begin(all_, skip=["skipped"])
    happened.append("samples")
    found = prove(waiting, skip=["skipped"], say=lambda line: None)
    assert happened == ["one begins", "samples", "one ends", "two begins", "two ends"]
    assert [proof["passed"] for proof in found.values()] == [None, True, True]


def test_a_fresh_process_that_cannot_start_is_a_proof_that_failed(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(fresh_load, "__file__", str(tmp_path / "none.py"))
    found = proofs.load_back(tmp_path, model, {"input_ids": torch.arange(20)[None]}, ["a" * 10**6], [])()
    assert not found.passed
    assert "none.py" in found.said


def test_the_fresh_process_ends_with_the_one_that_started_it():
    start = "import os, subprocess, sys; subprocess.run([sys.executable, '-I', sys.argv[1], str(os.getpid())])"
    command = [sys.executable, "-c", start, fresh_load.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:  # it waits for a request that never comes
        while not (children := psutil.Process(parent.pid).children()):
            time.sleep(0.05)
        parent.kill()
        assert not psutil.wait_procs(children, timeout=30)[1]
