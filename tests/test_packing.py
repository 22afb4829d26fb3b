"""No token lost but the tail, no padding, documents kept apart, and nothing done twice."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_lm.data.packing import Blocks, cache_folder, collate_blocks, tokenize_documents
from hf_lm.tokenizer import encode_documents

DOCUMENTS = st.lists(st.text(alphabet="abc xyz.\n春", min_size=1, max_size=50), min_size=1, max_size=12)


def make_stream(documents, tokenizer, **settings):
    folder = Path(tempfile.mkdtemp()) / "stream"
    return tokenize_documents(documents, tokenizer=tokenizer, folder=folder, **settings)


@settings(max_examples=60)
@given(documents=DOCUMENTS)
def test_the_stream_is_the_documents_between_markers(tokenizer, documents):
    stream = make_stream(documents, tokenizer, count_words=True)
    expected = []
    for ids in encode_documents(tokenizer, documents):
        expected += [tokenizer.eos_token_id, *ids]
    assert stream.tokens.tolist() == [*expected, tokenizer.eos_token_id]
    for i, text in enumerate(documents):
        ids = stream.document(i)
        assert ids[0] == ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[1:-1]) == text
        assert stream.bytes[i] == len(text.encode())
        assert stream.words[i] == len(text.split())


@settings(max_examples=60)
@given(documents=DOCUMENTS, block_size=st.integers(2, 17))
def test_blocks_hold_every_token_once_but_the_tail_and_positions_restart_at_documents(
    tokenizer, documents, block_size
):
    stream = make_stream(documents, tokenizer)
    if stream.total < block_size:
        with pytest.raises(ValueError, match=f"{stream.total} tokens, fewer than one block of {block_size}"):
            Blocks(stream, block_size=block_size, isolate=True)
        return
    blocks = Blocks(stream, block_size=block_size, isolate=True)
    batch = collate_blocks(blocks.__getitems__(list(range(len(blocks)))))
    ids = batch["input_ids"].flatten().tolist()
    assert ids == stream.tokens[: len(ids)].tolist()
    assert stream.total - len(ids) < block_size
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert set(batch) == {"input_ids", "labels", "position_ids"}  # an attention mask would let documents leak
    for row, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        expected = 0
        for place, (token, position) in enumerate(zip(row.tolist(), positions.tolist(), strict=True)):
            expected = 0 if place == 0 or token == stream.begin else expected + 1
            assert position == expected
    assert "position_ids" not in Blocks(stream, block_size=block_size, isolate=False)[0]


def test_a_second_run_reads_no_document_and_a_damaged_cache_is_made_again(tokenizer, texts, tmp_path):
    first = tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "s")

    def never():
        raise AssertionError("documents were read")
        yield

    again = tokenize_documents(never(), tokenizer=tokenizer, folder=tmp_path / "s")
    np.testing.assert_array_equal(first.tokens, again.tokens)
    whole = (tmp_path / "s" / "tokens.bin").read_bytes()
    (tmp_path / "s" / "tokens.bin").write_bytes(whole[:-2])
    mended = tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "s")
    np.testing.assert_array_equal(first.tokens, mended.tokens)


def test_what_breaks_off_leaves_nothing_half_written(tokenizer, texts, tmp_path):
    def failing():
        yield from texts
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        tokenize_documents(failing(), tokenizer=tokenizer, folder=tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no documents"):
        tokenize_documents([], tokenizer=tokenizer, folder=tmp_path / "s")


def test_the_cache_is_named_by_text_and_tokenizer(tokenizer, texts):
    from hf_lm.tokenizer import train_bpe

    other = train_bpe(texts, vocab_size=300)
    names = {
        cache_folder("a", tokenizer, "train"),
        cache_folder("b", tokenizer, "train"),
        cache_folder("a", tokenizer, "test"),
        cache_folder("a", other, "train"),
    }
    assert len(names) == 4
    assert cache_folder("a", tokenizer, "train") in names


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(size)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_with_two_markers_puts_one_before_and_one_after():
    stream = make_stream(["w0 w1", "w2"], word_tokenizer(10))
    assert stream.tokens.tolist() == [0, 3, 4, 1, 0, 5, 1]
    assert stream.document(1).tolist() == [0, 5, 1]
    assert Blocks(stream, block_size=7, isolate=True)[0]["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_a_large_vocabulary_takes_wider_ids():
    tokenizer = word_tokenizer(70_000)
    stream = make_stream(["w0 w69999"], tokenizer)
    assert stream.tokens.dtype == np.uint32
    assert stream.tokens.tolist() == [0, 3, 70_002, 1]


def test_the_stream_stays_on_disk(tokenizer, texts, tmp_path):
    stream = tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "s")
    assert isinstance(stream.tokens, np.memmap)
    assert json.loads((tmp_path / "s" / "stream.json").read_text())["dtype"] == "uint16"
