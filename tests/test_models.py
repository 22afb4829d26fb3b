"""Fresh GPT-2 models, and checkpoints of others: right from the start, or refused in one line."""

import json
import math
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from hf_lm.models.gpt2 import SIZES, new_gpt2
from hf_lm.models.loading import load_causal_lm

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32}


def word_tokenizer(ids: int = 100, *, first: str = "w") -> PreTrainedTokenizerFast:
    vocabulary = {"<|endoftext|>": 0, "<|pad|>": 1, "<unk>": 2} | {f"{first}{i}": i for i in range(3, ids)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    marker = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=marker, eos_token=marker, pad_token="<|pad|>", unk_token="<unk>"
    )


@pytest.fixture
def saved(tmp_path):
    """The folder of a saved GPT-2 with 100 tokens and its tokenizer."""
    set_seed(0)
    folder = tmp_path / "gpt2"
    new_gpt2(word_tokenizer(), **TINY).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_untrained_loss_is_that_of_a_uniform_guess():
    set_seed(0)
    model = new_gpt2(word_tokenizer(), **TINY)
    ids = torch.randint(100, (8, 32))
    assert math.isclose(model(ids, labels=ids).loss.item(), math.log(model.config.vocab_size), rel_tol=0.05)


@pytest.mark.parametrize(("ids", "rows"), [(63, 64), (64, 64), (65, 128), (100, 128)])
def test_embedding_rows_are_a_multiple_of_64_and_the_spare_ones_are_never_generated(ids, rows, tmp_path):
    model = new_gpt2(word_tokenizer(ids), **TINY).eval()
    assert model.config.vocab_size == model.transformer.wte.num_embeddings == rows
    assert model.lm_head.weight is model.transformer.wte.weight
    with torch.no_grad():  # every spare row's logit is above all others
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[ids:] = 5.0
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for how in ({}, {"do_sample": True}, {"num_beams": 2}):
        assert loaded.generate(torch.tensor([[0, 5]]), max_new_tokens=8, **how).max() < ids


def test_special_ids_and_lengths_are_in_both_saved_configurations(saved):
    config = json.loads((saved / "config.json").read_text())
    generation = json.loads((saved / "generation_config.json").read_text())
    for name, token_id in {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}.items():
        assert config[name] == generation[name] == token_id
    assert config["n_positions"] == 32
    assert config["use_cache"] is True
    assert generation["max_new_tokens"] == 16
    generated = AutoModelForCausalLM.from_pretrained(saved).generate(torch.full((1, 16), 5), eos_token_id=None)
    assert generated.shape[1] == 32


def test_residual_projections_start_smaller_the_deeper_the_model():
    model = new_gpt2(word_tokenizer(), n_layer=8, n_head=2, n_embd=64, block_size=8)
    for block in model.transformer.h:
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            assert math.isclose(projection.weight.std().item(), 0.02 / math.sqrt(2 * 8), rel_tol=0.1)
        assert math.isclose(block.mlp.c_fc.weight.std().item(), 0.02, rel_tol=0.1)


def test_sizes_have_the_published_numbers_of_parameters():
    """With the published vocabulary of 50,257: 124, 355, 774 and 1,558 million."""
    counts = []
    for shape in SIZES.values():
        n_embd, n_layer = shape["n_embd"], shape["n_layer"]
        per_block = 12 * n_embd**2 + 13 * n_embd
        counts.append(n_layer * per_block + (50257 + shape["block_size"] + 2) * n_embd)
    assert [round(count / 1e6) for count in counts[2:]] == [124, 355, 774, 1558]
    assert counts == sorted(counts)
    model = new_gpt2(word_tokenizer(), **TINY)
    assert model.num_parameters() == 2 * (12 * 16**2 + 13 * 16) + (128 + 32 + 2) * 16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": "smal"}, r"choose one of tiny, mini, small, medium, large, xl\. Did you mean 'small'\?"),
        ({"n_embd": 100, "n_head": 6}, r"n_embd=100 is not divisible by n_head=6.*try n_embd=96 or 102"),
        ({"n_embd": 2, "n_head": 4}, "try n_embd=4,"),
        ({"block_size": 1}, "block_size=1 leaves no next token"),
        ({"n_layer": -1}, "n_layer=-1 is negative"),
        ({"dropout": 1.0}, r"dropout=1\.0 is not a probability below 1"),
        ({"attn_dropout": -0.1}, r"attn_pdrop=-0\.1 is not a probability below 1"),
    ],
)
def test_shapes_that_cannot_be_are_said_in_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as raised:
        new_gpt2(word_tokenizer(), **settings)
    assert "\n" not in str(raised.value)


def test_each_place_of_dropout_has_its_own_or_that_of_all():
    config = new_gpt2(word_tokenizer(), **TINY | {"dropout": 0.1, "embd_dropout": 0.3, "attn_dropout": 0.0}).config
    assert (config.embd_pdrop, config.resid_pdrop, config.attn_pdrop) == (0.3, 0.1, 0.0)


