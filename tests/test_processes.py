"""Several processes train and measure as one does: the same rows a step, each counted once, and the same numbers."""

from dataclasses import make_dataclass
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from on_gloo import on_gloo
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)

from hf_lm.arguments import TrainingArguments, parse_arguments
from hf_lm.data.batches import pad_batch
from hf_lm.evaluation.likelihood import token_log_probs
from hf_lm.models.bert import new_bert
from hf_lm.models.encoder_decoder import new_bart
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tasks.losses import next_token_loss
from hf_lm.training.processes import (
    check_engine,
    check_processes,
    empty_copy,
    keep_rows_per_step,
    on_main_process,
    prepare_sharding,
    with_weights,
)
from hf_lm.training.trainer import Trainer

ROWS = 19  # no multiple of what a step reads


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset or self.train_dataset)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def train(rank, folder, tokenizer, processes, batch, stop=0, trainer_class=InOrder):
    """The losses of two epochs, 19 rows each, and of rows; with `stop` of a run that was stopped there and resumed."""
    run = folder, tokenizer, processes, batch, trainer_class
    if stop:
        losses, _ = train_until(stop, *run)
        resumed, scores = train_until(0, *run, checkpoint=f"checkpoint-{stop}")
        return losses[:stop] + resumed[stop:], scores
    return train_until(0, *run)


def train_until(stop, folder, tokenizer, processes, batch, trainer_class, checkpoint=""):
    for state in (AcceleratorState, GradientState, PartialState):  # of the process that was forked
        state._reset_state()
    torch.manual_seed(0)
    model = new_gpt2(tokenizer, n_layer=1, n_head=2, n_embd=16, block_size=32, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 12, (ROWS,), generator=generator).tolist()
    rows = [torch.randint(0, len(tokenizer), (length,), generator=generator).tolist() for length in lengths]
    features = [{"input_ids": row, "labels": row} for row in rows]
    trainer = trainer_class(
        model,
        TrainingArguments(
            train_sampling_strategy="group_by_length",
            output_dir=str(folder / f"{processes}"),
            use_cpu=True,
            ddp_backend="gloo",
            num_train_epochs=2,
            per_device_train_batch_size=batch,
            learning_rate=1e-2,
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="steps" if stop else "no",
            save_steps=stop or 1,
        ),
        loss=next_token_loss,
        shifts_labels=True,
        measure=lambda model: {"loss": 1.0},
        context=32,
        train_dataset=features,
        data_collator=lambda features: pad_batch(features, pad_id=0),
    )
    trainer.add_callback(StopAt(stop))
    trainer.train(resume_from_checkpoint=str(folder / f"{processes}" / checkpoint) if checkpoint else None)
    assert trainer.args.world_size == processes
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    scores = token_log_probs(trainer.model, features[:5], processes=trainer.accelerator, max_rows=1)
    return losses, [float(row.sum()) for row in scores]


def test_two_processes_train_and_measure_as_one_and_count_no_row_of_an_epoch_twice(tokenizer, tmp_path):
    ((losses, scores),) = on_gloo(1, train, tmp_path, tokenizer, 1, 8, seconds=40)
    two = on_gloo(2, train, tmp_path, tokenizer, 2, 4)
    assert len(losses) == 6
    for losses_of_rank, scores_of_rank in two:
        assert losses_of_rank == pytest.approx(losses, rel=1e-5)
        assert scores_of_rank == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize("trainer_class", [InOrder, Trainer])
def test_a_later_epoch_that_is_resumed_in_its_middle_counts_no_row_twice(trainer_class, tokenizer, tmp_path):
    ((losses, scores),) = on_gloo(1, train, tmp_path, tokenizer, 1, 8, 0, trainer_class, seconds=40)
    for losses_of_rank, scores_of_rank in on_gloo(2, train, tmp_path, tokenizer, 2, 4, 4, trainer_class):
        assert losses_of_rank == pytest.approx(losses, rel=1e-5)
        assert scores_of_rank == pytest.approx(scores, rel=1e-4)


