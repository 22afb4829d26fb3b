"""Token files are read in place as the stream that we would make of the same documents, or refused in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_lm.data import token_files
from hf_lm.data.packing import Blocks, markers, tokenize_documents
from hf_lm.data.sources import load_corpus
from hf_lm.data.token_files import JoinedArray, open_tokens, record_tokens
from hf_lm.evaluation.leakage import leaked_share
from hf_lm.evaluation.perplexity import unigram_likelihood
from hf_lm.tasks.language_modelling import LanguageModelling
from hf_lm.tokenization.tokenizer import encode_documents, prepare_tokenizer, tokenizer_fingerprint, train_bpe


def write_file(path: Path, documents, tokenizer, dtype=np.uint16) -> None:
    """What datatrove's DocumentTokenizer writes, from its definition: ids and the end marker, and the ends."""
    begin, end = markers(tokenizer)
    encoded = [[*ids, end] for ids in encode_documents(tokenizer, documents)]
    encoded = [[begin, *ids] for ids in encoded] if begin != end else encoded
    np.array([i for ids in encoded for i in ids], dtype).tofile(path)
    np.cumsum([len(ids) for ids in encoded], dtype=np.uint64).tofile(f"{path}.index")


def write_folder(folder: Path, texts, tokenizer, *, files: int = 3, held_out=("A held-out text.",)) -> Path:
    folder.mkdir()
    for i in range(files):
        write_file(
            folder / f"{i:03d}_part.ds", texts[i * len(texts) // files : (i + 1) * len(texts) // files], tokenizer
        )
    (folder / "validation").mkdir()
    rows = [json.dumps({"text": text}) for text in held_out]
    (folder / "validation" / "00000.jsonl").write_text("\n".join(rows) + "\n")
    record_tokens(folder, tokenizer)
    return folder


def blocks_of(stream, size):
    blocks = Blocks(stream, block_size=size, isolate=True)
    return [
        (row["input_ids"].tolist(), row["position_ids"].tolist()) for row in (blocks[i] for i in range(len(blocks)))
    ]


@pytest.fixture
def two_markers(tokenizer, texts):
    other = train_bpe(texts, vocab_size=320)
    other.add_special_tokens({"bos_token": "<s>"})
    return other


@pytest.mark.parametrize("marked", ["tokenizer", "two_markers"])
def test_several_files_give_the_blocks_of_our_own_stream(marked, texts, tmp_path, request):
    tokenizer = request.getfixturevalue(marked)
    ours = tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "ours")
    stream = open_tokens([(write_folder(tmp_path / "f", texts, tokenizer), 1.0)], tokenizer)
    assert np.array_equal(stream.tokens[:], ours.tokens)
    assert np.array_equal(np.asarray(stream.starts), ours.starts)
    assert np.array_equal(stream.lengths, ours.lengths)
    assert blocks_of(stream, 16) == blocks_of(ours, 16)
    for i in (0, 19, 20, len(texts) - 1):  # beside the bounds of files too
        assert np.array_equal(stream.document(i), ours.document(i))
    assert np.array_equal(stream.take([3, 20]).tokens, ours.take([3, 20]).tokens)
    held_out = tokenize_documents([*texts[7:9], "unseen"], tokenizer=tokenizer, folder=tmp_path / "v")
    assert leaked_share(stream, held_out, run=8) == leaked_share(ours, held_out, run=8) > 0
    both = [unigram_likelihood(train, held_out, vocab_size=len(tokenizer)).loss for train in (stream, ours)]
    assert both[0] == both[1]


def test_nothing_is_copied_but_a_slice_across_files(texts, tokenizer, tmp_path):
    stream = open_tokens([(write_folder(tmp_path / "f", texts, tokenizer, files=2), 1.0)], tokenizer)
    _, first, second = stream.tokens.parts
    assert isinstance(first, np.memmap)
    assert np.shares_memory(stream.tokens[1:50], first)
    bound = 1 + len(first)
    assert stream.tokens[bound - 2 : bound + 2].tolist() == [*first[-2:].tolist(), *second[:2].tolist()]


@settings(max_examples=80)
@given(
    parts=st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=5),
    start=st.integers(0, 30),
    length=st.integers(0, 30),
)
def test_a_joined_array_is_the_concatenation(parts, start, length):
    joined = JoinedArray([np.array(part, np.int64) for part in parts], shifts=range(len(parts)))
    expected = [value + i for i, part in enumerate(parts) for value in part]
    assert joined[start : start + length].tolist() == expected[start : start + length]
    assert [joined[i] for i in range(len(joined))] == expected
    assert np.asarray(joined).tolist() == expected


