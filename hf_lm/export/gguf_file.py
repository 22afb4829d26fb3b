"""A GPT-2 as a GGUF file, for llama.cpp and what is built on it, compared with the folder before it is put in place.

llama.cpp knows a tokenizer's rules for words by a name from its own list; a GGUF file cannot carry any others. Of
these GPT-2's are written here.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import regex
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_lm.export import llama
from hf_lm.export.placing import MARK, check_places, placed
from hf_lm.export.samples import Difference, difference, lines
from hf_lm.models.configuration import load_config
from hf_lm.models.loading import load_causal_lm
from hf_lm.tokenization.tokenizer import encode_documents, load_tokenizer, special_tokens_around
from hf_lm.version import __version__

try:
    import gguf  # pyright: ignore[reportMissingImports]  (an extra)
except ImportError:
    raise ImportError("export to GGUF needs gguf: pip install 'hf-lm[export]'.") from None

PRE_TOKENIZER = "gpt-2"  # llama.cpp's name of it
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")  # GPT-2's
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of the one that llama.cpp computes
TOLERANCE = 1e-4  # of the largest logit, as transformers reads the file
BY_LLAMA_CPP = 1e-2  # as llama.cpp reads it, which computes more coarsely: 1.4e-4 to 2.4e-4 was measured
TRANSPOSED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")  # (in, out) in GPT-2


def export_gguf(folder: str | Path, output: str | Path) -> list[str]:
    """Write a GPT-2's folder as one GGUF file in float32, and return what was compared, a line each.

    The embedding ends with the tokenizer's last id: rows that only round its size up are left out. Raises ValueError
    or OSError in one line: an adapter, another family, a tokenizer that llama.cpp does not know, an output that is not
    ours, other ids for one of a thousand lines, or logits that differ by more than the tolerance.
    """
    folder, output = str(folder), Path(output)
    check_places(folder, output, ours=_is_ours)
    config = load_config(folder)
    _check_model(folder, config.to_dict())
    tokenizer = load_tokenizer(folder)
    _check_tokenizer(folder, tokenizer)
    model = cast(GPT2LMHeadModel, load_causal_lm(folder, tokenizer=tokenizer).eval())
    with placed(output) as aside:
        _write(model, tokenizer, aside)
        text = lines()
        ids = encode_documents(tokenizer, text)
        reports = [f"token ids of {len(text):,} lines: equal, by the rules in the file"]
        _check_ids(text, ids, _encode(aside, text))
        rows = _rows(ids, model.config.n_positions)
        reports.append(_check_logits(aside, model, rows))
        reports.append(_check_by_llama_cpp(aside, model, text, ids, rows))
    return reports


def _is_ours(path: Path) -> bool:
    return MARK in gguf.GGUFReader(path).fields


def _check_model(folder: str, config: dict[str, Any]) -> None:
    if config["model_type"] != "gpt2":
        raise ValueError(
            f"{folder} is a {config['model_type']}: export writes GPT-2 as GGUF; for other families of the Hub use "
            "llama.cpp's own convert_hf_to_gguf.py."
        )
    usual = {"add_cross_attention": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    other = [name for name, value in usual.items() if config[name] != value]
    if config["activation_function"] not in ACTIVATIONS:
        other.append("activation_function")
    if config["architectures"] != ["GPT2LMHeadModel"]:
        other.append("architectures")
    if other:
        raise ValueError(f"{folder}: llama.cpp's GPT-2 has no {other[0]}={config[other[0]]}, so it cannot be GGUF.")


def _check_tokenizer(folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    problem = ""
    if not tokenizer.is_fast:
        problem = "has no tokenizer.json"
    else:
        rules = _rules(tokenizer)
        words, model = rules["pre_tokenizer"] or {}, rules["model"]
        plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        if model["type"] != "BPE" or rules["normalizer"] or model.get("byte_fallback"):
            problem = "is not plain byte-level BPE"
        elif any(words.get(name) != value for name, value in plain.items()):
            problem = "cuts text into words by rules that llama.cpp does not know, and a GGUF file cannot carry them"
    if problem:
        raise ValueError(
            f"the tokenizer of {folder} {problem}: train one with recipes/pretrain.py --pre_tokenizer gpt2."
        )


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return json.loads(cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.to_str())


def _write(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
    writer.add_string(MARK, __version__)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    size = _add_tokenizer(writer, tokenizer)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for key, weight in model.state_dict().items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None or (name == "output.weight" and config.tie_word_embeddings):
            continue  # a mask that old versions saved, or the embedding again
        values = weight.detach().float().numpy()
        if name in ("token_embd.weight", "output.weight"):
            values = values[:size]
        writer.add_tensor(name, np.ascontiguousarray(values.T if name.endswith(TRANSPOSED) else values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: "gguf.GGUFWriter", tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the number of ids."""
    tokens = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    size, special = max(tokens) + 1, set(tokenizer.all_special_ids)
    added = set(cast(PreTrainedTokenizerFast, tokenizer).added_tokens_decoder)
    kinds = []
    for i in range(size):
        kind = gguf.TokenType.NORMAL if i in tokens else gguf.TokenType.UNUSED
        if i in added:
            kind = gguf.TokenType.CONTROL if i in special else gguf.TokenType.USER_DEFINED
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([tokens.get(i, f"[unused{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in _rules(tokenizer)["model"]["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_add_bos_token(bool(special_tokens_around(tokenizer, causal=True).before))  # as hf-lm generate has it
    if tokenizer.chat_template:
        writer.add_chat_template(cast(str, tokenizer.chat_template))  # or named templates, which it takes too
    return size


def _encode(path: Path, text: list[str]) -> Iterator[list[int]]:
    """Ids as a reader of the file computes them: GPT-2's words, then the merges by their order."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    fields, letters = gguf.GGUFReader(path).fields, bytes_to_unicode()
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {tuple(pair.split(" ")): i for i, pair in enumerate(fields["tokenizer.ggml.merges"].contents())}
    for line in text:
        encoded = []
        for word in WORDS.findall(line):
            parts = [letters[byte] for byte in word.encode()]
            while len(parts) > 1:
                rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(parts)))
                if rank == len(ranks):
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            encoded += [ids[part] for part in parts]
        yield encoded


def _check_ids(text: list[str], expected: list[list[int]], computed: Iterator[list[int]]) -> None:
    for line, mine, theirs in zip(text, expected, computed, strict=True):
        if mine != theirs:
            raise ValueError(
                f"nothing was written: by the file's rules {line[:60]!r} has the ids {theirs[:12]}, not {mine[:12]}."
            )


def _rows(ids: list[list[int]], positions: int) -> list[list[int]]:
    """Four rows of text, of several lengths up to 128 tokens."""
    joined = [token for line in ids for token in line]
    longest = min(positions, 128)
    return [joined[i * longest : i * longest + length] for i, length in enumerate((longest, 1, longest // 2, longest))]


def _check_logits(path: Path, model: GPT2LMHeadModel, rows: list[list[int]]) -> str:
    """Compare the file, as transformers reads it, with the model. Raises ValueError beyond the tolerance."""
    config = model.config.__class__(**model.config.to_dict())
    (embedding,) = (each for each in gguf.GGUFReader(path).tensors if each.name == "token_embd.weight")
    config.vocab_size = size = int(embedding.shape[1])
    # By its whole path: transformers takes a file of that name in the working directory first.
    whole = path.resolve()
    read = AutoModelForCausalLM.from_pretrained(whole.parent, gguf_file=str(whole), config=config, dtype=torch.float32)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[0, :, :size] for row in rows]
        computed = [read.eval()(input_ids=torch.tensor([row])).logits[0].numpy() for row in rows]
    result: Difference = difference(expected, computed, allowed=TOLERANCE)
    if not result.within:
        raise ValueError(f"nothing was written: read by transformers, the largest difference of logits is {result}.")
    return f"largest difference of logits, read by transformers: {result}"


def _check_by_llama_cpp(
    path: Path, model: GPT2LMHeadModel, text: list[str], ids: list[list[int]], rows: list[list[int]]
) -> str:
    """Compare ids and logits with those of llama.cpp, if it is there. Raises ValueError where they differ."""
    if not llama.installed():
        return "not asked: llama.cpp itself (pip install 'hf-lm[llama]' compiles it, and the next export asks it)"
    theirs, computed = llama.compute(path, text, rows, positions=model.config.n_positions)
    _check_ids(text, ids, iter(theirs))
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[..., : computed[0].shape[-1]] for row in rows]
    result = difference(expected, computed, allowed=BY_LLAMA_CPP)
    if not result.within:
        raise ValueError(f"nothing was written: read by llama.cpp, the largest difference of logits is {result}.")
    return f"llama.cpp: the same ids of all lines; largest difference of logits: {result}"
