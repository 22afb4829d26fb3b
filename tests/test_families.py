"""Every family of model in every task it can serve is sound.

The same loss and gradients however a batch is cut, labels that are exactly the target and its end, and answers that do
not depend on what stands beside them in a batch.
"""

import copy
import json
import shutil

import pytest
import torch
import transformers
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from on_gloo import on_gloo
from transformers import (
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    MBartConfig,
    ModernBertConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from hf_lm.arguments import TrainingArguments
from hf_lm.data.demos.opinions import opinions
from hf_lm.data.tables import Table
from hf_lm.models.adapters import add_lora, is_adapted, merged
from hf_lm.models.configuration import context_length, family
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.loading import load_with_head
from hf_lm.tasks import proofs
from hf_lm.tasks.question_answering import QuestionAnswering, QuestionAnsweringAsText, read_question_answering
from hf_lm.tasks.sentiment import Sentiment, SentimentAsText, read_sentiment
from hf_lm.tasks.summarization import Summarization, read_summarization
from hf_lm.tokenization.tokenizer import load_tokenizer, new_tokenizer, set_pad
from hf_lm.training.trainer import Trainer

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64},
    **{"forced_eos_token_id": None},
}


def configs(size, tokenizer):
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}
    bert = BertConfig(vocab_size=size, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, **SMALL)
    return {
        "bert": bert,
        "distilbert": DistilBertConfig(
            vocab_size=size, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64
        ),
        "roberta": RobertaConfig(vocab_size=size, max_position_embeddings=66, **SMALL, **ids),
        "modernbert": ModernBertConfig(
            vocab_size=size, max_position_embeddings=64, global_attn_every_n_layers=2, local_attention=16,
            cls_token_id=0, sep_token_id=0, **SMALL, **ids,
        ),
        "gpt2": GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=2, n_head=2, **ids),
        "llama": LlamaConfig(vocab_size=size, max_position_embeddings=64, num_key_value_heads=2, **SMALL, **ids),
        "qwen2": Qwen2Config(vocab_size=size, max_position_embeddings=64, num_key_value_heads=2, **SMALL, **ids),
        "qwen3": Qwen3Config(
            vocab_size=size, max_position_embeddings=64, num_key_value_heads=1, head_dim=8, **SMALL, **ids
        ),
        "t5": T5Config(
            vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=1, **ids
        ),
        "bart": BartConfig(decoder_start_token_id=0, **BART, **ids, vocab_size=size),
        "marian": MarianConfig(decoder_start_token_id=tokenizer.pad_token_id, **BART, **ids, vocab_size=size),
        "mbart": MBartConfig(decoder_start_token_id=0, **BART, **ids, vocab_size=size),
        "bert2bert": bert,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer((row["text"] for row in opinions(200)), vocab_size=400)


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    """A folder with random weights and the tokenizer for each family."""
    found = {}
    heads = dict.fromkeys(("bert", "bert2bert", "distilbert", "roberta", "modernbert"), "MaskedLM")
    heads |= dict.fromkeys(("t5", "bart", "marian", "mbart"), "Seq2SeqLM")
    for name, config in configs(448, tokenizer).items():
        transformers.set_seed(0)
        folder = tmp_path_factory.mktemp(name)
        auto = getattr(transformers, f"AutoModelFor{heads.get(name, 'CausalLM')}")
        auto.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = str(folder)
    return found


def trainer_of(model, task, tmp_path, **arguments):
    return Trainer(
        model,
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, **arguments),
        loss=task.loss,
        shifts_labels=task.shifts_labels,
        measure=lambda model: {},
        context=task.context,
        train_dataset=task.train_dataset,
        data_collator=task.collate,
    )


def classifier(folder, tokenizer):
    table = Table("x", "", {"train": opinions(120)})
    labels = read_sentiment(table)
    model = load_with_head(folder, transformers.AutoModelForSequenceClassification, tokenizer=tokenizer, labels=labels)
    return model, Sentiment(table, tokenizer, labels=labels, max_length=40)


