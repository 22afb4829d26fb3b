"""No token lost but the tail, no padding, documents kept apart, and nothing done twice."""

import json
import pickle
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_lm.data import packing
from hf_lm.data.packing import Blocks, cache_folder, collate_blocks, fill_blocks, tokenize_documents
from hf_lm.tokenization.tokenizer import encode_documents

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
    alone = list(Blocks(stream, block_size=block_size, isolate=True))  # ends at the last block
    assert [row["input_ids"].tolist() for row in alone] == batch["input_ids"].tolist()
    assert [row["position_ids"].tolist() for row in alone] == batch["position_ids"].tolist()
    with pytest.raises(IndexError, match=f"block {len(blocks)} of {len(blocks)}"):
        blocks[len(blocks)]
    with pytest.raises(IndexError):
        blocks[-1]


@settings(max_examples=60)
@given(documents=DOCUMENTS, block_size=st.integers(2, 17), epoch=st.integers(1, 3))
def test_each_epoch_cuts_the_documents_in_another_order(tokenizer, documents, block_size, epoch):
    stream = make_stream(documents, tokenizer)
    if stream.total < block_size:
        return
    blocks = Blocks(stream, block_size=block_size, isolate=True)

    def read(blocks):
        return np.concatenate([block["input_ids"].numpy() for block in blocks])

    first = read(blocks)
    blocks.start_epoch(epoch, seed=7)
    order = np.random.default_rng((7, epoch)).permutation(len(stream))
    bodies = [stream.document(i)[:-1] for i in order]  # the end of one is the begin of the next
    expected = np.concatenate([*bodies, stream.tokens[-1:]])
    ids = read(blocks)
    skipped = [s for s in range(stream.total % block_size + 1) if (expected[s : s + len(ids)] == ids).all()]
    assert skipped
    assert len(ids) == len(first)
    again = Blocks(stream, block_size=block_size, isolate=True)
    again.start_epoch(epoch, seed=7)  # a resumed run has the order of its epoch again
    assert [b["position_ids"].tolist() for b in again] == [b["position_ids"].tolist() for b in blocks]
    assert (read(again) == ids).all()
    again.start_epoch(0, seed=7)
    assert (read(again) == first).all()


def test_epochs_and_seeds_differ_in_the_order_of_documents(tokenizer, texts):
    blocks = Blocks(make_stream(texts, tokenizer), block_size=16, isolate=True)
    orders = set()
    for epoch, seed in ((0, 0), (1, 0), (2, 0), (1, 1)):
        blocks.start_epoch(epoch, seed=seed)
        orders.add(tuple(blocks[0]["input_ids"].tolist()))
    assert len(orders) == 4