def parse(rank, tokens):
    for state in (AcceleratorState, GradientState, PartialState):  # of the process that was forked
        state._reset_state()
    try:
        parse_arguments(make_dataclass("Arguments", []), argv=["--use_cpu", "--debug", *tokens[rank]])
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ("--seed 1", "--seed 2", "seed 1 and 2"),
        ("--learning_rate 1e-3", "", "learning_rate 0.001 and None"),
        ("", "--resume_from_checkpoint latest", "resume_from_checkpoint None and 'latest'"),
        ("--output_dir a --report_to none --seed 1", "--output_dir b --seed 1", ""),
    ],
)
def test_processes_that_are_started_with_other_arguments_are_refused(first, second, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = (
        f"process 1 was started with other arguments than process 0: {named}. Start the same command on each machine."
    )
    assert on_gloo(2, parse, [first.split(), second.split()]) == [said if named else ""] * 2


def compare(rank, folders, inputs):
    PartialState._reset_state()
    PartialState(cpu=True, backend="gloo")
    try:
        check_processes(folders[rank], inputs[rank])
    except ValueError as error:
        return str(error)
    return ""


def test_a_process_with_other_data_ends_all(tmp_path, capfd):
    (tmp_path / "other").mkdir()
    same = {"data": "a"}
    assert on_gloo(2, compare, [tmp_path, tmp_path], [same, same]) == ["", ""]
    assert capfd.readouterr().out == ""
    message = "process 1 reads other data than process 0: data a and b. Make them equal."
    assert on_gloo(2, compare, [tmp_path, tmp_path], [same, {"data": "b"}]) == [message] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def arguments(processes, **given):
    settings = {"rows_per_step": 0, "train_batch_size": 4, "gradient_accumulation_steps": 1, "run": {}}
    settings |= {"chosen": set()}
    settings |= {"world_size": processes, "data_parallel": processes}
    return SimpleNamespace(**settings | {"resume_with_changes": False} | given)


@pytest.mark.parametrize(("before", "now", "steps"), [((2, 1), (1, 1), 2), ((1, 2), (2, 2), 1), ((4, 1), (2, 1), 2)])
def test_a_run_resumed_by_other_processes_keeps_its_rows_per_step(before, now, steps, tmp_path):
    first = arguments(before[0], gradient_accumulation_steps=before[1])
    assert keep_rows_per_step(first, None) == ""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(first.run))
    again = arguments(now[0], gradient_accumulation_steps=now[1])
    assert "rows a step" in keep_rows_per_step(again, tmp_path)
    assert again.gradient_accumulation_steps == steps
    assert again.run == first.run == {"rows_per_step": 4 * before[0] * before[1]}


def test_processes_that_share_rows_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 4))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    assert (args.data_parallel, args.rows_in_step) == (4, 32)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    assert (args.data_parallel, args.rows_in_step) == (2, 16)
    keep_rows_per_step(args, None)
    assert args.run["rows_per_step"] == 16


def test_a_length_that_followed_from_other_rows_is_that_of_the_resumed_run(tmp_path):
    (tmp_path / "run.yaml").write_text("rows_per_step: 8\nmax_steps: 100\neval_steps: 34\n")
    chosen = {"max_steps", "eval_steps", "save_steps"}
    again = arguments(1, chosen=chosen, max_steps=200, eval_steps=67, save_steps=67)
    keep_rows_per_step(again, tmp_path)
    assert (again.max_steps, again.eval_steps, again.save_steps) == (100, 34, 67)
    assert again.run == {"rows_per_step": 8, "max_steps": 100, "eval_steps": 34}
    given = arguments(1, max_steps=200)
    keep_rows_per_step(given, tmp_path)
    assert given.max_steps == 200


def test_rows_per_step_that_processes_do_not_divide_are_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("rows_per_step: 8\n")
    with pytest.raises(ValueError, match=r"rows_per_step 8: 3 processes with 4 rows each read 12 at once"):
        keep_rows_per_step(arguments(3), tmp_path)
    with pytest.raises(ValueError, match=r"--rows_per_step 10: 1 processes with 4 rows"):
        keep_rows_per_step(arguments(1, rows_per_step=10), None)
    changed = arguments(3, resume_with_changes=True)
    assert keep_rows_per_step(changed, tmp_path) == ""
    assert changed.run == {"rows_per_step": 12}


