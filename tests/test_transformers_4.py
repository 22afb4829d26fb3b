"""Saved folders open in transformers 4 too. Set HF_LM_TRANSFORMERS_4 to a Python that has it for the slow test."""

import json
import os
import subprocess

import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from hf_lm.models.target_tokenizer import TARGET, save_tokenizer, set_target
from hf_lm.tokenization.tokenizer import add_frame, train_bpe, train_word_level

TEXTS = ["the quick 春 <|endoftext|> fox 12345", "Documents are  joined.\n", "<extra_id_1> a fox"]
WORDS = ["the", "quick", "fox", "a", "documents", "are", "joined", ".", *"0123456789", *"##x"]
SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SIZES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}


def trained_by_family(texts):
    """name -> (tokenizer, configuration of its model)."""
    bert = transformers.BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -5.0) for word in WORDS)]
    t5 = transformers.T5Tokenizer(vocab=pieces, extra_ids=4)
    bpe = train_bpe(texts, vocab_size=320)
    framed = add_frame(train_bpe(texts, vocab_size=320))
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": 0}
    return {
        "gpt2": (bpe, transformers.GPT2Config(vocab_size=len(bpe), n_embd=16, n_layer=1, n_head=2, **ids)),
        "word": (train_word_level(texts), transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, **ids)),
        "bart": (framed, transformers.BartConfig(vocab_size=len(framed), **SIZES, **ids, forced_eos_token_id=0)),
        "bert": (
            bert,
            transformers.BertConfig(
                vocab_size=len(bert), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
            ),
        ),
        "t5": (
            t5,
            transformers.T5Config(
                vocab_size=len(t5), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0
            ),
        ),
    }


@pytest.fixture(scope="module")
def folders(texts, tmp_path_factory):
    """A folder per family, and what transformers of this environment reads in it: ids, and the sum of the states."""
    root, expected = tmp_path_factory.mktemp("families"), {}
    for name, (tokenizer, config) in trained_by_family(texts).items():
        save_tokenizer(tokenizer, root / name)
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        model.save_pretrained(root / name)
        ids = [tokenizer(text).input_ids for text in TEXTS]
        expected[name] = ids, states(model.eval(), ids[0])
    return root, expected


def states(model, ids):
    inputs = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        return model(**inputs).last_hidden_state.abs().sum().item()


def test_saved_names_are_those_of_transformers_4_and_ids_stay(folders):
    root, expected = folders
    for name, (ids, _) in expected.items():
        for _ in range(2):  # saved again, as a run does that starts from the folder
            saved = json.loads((root / name / "tokenizer_config.json").read_text())
            assert saved["tokenizer_class"] != "TokenizersBackend"
            assert not isinstance(saved.get("extra_special_tokens"), list)
            tokenizer = AutoTokenizer.from_pretrained(root / name)
            assert [tokenizer(text).input_ids for text in TEXTS] == ids
            save_tokenizer(tokenizer, root / name)
    assert "<extra_id_1>" in tokenizer.all_special_tokens  # T5's, the last one


def test_the_target_tokenizer_is_saved_in_the_same_names(folders, tmp_path):
    tokenizer, target = (AutoTokenizer.from_pretrained(folders[0] / name) for name in ("bert", "gpt2"))
    set_target(tokenizer, target)
    save_tokenizer(tokenizer, tmp_path)
    saved = json.loads((tmp_path / TARGET / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"


OPEN = """
import json, sys, torch, transformers
from transformers import AutoModel, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
texts, opened = json.loads(sys.argv[2]), {}
for name in json.loads(sys.argv[3]):
    tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{name}")
    model = AutoModel.from_pretrained(f"{sys.argv[1]}/{name}").eval()
    ids = [tokenizer(text).input_ids for text in texts]
    inputs = {"input_ids": torch.tensor([ids[0]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        opened[name] = ids, model(**inputs).last_hidden_state.abs().sum().item()
print(json.dumps(opened))
"""


@pytest.mark.slow
@pytest.mark.skipif("HF_LM_TRANSFORMERS_4" not in os.environ, reason="HF_LM_TRANSFORMERS_4 names no Python")
def test_transformers_4_reads_the_same_ids_and_computes_the_same(folders):
    root, expected = folders
    command = [os.environ["HF_LM_TRANSFORMERS_4"], "-I", "-c", OPEN]
    done = subprocess.run(
        [*command, str(root), json.dumps(TEXTS), json.dumps(list(expected))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    opened = json.loads(done.stdout)
    for name, (ids, total) in expected.items():
        assert opened[name] == [ids, pytest.approx(total, rel=1e-4)], name