def sentiment_writer(folder, tokenizer):
    table = Table("x", "", {"train": opinions(120)})
    labels = read_sentiment(table)
    model = load_text_to_text(folder, tokenizer=tokenizer)
    return model, SentimentAsText(table, tokenizer, model, labels=labels, max_length=40)


def writer(folder, tokenizer):
    rows = [{"document": row["text"], "summary": row["text"].split()[-1]} for row in opinions(120)]
    table = Table("x", "", {"train": rows})
    read_summarization(table)
    model = load_text_to_text(folder, tokenizer=tokenizer)
    return model, Summarization(table, tokenizer, model, max_source_length=40, max_target_length=16)


def questions():
    rows = []
    for i, row in enumerate(opinions(120)):
        context = row["text"] + " " + opinions(121 + i)[-1]["text"]
        answer = row["text"].split()[0][:12]
        rows.append(
            {
                "question": f"What begins number {i}?",
                "context": context,
                "answers": {"text": [answer], "answer_start": [0]},
            }
        )
    return Table("x", "", {"train": rows})


def answerer(folder, tokenizer):
    table = questions()
    read_question_answering(table)
    model = load_with_head(folder, transformers.AutoModelForQuestionAnswering, tokenizer=tokenizer)
    causal = family(model.config) == "decoder"
    return model, QuestionAnswering(table, tokenizer, causal=causal, max_length=48, stride=12)


def answer_writer(folder, tokenizer):
    table = questions()
    read_question_answering(table)
    model = load_text_to_text(folder, tokenizer=tokenizer)
    return model, QuestionAnsweringAsText(table, tokenizer, model, max_source_length=48, max_target_length=8)


ENCODERS = ("bert", "distilbert", "roberta", "modernbert")
DECODERS = ("gpt2", "llama", "qwen2", "qwen3")
SERVED = [
    *((classifier, name) for name in (*ENCODERS, *DECODERS)),
    *((answerer, name) for name in (*ENCODERS, *DECODERS)),
    *((writer, name) for name in (*DECODERS, "t5", "bart", "marian", "mbart", "bert2bert", "roberta")),
    *((sentiment_writer, name) for name in ("gpt2", "t5", "bart", "marian")),
    *((answer_writer, name) for name in ("gpt2", "t5", "bart", "mbart")),
]


@pytest.mark.parametrize(("make", "name"), SERVED, ids=[f"{make.__name__}-{name}" for make, name in SERVED])
def test_a_family_in_a_task_is_sound(make, name, checkpoints, tokenizer, tmp_path):
    model, task = make(checkpoints[name], tokenizer)
    features = sorted(task.train_dataset[:40], key=lambda feature: len(feature["input_ids"]))[::5]
    trainer = trainer_of(model, task, tmp_path)
    proof = proofs.loss_invariance(trainer, features)  # 8 rows of different lengths
    assert proof.passed, proof.said
    assert task.label_proof().passed, task.label_proof().said
    measured = task.measure(model, "test")
    assert len(measured.examples) == len(task.table.rows["test"])
    assert measured.loss > 0
    for estimate in measured.metrics().values():
        estimate.interval()
    name, trivial = task.baseline("test")
    assert set(measured.metrics()) - set(trivial.metrics()) <= {"calibration_error"}
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = getattr(transformers, task.auto_class).from_pretrained(folder).eval()
    again = task.measure(loaded, "test")
    assert [e["prediction"] for e in again.examples] == [e["prediction"] for e in measured.examples]