def trainer_of(
    model, *, muon=0.0, fsdp=0, one_reads=False, deepspeed=None, tensor=1, context=1, layers=None, **options
):
    plugin = SimpleNamespace(
        fsdp_version=fsdp, transformer_cls_names_to_wrap=layers, cpu_ram_efficient_loading=one_reads
    )
    state = SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=deepspeed)
    options = {"sampled_softmax": 0, "teachers": (), "sweep": 0} | options
    return SimpleNamespace(
        model=model,
        args=SimpleNamespace(muon_learning_rate=muon, world_size=2, **options),
        accelerator=SimpleNamespace(state=state),
        is_fsdp_enabled=fsdp > 0,
        is_deepspeed_enabled=deepspeed is not None,
        get_tp_size=lambda: tensor,
        get_cp_size=lambda: context,
    )


def new_llama():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=1, **sizes))


def ours(trainer):
    """A stand-in of our own Trainer, not of one of TRL's."""
    own = Trainer.__new__(type("Own", (Trainer,), {"is_fsdp_enabled": True, "is_deepspeed_enabled": False}))
    vars(own).update(vars(trainer))
    return own


def task(*, isolate=True):
    features = [{"input_ids": [1, 2], "position_ids": [0, 0]} if isolate else {"input_ids": [1, 2]}]
    return SimpleNamespace(train_dataset=features, collate=lambda features: features[0])


def zero(stage, **config):
    return SimpleNamespace(zero_stage=stage, deepspeed_config=config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp": 1}, "FSDP1 is not supported"),
        ({"deepspeed": zero(2), "muon": 1e-2}, "Muon needs matrices"),
        ({"deepspeed": zero(2, optimizer={"type": "Muon"})}, "DeepSpeed's own Muon"),
        ({"tensor": 2}, "tensor parallelism is not supported"),
        ({"context": 2}, "--packing concatenate"),
        ({"fsdp": 2, "sampled_softmax": 64}, "--sampled_softmax"),
        ({"deepspeed": zero(2), "sampled_softmax": 64}, "--sampled_softmax"),
        ({"context": 2, "sampled_softmax": 64}, "--sampled_softmax"),
        ({"context": 2, "teachers": ["out/one"]}, "--teachers"),
        ({"fsdp": 2, "one_reads": True, "sweep": 3}, "fsdp_cpu_ram_efficient_loading: --sweep"),
    ],
)
def test_what_would_train_wrongly_without_an_error_is_refused_in_one_line(settings, message, model):
    with pytest.raises(ValueError, match=message) as caught:
        check_engine(trainer_of(model, **settings), task())
    assert "\n" not in str(caught.value)


def test_what_is_right_is_not_refused_and_fsdp_without_gpus_is(model, monkeypatch):
    check_engine(trainer_of(model, muon=1e-2), task())
    check_engine(trainer_of(model, muon=1e-2, fsdp=2), task())
    check_engine(trainer_of(model, deepspeed=zero(2)), task())
    check_engine(trainer_of(new_llama(), context=2), task(isolate=False))
    check_engine(ours(trainer_of(empty_copy(model), fsdp=2, one_reads=True)), task())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for"):
        check_engine(trainer_of(model), SimpleNamespace())


def test_context_parallelism_trains_causal_models_that_accelerate_knows(model):
    with pytest.raises(ValueError, match="does not know the attention of GPT2LMHeadModel"):
        check_engine(trainer_of(model, context=2), task(isolate=False))
    padded = task(isolate=False)
    padded.train_dataset[0]["attention_mask"] = [1, 1]
    with pytest.raises(ValueError, match="hides neither padding nor other documents"):
        check_engine(trainer_of(new_llama(), context=2), padded)


