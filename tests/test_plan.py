"""A plan counts what the real model, optimizer and step take, and proposes what fits first; budgets hold."""

import copy
import math
import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import init_empty_weights
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_lm import signals
from hf_lm.arguments import TrainingArguments
from hf_lm.cli import main
from hf_lm.data.packing import Blocks, collate_blocks
from hf_lm.evaluation.perplexity import windows
from hf_lm.launching import EXIT_OUT_OF_BUDGET
from hf_lm.models.adapters import add_lora
from hf_lm.models.bert import new_bert
from hf_lm.models.recurrent import RecurrentConfig, RecurrentLMHeadModel
from hf_lm.planning.calibration import random_values
from hf_lm.planning.changes import Variation, propose, variations_of
from hf_lm.planning.devices import GIB, Device, find_gpu
from hf_lm.planning.engines import Engine
from hf_lm.planning.memory import quantized
from hf_lm.planning.plan import make_plan
from hf_lm.planning.resolve import resolve
from hf_lm.planning.terminal import show_plan
from hf_lm.reporting.report import plan_in_words
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tasks.length import BUILT_IN
from hf_lm.tasks.losses import label_loss, next_token_loss, span_loss
from hf_lm.tokenization.tokenizer import new_tokenizer
from hf_lm.training.budget import WRITING, StopAtBudget
from hf_lm.training.checkpoints import find_checkpoint
from hf_lm.training.estimate import fresh_optimizer, work_of
from hf_lm.training.fake_step import Step, filled, measure_step, parameters_by_part
from hf_lm.training.monitor import flops_per_token
from hf_lm.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
BERT = BertConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, **SPECIAL
)
SHAPES = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=2, **SPECIAL)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **SPECIAL
        )
    ),
    "bert-class": lambda: BertForSequenceClassification(BERT),
    "bert-span": lambda: BertForQuestionAnswering(BERT),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            **{"vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64},
            **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, **SPECIAL},
            **{"decoder_start_token_id": 0, "forced_eos_token_id": None},
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=96, d_model=32, num_layers=1, d_ff=64, d_kv=16, num_heads=2, decoder_start_token_id=0, **SPECIAL
        )
    ),
    "bert2bert": lambda: EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(BERT, BERT)),
    "lstm": lambda: RecurrentLMHeadModel(RecurrentConfig(vocab_size=96, n_embd=32, hidden_size=32, **SPECIAL)),
}


def batch_for(name: str, rows: int = 4, time: int = 16) -> dict[str, torch.Tensor]:
    ids, mask = torch.full((rows, time), 5), torch.ones(rows, time, dtype=torch.long)
    if name in ("bart", "t5", "bert2bert"):
        half, seen = ids[:, : time // 2], mask[:, : time // 2]
        written = {"decoder_input_ids": half, "decoder_attention_mask": seen, "labels": half}
        return {"input_ids": ids, "attention_mask": mask} | written
    if name == "bert-class":
        return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 2}
    if name == "bert-span":
        return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :2] % 2}
    return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(time).repeat(rows, 1)}


def loss_for(name: str):
    if name == "bert-span":
        return span_loss
    return next_token_loss if name in ("gpt2", "llama", "lstm") else label_loss


def step(name: str, model=None, *, rows: int = 4, time: int = 16, **options):
    return measure_step(
        model or SHAPES[name](),
        batch_for(name, rows, time),
        loss=loss_for(name),
        optimizer=lambda model: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]),
        **options,
    )


# Parameters


@pytest.mark.parametrize("name", SHAPES)
def test_parts_sum_to_the_parameters_of_the_real_model_though_nothing_was_built(name):
    real = SHAPES[name]()
    with init_empty_weights():
        empty = SHAPES[name]()
    empty.tie_weights()
    parts = parameters_by_part(empty)
    assert all(param.is_meta for param in empty.parameters())
    assert sum(part["parameters"] for part in parts.values()) == sum(p.numel() for p in real.parameters())
    assert parts == parameters_by_part(real)


