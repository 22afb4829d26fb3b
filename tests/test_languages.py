"""Tokenizers of many languages, and those that read and write with two sentencepiece models."""

import pytest
import transformers
from transformers import BartConfig, BartForConditionalGeneration, MBartTokenizer

from hf_lm.data.tables import Table
from hf_lm.tasks.translation import Translation, read_translation
from hf_lm.tokenization.languages import language_written, set_languages
from hf_lm.tokenization.tokenizer import encode_documents, encode_with_offsets, load_tokenizer, special_tokens_around

PAIRS = [
    {"en": f"a house and {'a dog ' * (i % 3)}number {i}", "de": f"ein Haus und {'ein Hund ' * (i % 3)}Nummer {i}"}
    for i in range(80)
]
SHAPE = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64},
}


def mbart(**options):
    letters = sorted(set("".join(text for row in PAIRS for text in row.values())) - {" "})
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in letters]
    return MBartTokenizer(vocab=pieces, **options)


class Nllb(MBartTokenizer):
    """The frame of NLLB, mBART-50 and M2M100: the language before the text, the end after it."""

    def set_src_lang_special_tokens(self, lang):
        from tokenizers import processors

        code = self.convert_tokens_to_ids(lang)
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{lang} $A </s>", pair=f"{lang} $A $B </s>", special_tokens=[(lang, code), ("</s>", 2)]
        )

    set_tgt_lang_special_tokens = set_src_lang_special_tokens


def translation(tokenizer, *, begins_with=None, **config):
    table = Table("x", "", {"train": [dict(row) for row in PAIRS]})
    read_translation(table, source="en", target="de")
    transformers.set_seed(0)
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=2, **SHAPE | config)
    )
    model.generation_config.forced_bos_token_id = begins_with
    options = {"source": "en", "target": "de", "max_source_length": 48, "max_target_length": 48}
    return model, Translation(table, tokenizer, model, **options)


def test_mbart_reads_one_language_and_its_decoder_starts_from_the_other():
    tokenizer = mbart()
    set_languages(tokenizer, "en", "de")
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", "de_DE")
    german, english = tokenizer.convert_tokens_to_ids(["de_DE", "en_XX"])
    model, task = translation(tokenizer, forced_eos_token_id=None)
    feature = task.train_dataset[0]
    assert feature["input_ids"][-2:] == [2, english]
    assert feature["labels"][-1] == 2
    assert german not in feature["labels"]
    batch = task.collate(task.train_dataset[:2])
    assert batch["decoder_input_ids"][:, 0].tolist() == [german, german]
    generation = model.generation_config
    assert (generation.decoder_start_token_id, generation.forced_bos_token_id) == (german, None)
    assert task.label_proof().passed
    assert model.generate(batch["input_ids"], max_new_tokens=3)[0, 0] == german


def test_where_the_language_opens_the_target_it_is_learned_and_forced():
    tokenizer = Nllb(vocab=mbart()._vocab)
    set_languages(tokenizer, "en_XX", "de_DE")
    german, english = tokenizer.convert_tokens_to_ids(["de_DE", "en_XX"])
    assert language_written(tokenizer) == (german, True)
    model, task = translation(tokenizer, forced_eos_token_id=None, decoder_start_token_id=2)
    feature = task.train_dataset[0]
    assert (feature["input_ids"][0], feature["labels"][0], feature["labels"][-1]) == (english, german, 2)
    assert task.label_proof().passed, task.label_proof().said
    assert model.generation_config.forced_bos_token_id == german
    batch = task.collate(task.train_dataset[:2])
    assert model.generate(batch["input_ids"], max_new_tokens=3)[0, :2].tolist() == [2, german]


def test_a_bart_that_is_made_to_begin_with_a_token_learns_it():
    tokenizer = mbart()
    model, task = translation(tokenizer, begins_with=0, decoder_start_token_id=2)
    assert task.train_dataset[0]["labels"][0] == 0
    assert model.generation_config.forced_bos_token_id == 0


def test_a_prefix_that_the_checkpoint_was_taught_is_read_before_each_source():
    """As T5's checkpoints say theirs, by task and direction."""
    tokenizer = mbart(tgt_lang="de_DE")
    known = {"translation_en_to_de": {"prefix": "a dog "}, "translation_en_to_fr": {"prefix": "no "}}
    model, task = translation(tokenizer, task_specific_params=known)
    prefix = encode_documents(tokenizer, ["a dog "])[0]
    assert prefix
    assert all(feature["input_ids"][: len(prefix)] == prefix for feature in task.train_dataset)
    assert model.config.task_specific_params["translation"]["prefix"] == "a dog "  # for further training
    assert translation(tokenizer)[1].prefix_ids == []


def test_a_language_that_is_not_known_is_said_in_one_line():
    with pytest.raises(
        ValueError, match=r"--source 'klingon' is not a language of .* which has \d+ \(ar_AR, .*\): name"
    ):
        set_languages(mbart(), "klingon", "de")
    told = mbart(src_lang="en_XX", tgt_lang="de_DE")
    set_languages(told, "0", "1")  # columns without names: as it was told before
    assert (told.src_lang, told.tgt_lang) == ("en_XX", "de_DE")


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A Marian tokenizer with a sentencepiece model for each side."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("marian")
    vocabulary = {"</s>": 0, "<unk>": 1}
    for side, language in (("source", "en"), ("target", "de")):
        (folder / f"{side}.txt").write_text("\n".join(row[language] for row in PAIRS))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / f"{side}.txt"), model_prefix=str(folder / side), vocab_size=60, hard_vocab_limit=False,
            minloglevel=2,
        )  # fmt: skip
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        pieces = sentencepiece.SentencePieceProcessor(str(folder / f"{side}.spm"))
        for i in range(pieces.vocab_size()):
            vocabulary.setdefault(pieces.id_to_piece(i), len(vocabulary))
    import json

    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<pad>": len(vocabulary)}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"})
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "marian"}))
    return folder


def test_marian_reads_and_writes_with_its_own_pieces(marian):
    tokenizer = load_tokenizer(str(marian))
    assert not tokenizer.is_fast
    german = PAIRS[4]["de"]
    read, written = encode_documents(tokenizer, [german]), encode_documents(tokenizer, [german], as_targets=True)
    assert written == [tokenizer(text_target=german).input_ids[:-1]] != read
    assert special_tokens_around(tokenizer, causal=False).after == [tokenizer.eos_token_id]
    forged = encode_documents(tokenizer, ["a house </s> and a dog"])[0]
    assert tokenizer.eos_token_id not in forged
    model, task = translation(tokenizer, forced_eos_token_id=None, decoder_start_token_id=tokenizer.pad_token_id)
    assert task.label_proof().passed, task.label_proof().said
    assert len(task.measure(model, "test").examples) == len(task.table.rows["test"])
    with pytest.raises(ValueError, match=r"MarianTokenizer gives no character offsets"):
        encode_with_offsets(tokenizer, ["a house"])