def test_files_of_uint32_give_the_same_stream(texts, tokenizer, tmp_path):
    folder = write_folder(tmp_path / "f", texts, tokenizer)
    narrow = open_tokens([(folder, 1.0)], tokenizer).tokens[:]
    for path in folder.glob("*.ds"):
        np.fromfile(path, np.uint16).astype(np.uint32).tofile(path)
    record = json.loads((folder / "tokens.json").read_text()) | {"dtype": "uint32"}
    for file in record["files"].values():
        del file["hash"]  # of the narrow ones
    (folder / "tokens.json").write_text(json.dumps(record))
    wide = open_tokens([(folder, 1.0)], tokenizer).tokens
    assert wide.dtype == np.uint32
    assert np.array_equal(wide[:], narrow)


@pytest.mark.slow
def test_a_large_vocabulary_is_recorded_as_uint32(tmp_path):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(2**16)} | {"<end>": 2**16}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    large = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    write_file(tmp_path / "a.ds", ["w7 w65535", "w8"], large, np.uint32)
    assert record_tokens(tmp_path, large)["dtype"] == "uint32"
    stream = open_tokens([(tmp_path, 1.0)], large)
    assert stream.tokens[:].tolist() == [2**16, 7, 2**16 - 1, 2**16, 8, 2**16]


def test_a_mixture_takes_first_documents_by_weight_until_one_source_ends(texts, tokenizer, tmp_path):
    folders = [write_folder(tmp_path / name, part, tokenizer) for name, part in (("a", texts), ("b", texts[:20]))]
    stream = open_tokens([(folders[0], 1.0), (folders[1], 2.0)], tokenizer)
    of_b = open_tokens([(folders[1], 1.0)], tokenizer)
    assert np.array_equal(stream.tokens[len(stream.tokens) - len(of_b.tokens) + 1 :], of_b.tokens[1:])  # all of b
    of_a = len(stream.tokens) - len(of_b.tokens)
    assert of_b.total / 2 - 60 < of_a <= of_b.total / 2  # 60: more than a document
    corpus = load_corpus(f"tokens:{folders[0]}=1,tokens:{folders[1]}=2")
    assert "a mixture by tokens, 33% a, 67% b, as long as the source that ends first" in corpus.notes
    with pytest.raises(ValueError, match="mixes token files with the text demo"):
        load_corpus(f"tokens:{folders[0]}=1,demo=2")


def test_a_folder_is_a_corpus_with_its_own_tokenizer_and_held_out_text(texts, tokenizer, tmp_path):
    folder = write_folder(tmp_path / "f", texts, tokenizer, held_out=texts[:2])
    corpus = load_corpus(f"tokens:{folder}")
    assert list(corpus.documents("train")) == texts
    assert list(corpus.documents("validation")) == texts[:2]
    own = prepare_tokenizer("bpe", corpus, vocab_size=300, min_frequency=2, max_bytes=1000)
    assert tokenizer_fingerprint(own) == tokenizer_fingerprint(tokenizer)
    task = LanguageModelling(corpus, own, block_size=16)
    assert task.streams["train"].tokens.parts[1].filename == folder / "000_part.ds"
    assert task.report({})["data"]["train"]["documents"] == len(texts)
    before = corpus.fingerprint
    (folder / "validation" / "00000.jsonl").write_text('{"text": "other"}\n')
    assert load_corpus(f"tokens:{folder}").fingerprint != before


