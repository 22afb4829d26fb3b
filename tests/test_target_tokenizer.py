"""A model of two halves reads with one tokenizer and writes with another, and whoever takes its folder gets both."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import hub  # noqa: F401  (a fixture)
from running import here
from safetensors.torch import load_file
from test_hub import push
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hf_lm import pipeline
from hf_lm.arguments import TrainingArguments
from hf_lm.data.tables import load_table
from hf_lm.demo.space import _copy_model
from hf_lm.hub.check import check_folder
from hf_lm.hub.push import published as published_files
from hf_lm.inference.predict import predict
from hf_lm.inspection.recipe import inspect_recipe
from hf_lm.inspection.terminal import show_inspection
from hf_lm.models.adapters import add_lora, merge_adapter
from hf_lm.models.configuration import context_length, model_fingerprint
from hf_lm.models.encoder_decoder import load_text_to_text
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.models.target_tokenizer import TARGET, decode_targets, save_tokenizer, target_tokenizer
from hf_lm.planning.resolve import resolve
from hf_lm.tasks import proofs
from hf_lm.tasks.text_to_text import changed_targets
from hf_lm.tasks.translation import Translation, read_translation
from hf_lm.tokenization.tokenizer import encode_documents, load_tokenizer, set_pad, train_bpe
from hf_lm.training.trainer import supervised_trainer

FAST = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "use_cpu": True, "bf16": False, "report_to": "none"}
WORDS = [("dog", "Hund"), ("girl", "Mädchen"), ("street", "Straße"), ("tree", "Bäume"), ("moon", "月亮")]
PAIRS = [
    (f"The {a} sees {i} {b}.", f"Über {i}: {A} sieht {B}!") for i in range(12) for a, A in WORDS for b, B in WORDS
]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def uncased(texts) -> transformers.PreTrainedTokenizerFast:
    """WordPiece as BERT's English checkpoints have it: small letters, no accents, unknown characters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An uncased BERT, a GPT-2 of more positions and ids and another width, one without a padding token, and pairs."""
    folder = tmp_path_factory.mktemp("halves")
    transformers.set_seed(0)
    read = uncased([en for en, _ in PAIRS] + [de.replace("月亮", "") for _, de in PAIRS])
    config = transformers.BertConfig(vocab_size=256, max_position_embeddings=24, pad_token_id=0, **TINY)
    transformers.BertForMaskedLM(config).save_pretrained(folder / "bert")
    read.save_pretrained(folder / "bert")
    write = train_bpe([de for _, de in PAIRS], vocab_size=300)
    new_gpt2(write, n_layer=1, n_head=2, n_embd=24, block_size=48).save_pretrained(folder / "gpt")
    write.save_pretrained(folder / "gpt")
    write.pad_token = None
    shutil.copytree(folder / "gpt", folder / "gpt_without_pad")
    write.save_pretrained(folder / "gpt_without_pad")
    data = folder / "pairs"
    data.mkdir()
    for name, rows in {"train": PAIRS[:200], "validation": PAIRS[200:212], "test": PAIRS[240:252]}.items():
        for side, language in enumerate(("en", "de")):
            (data / f"{name}.{language}").write_text("".join(f"{row[side]}\n" for row in rows), encoding="utf-8")
    names = {name: str(folder / name) for name in ("bert", "gpt", "gpt_without_pad", "pairs")}
    return SimpleNamespace(folder=folder, **names)


def writer(made, decoder="gpt", max_target_length=40):
    table = load_table(made.pairs)
    read_translation(table, source="en", target="de")
    tokenizer = load_tokenizer(made.bert, decoder=getattr(made, decoder))
    set_pad(tokenizer)
    model = load_text_to_text(made.bert, tokenizer=tokenizer, decoder=getattr(made, decoder)).eval()
    lengths = {"max_source_length": 60, "max_target_length": max_target_length}
    return model, Translation(table, tokenizer, model, source="en", target="de", **lengths)


@pytest.mark.parametrize("decoder", ["gpt", "gpt_without_pad"])
def test_labels_are_the_target_and_its_end_by_the_tokenizer_that_writes(made, decoder):
    model, task = writer(made, decoder)
    target = transformers.AutoTokenizer.from_pretrained(made.gpt)
    batch = task.collate(task.train_dataset[:20])
    for row, ids in zip(task.table.rows["train"], batch["labels"].tolist(), strict=False):
        ids = [i for i in ids if i != -100]
        assert target.decode(ids[:-1]) == row["targets"][0]
        assert ids[-1] == target.eos_token_id
    assert (batch["decoder_input_ids"][:, 0] == target.bos_token_id).all()
    assert model.generation_config.decoder_start_token_id == target.bos_token_id
    pad = target.eos_token_id if decoder == "gpt_without_pad" else target.pad_token_id
    assert model.generation_config.pad_token_id == model.config.pad_token_id == pad
    proof = task.label_proof()
    assert proof.passed
    assert proof.said == "the labels of 64 rows decode to the target and its end, 0 of them cut, no prompt in them"
    assert not task.warnings