def test_documents_are_the_same_whatever_is_tokenized_at_a_time(tokenizer, texts, tmp_path, monkeypatch):
    whole = tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "whole", count_words=True)
    monkeypatch.setattr(packing, "BATCH", 200)  # characters: two or three documents
    batches = list(packing.batches(texts))
    assert [text for batch in batches for text in batch] == texts
    assert len(batches) > 10
    parts = tokenize_documents(iter(texts), tokenizer=tokenizer, folder=tmp_path / "parts", count_words=True)
    for name in ("tokens", "starts", "bytes", "words"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert parts.lengths.sum() == parts.total
    assert parts.lengths[:-1].tolist() == [len(parts.document(i)) - 1 for i in range(len(texts) - 1)]
    assert parts.lengths[-1] == len(parts.document(len(texts) - 1))


def test_a_batch_ends_with_the_document_that_fills_it(monkeypatch):
    monkeypatch.setattr(packing, "BATCH", 4)  # characters
    assert list(packing.batches(["abc", "d", "efg", "h", "i"])) == [["abc", "d"], ["efg", "h"], ["i"]]
    assert list(packing.batches(["abcde", "fg", "hi"])) == [["abcde"], ["fg", "hi"]]


def test_reading_ahead_is_one_batch_ahead_and_ends_with_its_reader():
    taken = []

    def batches():
        for i in range(100):
            taken.append(threading.current_thread())
            yield [str(i)]

    ahead = packing._read_ahead(batches())
    assert next(ahead) == ["0"]
    time.sleep(0.05)
    ahead.close()
    for thread in taken:
        assert thread.daemon  # a reader that hangs must not keep a program from ending
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert len(taken) == 2  # one is used, one is ahead
    read = []
    for batch in packing._read_ahead(iter([["a"], ["b"], ["c"], ["d"]])):
        time.sleep(0.25 if not read else 0)  # longer than the thread waits at a time
        read.append(batch)
    assert read == [["a"], ["b"], ["c"], ["d"]]


def test_what_was_mended_and_where_words_were_not_counted_is_kept_with_the_stream(tokenizer, tmp_path):
    cleaned, folder = {}, tmp_path / "a" / "b" / "stream"

    def documents():
        cleaned["web"] = {"nul": 2}  # known only as documents are read
        (aside,) = folder.parent.iterdir()  # on the same disk, where no other run looks for a stream
        assert aside.name.startswith(".")
        yield "one two"

    for given_ in (documents(), ["never read"]):
        stream = tokenize_documents(given_, tokenizer=tokenizer, folder=folder, cleaned=cleaned)
        assert stream.cleaned == {"web": {"nul": 2}}
        assert stream.words.tolist() == [0]
        assert stream.bytes.tolist() == [7]
    assert list(folder.parent.iterdir()) == [folder]


@given(st.lists(st.integers(1, 10), max_size=20))
def test_rows_go_longest_first_into_the_fullest_block_that_has_room(lengths):
    """Best fit decreasing, by a search over all blocks."""
    blocks = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        left = [(10 - sum(lengths[j] for j in block), n) for n, block in enumerate(blocks)]
        fitting = [(room, n) for room, n in left if room >= lengths[i]]
        if fitting:
            blocks[min(fitting)[1]].append(i)
        else:
            blocks.append([i])
    assert fill_blocks(lengths, 10) == blocks
    assert sorted(i for block in blocks for i in block) == list(range(len(lengths)))


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
    from hf_lm.tokenization.tokenizer import train_bpe

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
    stream = make_stream(["w0 w1", "w2"], word_tokenizer(10), count_words=True)
    assert stream.tokens.tolist() == [0, 3, 4, 1, 0, 5, 1]
    assert stream.document(0).tolist() == [0, 3, 4, 1]
    assert stream.document(1).tolist() == [0, 5, 1]
    assert stream.lengths.tolist() == [4, 3]
    taken = stream.take([1, 0, 1])
    assert taken.tokens.tolist() == [0, 5, 1, 0, 3, 4, 1, 0, 5, 1]
    assert taken.starts.tolist() == [0, 3, 7]
    assert taken.bytes.tolist() == [2, 5, 2]
    assert taken.words.tolist() == [1, 2, 1]
    blocks = Blocks(stream, block_size=7, isolate=True)
    assert blocks[0]["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    orders = []
    for epoch in range(1, 9):
        blocks.start_epoch(epoch, seed=0)
        orders.append(blocks[0]["input_ids"].tolist())
    assert {tuple(ids) for ids in orders} == {(0, 3, 4, 1, 0, 5, 1), (0, 5, 1, 0, 3, 4, 1)}  # each has its own end


def test_a_sample_holds_whole_documents_up_to_its_size_and_grows_by_further_ones(stream):
    everything = [stream.document(i).tolist() for i in range(len(stream))]
    assert stream.sample(stream.total) is stream
    smaller = Counter()
    for tokens in (1, 100, 300, 700, stream.total - 1):
        sample = stream.sample(tokens)
        drawn = Counter(map(tuple, (sample.document(i) for i in range(len(sample)))))
        assert len(sample) == packing.SAMPLED or sample.total <= tokens + 1  # and the last marker
        assert smaller <= drawn <= Counter(map(tuple, everything))
        smaller = drawn
    places = [everything.index(sample.document(i).tolist()) for i in range(len(sample))]
    assert places == sorted(places)
    assert len(sample) < len(stream)


def test_ids_take_two_bytes_as_long_as_they_fit():
    for words, kind in ((2**16 - 3, np.uint16), (2**16 - 2, np.uint32)):  # three more are markers
        tokenizer = word_tokenizer(words)
        stream = make_stream([f"w{words - 1}"], tokenizer)
        assert stream.tokens.dtype == kind
        assert stream.tokens.tolist() == [0, words + 2, 1]


def test_a_tokenizer_without_one_of_the_markers_takes_another_it_has():
    tokenizer = word_tokenizer(3)
    tokenizer.bos_token = None
    assert make_stream(["w0"], tokenizer).tokens.tolist() == [1, 3, 1]  # the end's on both sides
    tokenizer.eos_token, tokenizer.sep_token = None, "w2"
    assert make_stream(["w0"], tokenizer).tokens.tolist() == [5, 3, 5]
    tokenizer.sep_token, tokenizer.bos_token = None, "<s>"
    assert make_stream(["w0"], tokenizer).tokens.tolist() == [0, 3, 0]


def test_the_stream_stays_on_disk(tokenizer, texts, tmp_path):
    stream = tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "s")
    assert all(isinstance(some, np.memmap) for some in (stream.tokens, stream.starts, stream.bytes, stream.words))
    with pytest.raises(ValueError, match="read-only"):
        stream.tokens[0] = 1
    assert json.loads((tmp_path / "s" / "stream.json").read_text())["dtype"] == "uint16"


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_worker_that_is_not_forked_opens_the_tokens_itself(tokenizer, tmp_path, epoch):
    texts = [f"document {i} " * 50 for i in range(400)]
    stream = tokenize_documents(texts, tokenizer=tokenizer, folder=tmp_path / "s")
    blocks = Blocks(stream, block_size=16, isolate=True, window=lambda number: stream)
    blocks.window = None
    blocks.start_epoch(epoch, seed=0)
    blocks.window = lambda number: stream  # which cannot be pickled
    sent = pickle.dumps(blocks)
    assert len(sent) < stream.tokens.nbytes / 2
    there = pickle.loads(sent)
    assert len(there) == len(blocks)
    for mine, theirs in zip(blocks, there, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    part = stream.take([0, 1])  # in memory
    assert np.array_equal(pickle.loads(pickle.dumps(part)).tokens, part.tokens)