def refused(folder: Path, tokenizer) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        LanguageModelling(load_corpus(f"tokens:{folder}"), tokenizer, block_size=16)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_does_not_fit_is_refused_in_one_line(texts, tokenizer, tmp_path):
    folder = write_folder(tmp_path / "f", texts, tokenizer)
    assert re.search(r"is not a folder: recipes/corpus\.py", refused(tmp_path / "none", tokenizer))
    other = train_bpe(texts, vocab_size=300)
    assert re.search(r"was written by another tokenizer than .*: give --tokenizer .*tokenizer", refused(folder, other))
    path, index = folder / "001_part.ds", folder / "001_part.ds.index"
    tokens, ends = path.read_bytes(), index.read_bytes()
    for damaged in (ends[:-8], ends + b"\1", ends[:-8] + b"\0\0\0\0\1\0\0\0", b""):
        index.write_bytes(damaged)
        assert re.search(
            r"001_part\.ds\.index does not fit 001_part\.ds: its documents end", refused(folder, tokenizer)
        )
    index.write_bytes(ends)
    for damaged in (tokens[:-2], tokens[:-1], tokens + b"\0\0"):
        path.write_bytes(damaged)
        assert "does not fit" in refused(folder, tokenizer)
    path.write_bytes(tokens[:-2][: 2 * int(np.frombuffer(ends, np.uint64)[-2])])
    index.write_bytes(ends[:-8])
    assert "tokens.json records" in refused(folder, tokenizer)
    path.unlink()
    assert "001_part.ds is missing" in refused(folder, tokenizer)
    (folder / "tokens.json").write_text("{}")
    assert "tokens.json cannot be read" in refused(folder, tokenizer)
    (folder / "tokens.json").unlink()
    assert "has no tokens.json: recipes/corpus.py writes such a folder" in refused(folder, tokenizer)


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_with_other_tokens_of_the_same_number_is_refused(texts, tokenizer, tmp_path, monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(token_files, "CHUNK", 64)
    folder = write_folder(tmp_path / "f", texts, tokenizer)
    path = folder / "001_part.ds"
    kept = path.read_bytes()
    for at, token in ((0, 1), (len(kept) // 2 - 2, 2**16 - 1), (100, 1)):
        tokens = np.frombuffer(kept, np.uint16).copy()
        tokens[at] = token
        tokens.tofile(path)
        if whole or at != 100:  # between two parts
            assert "001_part.ds or its index was changed after tokens.json was written" in refused(folder, tokenizer)
        else:
            open_tokens([(folder, 1.0)], tokenizer)
    path.write_bytes(kept)
    ends = np.fromfile(folder / "001_part.ds.index", np.uint64)
    ends[0] -= 1
    ends.tofile(folder / "001_part.ds.index")
    assert "001_part.ds or its index was changed" in refused(folder, tokenizer)


def test_files_without_held_out_text_are_refused(texts, tokenizer, tmp_path):
    folder = write_folder(tmp_path / "f", texts, tokenizer)
    (folder / "validation" / "00000.jsonl").unlink()
    (folder / "validation").rmdir()
    assert "has no held-out text: put documents" in refused(folder, tokenizer)


def test_recording_finds_a_forged_marker_a_missing_one_and_ids_of_another_tokenizer(texts, tokenizer, tmp_path):
    def record(ids, ends):
        np.array(ids, np.uint16).tofile(tmp_path / "a.ds")
        np.array(ends, np.uint64).tofile(tmp_path / "a.ds.index")
        return record_tokens(tmp_path, tokenizer)

    end = tokenizer.eos_token_id
    assert record([7, 8, end, 9, end], [3, 5])["documents"] == 2
    with pytest.raises(ValueError, match=r"a\.ds has 1 markers .* inside documents: a text spells the marker"):
        record([7, end, 8, end, 9, end], [4, 6])
    with pytest.raises(ValueError, match="document 1 is not closed by the tokenizer's marker"):
        record([7, 8, end, 9], [3, 4])
    with pytest.raises(ValueError, match="holds the id 320, and the tokenizer has 320"):
        record([320, end], [2])
    with pytest.raises(ValueError, match="does not rise at document 1"):
        record([7, 8, end], [3, 3])


def test_the_fingerprint_is_of_what_a_tokenizer_does_with_text(texts, tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    same = train_bpe(texts, vocab_size=320)
    same.backend_tokenizer.enable_truncation(8)
    same.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert tokenizer_fingerprint(same) == before
    same.add_tokens(["new"])
    assert tokenizer_fingerprint(same) != before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone says how much was mapped")
def test_a_check_keeps_little_of_a_file_in_memory(tokenizer, tmp_path):
    _, end = markers(tokenizer)
    tokens = np.full((64_000, 500), (end + 1) % len(tokenizer), np.uint16)  # 64 MB
    tokens[:, -1] = end
    tokens.tofile(tmp_path / "0.ds")
    np.arange(500, tokens.size + 1, 500, dtype=np.uint64).tofile(tmp_path / "0.ds.index")
    del tokens

    def mebibytes(kind):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        pytest.skip("the peak cannot be reset here")
    before = mebibytes("VmRSS")
    assert record_tokens(tmp_path, tokenizer)["documents"] == 64_000
    assert mebibytes("VmHWM") - before < 32