@pytest.mark.parametrize("name", ["bart", "llama", "gpt2"])
def test_how_a_checkpoint_wrote_for_other_data_is_not_inherited_and_what_names_tokens_is(name, checkpoints, tokenizer):
    model, _ = writer(checkpoints[name], tokenizer)
    model.generation_config.update(
        min_length=56, no_repeat_ngram_size=3, num_beams=4, early_stopping=True, length_penalty=2.0
    )
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, forced_eos_token_id=2)
    model.generation_config.bad_words_ids = [[5]]
    table = Table("x", "", {split: [{"source": "a b", "targets": ["c"]}] * 8 for split in ("train", "validation")})
    task = Summarization(table, tokenizer, model, max_source_length=40, max_target_length=16)
    written = model.generation_config
    assert written is task.generation
    written.validate(strict=True)
    assert (written.num_beams, written.do_sample, written.forced_eos_token_id) == (1, False, 2)
    assert written.bad_words_ids == [[5]]
    left = (written.min_length, written.no_repeat_ngram_size, written.temperature, written.length_penalty)
    assert not any(left)


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_a_text_has_one_class_whatever_the_checkpoint_was_trained_for(kind, checkpoints, tmp_path):
    shutil.copytree(checkpoints["bert"], tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"problem_type": kind}))
    table = Table("x", "", {"train": opinions(120)})
    table.labels = read_sentiment(table)
    start = Sentiment.prepare_model(table, str(tmp_path / "base"), block_size=40)
    Sentiment.from_start(table, start, max_length=40)
    assert start.model.config.problem_type == "single_label_classification"


SHARED = [(classifier, "bert"), (answerer, "bert"), (writer, "gpt2"), (writer, "t5"), (writer, "bart")]


def gradients_of(make, folder, tokenizer, out, rows):
    """The gradients after one optimizer step's worth of rows, shared out among the processes there are."""
    transformers.set_seed(0)
    model, task = make(folder, tokenizer)
    trainer = trainer_of(model, task, out, per_device_train_batch_size=len(rows))
    features = [sorted(task.train_dataset[:40], key=lambda feature: len(feature["input_ids"]))[row] for row in rows]
    batch, model = trainer._prepare_inputs(task.collate(features)), model.eval()
    trained = trainer.accelerator.prepare(model) if trainer.args.world_size > 1 else model
    items = trainer._get_num_items_in_batch([batch], trainer.args.device)
    trainer.compute_loss(trained, batch, num_items_in_batch=items).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def of_one_row_each(rank, folders, out, rows=(0, 30)):
    """What each of two processes does: one row a family, a short one here and a long one there."""
    for state in (AcceleratorState, GradientState, PartialState):  # of the process that was forked
        state._reset_state()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["bert"])
    return [gradients_of(make, folders[name], tokenizer, out, [rows[rank]]) for make, name in SHARED]


def test_two_processes_give_the_gradients_of_one_with_twice_the_batch(checkpoints, tokenizer, tmp_path):
    shared, _ = on_gloo(2, of_one_row_each, checkpoints, tmp_path)
    alone = [gradients_of(make, checkpoints[name], tokenizer, tmp_path, [0, 30]) for make, name in SHARED]
    for (make, name), one, two in zip(SHARED, alone, shared, strict=True):
        assert one.keys() == two.keys()
        size = sum((gradient**2).sum() for gradient in one.values()) ** 0.5
        distance = sum(((one[key] - two[key]) ** 2).sum() for key in one) ** 0.5
        assert size > 0
        assert distance / size < 1e-4, (make.__name__, name)


@pytest.mark.parametrize(("make", "name"), [(writer, "gpt2"), (writer, "bart"), (classifier, "bert")])
def test_what_is_said_of_a_row_does_not_depend_on_its_batch(make, name, checkpoints, tokenizer, monkeypatch):
    model, task = make(checkpoints[name], tokenizer)
    together = task.measure(model, "test")
    monkeypatch.setattr("hf_lm.data.batches.by_length", lambda lengths, **_: ([i] for i in range(len(lengths))))
    alone = task.measure(model, "test")
    assert [e["prediction"] for e in alone.examples] == [e["prediction"] for e in together.examples]
    assert alone.loss == pytest.approx(together.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "name"), [(classifier, "bert"), (writer, "gpt2"), (writer, "bert2bert"), (answerer, "distilbert")]
)
def test_lora_trains_little_and_merges_to_the_same_logits(make, name, checkpoints, tokenizer, tmp_path):
    model, task = make(checkpoints[name], tokenizer)
    total = model.num_parameters()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = add_lora(model, rank=2)
    trained = {key for key, p in adapted.named_parameters() if p.requires_grad}
    assert is_adapted(adapted)
    assert any("lora_A" in key for key in trained)
    trainer = trainer_of(adapted, task, tmp_path, max_steps=3, learning_rate=1e-2, save_strategy="no")
    assert proofs.loss_invariance(trainer, task.train_dataset[:4]).passed
    trainer.train()
    batch = {key: value for key, value in task.collate(task.train_dataset[:3]).items() if key != "labels"}
    adapted.eval()
    with torch.no_grad():
        expected = adapted(**batch)[0]
    trainer.save_model(str(tmp_path / "adapter"))
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["r"] == 2
    plain = merged(adapted)
    assert plain.num_parameters() == total
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch)[0], expected, atol=1e-4, rtol=1e-4)
    moved = [key for key, value in plain.state_dict().items() if not torch.equal(value, before[key])]
    assert moved
    assert not any("embed" in key or "wte" in key for key in moved)