def test_parts_of_a_gpt2_are_those_of_its_formula_and_lora_trains_what_peft_trains():
    model = SHAPES["gpt2"]()
    parts = {name: part["parameters"] for name, part in parameters_by_part(model).items()}
    width, vocabulary, positions, layers = 32, 96, 32, 2
    assert parts == {
        "embedding": (vocabulary + positions) * width,  # the head is tied to it
        "attention": layers * (4 * width * width + 4 * width),
        "mlp": layers * (8 * width * width + 5 * width),
        "norm": (2 * layers + 1) * 2 * width,
    }
    adapted = add_lora(model, rank=2)
    found = parameters_by_part(adapted)
    assert sum(part["trainable"] for part in found.values()) == adapted.get_nb_trainable_parameters()[0]
    assert found["embedding"]["trainable"] == found["norm"]["trainable"] == 0


def test_a_model_filled_at_random_runs_and_what_counts_positions_is_no_random_number():
    with torch.device("meta"):
        empty = SHAPES["bert-class"]()
    assert any(not buffer.is_floating_point() for buffer in empty.buffers())
    model = filled(empty, lambda tensor: random_values(tensor, torch.device("cpu")))
    logits = model(input_ids=batch_for("bert-class")["input_ids"]).logits
    assert logits.shape == (4, 2)
    assert logits.isfinite().all()


# FLOPs


@pytest.mark.parametrize("name", ["gpt2", "bert-class", "bart"])
def test_flops_of_a_fake_step_are_those_that_torch_counts_in_a_real_one(name):
    model = SHAPES[name]()
    model.set_attn_implementation("eager")  # whose products torch's own counter knows on a CPU
    batch = batch_for(name)
    with FlopCounterMode(display=False) as counter:
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
        loss_for(name)(outputs, batch).backward()
    assert sum(step(name, model).flops.values()) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["gpt2", "lstm"])
def test_flops_are_those_of_the_formula_that_utilisation_is_a_share_of(name):
    model = SHAPES[name]()
    counted = sum(step(name, model, rows=8, time=32).flops.values())
    assert counted == pytest.approx(8 * 32 * flops_per_token(model, 32), rel=0.05)


def test_lora_needs_less_backward_and_checkpointing_a_second_forward():
    whole, lora = step("gpt2"), step("gpt2", add_lora(SHAPES["gpt2"](), rank=2))
    assert lora.flops["backward"] < 0.75 * whole.flops["backward"]
    saving = step("gpt2", checkpointing=True)
    head = 2 * 4 * 16 * 32 * 96  # the logits are not computed twice
    assert saving.flops["forward"] == whole.flops["forward"]
    assert saving.flops["backward"] == whole.flops["backward"] + whole.flops["forward"] - head


# Memory


@pytest.mark.parametrize("muon", [0.0, 1e-2])
def test_optimizer_bytes_are_those_of_the_real_state(muon, model, stream, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, muon_learning_rate=muon, report_to="none")
    trainer = Trainer(
        model, args, loss=next_token_loss, shifts_labels=True, measure=lambda model: {}, context=32,
        train_dataset=Blocks(stream, block_size=32, isolate=True), data_collator=collate_blocks,
    )  # fmt: skip
    batch = collate_blocks([trainer.train_dataset[i] for i in range(2)])
    planned = measure_step(
        model, batch, loss=next_token_loss, optimizer=lambda model: fresh_optimizer(trainer, model)
    ).memory
    assert trainer.optimizer is None
    optimizer = trainer.create_optimizer()
    trainer.compute_loss(model, batch).backward()
    optimizer.step()
    pair = getattr(optimizer, "pair", (optimizer,))
    state = [tensor for one in pair for each in one.state.values() for tensor in each.values()]
    assert planned["optimizer"] == sum(tensor.numel() * tensor.element_size() for tensor in state)
    assert planned["weights"] >= sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_memory_grows_with_the_batch_and_every_family_can_be_planned(name):
    few, more = step(name, rows=2), step(name, rows=6)
    assert few.peak < more.peak
    assert few.memory["optimizer"] == more.memory["optimizer"]


