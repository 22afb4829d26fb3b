"""An exported file computes what its folder computes, or is not written."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hf_lm.cli import main
from hf_lm.export.placing import check_places, placed
from hf_lm.export.samples import difference, lines
from hf_lm.models.gpt2 import new_gpt2
from hf_lm.tokenization.tokenizer import encode_documents, train_bpe

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf comes with the extra `export`")
needs_onnx = pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript comes with the extra `export`")


def save(folder: Path, tokenizer, model=None) -> Path:
    torch.manual_seed(0)
    model = model or new_gpt2(tokenizer, n_layer=2, n_head=2, n_embd=16, block_size=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2_words(texts):
    return train_bpe(texts, vocab_size=320, pre_tokenizer="gpt2")


def test_the_words_of_gpt2_are_cut_as_gpt2_cuts_them(gpt2_words, tokenizer):
    text = "I'm 12345 years  old"
    words = [part for part, _ in gpt2_words.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert words == ["I", "'m", "Ġ12345", "Ġyears", "Ġ", "Ġold"]
    assert len(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)) > len(words)
    (ids,) = encode_documents(gpt2_words, [text])
    assert gpt2_words.decode(ids) == text


def test_a_difference_that_is_no_number_is_not_within_the_tolerance():
    logits = torch.tensor([[[1.0, -8.0]]])
    assert difference([logits], [logits.numpy()], allowed=1e-4).within
    near = difference([logits], [logits.numpy() + 7e-4], allowed=1e-4)
    assert near.within
    assert near.largest == 8
    assert not difference([logits], [logits.numpy() + 9e-4], allowed=1e-4).within
    assert not difference([logits], [np.full((1, 1, 2), np.nan, np.float32)], allowed=1e-4).within
    with pytest.raises(ValueError, match="logits of shape"):
        difference([logits], [np.zeros((1, 2, 2))], allowed=1)


def test_padding_is_not_compared():
    logits, mask = torch.ones(1, 2, 3), torch.tensor([[1, 0]])
    changed = logits.numpy().copy()
    changed[0, 1] = 5
    assert difference([logits], [changed], allowed=1e-4, where=[mask]).within
    assert not difference([logits], [changed], allowed=1e-4).within


def test_what_fails_is_not_put_in_place(tmp_path):
    output = tmp_path / "model.onnx"

    def fail():
        with placed(output) as aside:
            aside.write_bytes(b"wrong")
            raise ValueError("differ")

    with pytest.raises(ValueError, match="differ"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with placed(output) as aside:
        aside.write_bytes(b"right")
    assert output.read_bytes() == b"right"
    assert list(tmp_path.iterdir()) == [output]


def test_an_adapter_and_a_file_of_somebody_else_are_refused_before_any_work(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
    with pytest.raises(ValueError, match=r"merge it first \(hf-lm merge"):
        check_places(str(adapter), tmp_path / "a.onnx", ours=lambda path: True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "mine.onnx").write_text("my notes")
    with pytest.raises(FileExistsError, match="give another --output"):
        check_places(str(tmp_path), tmp_path / "mine.onnx", ours=lambda path: False)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check_places(str(tmp_path), tmp_path / "nowhere" / "a.onnx", ours=lambda path: True)


@pytest.mark.parametrize("to", ["onnx", "gguf"])
def test_without_the_extra_the_error_says_what_to_install(to, tmp_path, capsys):
    if find_spec("gguf" if to == "gguf" else "onnxscript"):
        pytest.skip("the extra `export` is installed")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path), "--to", to, "--output", str(tmp_path / "out")])
    assert "pip install 'hf-lm[export]'" in capsys.readouterr().err


@needs_gguf
@pytest.mark.slow
def test_a_gpt2_becomes_gguf_and_back(tmp_path, gpt2_words, monkeypatch):
    import gguf

    from hf_lm.export.gguf_file import export_gguf

    folder, output = save(tmp_path / "model", gpt2_words), tmp_path / "model.gguf"
    reports = export_gguf(folder, output)
    assert reports[0] == "token ids of 1,000 lines: equal, by the rules in the file"
    fields = gguf.GGUFReader(output).fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True  # as hf-lm generate starts a text
    assert len(fields["tokenizer.ggml.tokens"].contents()) == len(gpt2_words)  # not the rounded embedding
    assert "allowed: 0.0001 of the largest" in reports[1]
    export_gguf(folder, output)  # its own file is replaced
    torch.manual_seed(1)
    monkeypatch.chdir(tmp_path)
    export_gguf(save(tmp_path / "other", gpt2_words), "model.gguf")  # and compared with what is there now


@needs_gguf
@pytest.mark.slow
def test_a_gguf_that_gives_other_ids_or_logits_is_not_written(tmp_path, gpt2_words, monkeypatch):
    from hf_lm.export import gguf_file

    folder, output, rules = save(tmp_path / "model", gpt2_words), tmp_path / "model.gguf", gguf_file._rules
    with monkeypatch.context() as changed:
        changed.setattr(gguf_file, "TOLERANCE", 1e-12)
        with pytest.raises(ValueError, match="largest difference of logits"):
            gguf_file.export_gguf(folder, output)
    with monkeypatch.context() as changed:
        changed.setattr(gguf_file, "TRANSPOSED", ("ffn_up.weight", "ffn_down.weight", "attn_qkv.weight"))
        with pytest.raises(ValueError, match="largest difference of logits"):
            gguf_file.export_gguf(folder, output)

    def fewer(tokenizer):
        content = rules(tokenizer)
        content["model"]["merges"] = content["model"]["merges"][:-20]
        return content

    monkeypatch.setattr(gguf_file, "_rules", fewer)
    with pytest.raises(ValueError, match="has the ids"):
        gguf_file.export_gguf(folder, output)
    assert not output.exists()


@needs_gguf
@pytest.mark.slow
def test_llama_cpp_computes_what_the_folder_computes(tmp_path, gpt2_words, monkeypatch):
    from hf_lm.export import gguf_file, llama

    if not llama.installed():
        pytest.skip("llama-cpp-python is not installed")
    folder = save(tmp_path / "model", gpt2_words)
    said = gguf_file.export_gguf(folder, tmp_path / "a.gguf")[-1]
    assert said.startswith("llama.cpp: the same ids of all lines; largest difference of logits: ")
    monkeypatch.setattr(gguf_file, "BY_LLAMA_CPP", 1e-9)
    with pytest.raises(ValueError, match=r"read by llama\.cpp, the largest difference of logits"):
        gguf_file.export_gguf(folder, tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()


@needs_gguf
@pytest.mark.slow
@pytest.mark.parametrize("other", ["ids", "logits"])
def test_a_gguf_of_which_llama_cpp_computes_something_else_is_not_written(tmp_path, gpt2_words, monkeypatch, other):
    from hf_lm.export import gguf_file, llama

    def compute(path, text, rows, *, positions):
        ids = [
            row[1:] if other == "ids" and i == 7 else row for i, row in enumerate(encode_documents(gpt2_words, text))
        ]
        return ids, [np.zeros((1, len(row), len(gpt2_words)), np.float32) for row in rows]

    monkeypatch.setattr(llama, "installed", lambda: True)
    monkeypatch.setattr(llama, "compute", compute)
    with pytest.raises(ValueError, match="has the ids" if other == "ids" else r"read by llama\.cpp"):
        gguf_file.export_gguf(save(tmp_path / "model", gpt2_words), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


@needs_gguf
def test_what_llama_cpp_does_not_know_is_refused_in_one_line(tmp_path, tokenizer, gpt2_words):
    from hf_lm.export.gguf_file import export_gguf

    with pytest.raises(ValueError, match="--pre_tokenizer gpt2") as refused:
        export_gguf(save(tmp_path / "words", tokenizer), tmp_path / "a.gguf")
    assert "\n" not in str(refused.value)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=320, **sizes))
    with pytest.raises(ValueError, match="is a llama"):
        export_gguf(save(tmp_path / "llama", gpt2_words, llama), tmp_path / "a.gguf")
    relu = new_gpt2(gpt2_words, n_layer=1, n_head=1, n_embd=8, block_size=8)
    relu.config.activation_function = "relu"
    with pytest.raises(ValueError, match="no activation_function=relu"):
        export_gguf(save(tmp_path / "relu", gpt2_words, relu), tmp_path / "a.gguf")


@needs_onnx
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_language_model_becomes_onnx_with_any_batch_and_length(tmp_path, tokenizer):
    import onnxruntime

    folder, output = save(tmp_path / "model", tokenizer), tmp_path / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "hf_lm.cli", "export", str(folder), "--to", "onnx", "--output", str(output)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "allowed: 0.0001 of the largest" in done.stdout
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    session = onnxruntime.InferenceSession(str(output))
    for shape in ((1, 1), (3, 7), (7, 32)):  # none is that of the example
        ids = torch.randint(0, 300, shape)
        (computed,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": np.ones(shape, np.int64)})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(computed), model(ids).logits, rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_classifier_becomes_onnx_and_a_difference_keeps_it_from_being_written(tmp_path, gpt2_words, monkeypatch):
    from hf_lm.export import onnx_graph

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=320, max_position_embeddings=32, num_labels=3, **sizes)
    config.id2label = {0: "bad", 1: "fair", 2: "good"}
    folder = save(tmp_path / "bert", gpt2_words, transformers.BertForSequenceClassification(config))
    assert onnx_graph.export_onnx(folder, tmp_path / "bert.onnx").within
    monkeypatch.setattr(onnx_graph, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="nothing was written"):
        onnx_graph.export_onnx(folder, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


@needs_onnx
def test_what_is_no_single_graph_is_refused(tmp_path, tokenizer):
    from hf_lm.export.onnx_graph import export_onnx
    from hf_lm.models.encoder_decoder import new_bart
    from hf_lm.models.recurrent import new_recurrent

    bart = new_bart(tokenizer, n_layer=1, n_head=1, n_embd=8, block_size=16)
    with pytest.raises(ValueError, match="an encoder-decoder is two"):
        export_onnx(save(tmp_path / "bart", tokenizer, bart), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="recurrent"):
        export_onnx(save(tmp_path / "lstm", tokenizer, new_recurrent(tokenizer)), tmp_path / "a.onnx")


@pytest.mark.slow
def test_the_text_of_the_comparison_has_a_thousand_lines_in_many_scripts():
    text = lines()
    assert len(text) == len(lines()) == 1000
    assert set("春アи가ع") <= set("".join(text))