def test_the_context_is_written_under_the_name_that_other_runtimes_read(tmp_path):
    """mlx-lm and llama.cpp read `n_ctx` and have no default for it."""
    new_gpt2(word_tokenizer(), **TINY).save_pretrained(tmp_path / "first")
    load_causal_lm(str(tmp_path / "first")).save_pretrained(tmp_path / "again")
    for folder in ("first", "again"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["n_ctx"] == config["n_positions"] == 32


def test_a_checkpoint_loads_in_float32_with_cache_and_ids(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_layer=1, n_embd=8, n_head=2, n_positions=16)).bfloat16()
    model.config.use_cache = False
    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(str(tmp_path), tokenizer=word_tokenizer(), block_size=16)
    assert loaded.dtype == torch.float32
    assert loaded.config.use_cache
    for config in (loaded.config, loaded.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 1)
    assert loaded.generation_config.max_new_tokens == 8


def test_several_end_tokens_of_a_chat_model_stay(tmp_path):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=100, eos_token_id=[0, 7], **shape)).save_pretrained(tmp_path)
    loaded = load_causal_lm(str(tmp_path), tokenizer=word_tokenizer())
    assert loaded.generation_config.eos_token_id == [0, 7]


def test_a_tokenizer_that_is_not_the_models_is_refused(saved):
    load_causal_lm(str(saved), tokenizer=word_tokenizer())
    with pytest.raises(ValueError, match=r"disagree on 97 of 100 ids \(id 3 is 'v3', and 'w3' to the model\)"):
        load_causal_lm(str(saved), tokenizer=word_tokenizer(first="v"))
    with pytest.raises(
        ValueError, match=r"the tokenizer has 200 ids and .* has embeddings for 128; use the tokenizer"
    ):
        load_causal_lm(str(saved), tokenizer=word_tokenizer(200))
    for path in saved.glob("tokenizer*"):
        path.unlink()
    load_causal_lm(str(saved), tokenizer=word_tokenizer(first="v"))  # nothing to compare with


def test_a_block_longer_than_the_positions_is_refused(saved):
    with pytest.raises(ValueError, match=r"block_size=33, but .* has 32 positions; give --block_size 32 or less"):
        load_causal_lm(str(saved), block_size=33)


def test_the_search_for_a_view_of_later_tokens_says_that_nothing_is_padding(saved, monkeypatch):
    masked = []
    look = lambda self, ids, mask: masked.append(mask is not None)  # noqa: E731
    monkeypatch.setattr(GPT2Model, "warn_if_padding_and_no_attention_mask", look)
    load_causal_lm(str(saved))
    assert masked == [True, True]


def test_models_that_are_not_causal_are_refused(tmp_path):
    set_seed(0)
    bert = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=64, initializer_range=0.5, **bert)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"\(BertForMaskedLM\) sees the tokens after the one it predicts"):
        load_causal_lm(str(tmp_path / "bert"))
    BertForMaskedLM(BertConfig(vocab_size=64, **bert)).bert.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"was saved as BertModel and lacks \d+ weights of BertLMHeadModel"):
        load_causal_lm(str(tmp_path / "base"))
    t5 = T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"is an encoder-decoder \(T5ForConditionalGeneration\), not a causal"):
        load_causal_lm(str(tmp_path / "t5"))


def test_folders_that_hold_no_model_are_said_in_one_line(saved, tmp_path):
    def broken(name: str, *missing: str, **written: str) -> str:
        folder = tmp_path / name
        shutil.copytree(saved, folder)
        for each in missing:
            (folder / each).unlink()
        for stem, text in written.items():
            (folder / stem.replace("__", ".")).write_text(text)
        return str(folder)

    weights = "model.safetensors"
    own_code = '{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config", "AutoModelForCausalLM": "odd.Model"}}'
    run = tmp_path / "run"
    shutil.copytree(saved, run / "checkpoint-20")
    cases = {
        str(tmp_path / "nowhere"): "there is no folder",
        str(saved / "config.json"): "is a file; give the folder",
        broken("bare", weights, "config.json"): "has no config.json",
        broken("light", weights): "no weights",
        broken("pickled", weights, pytorch_model__bin=""): "pickled (pytorch_model.bin)",
        broken("adapter", weights, "config.json", adapter_config__json="{}"): "an adapter that names no base model",
        str(run): f"checkpoints of a run: give {run / 'checkpoint-20'}",
        broken("cut", config__json='{"model_ty'): "cannot read the config.json",
        broken("unknown", config__json='{"model_type": "odd"}'): "knows no such model",
        broken("code", config__json=own_code): "runs no code from a model",
        broken("torn", model__safetensors="abc"): "cannot load the weights",
        "someone/model": "check the name, or unset HF_HUB_OFFLINE, which keeps the Hub from being asked",
    }
    for name, said in cases.items():
        with pytest.raises((OSError, ValueError)) as raised:
            load_causal_lm(name)
        assert said in str(raised.value)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