def test_only_the_attention_between_the_halves_is_new(made):
    model, _ = writer(made)
    reads = transformers.AutoModel.from_pretrained(made.bert, add_pooling_layer=False).state_dict()
    writes = transformers.AutoModelForCausalLM.from_pretrained(made.gpt).state_dict()
    assert all(torch.equal(model.encoder.state_dict()[name], value) for name, value in reads.items())
    assert all(torch.equal(model.decoder.state_dict()[name], value) for name, value in writes.items())
    new = set(model.decoder.state_dict()) - set(writes)
    assert new
    assert all("cross" in name for name in new)
    trained = {name for name, p in add_lora(model, rank=2).named_parameters() if p.requires_grad}
    assert {name.split(".")[2] for name in trained if "enc_to_dec_proj" in name} == {"enc_to_dec_proj"}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)


def test_each_half_has_its_own_positions(made):
    model, task = writer(made, max_target_length=99)
    assert (context_length(model.config), context_length(model.config, written=True)) == (24, 48)
    assert (task.max_source_length, task.max_target_length) == (24, 48)


def test_a_batch_and_accumulated_rows_give_one_loss_and_training_keeps_the_ids_of_what_is_written(made, tmp_path):
    model, task = writer(made)
    features = sorted(task.train_dataset[:40], key=lambda feature: len(feature["labels"]))[::5]
    arguments = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 2, "save_strategy": "no"}
    trainer = supervised_trainer(model, TrainingArguments(output_dir=str(tmp_path), **arguments), task, lambda _: {})
    proof = proofs.loss_invariance(trainer, features)  # 8 rows of different lengths
    assert proof.passed, proof.said
    trainer.train()  # the Trainer aligns a model's special ids with a tokenizer that it is given
    ids = target_tokenizer(task.tokenizer)
    for settings_ in (model.config, model.generation_config):
        assert (settings_.eos_token_id, settings_.pad_token_id) == (ids.eos_token_id, ids.pad_token_id)


def test_a_checkpoint_that_cannot_be_a_half_is_one_line(made, tmp_path, capsys):
    llama = transformers.LlamaConfig(vocab_size=300, max_position_embeddings=64, num_key_value_heads=2, **TINY)
    transformers.LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    t5 = transformers.T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    tokenizer = load_tokenizer(made.bert, decoder=made.gpt)
    for model, decoder, said in (
        (made.gpt, made.gpt, "--model .*gpt is a decoder .* which takes no other decoder: omit --decoder, or give an"),
        (tmp_path / "t5", made.gpt, "--model .*t5 is an encoder-decoder .* which takes no other decoder: omit"),
        (
            made.bert,
            tmp_path / "t5",
            "--decoder .*t5 is an encoder-decoder, which has an encoder of its own; take",
        ),
        (made.bert, tmp_path / "llama", "--decoder .*llama is a llama, .* has no cross attention; take a GPT-2, BERT"),
        (made.bert, tmp_path / "none", "there is no folder .*none"),
    ):
        with pytest.raises((ValueError, OSError), match=said) as raised:
            load_text_to_text(str(model), tokenizer=tokenizer, decoder=str(decoder))
        assert "\n" not in str(raised.value)
    with pytest.raises(SystemExit):
        here("translation.py", decoder="x", dataset=made.pairs, output_dir=tmp_path / "out")
    assert "--decoder x is a decoder alone: give its encoder as --model." in capsys.readouterr().err
    write = train_bpe([de for _, de in PAIRS], vocab_size=300)
    with pytest.raises(ValueError, match=r"the tokenizer has 300 ids and .*bert has embeddings for 256"):
        load_text_to_text(made.bert, tokenizer=write, decoder=made.gpt)


@pytest.fixture(scope="module")
def trained(made):
    """A run of the recipe, with checkpoints, and its report."""
    out = made.folder / "out"
    saving = {"save_strategy": "steps", "save_steps": 20, "eval_strategy": "steps", "eval_steps": 20, "max_steps": 40}
    options = {"model": made.bert, "decoder": made.gpt, "dataset": made.pairs, "learning_rate": 2e-2}
    arguments = FAST | saving | options | {"save_total_limit": 3, "max_target_length": 24}
    report = here("translation.py", output_dir=out, **arguments)
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    test = [row for row in predictions if row["split"] == "test"]
    return SimpleNamespace(out=out, report=report, test=test, arguments=arguments)