def test_activations_of_a_fake_step_are_what_autograd_keeps_in_a_real_one():
    model, batch = SHAPES["gpt2"](), batch_for("gpt2", rows=8, time=32)
    parameters, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        loss = next_token_loss(outputs, batch)
    planned = step("gpt2", model, rows=8, time=32).memory
    assert loss.requires_grad
    # At the peak a few tensors live that are not kept: what the backward of the loss writes, and reads.
    assert (
        sum(kept.values()) <= planned["activations"] + planned["logits"] + planned["batch"] < 1.6 * sum(kept.values())
    )


def test_a_signal_waits_for_the_end_of_a_fake_step(monkeypatch, capsys):
    # Where C++ calls Python, torch aborts if that raises SystemExit: 3 of 150 Ctrl-C at random moments did that.
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(signals, "_ended", False)
    # Nor does a thread that another test has started in this process (end_on_signals) hear of it.
    heard = signal.set_wakeup_fd(-1)
    before = {number: signal.signal(number, signals._end) for number in signals.endings()}
    losses = []

    def loss(outputs, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        losses.append(next_token_loss(outputs, batch))
        return losses[-1]

    try:
        with pytest.raises(SystemExit) as ended:
            measure_step(
                SHAPES["gpt2"](),
                batch_for("gpt2"),
                loss=loss,
                optimizer=lambda model: torch.optim.AdamW(model.parameters()),
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(heard, warn_on_full_buffer=False)
    assert (ended.value.code, len(losses)) == (143, 1)
    assert "ended by SIGTERM" in capsys.readouterr().err


def test_checkpointing_lora_accumulation_and_half_precision_change_what_they_should():
    plain, saving = step("llama", rows=16, time=32).memory, step("llama", rows=16, time=32, checkpointing=True).memory
    assert saving["activations"] < 0.7 * plain["activations"]
    half = step("llama", rows=16, time=32, dtype=torch.bfloat16).memory
    assert half["activations"] < plain["activations"]
    assert half["weights"] == plain["weights"]
    assert step("gpt2", accumulation=2).memory["gradients"] > step("gpt2").memory["gradients"]
    adapted = add_lora(SHAPES["llama"](), rank=2)
    lora = step("llama", adapted)
    assert lora.memory["optimizer"] < 0.2 * step("llama").memory["optimizer"]
    assert lora.memory["weights"] > quantized(lora, adapted, 8).memory["weights"] > 0
    assert quantized(lora, adapted, 8).memory["weights"] > quantized(lora, adapted, 4).memory["weights"]


# Evaluations


class Documents:
    """As much of a language modelling task as its plan asks for: validation of long documents, test of short ones."""

    train_lengths, tokens_measured = LanguageModelling.train_lengths, LanguageModelling.tokens_measured
    report_seconds = LanguageModelling.report_seconds

    def __init__(self) -> None:
        self.block_size, self.eval_stride, self.splits = 32, 8, ("train", "validation", "test")
        self.lengths = {"validation": [1000, 700, 900], "test": [20, 10, 30]}
        self.train_dataset = SimpleBlocks(100, 32)
        self.scored = {split: SimpleStream(np.array(each)) for split, each in self.lengths.items()}


class SimpleBlocks(list):
    def __init__(self, count: int, block_size: int) -> None:
        super().__init__(range(count))
        self.block_size = block_size


class SimpleStream(list):
    def __init__(self, lengths: np.ndarray) -> None:
        super().__init__(lengths)
        self.lengths, self.total = lengths, int(lengths.sum())


def test_the_tokens_of_an_evaluation_are_those_of_its_windows():
    task = Documents()
    for split, lengths in task.lengths.items():
        fed = [end - start for n in lengths for start, end, _ in windows(n, block_size=32, stride=8)]
        assert task.tokens_measured(split) == pytest.approx(sum(fed), rel=0.08), split


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [
        ({"eval_strategy": "steps", "eval_steps": 5}, 2),  # the second is the measurement at the end
        ({"eval_strategy": "steps", "eval_steps": 4}, 3),  # after 4 and 8 steps, and at the end
        ({"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True, "save_steps": 4}, 2),
        ({"eval_strategy": "steps", "eval_steps": 0.2}, 5),
        ({"eval_strategy": "no"}, 1),
        ({"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True}, 3),
        ({"eval_strategy": "steps", "eval_steps": 5, "sweep": 3}, 5),  # each rate that is tried once, at its end
        ({"eval_strategy": "steps", "eval_steps": 5, "sweep": 3, "early_stopping_patience": 9}, 11),
        ({"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}, 3),
    ],
)
def test_validation_is_measured_at_each_evaluation_and_test_once(options, evaluations, tmp_path):
    task, options = Documents(), {"max_steps": 10, "per_device_train_batch_size": 10} | options
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    work = work_of(task, args)
    assert work.measured == evaluations * task.tokens_measured("validation") + task.tokens_measured("test")
    # an evaluation is a forward pass over what it reads
    flops = {"forward": 10 * work.longest, "backward": 20 * work.longest}
    assert work.seconds(Step({}, flops, trainable=0, rows=1), 1e3)["evaluation"] == pytest.approx(
        work.measured * 10 / 1e3
    )


def test_the_rates_that_a_sweep_tries_take_as_long_as_the_training_itself(tmp_path):
    options = {"max_steps": 10, "per_device_train_batch_size": 10, "output_dir": str(tmp_path), "use_cpu": True}
    alone, swept = (work_of(Documents(), TrainingArguments(**options, sweep=sweep)) for sweep in (0, 3))
    assert (swept.steps, swept.tokens) == (alone.steps, alone.tokens)
    step = Step({}, {"forward": 1, "backward": 2}, trainable=0, rows=1)
    assert swept.seconds(step, 1e3)["training"] == pytest.approx(4 * alone.seconds(step, 1e3)["training"])


# What fits


def variations(*needs: tuple[str, int, int]) -> tuple[list[Variation], object]:
    """Variations by name with bytes that they need at rest and for each row."""
    table = {name: (rest, each) for name, rest, each in needs}
    made = [Variation(name, torch.nn.Identity(), False, 0, Engine(), {name: True} if name else {}) for name in table]
    return made, lambda one, rows: table[one.name][0] + rows * table[one.name][1]


def test_the_change_proposed_is_the_first_in_order_that_fits():
    made, needs = variations(("", 50, 10), ("checkpointing", 50, 4), ("LoRA", 10, 4))
    proposed = propose(made, needs, 100, rows=16)
    assert [change.fits for change in proposed] == [False, True]
    assert proposed[-1].options == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert proposed[-1].needed == 90
    # where not even one row fits, the next kind of change is tried, first with the batch as it is
    proposed = propose(made, needs, 55, rows=16)
    assert proposed[-1].options == {
        "checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
    }
    proposed = propose(made, needs, 45, rows=8, accumulation=2)
    assert [change.fits for change in proposed] == [False] * (len(proposed) - 1) + [True]
    assert proposed[-1].options == {"LoRA": True}
    assert not any(change.fits for change in propose(made, needs, 5, rows=16))


def test_gpus_are_found_however_they_are_spelt():
    assert find_gpu("NVIDIA H100").name == find_gpu("h100").name == "h100"
    assert find_gpu("A100 80GB").name == "a100-80gb"
    assert find_gpu("RTX 4090").name == "rtx4090"
    with pytest.raises(ValueError, match=r"no such GPU is known.*Did you mean 'h100'\?"):
        find_gpu("h10")


# A recipe's plan


@pytest.fixture(scope="module")
def text(texts, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"= {i} =\n{text}" for i, text in enumerate(texts * 4)), encoding="utf-8")
    return path


@pytest.fixture
def tiny(text, tmp_path) -> list[str]:
    options = {"dataset": text, "document_start": "^= ", "vocab_size": 320, "n_layer": 2, "n_head": 2, "n_embd": 16}
    options |= {"block_size": 32, "max_steps": 8, "per_device_train_batch_size": 4, "eval_steps": 4, "save_steps": 4}
    options |= {"use_cpu": True, "bf16": False, "output_dir": tmp_path / "out", "warmup_steps": 2}
    return [token for key, value in options.items() for token in (f"--{key}", str(value))]


def test_a_plan_is_the_recipes_own_run_and_leaves_nothing_behind(tiny, tmp_path):
    hook = sys.excepthook
    run = resolve("pretrain", tiny)
    assert sys.excepthook is hook
    assert all(param.is_meta for param in run.model.parameters())
    assert run.model.lm_head.weight is run.model.transformer.wte.weight
    plan = make_plan(run, Device("cpu", 64 * GIB, {}), present=True)
    assert plan.work.tokens == 8 * 4 * 32
    assert plan.work.tokens_per_epoch == len(run.task.train_dataset) * 32
    assert plan.fits
    assert plan.memory["weights"] >= 4 * run.model.num_parameters()
    assert not (tmp_path / "out").exists()
    small = make_plan(run, Device("cpu", 10, {}), present=True)
    assert not small.fits
    assert "does NOT fit" in show_plan(small)
    card = find_gpu("t4")
    priced = make_plan(resolve("pretrain", [*tiny, "--price_per_hour", "2"]), card, present=False)
    assert priced.flops == plan.flops
    assert priced.price == pytest.approx(2 * priced.seconds / 3600)
    assert priced.energy == pytest.approx(70 * priced.seconds / 3.6e6)


def test_a_plan_without_steps_is_as_long_as_the_run_would_be(tiny):
    i = tiny.index("--max_steps")
    options = [*tiny[:i], *tiny[i + 2 :]]
    run = resolve("pretrain", options)
    text, parameters = run.task.streams["train"].total, run.model.num_parameters()
    assert make_plan(run, Device("cpu", 64 * GIB, {}), present=True).work.tokens == pytest.approx(4 * text, rel=0.02)
    long = resolve("pretrain", options, tokens=10**6)  # 20 tokens for each parameter are fewer than four passes
    for devices in (1, 4):
        plan = make_plan(long, find_gpu("h100"), present=False, engine=Engine("ddp", devices))
        assert plan.work.tokens == pytest.approx(20 * parameters, rel=0.02)
    first = make_plan(resolve("pretrain", ["--use_cpu"]), Device("cpu", 64 * GIB, {}), present=True)
    assert first.work.steps == BUILT_IN


def test_a_plan_for_several_devices_divides_the_work_and_sums_the_power(tiny):
    alone, shared = (
        make_plan(resolve("pretrain", tiny), find_gpu("h100"), present=False, engine=engine)
        for engine in (Engine(), Engine("fsdp2", 8, 2))
    )
    # as many steps, each of eight times the rows; an epoch's last step is not full
    assert shared.work.tokens == pytest.approx(8 * alone.work.tokens, rel=0.02)
    assert shared.times["training"] == pytest.approx(alone.times["training"], rel=0.02)
    assert shared.energy == pytest.approx(8 * 700 * shared.seconds / 3.6e6)
    assert "FSDP2 over 8 devices, 2 replicas of 4" in show_plan(shared)
    assert "gathered" in show_plan(shared)
    assert shared.report()["engine"]["replicas"] == 2
    with pytest.raises(ValueError, match="ZeRO flattens weights"):
        make_plan(resolve("pretrain", tiny), find_gpu("h100"), present=False, engine=Engine("zero3", 8))


def test_a_plan_accumulates_to_the_rows_of_a_step_that_are_asked_for(tiny):
    rows = [*tiny, "--rows_per_step", "16"]  # of 4 at once
    for devices, accumulated in ((1, 4), (2, 2)):
        plan = make_plan(resolve("pretrain", rows), find_gpu("h100"), present=False, engine=Engine("ddp", devices))
        assert plan.work.tokens == pytest.approx(8 * 16 * 32, rel=0.02)
        assert plan.report()["accumulation"] == accumulated
        assert f"{accumulated} accumulated" in show_plan(plan)
    with pytest.raises(ValueError, match="--rows_per_step 16: 8 processes with 4 rows each read 32 at once"):
        make_plan(resolve("pretrain", rows), find_gpu("h100"), present=False, engine=Engine("ddp", 8))


def test_a_plan_refuses_what_the_run_would_refuse_and_says_what_it_does_not_count(tiny, tmp_path):
    tokenizer = new_tokenizer(["a b c"], vocab_size=300)
    for part in (new_bert(tokenizer, labels=[]), tokenizer):
        part.save_pretrained(tmp_path / "bert")
    card = find_gpu("t4")
    sides = resolve("translation", ["--use_cpu", "true", "--model", str(tmp_path / "bert")], tokens=10**5)
    with pytest.raises(ValueError, match="FSDP2 cannot shard EncoderDecoderModel"):
        make_plan(sides, card, present=False, engine=Engine("fsdp2", 8))
    assert all(variation.engine.name == "ddp" for variation in variations_of(sides, Engine()))
    sampled = make_plan(resolve("pretrain", [*tiny, "--sampled_softmax", "64"]), card, present=False)
    assert "of which --sampled_softmax needs a part" in show_plan(sampled)


def test_calibration_runs_real_steps_and_takes_their_time(tiny, tmp_path):
    plan = make_plan(resolve("pretrain", tiny), Device("cpu", 64 * GIB, {}), present=True, calibrate=True)
    assert plan.calibrated
    assert plan.times["training"] > 0
    assert plan.times["evaluation"] > 0
    assert "Measured in a few steps here" in show_plan(plan)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["sentiment", "question_answering", "translation"])
def test_with_tokens_no_data_is_read_and_every_row_is_as_long_as_it_may_be(recipe, texts, monkeypatch):
    long = [{"module": str(i), "text": " ".join(texts[i:] + texts[:i])} for i in range(len(texts))]
    monkeypatch.setattr("hf_lm.data.demos.documentation.documentation", lambda: long)
    options = ["--dataset", "someone/unreachable", "--use_cpu", "true", "--num_train_epochs", "1"]
    run = resolve(recipe, options, tokens=100_000)
    plan = make_plan(run, find_gpu("h100"), present=False)
    assert plan.work.tokens_per_epoch == pytest.approx(100_000, rel=0.01)
    limit = run.arguments.get("max_length") or run.arguments["max_source_length"] + run.arguments["max_target_length"]
    assert plan.work.longest == plan.report()["rows"] * limit
    assert plan.fits


def test_bad_input_is_one_line(tiny, tmp_path, capsys):
    def said(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["plan", *map(str, arguments)])
        assert stopped.value.code in (1, 2)
        lines = capsys.readouterr().err.strip().splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1, lines
        return lines[-1]

    assert "Did you mean 'pretrain'?" in said("pretrane")
    assert "Did you mean 'h200'?" in said("pretrain", "--gpu", "h20")
    assert "Did you mean --learning_rate?" in said("pretrain", "--learning_rat", 3)
    assert "--tokens N" in said("pretrain", "--dataset", "someone/unreachable")
    assert "--tokens N" in said("sentiment", "--dataset", "someone/unreachable")
    assert "two devices" in said("pretrain", "--gpu", "h100", "--device", "cpu")
    assert "on this machine" in said("pretrain", "--gpu", "h100", "--calibrate")
    assert "--max_cost needs --price_per_hour" in said("pretrain", "--max_cost", 3)
    other = tmp_path / "other.py"
    other.write_text("print('no training')")
    assert "ended without calling fit" in said(other)


# Budgets


@pytest.fixture
def make_trainer(model, stream, tmp_path):
    def make(max_steps: int = 12) -> Trainer:
        args = TrainingArguments(
            output_dir=str(tmp_path / "run"), use_cpu=True, max_steps=max_steps, learning_rate=1e-2, disable_tqdm=True,
            eval_strategy="epoch", report_to="none", save_strategy="no", per_device_train_batch_size=4,
        )  # fmt: skip
        args.run = {"max_steps": max_steps}
        return Trainer(
            copy.deepcopy(model), args, loss=next_token_loss, shifts_labels=True, measure=lambda model: {"loss": 1.0},
            context=32, train_dataset=Blocks(stream, block_size=32, isolate=True), data_collator=collate_blocks,
        )  # fmt: skip

    return make


def test_a_budget_ends_training_with_a_complete_checkpoint_that_resumes_to_the_same_weights(make_trainer, tmp_path):
    transformers.set_seed(0)
    uninterrupted = make_trainer()
    uninterrupted.train()
    trainer, now = make_trainer(), [0.0]
    work, write = trainer.training_step, trainer._save_checkpoint

    def slow_step(*arguments, **keywords):
        now[0] += 2
        return work(*arguments, **keywords)

    def slow_saving(*arguments, **keywords):
        write(*arguments, **keywords)
        now[0] += 3

    trainer.training_step, trainer._save_checkpoint = slow_step, slow_saving
    trainer.measure = lambda model: pytest.fail("there is no time for an evaluation")
    budget = StopAtBudget(20.0, started=0.0, checkpoint_bytes=int(3 * WRITING), clock=lambda: now[0])
    trainer.add_callback(budget)
    trainer.train()
    assert budget.stopped
    stopped = trainer.state.global_step
    assert stopped == 8  # after it 4 s are left: a step and the saving would not be certain to fit
    assert now[0] <= 20
    checkpoint = find_checkpoint("latest", tmp_path / "run")
    assert checkpoint.name == f"checkpoint-{stopped}"
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 12
    pairs = zip(uninterrupted.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_budget_that_is_not_reached_changes_nothing(make_trainer, tmp_path):
    trainer = make_trainer(4)
    budget = StopAtBudget(math.inf, started=0.0, checkpoint_bytes=0)
    trainer.add_callback(budget)
    trainer.train()
    assert not budget.stopped
    assert trainer.state.global_step == 4
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_run_over_its_budget_says_so_at_the_start_and_how_to_go_on_at_the_end(tiny, tmp_path, capsys, monkeypatch):
    short = ["--max_hours", "0.0001", "--skip_proofs", "leakage", "--output_dir", str(tmp_path / "my run")]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *tiny, *short])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "recipes" / "pretrain.py"), run_name="__main__")
    assert stopped.value.code == EXIT_OUT_OF_BUDGET
    said = capsys.readouterr().out
    assert "more than its budget of 0 s: it will stop with a checkpoint" in said
    assert "checkpoint-1 is complete" in said
    assert f"--config '{tmp_path / 'my run' / 'run.yaml'}' --resume_from_checkpoint latest" in said
    assert find_checkpoint("latest", tmp_path / "my run").name == "checkpoint-1"


def test_the_report_says_plan_and_measurement_in_one_line():
    report = {"seconds": 130.0, "speed": {"peak_memory_bytes": 2**30}}
    assert plan_in_words(report) == ""
    report["plan"] = {"seconds": 100.0, "peak_memory_bytes": 2**29}
    assert plan_in_words(report) == "Planned 100 s and 512 MiB, measured 2 minutes and 1,024 MiB"