def test_the_loss_of_context_parallelism_is_that_of_complete_rows():
    processes, labels = 2, torch.randint(0, 9, (3, 16))
    labels[0, 3:6] = -100
    logits = torch.randn(3, 16, 9)
    batch = {"input_ids": labels.clamp(0), "labels": labels}
    batch["shift_labels"] = F.pad(labels, (0, 1), value=-100)[:, 1:]  # as the Trainer does before it cuts the rows

    def part(whole, process):  # a process holds a piece of the beginning and one of the end, as torch cuts them
        pieces = whole.chunk(2 * processes, dim=1)
        return torch.cat([pieces[process], pieces[-1 - process]], dim=1)

    def loss_of(process):
        trainer = SimpleNamespace(loss=next_token_loss, _sampled=None, _plain=False)
        trainer.args, trainer.accelerator = SimpleNamespace(average_tokens_across_devices=True), SimpleNamespace()
        trainer.accelerator.num_processes = processes
        model = lambda input_ids: SimpleNamespace(logits=part(logits, process))  # noqa: E731 - takes nothing else
        held = {name: part(whole, process) for name, whole in batch.items()}
        return Trainer.compute_loss(trainer, model, held, num_items_in_batch=torch.tensor(items))

    items = int((labels[:, 1:] != -100).sum())
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    found = torch.stack([loss_of(process) for process in range(processes)]).mean()  # FSDP2 takes the mean
    torch.testing.assert_close(found, expected)


def test_fsdp2_refuses_two_checkpoints_and_one_reader_of_an_encoder_decoder(model, tokenizer):
    sides = (
        BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=16),
    ) * 2
    both = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*sides))
    with pytest.raises(ValueError, match=r"FSDP2 cannot shard EncoderDecoderModel.*ZeRO-3"):
        check_engine(trainer_of(both, fsdp=2), task())
    bart = new_bart(tokenizer)
    check_engine(trainer_of(bart, fsdp=2), task())
    with pytest.raises(ValueError, match=r"accelerate cannot share the buffers of Bart.*\(final_logits_bias\)"):
        check_engine(trainer_of(bart, fsdp=2, one_reads=True), task())
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="ties the two sides of T5ForConditionalGeneration anew"):
        check_engine(trainer_of(t5, fsdp=2, one_reads=True), task())
    with pytest.raises(ValueError, match="TRL's trainers compute a loss together"):
        check_engine(trainer_of(model, fsdp=2, one_reads=True), task())


def test_what_fsdp2_shards_are_the_layers_of_a_model(model, tokenizer):
    bert = new_bert(tokenizer, labels=["bad", "good"])
    for net, layers in ((model, ["GPT2Block"]), (bert, ["BertLayer"])):  # BERT's list has its embeddings too
        trainer = trainer_of(net, fsdp=2)
        prepare_sharding(trainer)
        assert trainer.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == layers
    named = trainer_of(bert, fsdp=2, layers=["BertAttention"])
    prepare_sharding(named)
    assert named.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == ["BertAttention"]


def test_what_the_main_process_finds_or_raises_is_the_same_on_every_process():
    assert on_gloo(2, _found_on_main) == [("read by 0", "no such file")] * 2


def _found_on_main(rank):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    PartialState(cpu=True, backend="gloo")
    found = on_main_process(lambda: f"read by {rank}")

    def fail():
        raise FileNotFoundError("no such file")

    with pytest.raises(FileNotFoundError) as caught:
        on_main_process(fail)
    return found, str(caught.value)


def test_an_empty_copy_is_the_model_once_it_has_its_weights(model):
    empty, ids = empty_copy(model), torch.arange(8)[None]
    assert all(parameter.is_meta for parameter in empty.parameters())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = with_weights(empty, weights)
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    model.forward = lambda *args, **kwargs: pytest.fail("the original was called")  # as a Trainer of TRL replaces it
    assert with_weights(empty_copy(model), weights)(ids).logits.shape == (1, 8, len(model.lm_head.weight))
    del weights["transformer.ln_f.weight"]
    with pytest.raises(ValueError, match=r"lack transformer\.ln_f\.weight"):
        with_weights(empty_copy(model), weights)