def test_rank_zero_trains_every_weight_and_a_negative_one_is_refused(checkpoints, tokenizer):
    model, _ = classifier(checkpoints["bert"], tokenizer)
    assert add_lora(model, rank=0) is model
    with pytest.raises(ValueError, match="--lora_rank is -1"):
        add_lora(model, rank=-1)


def test_a_checkpoint_that_cannot_serve_is_refused_in_one_line(checkpoints, tokenizer):
    with pytest.raises(ValueError, match="which cannot serve as a decoder"):
        load_text_to_text(checkpoints["distilbert"], tokenizer=tokenizer)
    with pytest.raises(OSError, match="no folder"):
        load_text_to_text("./nowhere", tokenizer=tokenizer)


def test_a_checkpoint_of_another_kind_of_model_is_refused_in_one_line(checkpoints, tokenizer, tmp_path):
    vision = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTModel(vision).save_pretrained(tmp_path)
    head = transformers.AutoModelForSequenceClassification
    for load in (
        lambda: load_with_head(str(tmp_path), head, tokenizer=tokenizer),
        lambda: load_text_to_text(str(tmp_path), tokenizer=tokenizer),
    ):
        with pytest.raises(
            ValueError, match=r"is a vit, for which .* no SequenceClassification head|not a causal"
        ) as e:
            load()
        assert "\n" not in str(e.value)


def test_a_tokenizer_without_padding_pads_with_its_end_and_one_without_an_end_is_refused(checkpoints, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    set_pad(bare)
    assert bare.pad_token_id == bare.eos_token_id
    _, task = writer(checkpoints["gpt2"], bare)
    assert task.label_proof().passed  # the end is learned although it is what pads
    labels = task.collate(task.train_dataset[:4])["labels"]
    assert (labels == bare.eos_token_id).sum() == 4
    bare.eos_token = bare.sep_token = None
    with pytest.raises(ValueError, match="no token that ends a text"):
        writer(checkpoints["gpt2"], bare)


def test_texts_are_cut_to_the_positions_that_a_model_can_use(checkpoints):
    """RoBERTa has 66 and can use 64: it counts from the padding token's id on."""
    for name, positions in {"roberta": 64, "bert": 64, "gpt2": 64, "bart": 64, "t5": 0}.items():
        model = transformers.AutoModel.from_pretrained(checkpoints[name])
        assert context_length(model.config) == positions
    model = transformers.AutoModel.from_pretrained(checkpoints["roberta"])
    model(torch.full((1, 64), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 65), 5))


def test_the_warning_of_truncated_rows_names_the_options(tokenizer):
    rows = [{"text": f"{i} words that are many", "label": str(i % 2)} for i in range(8)]
    table = Table("x", "", {split: [dict(row) for row in rows] for split in ("train", "validation", "test")})
    [said] = Sentiment(table, tokenizer, labels=["0", "1"], max_length=5).warnings
    assert said.startswith("100% of the training rows are truncated")
    assert said.endswith("lost: a larger --max_length keeps more")


def test_a_folder_without_tokenizer_files_is_refused(checkpoints, tmp_path):
    shutil.copytree(checkpoints["bert"], tmp_path / "bare")
    for path in (tmp_path / "bare").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(OSError, match="has no tokenizer files; give a folder that has them"):
        load_tokenizer(str(tmp_path / "bare"))