def test_the_run_proves_both_tokenizers_and_its_card_loads_both(made, trained):
    assert all(proof["passed"] for proof in trained.report["proofs"].values())
    assert trained.report["model"]["decoder"] == made.gpt
    for folder in (trained.out, trained.out / "checkpoint-20"):
        assert transformers.AutoTokenizer.from_pretrained(folder).encode("The dog.")[0] == 2
    card = (trained.out / "README.md").read_text()
    assert "tokenizer = AutoTokenizer.from_pretrained(name)  # of the source\n" in card
    assert 'AutoTokenizer.from_pretrained(name, subfolder="target_tokenizer")  # of the target\n' in card
    assert "trained further from `bert` and `gpt`" in card


def test_the_proof_of_the_folder_fails_with_another_tokenizer_of_what_is_written(made, trained, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained.out, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    train_bpe(["nothing of it"], vocab_size=260).save_pretrained(folder / TARGET)
    _, task = writer(made)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    proof = task.proofs_after(model, folder, None)["load_back"]()()
    assert not proof.passed
    assert "gives other ids" in proof.said


def test_plain_transformers_in_a_fresh_process_writes_what_the_evaluation_wrote(trained):
    code = """
import json, sys
sys.modules["hf_lm"] = None
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
target_tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], subfolder="target_tokenizer")
batch = tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
batch.pop("token_type_ids", None)
written = target_tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)
print(json.dumps([text.strip() for text in written]))
"""
    texts = [row["input"] for row in trained.test]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(trained.out), json.dumps(texts)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [row["prediction"] for row in trained.test]


def test_pipeline_and_predict_write_what_the_evaluation_wrote(trained, tmp_path):
    texts, said = ([row[key] for row in trained.test] for key in ("input", "prediction"))
    assert "Ü" in "".join(said)  # which the tokenizer that reads cannot write
    written = pipeline("translation", str(trained.out))(texts)
    assert [one["translation_text"] for one in written] == said
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.out)
    written = pipeline("translation", str(trained.out), tokenizer=tokenizer)(texts)
    assert [one["translation_text"] for one in written] == said
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    predict("translation", str(trained.out), str(tmp_path / "texts.txt"), str(tmp_path / "said.jsonl"))
    lines = (tmp_path / "said.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == said


def test_what_is_written_follows_what_is_read(made, tmp_path):
    model, task = writer(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cross" in name or "enc_to_dec" in name:
                parameter.mul_(20)  # as if it had learned to look at the source
    model.save_pretrained(tmp_path)
    save_tokenizer(task.tokenizer, tmp_path)
    said = task.write(model, "test", None)
    assert len(set(said)) > 1
    texts = [row["source"] for row in task.table.rows["test"]]
    assert [one["translation_text"] for one in pipeline("translation", str(tmp_path))(texts)] == said


def test_generate_reads_with_one_tokenizer_and_writes_and_ends_with_the_other(trained):
    from hf_lm.inference.generate import generate, load_writer

    model, tokenizer = load_writer(str(trained.out), device="cpu")
    longest = model.generation_config.max_new_tokens
    texts = [row["input"] for row in trained.test]
    found = generate(model, tokenizer, texts, temperature=0, max_new_tokens=longest)
    assert [one.text.strip() for [one] in found] == [row["prediction"] for row in trained.test]


def test_a_resumed_run_ends_in_the_same_bits_and_keeps_both_tokenizers(trained, tmp_path):
    shutil.copytree(trained.out / "checkpoint-20", tmp_path / "checkpoint-20")
    here(
        "translation.py",
        output_dir=tmp_path,
        resume_from_checkpoint="latest",
        skip_proofs="load_back",
        **trained.arguments,
    )
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained.out, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for name in ("tokenizer.json", f"{TARGET}/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (trained.out / name).read_bytes()


@pytest.mark.slow
def test_lora_keeps_both_tokenizers_merged_as_an_adapter_and_in_checkpoints(made, trained, tmp_path):
    arguments = trained.arguments | {"lora_rank": 2, "max_steps": 4, "save_steps": 2, "eval_steps": 2}
    halves = here("translation.py", output_dir=tmp_path / "halves", skip_proofs="load_back", **arguments)
    assert halves["proofs"]["merging"]["passed"]
    assert (tmp_path / "halves" / "checkpoint-2" / TARGET / "tokenizer.json").is_file()
    assert not (tmp_path / "halves" / "adapter").exists()  # two halves have no base of one name
    again = arguments | {"model": trained.out, "decoder": ""}
    report = here("translation.py", output_dir=tmp_path / "again", skip_proofs="load_back", **again)
    assert report["proofs"]["adapter_load_back"]["passed"]
    adapter = tmp_path / "again" / "adapter"
    merged = merge_adapter(adapter, tmp_path / "merged")
    texts = ["The dog sees 3 moon.", "The girl sees 5 tree."]
    expected = pipeline("translation", str(tmp_path / "again"))(texts)
    for folder in (adapter, merged):
        tokenizer = load_tokenizer(str(folder))
        assert decode_targets(tokenizer, encode_documents(tokenizer, ["Mädchen 月亮"], as_targets=True)) == [
            "Mädchen 月亮"
        ]
        assert pipeline("translation", str(folder))(texts) == expected


@pytest.mark.slow  # several fresh processes
def test_the_folder_is_checked_published_copied_and_told_apart_with_its_second_tokenizer(trained, tmp_path):
    checked = check_folder(trained.out)
    assert any("the target tokenizer fits" in fact for fact in checked.facts)
    assert not checked.wrong, checked.wrong
    published = {path.relative_to(trained.out).as_posix() for path in published_files(trained.out)}
    assert {f"{TARGET}/tokenizer.json", f"{TARGET}/tokenizer_config.json", "tokenizer.json"} <= published
    _copy_model(trained.out, tmp_path / "copy")
    assert (tmp_path / "copy" / TARGET / "tokenizer.json").is_file()
    before = model_fingerprint(str(tmp_path / "copy"))
    train_bpe(["other"], vocab_size=260).save_pretrained(tmp_path / "copy" / TARGET)
    assert model_fingerprint(str(tmp_path / "copy")) != before


def test_a_plan_and_an_inspection_take_both_halves(made):
    options = ["--model", made.bert, "--decoder", made.gpt, "--dataset", made.pairs]
    resolved = resolve("translation", options, bf16=False)
    assert {name for name, _ in resolved.model.named_children()} == {"encoder", "decoder", "enc_to_dec_proj"}
    found = inspect_recipe("translation", options, examples=1)
    reads, writes = found["examples"][0]["parts"]
    assert reads.pieces[0][0] == "[CLS]"
    assert "".join(text for text, _, _ in writes.pieces).startswith("Über")
    assert "target       300 entries" in show_inspection(found)
    assert "unknown" not in found["tokenizer"]["text"]["targets"]


def test_what_the_tokenizer_cannot_write_is_said_before_training_with_the_remedy(made, tmp_path, capsys):
    options = FAST | {"model": made.bert, "dataset": made.pairs, "max_steps": 1, "skip_proofs": "load_back"}
    report = here("translation.py", output_dir=tmp_path, **options, save_strategy="no", load_best_model_at_end=False)
    [note] = [note for note in report["data"]["notes"] if "come back changed" in note]
    assert note.startswith("100.0% of the target texts")
    assert "(accents, case, unknown characters): 'Über" in note
    assert note.endswith("(cased, multilingual), or give a --decoder that does")
    shown = capsys.readouterr().out
    assert shown.index(f"warning: {note}") < shown.index("proved label coverage")
    said = report["proofs"]["label_coverage"]["said"]
    assert said == (
        "the labels of 64 rows are the tokens of the target and its end, 0 of them cut, no prompt in them; "
        "64 of them decode to another text"
    )
    assert note in show_inspection(inspect_recipe("translation", ["--model", made.bert, "--dataset", made.pairs]))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("the dog", None),
        ("the  dog .", None),  # white space does not count
        ("The dog", ("case",)),
        ("thé dog", ("accents",)),
        ("Thé dog", ("case", "accents")),
        ("the 月", ("unknown characters",)),
    ],
)
def test_what_is_lost_is_named(made, text, kinds):
    tokenizer = transformers.AutoTokenizer.from_pretrained(made.bert)
    assert [found[2] for found in changed_targets(tokenizer, [text])] == ([] if kinds is None else [kinds])


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_from_the_tokenizer_that_writes(made, text):
    tokenizer = load_tokenizer(made.bert, decoder=made.gpt)
    ids = encode_documents(tokenizer, [text], as_targets=True)
    assert decode_targets(tokenizer, ids) == [text]
    assert not changed_targets(tokenizer, [text])


LOAD = """
import json, sys
from transformers import AutoTokenizer
from hf_lm.models.target_tokenizer import target_tokenizer
from hf_lm.tokenization.tokenizer import load_tokenizer
second = AutoTokenizer.from_pretrained("user/name", subfolder="target_tokenizer")
print(json.dumps([second.encode(sys.argv[1]), target_tokenizer(load_tokenizer("user/name")).encode(sys.argv[1])]))
"""


@pytest.mark.slow  # what it pushes is loaded in a fresh process by another test
def test_a_pushed_model_brings_its_second_tokenizer(made, trained, hub, tmp_path):  # noqa: F811
    done = push(trained.out, hub)
    assert done.returncode == 0, done.stderr
    text = "Über Mädchen 月亮"
    environment = os.environ | hub.environment() | {"HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOAD, text], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [transformers.AutoTokenizer.from_pretrained(made.gpt).encode(text)] * 2
